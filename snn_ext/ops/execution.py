"""What an execution of ``integrate_and_fire`` is: two functions that fill arrays, and the conditions to run."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..functional.integrate_and_fire import Reset

__all__ = ["SEGMENT", "Execution", "Settings", "checkpoint_count"]

SEGMENT = 16
"""Steps between two checkpoints of the potential; the backward pass recomputes a segment from the one before it."""


class Settings(NamedTuple):
    """Everything that is not a tensor."""

    surrogate: int
    alpha: float
    gain: float
    detach_reset: bool
    reset: Reset
    fire_at_threshold: bool


class Execution(Protocol):
    """One way to run the operator.

    All sequences ``[T, N, ...]`` are dense and of one layout, with time outermost, and so are the potentials
    ``[N, ...]``: in memory they are ``[T][N]`` and ``[N]``. ``v`` may also be one element: expanded to its shape, or
    without a dimension, and then its gradient is one element too.
    Potentials, thresholds ``[1]`` or ``[T]`` and ``scale`` of one element are float64 for float64 input, else float32.
    """

    name: str

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it can not run for this device and dtype; None if it can."""

    def forward(
        self,
        x_seq: Tensor,
        v: Tensor,
        thresholds: Tensor,
        scale: Tensor | None,
        settings: Settings,
        *,
        spike_seq: Tensor,
        v_end: Tensor,
        checkpoints: Tensor | None,
    ) -> None:
        """Fill spikes, the final potential and, if wanted, the potential before every ``SEGMENT``-th step but 0."""

    def backward(
        self,
        grad_spike_seq: Tensor | None,
        grad_v_end: Tensor | None,
        x_seq: Tensor,
        v: Tensor,
        thresholds: Tensor,
        scale: Tensor | None,
        checkpoints: Tensor | None,
        settings: Settings,
        *,
        grad_x_seq: Tensor | None,
        grad_v: Tensor | None,
        grad_thresholds: Tensor | None,
        grad_scale: Tensor | None,
    ) -> None:
        """Fill the gradients that are wanted; a missing incoming gradient is zero."""


def checkpoint_count(time_steps: int) -> int:
    """Return how many checkpoints a sequence of T steps has: none up to ``SEGMENT`` steps.

    Examples
    --------
    >>> checkpoint_count(16), checkpoint_count(17), checkpoint_count(33)
    (0, 1, 2)
    """
    return (time_steps - 1) // SEGMENT
