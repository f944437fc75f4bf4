"""``soft_reset_if`` by the selected implementation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .. import functional
from ..functional.soft_reset import Reset
from ..functional.surrogates import Sigmoid, Surrogate
from .selection import implementation

__all__ = ["soft_reset_if"]


def soft_reset_if(
    x_seq: Tensor,
    v: Tensor | float,
    thresholds: Tensor,
    *,
    surrogate: Surrogate | Callable[[Tensor], Tensor] = Sigmoid(4.0),
    detach_reset: bool = False,
    reset: Reset = "subtract",
    fire_at_threshold: bool = True,
    scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Run :func:`snn_ext.functional.soft_reset_if`, bit-equal, by the selected implementation.

    Parameters, results and errors are those of the definition; a forced implementation that can not run raises a
    ``RuntimeError``.

    Examples
    --------
    >>> import torch
    >>> soft_reset_if(torch.full((4, 1), 0.5), 0.0, torch.tensor([1.0]))[0].flatten()
    tensor([0., 1., 0., 1.])
    """
    if isinstance(x_seq, Tensor):
        implementation("soft_reset_if", x_seq.device, x_seq.dtype, surrogate=surrogate)
    return functional.soft_reset_if(
        x_seq,
        v,
        thresholds,
        surrogate=surrogate,
        detach_reset=detach_reset,
        reset=reset,
        fire_at_threshold=fire_at_threshold,
        scale=scale,
    )
