"""What every implementation of an operator is held to: the definition, to the last bit, and its gradients in float64.

A :class:`Case` is a call of one operator; its subclasses are in ``integrate_and_fire/cases.py`` and ``asn/cases.py``.
``Case.check_all`` is what a planted bug has to get past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from snn_ext import functional, ops
from snn_ext.functional import ATan, Erf, PiecewiseExp, PiecewiseQuadratic, Sigmoid, SoftSign, SuperSpike

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SURROGATES = (
    *(Sigmoid(4.0), ATan(2.0, gain=0.5), PiecewiseQuadratic(1.0), PiecewiseExp(2.0), SoftSign(25.0, gain=0.08)),
    *(SuperSpike(1.5), Erf(2.0)),
)
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2]),
    "batch inside": lambda x: x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3),
    "time inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


class Case:
    """Arguments of one call; what is compared is the same for all operators."""

    outputs: ClassVar[tuple[str, ...]]
    """Names of what a call returns: the sequence, then the states."""
    accuracy: ClassVar[float]
    """Of gradients in float32, relative to the largest."""
    x_seq: Tensor
    """The input."""
    ill_conditioned: ClassVar[bool] = False
    """Gradients may be as far off as those of the definition in the same precision."""

    # -- what a subclass defines -----------------------------------------------------------------------------------

    def run(self, module: Any) -> tuple[Tensor, ...]:
        """Call the operator (of ``ops``) or the definition (of ``functional``); return sequence and states."""
        raise NotImplementedError

    def wide(self) -> Case:
        """Return the same case in float64."""
        raise NotImplementedError

    def leaves(self) -> dict[str, Tensor]:
        """Return everything that may need a gradient, states in full size."""
        raise NotImplementedError

    def with_leaves(self, leaves: dict[str, Tensor]) -> Case:
        """Return the same case with other values for these."""
        raise NotImplementedError

    def term_magnitudes(self, incoming: list[Tensor]) -> dict[str, Tensor]:
        """Return, for gradients that are sums over neurons, the sum of the magnitudes of their terms."""
        return {}

    @staticmethod
    def exact_cases() -> Iterator[Case]:
        """Yield the cases whose outputs are compared."""
        raise NotImplementedError

    @staticmethod
    def gradient_cases() -> Iterator[Case]:
        """Yield the cases whose gradients are compared."""
        raise NotImplementedError

    # -- checks ----------------------------------------------------------------------------------------------------

    def check_exact(self, device: torch.device | str = "cpu") -> None:
        """Outputs are those of the definition, bit for bit."""
        with torch.no_grad():
            found, want = self.run(on(device)), self.run(functional)
        for name, a, b in zip(self.outputs, found, want, strict=False):
            assert a.dtype == b.dtype and a.shape == b.shape, f"{name} of {self}: {a.dtype} {a.shape}"
            same = (a == b) | (a.isnan() & b.isnan())
            assert same.all(), f"{name} of {self}: {int((~same).sum())} of {same.numel()} elements differ"

    def check_gradients(self, device: torch.device | str = "cpu", seed: int = 0) -> None:
        """Gradients are those of the definition in float64, where the spikes agree."""
        dtype, wide = self.x_seq.dtype, self.wide()
        own = self.accuracy
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: own, torch.float64: 1e-12}[dtype]
        with torch.no_grad():
            agree = self.agreeing(self.run(on(device)), wide.run(functional))
        assert agree.double().mean() >= 0.9, f"{self}: spikes of only {agree.double().mean():.2f} of the neurons agree"
        generator = torch.Generator().manual_seed(seed)
        incoming = self.incoming(lambda shape: torch.randn(shape, generator=generator) * agree)
        wide_incoming = [g.double() for g in incoming]
        found, want = self.gradients(on(device), incoming), wide.gradients(functional, wide_incoming)
        terms = _remembered(wide, wide_incoming)
        for name, b in want.items():
            a = found[name].double()
            assert a.shape == b.shape and a.isfinite().all(), f"gradient of {name} of {self}: {a}"
            if name in terms:  # a sum: of many terms that may cancel
                error, limit = (a - b).abs(), min(tolerance, own) * terms[name] + 1e-30
            else:
                narrow = tolerance if a.shape == self.x_seq.shape else min(tolerance, own)
                error, limit = ((a - b) * agree).abs().amax(), narrow * b.abs().amax() + 1e-30
            if self.ill_conditioned and (error > limit).any():
                same_precision = self.gradients(functional, incoming)[name].double()
                off = same_precision - b
                limit = limit.maximum(2 * (off if name in terms else off * agree).abs().amax())
            assert (error <= limit).all(), f"gradient of {name} of {self}: {(error / limit).max():.3g} times the limit"

    def agreeing(self, found: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> Tensor:
        """Return which neurons fire at the same steps."""
        return ((found[0].double() > 0) == (want[0] > 0)).all(0)

    def incoming(self, make: Callable[[torch.Size], Tensor]) -> list[Tensor]:
        """Return gradients of all outputs."""
        shape, state = self.x_seq.shape, functional.state_dtype(self.x_seq.dtype)
        count = len(self.outputs) - 1
        return [make(shape).to(self.x_seq.dtype), *(make(shape[1:]).to(state) for _ in range(count))]

    def gradients(self, module: Any, incoming: list[Tensor]) -> dict[str, Tensor]:
        """Return the gradients of all leaves."""
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in self.leaves().items()}
        outputs = self.with_leaves(leaves).run(module)
        found = torch.autograd.grad(outputs, list(leaves.values()), incoming, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    def run_gradients(self) -> None:
        """Make the calls of :meth:`check_gradients`, and look at no result."""
        self.gradients(ops, self.incoming(torch.zeros))

    @classmethod
    def check_all(cls, device: torch.device | str = "cpu") -> None:
        """Hold the selected implementation to everything."""
        for case in cls.exact_cases():
            case.check_exact(device)
        for case in cls.gradient_cases():
            case.check_gradients(device)

    @classmethod
    def run_all(cls) -> None:
        """Make the calls of :meth:`check_all`, and look at no result."""
        for case in cls.exact_cases():
            with torch.no_grad():
                case.run(ops)
        for case in cls.gradient_cases():
            case.run_gradients()


_magnitudes: dict[tuple[Any, ...], dict[str, Tensor]] = {}


def _remembered(case: Case, incoming: list[Tensor]) -> dict[str, Tensor]:
    """Return ``term_magnitudes``, found once a case: the slowest part of a check, the same for all implementations."""
    key = repr(case), *(hash(t.numpy().tobytes()) for t in (*case.leaves().values(), incoming[-1]))
    if key not in _magnitudes:
        _magnitudes[key] = case.term_magnitudes(incoming)
    return _magnitudes[key]


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

    names = {*ops.__all__} & {*functional.__all__}
    return SimpleNamespace(**{name: moved(getattr(ops, name)) for name in names})


def saved_tensors() -> Any:
    """Return a context manager that yields a list of the tensors that are kept for a backward pass."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    class Hooks(torch.autograd.graph.saved_tensors_hooks):
        def __enter__(self) -> list[Tensor]:
            super().__enter__()
            return saved

    return Hooks(pack, lambda tensor: tensor)


def captured_results(x_seq: Tensor, results: Callable[[], list[Tensor]]) -> None:
    """Capture what gives results from an input on a GPU, and compare replays on other input with calls."""
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
