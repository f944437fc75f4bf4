"""``asn_transfer`` in pure torch: a few in-place operations."""

from __future__ import annotations

from torch import Tensor

from ...functional.integrate_and_fire import state_dtype
from ..machine.torch_parts import AlwaysRuns
from .operator import Inputs, Outputs, Settings

__all__ = ["TorchImplementation"]


class TorchImplementation(AlwaysRuns):
    """A few in-place torch operations."""

    def forward(self, inputs: Inputs, settings: Settings, checkpoints: Tensor | None, outputs: Outputs) -> None:
        """Fill f."""
        (s,), c = inputs, settings
        coth, _ = _coth(s, c)
        found = coth.mul_(c.half_height).add_(c.offset).clamp_min_(0.0)
        outputs.f.copy_(found.masked_fill_(_wide(s) <= c.cut, 0.0))

    def backward(
        self, inputs: Inputs, settings: Settings, checkpoints: Tensor | None, incoming: Outputs, gradients: Inputs
    ) -> None:
        """Fill the gradient of s: f' = half_height (coth^2 - 1) w^2 / (2 a) with w = a / (s + b)."""
        (s,), c = inputs, settings
        coth, w = _coth(s, c)
        zero = (_wide(s) <= c.cut) | (coth * c.half_height + c.offset < 0.0)
        slope = coth.square_().sub_(1.0).mul_(w.square_()).mul_(0.5 * c.half_height / c.a)
        gradients.s.copy_(slope.masked_fill_(zero, 0.0).mul_(incoming.f))


def _wide(s: Tensor) -> Tensor:
    return s.to(state_dtype(s.dtype))


def _coth(s: Tensor, c: Settings) -> tuple[Tensor, Tensor]:
    """Return coth((r + w) / 2) and w = a / (s + b) in the dtype of the state."""
    w = _wide(s).clamp_min(0.0).add_(c.b).reciprocal_().mul_(c.a)
    return (w + c.r).mul_(0.5).tanh_().reciprocal_(), w
