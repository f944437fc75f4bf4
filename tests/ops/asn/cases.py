"""Calls of ``adaptive_spiking`` and ``postsynaptic_potential``, on data on which one kind of mistake shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from snn_ext import functional, ops
from snn_ext.functional import ASNState, PSPState
from tests.ops import harness
from tests.ops.harness import DTYPES, SURROGATES, captured_results

KINDS = ("random", "sixteenths", "ulp", "special")
CONSTANTS = ("one", "dyadic", "no filter", "by neuron")
# Planted in asn/step.h, which the C and CUDA sources share.
STEP_BUGS = {
    ">= for >": ("difference > half ?", "difference >= half ?"),
    "NaN fires": ("difference > half ?", "!(difference <= half) ?"),
    "contracted filter": (
        "(1.0f - c.decay_phi) * n->psc + c.decay_phi * n->s",
        "__builtin_fmaf(c.decay_phi, n->s, (1.0f - c.decay_phi) * n->psc)",
    ),
    "bias after the comparison": ("(bias + n->s) - n->s_hat", "bias + (n->s - n->s_hat)"),
    "threshold of rest in the jump": ("jump = *theta * z;", "jump = c.theta_0 * z;"),
    "adaptation decays before it jumps": (
        "(n->adaptation + c.m_f * jump) * c.decay_gamma",
        "n->adaptation * c.decay_gamma + c.m_f * jump",
    ),
    "refractory response decays late": (
        "difference = (bias + n->s) - n->s_hat;",
        "difference = (bias + n->s) - n->s_hat / c.decay_eta;",
    ),
    "analog input is integrated": ("n->psc = analog_input ? current :", "n->psc = 0 ? current :"),
    "gradient through a detached spike": ("detach_adaptation ? g_z :", "0 ? g_z :"),
    "gradient of the threshold lost": (": g_jump) - 0.5f * g_S;", ": g_jump);"),
    "gradient of the height lost": ("g_jump + g_out : g_jump", "g_jump : g_jump"),
    "analog gradient goes back in time": ("g->psc = analog_input ? 0.0f :", "g->psc = 0 ? 0.0f :"),
}  # fmt: skip


@dataclass(repr=False)
class Case(harness.Case):
    """Arguments of one call; ``height`` "none" is a call of ``postsynaptic_potential``."""

    current_seq: Tensor
    state: tuple[Tensor | float, ...] | None
    bias: Tensor | float | None
    constants: dict[str, Any]
    height: str = "fixed"
    settings: dict[str, Any] = field(default_factory=dict)

    accuracy = 4e-6
    ill_conditioned = True

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what a call returns."""
        return ("output", *(PSPState if self.height == "none" else ASNState)._fields)

    @property
    def x_seq(self) -> Tensor:
        """The input."""
        return self.current_seq

    def run(self, module: Any) -> tuple[Tensor, ...]:
        """Call the operator (of ``ops``) or the definition (of ``functional``)."""
        shared = {"bias": self.bias, "analog_input": self.settings.get("analog_input", False)}
        if self.height == "none":
            constants = {k: v for k, v in self.constants.items() if k in ("tau_beta", "tau_phi", "dt")}
            state = None if self.state is None else PSPState(*self.state[:2])
            out, end = module.postsynaptic_potential(self.current_seq, state, **shared, **constants)
            return out, *end
        state = None if self.state is None else ASNState(*self.state)
        settings = {**shared, **self.constants, **self.settings}
        out, end = module.adaptive_spiking(self.current_seq, state, spike_height=self.height, **settings)
        return out, *end

    def to(self, dtype: torch.dtype) -> Case:
        """Return the same case with everything in one dtype."""

        def change(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) else value

        state = None if self.state is None else tuple(map(change, self.state))
        constants = {name: change(value) for name, value in self.constants.items()}
        return Case(change(self.current_seq), state, change(self.bias), constants, self.height, self.settings)

    def wide(self) -> Case:
        """Return the same case in float64."""
        return self.to(torch.float64)

    def leaves(self) -> dict[str, Tensor]:
        """Return input, bias and states, each in full size."""
        shape, dtype = self.current_seq.shape[1:], functional.state_dtype(self.current_seq.dtype)
        state = self.state or (0.0,) * 4
        parts = {"bias": 0.0 if self.bias is None else self.bias, **dict(zip(self.outputs[1:], state, strict=False))}
        steps = {name: torch.as_tensor(part, dtype=dtype).expand(shape) for name, part in parts.items()}
        return {"current_seq": self.current_seq, **steps}

    def with_leaves(self, leaves: dict[str, Tensor]) -> Case:
        """Return the same case with other values for these."""
        state = [leaves[name] for name in self.outputs[1:]]
        rest = [torch.zeros_like(state[0])] * (4 - len(state))
        return replace(self, current_seq=leaves["current_seq"], bias=leaves["bias"], state=(*state, *rest))

    def agreeing(self, found: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> Tensor:
        """Return which neurons fire at the same steps; without spikes it is all of them."""
        agree = super().agreeing(found, want)
        return torch.ones_like(agree) if self.height == "none" else agree

    def __repr__(self) -> str:
        kind = "no state" if self.state is None else "state"
        return (
            f"Case({list(self.current_seq.shape)}, {self.current_seq.dtype}, {kind}, bias={self.bias is not None}, "
            f"{list(self.constants)}, {self.height}, {self.settings})"
        )

    @staticmethod
    def exact_cases() -> Iterator[Case]:
        """Every kind of data, constants and output, the rest in turn; then lengths and sizes around segments."""
        turns = itertools.cycle(itertools.product((False, True), DTYPES))
        sizes = itertools.cycle(((17, 7), (4, 63), (33, 1), (16, 21)))
        for kind, constants, height in itertools.product(KINDS, CONSTANTS, ("fixed", "adaptive", "none")):
            for _ in range(2):
                analog, dtype = next(turns)
                yield make_case(kind, *next(sizes), dtype, constants=constants, height=height, analog_input=analog)
        for constants, time_steps in itertools.product(("one", "by neuron"), (3, 4)):
            yield make_case("random", time_steps, 2100, constants=constants, height="adaptive")
        yield make_case("random", 300, 40)
        yield make_case("sixteenths", 300, 41, constants="dyadic", analog_input=True)
        yield absorbed_case()

    @staticmethod
    def gradient_cases() -> Iterator[Case]:
        """Every setting, every surrogate, then lengths around a checkpoint and sizes around a block."""
        for height, analog, detach in itertools.product(("fixed", "adaptive"), (False, True), (False, True)):
            for constants in ("one", "by neuron"):
                settings = {"analog_input": analog, "detach_adaptation": detach}
                yield make_case("random", 18, 23, constants=constants, height=height, **settings)
        for surrogate in SURROGATES:
            yield make_case("random", 5, 40, surrogate=surrogate, detach_adaptation=False)
        for time_steps, size in ((1, 1), (2, 50), (16, 7), (17, 8), (40, 9), (3, 2100)):
            yield make_case("random", time_steps, size, detach_adaptation=False, height="adaptive")
            yield make_case(
                "random", time_steps, size, height="none", constants="by neuron", analog_input=size % 2 == 0
            )
        for dtype in (torch.float16, torch.bfloat16):
            yield make_case("random", 17, 64, dtype)


def make_constants(kind: str, size: int) -> dict[str, Any]:
    """Return constants; with the dyadic ones potential and threshold meet exactly."""
    if kind == "one":
        return {}
    halves = {name: 1.4426950408889634 for name in ("tau_gamma", "tau_eta", "tau_beta", "tau_phi")}  # decays of 1/2
    if kind == "dyadic":
        return {"m_f": 0.5, "theta_0": 0.25, **halves}
    if kind == "no filter":
        return {"m_f": 0.03, "tau_phi": 0.0, "dt": 0.5}
    generator = torch.Generator().manual_seed(size)
    spread = 0.5 + torch.rand(7, size, generator=generator)
    times = {name: tau * spread[k] for k, (name, tau) in enumerate((("tau_gamma", 15), ("tau_eta", 50)))}
    return {"m_f": 0.1 * spread[2], "theta_0": 0.2 * spread[3], **times, "tau_beta": 50 * spread[4]}


def make_input(kind: str, time_steps: int, size: int, seed: int = 0) -> Tensor:
    """Return input ``[T, N]`` in float32 on which one kind of mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    shape = (time_steps, size)
    if kind == "random":
        return torch.randn(shape, generator=generator) * 0.3 + 0.1
    if kind == "sixteenths":
        return torch.randint(-6, 9, shape, generator=generator) / 16
    if kind == "ulp":  # with the dyadic constants the first steps are at the threshold, give or take one ulp
        theta = torch.full(shape, 0.125)
        side = torch.randint(-1, 2, shape, generator=generator)
        return torch.where(side == 0, theta, torch.nextafter(theta, theta + side)) * (1 << (seed % 3))
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5, -1.0, 1e-40, 3e38, 0.25])
    return values[torch.randint(len(values), shape, generator=generator)]


def make_case(
    kind: str,
    time_steps: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    *,
    constants: str = "one",
    height: str = "fixed",
    **settings: Any,
) -> Case:
    """Return a case that starts at rest or not, and has a bias or not, by turns."""
    generator = torch.Generator().manual_seed(time_steps + size)
    state: tuple[Tensor | float, ...] | None = None
    if time_steps % 2:
        state = tuple(torch.randint(0, 5, (size,), generator=generator) / 16 for _ in range(4))
    bias = (None, torch.randint(-2, 3, (size,), generator=generator) / 16, 0.0625)[size % 3]
    x_seq = make_input(kind, time_steps, size, time_steps).to(dtype)
    return Case(x_seq, state, bias, make_constants(constants, size), height, settings)


def absorbed_case() -> Case:
    """Return a case in which the bias swallows the input, unless S_hat is subtracted first."""
    constants = {**make_constants("dyadic", 32), "theta_0": 2.0**-26, "tau_phi": 0.0}
    return Case(
        torch.arange(32.0).repeat(2, 1) * 2**-26, (0.0, 0.0, 2.0, 0.0), 1.0, constants, "fixed", {"analog_input": True}
    )


def check_graph(device: torch.device | str, size: int = 10_000) -> None:
    """A captured forward and backward pass gives for new input what an eager one gives."""
    x_seq = torch.randn(20, size, device=device)

    def results() -> list[Tensor]:
        leaf = x_seq.detach().requires_grad_()
        spike_seq, end = ops.adaptive_spiking(leaf, spike_height="adaptive")
        return [spike_seq.detach(), *torch.autograd.grad(spike_seq.square().sum() + end.s_hat.sum(), leaf)]

    captured_results(x_seq, results)
