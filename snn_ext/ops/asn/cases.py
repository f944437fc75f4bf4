"""The case on which compiled code has to agree with torch before it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from ..machine.agreement import Agreement
from .operator import OP, Inputs, Settings
from .torch import TorchImplementation

__all__ = ["AGREEMENT"]


def _case(grid: Tensor, dtype: torch.dtype) -> tuple[Inputs, Settings]:
    psc, s, s_hat, adaptation = (grid[k].mul(0.002 * k) for k in range(len(OP.states)))
    constants = torch.tensor([0.1, 0.2, 0.9, 0.95, 0.8, 0.7], dtype=grid.dtype, device=grid.device)
    current_seq = grid.mul(0.07).remainder(0.5).to(dtype)
    inputs = Inputs(current_seq, grid[1].mul(0.01), psc, s, s_hat, adaptation, constants)
    return inputs, Settings("heights", False, False, 0, 4.0, 1.0)


AGREEMENT = Agreement(OP, TorchImplementation(), _case)
