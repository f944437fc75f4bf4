"""The case on which compiled code has to agree with torch before it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from ..machine.agreement import Agreement
from .operator import OP, Inputs, Settings
from .torch import TorchImplementation

__all__ = ["AGREEMENT"]


def _case(grid: Tensor, dtype: torch.dtype) -> tuple[Inputs, Settings]:
    return Inputs(grid.mul(0.17).remainder(6.5).sub(0.5).to(dtype)), Settings(0.03, 0.01, 0.02, 0.06, 0.01, 0.0)


AGREEMENT = Agreement(OP, TorchImplementation(), _case)
