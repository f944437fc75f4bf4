"""What an execution of ``adaptive_spiking`` is: two functions that fill arrays."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["OUTPUTS", "AdaptiveExecution", "AdaptiveSettings", "Output"]

Output = Literal["spikes", "heights", "potential"]
"""0 and 1; 0 and the threshold; S, without any spike."""

OUTPUTS = {"spikes": 0, "heights": 1, "potential": 2}
"""As in ``adaptive_step.h``."""


class AdaptiveSettings(NamedTuple):
    """Everything that is not a tensor."""

    surrogate: int
    alpha: float
    gain: float
    detach_adaptation: bool
    analog_input: bool
    output: Output


class AdaptiveExecution(Protocol):
    """One way to run the operator.

    The sequences ``[T, N, ...]`` are dense and of one layout, with time outermost; so are bias and the four states
    ``[N, ...]``, which may also be one element: bias and, all together, the states. ``constants`` are ``[6]`` or
    ``[6][N]`` in memory. For the output "potential" the last two states are neither read nor filled.
    States, bias and constants are float64 for float64 input, else float32.
    """

    name: str

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it can not run for this device and dtype; None if it can."""

    def forward(
        self,
        current_seq: Tensor,
        bias: Tensor,
        start: list[Tensor],
        constants: Tensor,
        settings: AdaptiveSettings,
        *,
        out_seq: Tensor,
        end: list[Tensor],
        checkpoints: Tensor | None,
    ) -> None:
        """Fill what is put out, the final states and, if wanted, ``[4, N]`` states before every ``SEGMENT``-th step."""

    def backward(
        self,
        grad_out_seq: Tensor | None,
        grad_end: list[Tensor | None],
        current_seq: Tensor,
        bias: Tensor,
        start: list[Tensor],
        constants: Tensor,
        checkpoints: Tensor | None,
        settings: AdaptiveSettings,
        *,
        grad_current_seq: Tensor | None,
        grad_bias: Tensor | None,
        grad_start: list[Tensor | None],
    ) -> None:
        """Fill the gradients that are wanted, all in full size; a missing incoming gradient is zero."""
