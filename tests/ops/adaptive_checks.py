"""What every execution of adaptive_spiking is held to. ``check_all`` is what a planted bug has to get past."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from snn_ext import functional, ops
from snn_ext.functional import ASNState, PSPState
from tests.ops.checks import SURROGATES, captured_results

KINDS = ("random", "sixteenths", "ulp", "special")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CONSTANTS = ("one", "dyadic", "no filter", "by neuron")
# Planted in adaptive_step.h, which the kernels for the CPU and for CUDA share.
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


@dataclass
class Case:
    """Arguments of one call; ``height`` "none" is a call of ``postsynaptic_potential``."""

    current_seq: Tensor
    state: tuple[Tensor | float, ...] | None
    bias: Tensor | float | None
    constants: dict[str, Any]
    height: str = "fixed"
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, module: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Call the operator (of ``ops``) or the definition (of ``functional``)."""
        shared = {"bias": self.bias, "analog_input": self.settings.get("analog_input", False)}
        if self.height == "none":
            constants = {k: v for k, v in self.constants.items() if k in ("tau_beta", "tau_phi", "dt")}
            state = None if self.state is None else PSPState(*self.state[:2])
            return module.postsynaptic_potential(self.current_seq, state, **shared, **constants)
        state = None if self.state is None else ASNState(*self.state)
        settings = {**shared, **self.constants, **self.settings}
        return module.adaptive_spiking(self.current_seq, state, spike_height=self.height, **settings)

    def to(self, dtype: torch.dtype) -> Case:
        """Return the same case with everything in one dtype."""

        def change(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) else value

        state = None if self.state is None else tuple(map(change, self.state))
        constants = {name: change(value) for name, value in self.constants.items()}
        return Case(change(self.current_seq), state, change(self.bias), constants, self.height, self.settings)

    def __repr__(self) -> str:
        kind = "no state" if self.state is None else "state"
        return (
            f"Case({list(self.current_seq.shape)}, {self.current_seq.dtype}, {kind}, bias={self.bias is not None}, "
            f"{list(self.constants)}, {self.height}, {self.settings})"
        )


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


def on(device: torch.device | str) -> Any:
    """Return the operators as functions of tensors on the CPU that run them on a device."""

    def move(value: Any, to: torch.device | str) -> Any:
        if isinstance(value, tuple):
            parts = [move(part, to) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value.to(to) if isinstance(value, Tensor) else value

    def moved(operator: Any) -> Any:
        def run(*arguments: Any, **keywords: Any) -> Any:
            keywords = {name: move(value, device) for name, value in keywords.items()}
            return move(operator(*(move(value, device) for value in arguments), **keywords), "cpu")

        return run

    return SimpleNamespace(
        adaptive_spiking=moved(ops.adaptive_spiking), postsynaptic_potential=moved(ops.postsynaptic_potential)
    )


def check_exact(case: Case, device: torch.device | str = "cpu") -> None:
    """Spikes (or heights, or potential) and final states are those of the definition, bit for bit."""
    with torch.no_grad():
        (found, found_state), (want, want_state) = case.run(on(device)), case.run(functional)
    names = ("output", *want_state._fields)
    for name, a, b in zip(names, (found, *found_state), (want, *want_state), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{name} of {case}: {a.dtype} {a.shape}"
        same = (a == b) | (a.isnan() & b.isnan())
        assert same.all(), f"{name} of {case}: {int((~same).sum())} of {same.numel()} elements differ"


def check_gradients(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> None:
    """Gradients are those of the definition in float64, where the spikes agree."""
    dtype = case.current_seq.dtype
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 4e-6, torch.float64: 1e-12}[dtype]
    wide = case.to(torch.float64)
    with torch.no_grad():
        agree = ((case.run(on(device))[0].double() > 0) == (wide.run(functional)[0] > 0)).all(0)
    if case.height == "none":
        agree = torch.ones_like(agree)
    assert agree.double().mean() >= 0.9, f"{case}: spikes of only {agree.double().mean():.2f} of the neurons agree"
    generator = torch.Generator().manual_seed(seed)
    count = 2 if case.height == "none" else 4
    incoming = [torch.randn(case.current_seq.shape, generator=generator) * agree]
    incoming += [torch.randn(case.current_seq.shape[1:], generator=generator) * agree for _ in range(count)]
    incoming[0] = incoming[0].to(dtype)
    found, want = gradients(case, on(device), incoming), gradients(wide, functional, [g.double() for g in incoming])
    names = ("current_seq", "bias", *ASNState._fields)
    for name, a, b in zip(names, found, want, strict=False):
        assert a.shape == b.shape and a.isfinite().all(), f"gradient of {name} of {case}: {a}"
        limit = (tolerance if name == "current_seq" else min(tolerance, 4e-6)) * b.abs().amax() + 1e-30
        error = ((a.double() - b) * agree).abs().amax()
        if error > limit:  # the gradient may be ill-conditioned: as far off as the definition is in the same precision
            own = dict(zip(names, gradients(case, functional, incoming), strict=False))[name]
            limit = limit.maximum(2 * ((own.double() - b) * agree).abs().amax())
        assert error <= limit, f"gradient of {name} of {case}: {error / limit:.3g} times the limit"


def gradients(case: Case, module: Any, incoming: list[Tensor]) -> list[Tensor]:
    """Return the gradients of input, bias and states, each of full size."""
    shape, dtype = case.current_seq.shape[1:], functional.state_dtype(case.current_seq.dtype)
    count = len(incoming) - 1
    parts = [0.0 if case.bias is None else case.bias, *(case.state or (0.0,) * 4)[:count]]
    steps = [torch.as_tensor(part, dtype=dtype).expand(shape).clone().requires_grad_() for part in parts]
    x_seq = case.current_seq.detach().clone().requires_grad_()
    rest = [torch.zeros(shape, dtype=dtype)] * (4 - count)
    leaf = Case(x_seq, (*steps[1:], *rest), steps[0], case.constants, case.height, case.settings)
    out, end = leaf.run(module)
    incoming = [incoming[0], *(g.to(dtype) for g in incoming[1:])]
    return list(torch.autograd.grad([out, *end], [x_seq, *steps], incoming, materialize_grads=True))


# -- what is checked ---------------------------------------------------------------------------------------------------


def exact_cases() -> Iterator[Case]:
    """Every kind of data, constants and output, the rest in turn; then lengths and sizes around segments and blocks."""
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
        yield make_case("random", time_steps, size, height="none", constants="by neuron", analog_input=size % 2 == 0)
    for dtype in (torch.float16, torch.bfloat16):
        yield make_case("random", 17, 64, dtype)


def check_graph(device: torch.device | str, size: int = 10_000) -> None:
    """A captured forward and backward pass gives for new input what an eager one gives."""
    x_seq = torch.randn(20, size, device=device)

    def results() -> list[Tensor]:
        leaf = x_seq.detach().requires_grad_()
        spike_seq, end = ops.adaptive_spiking(leaf, spike_height="adaptive")
        return [spike_seq.detach(), *torch.autograd.grad(spike_seq.square().sum() + end.s_hat.sum(), leaf)]

    captured_results(x_seq, results)


def run_all() -> None:
    """Make the calls of :func:`check_all`, and look at no result."""
    for case in exact_cases():
        with torch.no_grad():
            case.run(ops)
    for case in gradient_cases():
        run_gradients(case)


def run_gradients(case: Case) -> None:
    """Make the calls of :func:`check_gradients`, and look at no result."""
    count = 2 if case.height == "none" else 4
    step, dtype = case.current_seq.shape[1:], functional.state_dtype(case.current_seq.dtype)
    gradients(case, ops, [torch.zeros_like(case.current_seq), *(torch.zeros(step, dtype=dtype) for _ in range(count))])


def check_all(device: torch.device | str = "cpu") -> None:
    """Hold the selected implementation to everything."""
    for case in exact_cases():
        check_exact(case, device)
    for case in gradient_cases():
        check_gradients(case, device)
