"""The implementations of an operator, from the sources in its folder."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from ..registry import register
from ..sequence import SequenceImplementation, SequenceOp
from .agreement import Agreement
from .cpu import CpuImplementation
from .cuda import CudaMachine
from .cuda_loaders import CupyLoader, DriverLoader

__all__ = ["register_operator"]


def register_operator(
    package: str,
    op: SequenceOp,
    in_torch: SequenceImplementation,
    case: Callable[[Tensor, torch.dtype], tuple[Any, Any]],
    in_cuda: type[CudaMachine] = CudaMachine,
) -> None:
    """Register the implementation in torch, and those that the folder has a ``cpu.c`` and a ``cuda.cu`` for.

    Parameters
    ----------
    package : str
        The folder, as a package.
    op : SequenceOp
        The declaration.
    in_torch : SequenceImplementation
        The one that always runs.
    case : callable
        Inputs and settings on which compiled code has to agree with ``in_torch``; see :class:`Agreement`.
    in_cuda : type
        A subclass where threads and blocks are chosen otherwise.
    """
    agreement, folder = Agreement(op, in_torch, case), resources.files(package)
    if (folder / "cuda.cu").is_file():
        for loader in (CupyLoader(), DriverLoader()):
            register(op.name, in_cuda(package, agreement, loader))
    if (folder / "cpu.c").is_file():
        register(op.name, CpuImplementation(package, agreement))
    register(op.name, in_torch)
