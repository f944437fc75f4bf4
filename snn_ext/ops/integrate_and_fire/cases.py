"""The case on which compiled code has to agree with torch before it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from ..machine.agreement import Agreement
from .operator import OP, Inputs, Settings
from .torch import TorchImplementation

__all__ = ["AGREEMENT"]


def _case(grid: Tensor, dtype: torch.dtype) -> tuple[Inputs, Settings]:
    time_steps, size = grid.shape
    inputs = Inputs(
        x_seq=grid.mul(0.7).remainder(5.0).sub(2.0).to(dtype),
        v=torch.full((), 0.25, dtype=grid.dtype, device=grid.device).expand(size),
        thresholds=grid[0, :time_steps].div(time_steps).add(0.5),
        scale=None,
    )
    return inputs, Settings("subtract", True, False, 0, 4.0, 1.0)


AGREEMENT = Agreement(OP, TorchImplementation(), _case)
