"""Fused twins of SpikingJelly's own nodes: the host's class in all but how a sequence is computed.

A twin differs from its host's class by nothing but its methods, so that a node becomes one, and its host's again, by
its ``__class__``. What the operator cannot do is left to the host's own method, call by call.
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from .._counting import counted
from .._errors import describe
from ..functional import Surrogate, as_surrogate
from ..neurons.leak import Leak
from ..ops import integrate_and_fire
from ..ops.recomputed import repeated

__all__ = ["TWINS", "why_not"]

_DTYPES = (torch.float32, torch.float64)
"""Of input; narrower input has a narrow potential in the host, and a wide one in the operator."""
_NARROW = (torch.float16, torch.bfloat16)


def why_not(node: Any) -> str | None:
    """Return why the operator cannot stand in for a node of a class that has a twin; ``None`` if it can."""
    if node.v_reset is not None and node.v_reset != 0:
        return f"v_reset={node.v_reset}: the operator subtracts the threshold (None) or resets to 0"
    for name in ("v_threshold", "tau"):
        if not isinstance(getattr(node, name, 1.0), float | int):
            return f"{name} is {describe(getattr(node, name))}, not a number"
    if getattr(node, "store_v_seq", False):
        return "store_v_seq=True: the operator hands out the last potential only"
    if getattr(node, "_neuron_precision", None) is not None:
        return "a precision of its own, which the host's kernels implement"
    function = node.surrogate_function
    if getattr(function, "spiking", True) is False:
        return "a surrogate with spiking=False: its output is not a spike"
    if not isinstance(as_surrogate(function), Surrogate):
        return f"the surrogate {type(function).__name__}: its gradient is none of the operator's curves"
    return None


class _Sequence:
    """The dynamics of a node over a sequence, by the operator; ``v`` is the first memory."""

    def _fuses(self: Any, x_seq: Tensor, v: Any) -> bool:
        if x_seq.dtype not in _DTYPES or why_not(self) is not None or counted():
            return False
        return isinstance(v, float) or (v.shape == x_seq.shape[1:] and v.dtype == x_seq.dtype)

    def _repeats(self: Any, x_seq: Tensor, v: Any) -> bool:
        """Return True if the host's own steps run now, and again for the backward pass, which keeps the input alone."""
        if x_seq.dtype not in _NARROW or why_not(self) is not None or counted() or not torch.is_grad_enabled():
            return False
        is_traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        return isinstance(v, Tensor) and not is_traced

    def _fused(self: Any, x_seq: Tensor, v: Any) -> tuple[Tensor, Tensor]:
        leak = self._leak()
        return integrate_and_fire(
            x_seq,
            v,
            torch.full((1,), self.v_threshold, dtype=x_seq.dtype, device=x_seq.device),
            surrogate=self.surrogate_function,
            detach_reset=self.detach_reset,
            reset="subtract" if self.v_reset is None else "zero",
            decay=leak.decay,
            charge=leak.charge,
        )

    def _leak(self: Any) -> Leak:
        return Leak()


class _LeakySequence(_Sequence):
    def _leak(self: Any) -> Leak:
        return Leak(self.tau, "tau_input" if self.decay_input else "tau")


class _ParametricSequence(_Sequence):
    def _leak(self: Any) -> Leak:
        return Leak(self.w.sigmoid(), "rate_input" if self.decay_input else "rate")


class _FusedNode(_Sequence):
    """Both ways of a ``BaseNode`` to run a sequence."""

    def multi_step_functional_forward(
        self: Any, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        if self._fuses(inputs[0], states[0]):
            spike_seq, v = self._fused(inputs[0], states[0])
            return (spike_seq,), (v,)
        host: Any = super().multi_step_functional_forward  # type: ignore[misc]
        if not self._repeats(inputs[0], states[0]):
            found: Any = host(inputs, states, **kwargs)
            return found

        def run(x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            (spike_seq,), (v,) = host((x_seq,), (v,), **kwargs)
            return spike_seq, v

        spike_seq, v = repeated(run, inputs[0], states[0], *self.parameters())
        return (spike_seq,), (v,)

    def multi_step_forward(self: Any, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        start = self._memories["v"]
        if not isinstance(start, float) or not self._fuses(x_seq, start):
            return super().multi_step_forward(x_seq, *args, **kwargs)  # type: ignore[misc]
        spike_seq, self.v = self._fused(x_seq, start)  # one number for all neurons: no tensor of it is made
        return spike_seq


class _FusedSimpleNode(_Sequence):
    """The one way of a ``SimpleBaseNode`` to run a sequence."""

    def multi_step_forward(self: Any, x_seq: Tensor) -> Tensor:
        if not self._fuses(x_seq, self.v):
            found: Tensor = super().multi_step_forward(x_seq)  # type: ignore[misc]
            return found
        spike_seq, self.v = self._fused(x_seq, self.v)
        return spike_seq


class FusedIFNode(_FusedNode, neuron.IFNode):
    """``IFNode`` by the fused operator."""

    twin_of = neuron.IFNode


class FusedHalfThresholdIFNode(_FusedNode, neuron.HalfThresholdIFNode):
    """``HalfThresholdIFNode`` by the fused operator."""

    twin_of = neuron.HalfThresholdIFNode


class FusedLIFNode(_LeakySequence, _FusedNode, neuron.LIFNode):
    """``LIFNode`` by the fused operator."""

    twin_of = neuron.LIFNode


class FusedParametricLIFNode(_ParametricSequence, _FusedNode, neuron.ParametricLIFNode):
    """``ParametricLIFNode`` by the fused operator."""

    twin_of = neuron.ParametricLIFNode


class FusedSimpleIFNode(_FusedSimpleNode, neuron.SimpleIFNode):
    """``SimpleIFNode`` by the fused operator."""

    twin_of = neuron.SimpleIFNode


class FusedSimpleLIFNode(_LeakySequence, _FusedSimpleNode, neuron.SimpleLIFNode):
    """``SimpleLIFNode`` by the fused operator."""

    twin_of = neuron.SimpleLIFNode


TWINS: dict[type, type] = {
    twin.twin_of: twin
    for twin in (
        *(FusedIFNode, FusedHalfThresholdIFNode, FusedLIFNode, FusedParametricLIFNode),
        *(FusedSimpleIFNode, FusedSimpleLIFNode),
    )
}
"""The twin of each class of the host that has one."""
