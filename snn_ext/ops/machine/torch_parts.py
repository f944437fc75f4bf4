"""Parts that the implementations in torch share: their base, neurons in chunks, and surrogates in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...functional.surrogates import ATan, PiecewiseExp, PiecewiseQuadratic, Sigmoid, SoftSign, SuperSpike

__all__ = ["AlwaysRuns", "chunk_size", "surrogate_in_place"]

# Neurons at a time: fewer than those for which torch forks threads (32768), as beside a busy neighbour every fork and
# join may wait for it. Where there are very many, large chunks make forks rare, and two threads are worth them.
_CHUNK, _LARGE_CHUNK = 32704, 262144
_LOG2_E = 1.4426950408889634


class AlwaysRuns:
    """Base of the implementations in torch."""

    name = "torch"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return None: it always runs."""
        return None


def chunk_size(v: Tensor) -> int:
    """Return the number of neurons at a time; other devices than the CPU get them in one piece."""
    if v.device.type != "cpu":
        return len(v)
    return min(len(v), _CHUNK if len(v) < 4 * _LARGE_CHUNK else _LARGE_CHUNK)


def surrogate_in_place(u: Tensor, curve: int, alpha: float, gain: float) -> Tensor:
    """Replace u by the surrogate's derivative: :mod:`snn_ext.functional.surrogates`, in place."""
    # exp2 and sigmoid instead of exp: torch forks threads for an exp of more than 2048 elements.
    match curve:
        case Sigmoid.id:  # s (1 - s) = q - q^2 with q the smaller of s and 1 - s
            u.abs_().mul_(-alpha).sigmoid_().addcmul_(u, u, value=-1.0)
            factor = alpha
        case ATan.id:
            u.mul_(math.pi / 2 * alpha).square_().add_(1.0).reciprocal_()
            factor = alpha / 2
        case PiecewiseQuadratic.id:
            u.abs_().mul_(-alpha).add_(1.0).clamp_min_(0.0)
            factor = alpha
        case PiecewiseExp.id:
            u.abs_().mul_(-alpha * _LOG2_E).exp2_()
            factor = alpha / 2
        case SoftSign.id:
            u.abs_().mul_(alpha).add_(1.0).square_().reciprocal_()
            factor = alpha / 2
        case SuperSpike.id:
            u.abs_().add_(1.0).square_().reciprocal_()
            factor = alpha
        case _:
            u.square_().mul_(-alpha * alpha * _LOG2_E).exp2_()
            factor = alpha / math.sqrt(math.pi)
    return u.mul_(factor * gain)
