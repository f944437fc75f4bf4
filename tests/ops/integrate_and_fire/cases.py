"""Calls of ``integrate_and_fire``, on data on which one kind of mistake shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from snn_ext import functional, ops
from tests.ops import harness
from tests.ops.harness import SURROGATES, captured_results

STEPS = (1, 2, 4, 15, 16, 17, 33, 255)
SIZES = (1, 7, 63, 500, 1000)
# More than two of the pieces that neurons are cut into, and not a multiple: blocks of C, chunks of torch.
BLOCKS, CHUNKS = 8201, 65417
KINDS = ("random", "eighths", "sixteenths", "ulp", "special")
RESETS = ("subtract", "zero", "none")
CHARGES = ("tau", "tau_input", "rate", "rate_input", "beta")
# Half way between two numbers of 16 bits: rounds to the even one, here the lower, there the upper.
TIED_SCALES = {torch.float16: (1 + 2.0**-11, 1 + 3 * 2.0**-11), torch.bfloat16: (1 + 2.0**-8, 1 + 3 * 2.0**-8)}


@dataclass(repr=False)
class Case(harness.Case):
    """Arguments of one call."""

    x_seq: Tensor
    v: Tensor | float
    thresholds: Tensor
    scale: Tensor | float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    decay: Tensor | float | None = None
    norm: tuple[Tensor, Tensor, Tensor] | None = None

    outputs = ("spikes", "potential")
    accuracy = 2e-6

    @property
    def ill_conditioned(self) -> bool:
        """True with a norm: its one rounding is magnified by the slope of the surrogate's derivative."""
        return self.norm is not None

    def run(self, module: Any) -> tuple[Tensor, Tensor]:
        """Call the operator or the definition."""
        tensors = self.x_seq, self.v, self.thresholds
        return module.integrate_and_fire(*tensors, scale=self.scale, decay=self.decay, norm=self.norm, **self.settings)

    def wide(self) -> Case:
        """Return the same case in float64."""
        return replace(self, x_seq=self.x_seq.double(), thresholds=self.thresholds.double())

    def leaves(self) -> dict[str, Tensor]:
        """Return everything that may need a gradient, the potential in full size."""
        dtype = functional.state_dtype(self.x_seq.dtype)
        v = torch.as_tensor(self.v, dtype=dtype).expand(self.x_seq.shape[1:])
        found = {"x_seq": self.x_seq, "v": v, "thresholds": self.thresholds.to(dtype)}
        given = {"scale": self.scale, "decay": self.decay}
        if self.norm is not None:
            given |= {"gain": self.norm[1], "shift": self.norm[2]}
        return found | {name: torch.as_tensor(value, dtype=dtype) for name, value in given.items() if value is not None}

    def with_leaves(self, leaves: dict[str, Tensor]) -> Case:
        """Return the same case with other values for these."""
        own = {name: value for name, value in leaves.items() if name not in ("gain", "shift")}
        norm = None if self.norm is None else (self.norm[0], leaves["gain"], leaves["shift"])
        return replace(self, **own, norm=norm)

    def term_magnitudes(self, incoming: list[Tensor]) -> dict[str, Tensor]:
        """Sum of the magnitudes that are added up in the gradients of thresholds, scale and one decay."""
        single, (g_spikes, g_v) = [], incoming
        size = self.x_seq.shape[1]
        for n in range(min(size, 64)):  # a sample that stands for all neurons
            v = self.v[n : n + 1] if isinstance(self.v, Tensor) else self.v
            own = self.thresholds.ndim > 1
            thresholds = self.thresholds[:, n : n + 1] if own else self.thresholds.expand(len(self.x_seq))
            decay = self.decay[n : n + 1] if isinstance(self.decay, Tensor) else self.decay
            one = replace(self, x_seq=self.x_seq[:, n : n + 1], v=v, thresholds=thresholds, decay=decay)
            single.append(one.gradients(functional, [g_spikes[:, n : n + 1], g_v[n : n + 1]]))
        terms = {}
        if self.thresholds.ndim == 1:
            magnitudes = torch.stack([s["thresholds"].abs() for s in single]).mean(0) * size
            terms["thresholds"] = magnitudes if len(self.thresholds) > 1 else magnitudes.sum()
        if self.scale is not None:
            terms["scale"] = (self.run(functional)[0] * g_spikes).abs().sum() / float(self.scale)
        if isinstance(self.decay, float):
            terms["decay"] = torch.stack([s["decay"].abs() for s in single]).mean(0) * size
        if self.norm is not None:
            terms |= {name: torch.stack([s[name].abs() for s in single]).sum() for name in ("gain", "shift")}
        return terms

    def __repr__(self) -> str:
        decay = self.decay if self.decay is None or isinstance(self.decay, float) else "each"
        return (
            f"Case({list(self.x_seq.shape)}, {self.x_seq.dtype}, thresholds {list(self.thresholds.shape)}, "
            f"scale={self.scale}, {self.settings}, decay={decay}, norm={self.norm is not None})"
        )

    @staticmethod
    def exact_cases() -> Iterator[Case]:
        """Every length with every size and every kind of data, the settings in turn."""
        turns = itertools.cycle(
            itertools.product(RESETS, (True, False), (torch.float32, torch.float16, torch.bfloat16))
        )
        for time_steps, size, kind in itertools.product(STEPS, SIZES, KINDS):
            if time_steps * size <= 40_000:
                reset, at, dtype = next(turns)
                yield make_case(kind, time_steps, size, dtype, reset=reset, fire_at_threshold=at)
        for reset, at, kind in itertools.product(RESETS, (True, False), KINDS):
            yield make_case(kind, 4, 2100, reset=reset, fire_at_threshold=at)
        for time_steps, size in ((4, BLOCKS), (33, BLOCKS), (3, CHUNKS)):
            yield make_case("sixteenths", time_steps, size)
        sizes = itertools.cycle(((4, 63), (17, 7), (16, 500), (33, 24)))
        for kind, charge, reset, each in itertools.product(KINDS, CHARGES, RESETS, (False, True)):
            at, dtype = next(turns)[1:]
            yield leaky_case(kind, *next(sizes), dtype, charge=charge, each=each, reset=reset, fire_at_threshold=at)
        for kind, each, at in itertools.product(KINDS, (False, True), (False, True)):
            yield leaky_case(kind, *next(sizes), each=each, reset="delayed", detach_reset=True, fire_at_threshold=at)
        yield leaky_case("random", 33, BLOCKS, charge="tau_input")
        for kind, reset, at in itertools.product(KINDS, RESETS, (True, False)):
            dtype = next(turns)[2]
            yield own_thresholds(kind, make_case(kind, *next(sizes), dtype, reset=reset, fire_at_threshold=at))
        for kind, at in itertools.product(KINDS, (True, False)):
            leak = {"reset": "delayed", "detach_reset": True, "fire_at_threshold": at}
            yield own_thresholds(kind, leaky_case(kind, *next(sizes), each=at, **leak))
        yield own_thresholds("sixteenths", make_case("sixteenths", 4, BLOCKS))
        yield own_thresholds("sixteenths", make_case("sixteenths", 3, CHUNKS))
        shapes = itertools.cycle(((1, False), (7, False), (7, True), (21, False), (63, True)))
        for kind, reset, at in itertools.product(KINDS, RESETS, (True, False)):
            case = make_case(kind, next(sizes)[0], 63, next(turns)[2], reset=reset, fire_at_threshold=at)
            yield normed(case, *next(shapes))
            yield normed(leaky_case(kind, 4, 63, charge="tau_input", reset=reset, fire_at_threshold=at), *next(shapes))
        for channels, last in ((3, False), (2187, False), (2187, True), (27, True)):
            yield normed(make_case("random", 4, 3 * 6561), channels, last)

    @staticmethod
    def gradient_cases() -> Iterator[Case]:
        """Every surrogate with every reset, then lengths around a checkpoint and sizes around a block."""
        for surrogate, reset, detach in itertools.product(SURROGATES, RESETS, (False, True)):
            yield make_case("random", 4, 23, surrogate=surrogate, reset=reset, detach_reset=detach)
        for time_steps, size in ((1, 1), (2, 500), (15, 7), (16, 7), (17, 7), (33, 64), (48, 7), (4, 2100)):
            yield make_case("random", time_steps, size)
            yield make_case("eighths", time_steps, size, fire_at_threshold=False)
        for dtype, time_steps in itertools.product((torch.float16, torch.bfloat16), (4, 17)):
            yield make_case("random", time_steps, 64, dtype)
        for time_steps, size in ((4, BLOCKS), (33, BLOCKS), (18, CHUNKS)):
            yield make_case("random", time_steps, size)
        sizes = itertools.cycle(((4, 63), (17, 7), (33, 24), (4, 2100)))
        for charge, reset, each in itertools.product(CHARGES, RESETS, (False, True)):
            yield leaky_case("random", *next(sizes), charge=charge, each=each, reset=reset, detach_reset=not each)
        for time_steps, each in itertools.product((4, 33), (False, True)):
            yield leaky_case("random", time_steps, 63, each=each, reset="delayed", detach_reset=True)
        yield leaky_case("random", 17, 64, torch.bfloat16, charge="rate_input", each=True)
        yield leaky_case("random", 18, BLOCKS, charge="tau")
        for surrogate, reset, detach in zip(SURROGATES, itertools.cycle(RESETS), itertools.cycle((False, True))):
            options = {"surrogate": surrogate, "reset": reset, "detach_reset": detach}
            yield own_thresholds("random", make_case("random", *next(sizes), **options))
        yield own_thresholds("random", leaky_case("random", 17, 63, reset="delayed", detach_reset=True))
        yield own_thresholds("random", leaky_case("random", 4, 64, torch.float16, charge="tau_input", each=True))
        yield own_thresholds("random", make_case("random", 18, BLOCKS))
        yield own_thresholds("random", make_case("random", 4, CHUNKS))
        for (channels, last), surrogate in zip(
            ((1, False), (7, False), (7, True), (21, False), (63, True)), SURROGATES, strict=False
        ):
            yield normed(make_case("random", *next(sizes)[:1], 63, surrogate=surrogate), channels, last)
            yield normed(leaky_case("random", 17, 63, charge="rate_input", each=last), channels, last)
        yield normed(make_case("random", 4, 64, torch.bfloat16), 8, False)
        for channels, last in ((3, False), (27, True)):
            yield normed(make_case("random", 4, 3 * 6561), channels, last)


def make_input(kind: str, time_steps: int, size: int, thresholds: Tensor, seed: int = 0) -> Tensor:
    """Return input ``[T, N]`` in float32 on which one kind of mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    shape = (time_steps, size)
    if kind == "random":
        return torch.randn(shape, generator=generator) * 0.8 + 0.3
    if kind == "eighths":
        return torch.randint(-8, 17, shape, generator=generator) / 8
    if kind == "sixteenths":
        return torch.randint(-10, 21, shape, generator=generator) / 16
    theta = (thresholds if thresholds.ndim > 1 else thresholds.unsqueeze(1)).expand(shape)
    side = torch.randint(-1, 2, shape, generator=generator)
    near = torch.where(side == 0, theta, torch.nextafter(theta, theta + side))
    if kind == "ulp":
        return near
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5, 1.0, -1e-40, 3e38])
    return values[torch.randint(len(values), shape, generator=generator)]


def make_case(kind: str, time_steps: int, size: int, dtype: torch.dtype = torch.float32, **settings: Any) -> Case:
    """Return a case whose thresholds alternate between one and one per step, with and without scale."""
    odd = (time_steps + size) % 2
    generator = torch.Generator().manual_seed(size)
    thresholds = torch.randint(4, 13, (time_steps if odd else 1,), generator=generator) / 8
    v = 0.25 if time_steps % 2 else torch.randint(-4, 5, (size,), generator=generator) / 8
    scale = TIED_SCALES.get(dtype, (0.7, 1.5))[time_steps % 2] if size % 3 else None
    return Case(make_input(kind, time_steps, size, thresholds).to(dtype), v, thresholds, scale, settings)


def leaky_case(
    kind: str,
    time_steps: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    *,
    charge: str = "beta",
    each: bool = False,
    **settings: Any,
) -> Case:
    """Return a case with a leak, with one decay or one for each neuron; none of them is dyadic."""
    generator = torch.Generator().manual_seed(size + time_steps)
    rate = torch.rand(size, generator=generator) * 0.8 + 0.1 if each else 0.3
    case = make_case(kind, time_steps, size, dtype, charge=charge, **settings)
    return replace(case, decay=1.0 / rate if charge.startswith("tau") else rate)


def own_thresholds(kind: str, case: Case) -> Case:
    """Return a case with a threshold for each neuron, and input of a kind that goes with them."""
    time_steps, size = case.x_seq.shape
    thresholds = torch.randint(4, 13, (1, size), generator=torch.Generator().manual_seed(1)) / 8
    x_seq = make_input(kind, time_steps, size, thresholds).to(case.x_seq.dtype)
    return replace(case, thresholds=thresholds, x_seq=x_seq)


def normed(case: Case, channels: int, last: bool = False) -> Case:
    """Return a case behind a norm of channels, which are the last in memory or not; nothing of it is dyadic."""
    time_steps, size = case.x_seq.shape
    batch = 3 if size // channels % 3 == 0 else 1
    shape = (batch, channels, size // channels // batch)

    def of_shape(values: Any) -> Any:
        if not isinstance(values, Tensor) or values.shape[-1] != size or values.ndim == 1 and size == 1:
            return values
        values = values.reshape(*values.shape[:-1], *shape)
        return values.transpose(-1, -2).contiguous().transpose(-1, -2) if last else values

    generator = torch.Generator().manual_seed(channels)
    center, gain, shift = torch.rand(3, channels, generator=generator).unbind()
    parts = {name: of_shape(getattr(case, name)) for name in ("x_seq", "v", "decay", "thresholds")}
    return replace(case, **parts, norm=(center, 1.5 - gain, shift))


# -- what only a GPU can show ------------------------------------------------------------------------------------------


def check_reproducible(device: torch.device | str, size: int = 3_000_001, rounds: int = 20) -> None:
    """The same input gives the same bits, threshold's gradient included, whatever the order of the blocks."""
    for time_steps, count in ((4, 1), (4, 4), (20, 20)):
        generator = torch.Generator().manual_seed(time_steps)
        x_seq = torch.randn(time_steps, size // time_steps, generator=generator).to(device).requires_grad_()
        leaves = [x_seq, torch.ones(count, device=device, requires_grad=True)]
        weight = torch.randn(x_seq.shape, generator=generator).to(device)
        first = None
        for _ in range(rounds):
            found = torch.autograd.grad(ops.integrate_and_fire(leaves[0], 0.25, leaves[1])[0], leaves, weight)
            first = first or found
            assert all(map(torch.equal, found, first)), f"{time_steps} steps, {count} thresholds: other bits"


def check_side_stream(device: torch.device | str, size: int = 1_000_000) -> None:
    """A launch on a side stream waits for what was queued there before it."""
    x_seq = torch.randint(-8, 17, (4, size), generator=torch.Generator().manual_seed(0)).to(device) / 8
    want = training_results(x_seq)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        shifted = x_seq.clone()
        for _ in range(200):
            shifted += 1.0
        found = training_results(shifted - 200.0)  # eighths: every one of these sums is exact
    torch.cuda.current_stream(device).wait_stream(stream)
    assert all(map(torch.equal, found, want))


def check_graph(device: torch.device | str, size: int = 100_000) -> None:
    """A captured forward and backward pass gives for new input what an eager one gives; replayed again and again."""
    x_seq = torch.randn(4, size, device=device)
    captured_results(x_seq, lambda: training_results(x_seq))


def training_results(x_seq: Tensor) -> list[Tensor]:
    """Return spikes, final potential and gradients of input and threshold, without touching other state."""
    leaves = [x_seq.detach().requires_grad_(), torch.full((1,), 0.75, device=x_seq.device, requires_grad=True)]
    spike_seq, v = ops.integrate_and_fire(leaves[0], 0.25, leaves[1])
    grads = torch.autograd.grad((spike_seq * x_seq.detach()).sum() + v.sum(), leaves)
    return [spike_seq.detach(), v.detach(), *grads]
