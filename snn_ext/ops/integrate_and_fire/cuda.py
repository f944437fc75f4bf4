"""``integrate_and_fire`` on NVIDIA GPUs: how neurons are spread over threads and blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..machine.cuda import CudaMachine
from ..sequence import SEGMENT

__all__ = ["CudaImplementation"]

# The backward kernel is launched with as many blocks as run at the same time, and these share the neurons: fewer
# partial sums to add up, and no half empty last wave. With few steps a thread has few loads in flight.
_RESIDENT_BLOCKS = {1: 8, 2: 8, 3: 6}  # a multiprocessor, by time steps; else 4


class CudaImplementation(CudaMachine):
    """``cuda.cu``: the backward pass adds up the gradients of all that is not one for each neuron."""

    def widest(self, backward: bool, time_steps: int, element_size: int) -> int:
        """Return how many neurons a thread takes at most; backward keeps the charges in registers."""
        most = 16 // element_size
        if backward:
            return min(most, 8 if time_steps <= 4 else 4 if time_steps <= 8 else 2)
        return most if time_steps <= SEGMENT else min(most, 4)

    def width(self, backward: bool, inputs: Any, others: tuple[Tensor | None, ...]) -> int:
        """Return how many neurons a thread takes; at most 4 backward with a leak or a norm, for the registers."""
        width = super().width(backward, inputs, others)
        return min(width, 4) if backward and not (inputs.decay is None and inputs.norm_gain is None) else width

    def grid(self, backward: bool, inputs: Any, gradients: Any, width: int) -> tuple[int, Tensor | None]:
        """Return the number of blocks and, if sums are wanted, a counter of blocks and a column of sums for each."""
        grid, sums = super().grid(backward, inputs, gradients, width)
        if backward:
            device, time_steps = inputs.x_seq.device, len(inputs.x_seq)
            resident = _RESIDENT_BLOCKS.get(time_steps, 4) * self._loader.multiprocessors(device)
            grid = min(grid, resident)
            of_one = [g is not None and g.dim() == 0 for g in (gradients.v, gradients.decay)]
            summed = gradients.thresholds is not None and gradients.thresholds.dim() == 1
            if any(of_one) or summed or gradients.scale is not None:
                columns = len(inputs.thresholds) + 2 + (inputs.decay is not None)
                sums = torch.zeros(1 + columns * grid, dtype=torch.float64, device=device)
        return grid, sums
