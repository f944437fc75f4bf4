"""What every execution of integrate_and_fire is held to. ``check_all`` is what a planted bug has to get past."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snn_ext import functional, ops
from snn_ext.functional import ATan, Erf, PiecewiseExp, PiecewiseQuadratic, Sigmoid, SoftSign, SuperSpike

STEPS = (1, 2, 4, 15, 16, 17, 33, 255)
SIZES = (1, 7, 63, 500, 1000)
# More than two of the pieces that executions cut the neurons into, and not a multiple: blocks of C, chunks of torch.
BLOCKS, CHUNKS = 8201, 65417
KINDS = ("random", "eighths", "sixteenths", "ulp", "special")
RESETS = ("subtract", "zero", "none")
SURROGATES = (
    *(Sigmoid(4.0), ATan(2.0, gain=0.5), PiecewiseQuadratic(1.0), PiecewiseExp(2.0), SoftSign(25.0, gain=0.08)),
    *(SuperSpike(1.5), Erf(2.0)),
)
# Half way between two numbers of 16 bits: rounds to the even one, here the lower, there the upper.
TIED_SCALES = {torch.float16: (1 + 2.0**-11, 1 + 3 * 2.0**-11), torch.bfloat16: (1 + 2.0**-8, 1 + 3 * 2.0**-8)}


@dataclass
class Case:
    """Arguments of one call."""

    x_seq: Tensor
    v: Tensor | float
    thresholds: Tensor
    scale: Tensor | float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def run(self, function: Any) -> tuple[Tensor, Tensor]:
        """Call the operator or the definition."""
        return function(self.x_seq, self.v, self.thresholds, scale=self.scale, **self.settings)

    def __repr__(self) -> str:
        return (
            f"Case({list(self.x_seq.shape)}, {self.x_seq.dtype}, {len(self.thresholds)} thresholds, scale={self.scale},"
            f" {self.settings})"
        )


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
    theta = thresholds.expand(time_steps).unsqueeze(1).expand(shape)
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


def on(device: torch.device | str) -> Any:
    """Return the operator as a function of tensors on the CPU that runs it on a device."""

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    def operator(x_seq: Tensor, v: Tensor | float, thresholds: Tensor, *, scale: Any, **settings: Any) -> Any:
        outputs = ops.integrate_and_fire(move(x_seq), move(v), move(thresholds), scale=move(scale), **settings)
        return tuple(output.cpu() for output in outputs)

    return operator


def check_exact(case: Case, device: torch.device | str = "cpu") -> None:
    """Spikes and final potential are those of the definition, bit for bit."""
    with torch.no_grad():
        found, want = case.run(on(device)), case.run(functional.integrate_and_fire)
    for name, a, b in zip(("spikes", "potential"), found, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{name} of {case}: {a.dtype} {a.shape}"
        same = (a == b) | (a.isnan() & b.isnan())
        assert same.all(), f"{name} of {case}: {int((~same).sum())} of {same.numel()} elements differ"


def check_gradients(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> None:
    """Gradients are those of the definition in float64, where the spikes agree."""
    generator = torch.Generator().manual_seed(seed)
    dtype, size = case.x_seq.dtype, case.x_seq.shape[1]
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-6, torch.float64: 1e-12}[dtype]
    wide = Case(case.x_seq.double(), case.v, case.thresholds.double(), case.scale, case.settings)
    agree = (case.run(on(device))[0].double() > 0) == (wide.run(functional.integrate_and_fire)[0] > 0)
    agree = agree.all(0)
    assert agree.double().mean() >= 0.9, f"{case}: spikes of only {agree.double().mean():.2f} of the neurons agree"
    g_spikes = (torch.randn(case.x_seq.shape, generator=generator) * agree).to(dtype)
    g_v = torch.randn(size, generator=generator) * agree
    found = _gradients(case, on(device), g_spikes, g_v)
    want = _gradients(wide, functional.integrate_and_fire, g_spikes.double(), g_v.double())
    key = repr(case), *(hash(tensor.numpy().tobytes()) for tensor in (wide.x_seq, wide.thresholds, g_v))
    if key not in _magnitudes:
        _magnitudes[key] = _term_magnitudes(wide, g_spikes.double(), g_v.double())
    terms = _magnitudes[key]
    for name in want:
        a, b = found[name].double(), want[name]
        assert a.shape == b.shape and a.isfinite().all(), f"gradient of {name} of {case}: {a}"
        if name in terms:  # a sum: of many terms that may cancel
            error, limit = (a - b).abs(), min(tolerance, 2e-6) * terms[name] + 1e-30
        else:
            narrow = tolerance if name == "x_seq" else min(tolerance, 2e-6)
            error, limit = (a - b).abs().amax(), narrow * b.abs().amax() + 1e-30
        assert (error <= limit).all(), f"gradient of {name} of {case}: {(error / limit).max():.3g} times the limit"


def _gradients(case: Case, function: Any, g_spikes: Tensor, g_v: Tensor) -> dict[str, Tensor]:
    dtype = functional.state_dtype(case.x_seq.dtype)
    v = torch.as_tensor(case.v, dtype=dtype).expand(case.x_seq.shape[1:])
    leaves = {"x_seq": case.x_seq, "v": v, "thresholds": case.thresholds.to(dtype)}
    if case.scale is not None:
        leaves["scale"] = torch.as_tensor(case.scale, dtype=dtype)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in leaves.items()}
    trained = Case(leaves["x_seq"], leaves["v"], leaves["thresholds"], leaves.get("scale"), case.settings)
    outputs = trained.run(function)
    grads = torch.autograd.grad(outputs, list(leaves.values()), (g_spikes, g_v.to(dtype)), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


_magnitudes: dict[tuple[Any, ...], dict[str, Tensor]] = {}
"""Found once a case: they are the slowest part of a check, and the same for every execution."""


def _term_magnitudes(case: Case, g_spikes: Tensor, g_v: Tensor) -> dict[str, Tensor]:
    """Sum of the magnitudes that are added up in the gradients of thresholds and scale."""
    single = []
    size = case.x_seq.shape[1]
    for n in range(min(size, 64)):  # a sample that stands for all neurons
        v = case.v[n : n + 1] if isinstance(case.v, Tensor) else case.v
        one = Case(case.x_seq[:, n : n + 1], v, case.thresholds.expand(len(case.x_seq)), case.scale, case.settings)
        single.append(_gradients(one, functional.integrate_and_fire, g_spikes[:, n : n + 1], g_v[n : n + 1]))
    magnitudes = torch.stack([s["thresholds"].abs() for s in single]).mean(0) * size
    terms = {"thresholds": magnitudes if len(case.thresholds) > 1 else magnitudes.sum()}
    if case.scale is not None:
        terms["scale"] = (case.run(functional.integrate_and_fire)[0] * g_spikes).abs().sum() / float(case.scale)
    return terms


# -- what is checked ---------------------------------------------------------------------------------------------------


def exact_cases() -> Iterator[Case]:
    """Every length with every size and every kind of data, the settings in turn."""
    turns = itertools.cycle(itertools.product(RESETS, (True, False), (torch.float32, torch.float16, torch.bfloat16)))
    for time_steps, size, kind in itertools.product(STEPS, SIZES, KINDS):
        if time_steps * size <= 40_000:
            reset, at, dtype = next(turns)
            yield make_case(kind, time_steps, size, dtype, reset=reset, fire_at_threshold=at)
    for reset, at, kind in itertools.product(RESETS, (True, False), KINDS):
        yield make_case(kind, 4, 2100, reset=reset, fire_at_threshold=at)
    for time_steps, size in ((4, BLOCKS), (33, BLOCKS), (3, CHUNKS)):
        yield make_case("sixteenths", time_steps, size)


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


def run_all() -> None:
    """Make the calls of :func:`check_all`, and look at no result."""
    for case in exact_cases():
        with torch.no_grad():
            case.run(ops.integrate_and_fire)
    for case in gradient_cases():
        _gradients(case, ops.integrate_and_fire, torch.zeros_like(case.x_seq), torch.zeros(case.x_seq.shape[1]))


def check_all(device: torch.device | str = "cpu") -> None:
    """Hold the selected implementation to everything."""
    for case in exact_cases():
        check_exact(case, device)
    for case in gradient_cases():
        check_gradients(case, device)


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


def captured_results(x_seq: Tensor, results: Callable[[], list[Tensor]]) -> None:
    """Capture what gives results from an input, and compare replays on other input with calls."""
    device = x_seq.device
    results()  # compiles
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        results()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results()
    for seed in range(5):
        x_seq.copy_(torch.randn(x_seq.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        found = [tensor.clone() for tensor in captured]
        assert all(map(torch.equal, found, results())), f"replay {seed} differs from an eager call"


def training_results(x_seq: Tensor) -> list[Tensor]:
    """Return spikes, final potential and gradients of input and threshold, without touching other state."""
    leaves = [x_seq.detach().requires_grad_(), torch.full((1,), 0.75, device=x_seq.device, requires_grad=True)]
    spike_seq, v = ops.integrate_and_fire(leaves[0], 0.25, leaves[1])
    grads = torch.autograd.grad((spike_seq * x_seq.detach()).sum() + v.sum(), leaves)
    return [spike_seq.detach(), v.detach(), *grads]
