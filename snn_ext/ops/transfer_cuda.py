"""The execution of ``asn_transfer`` on NVIDIA GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.asn_transfer import Coefficients
from .cuda_launcher import DTYPES, THREADS, CudaKernels, blocks, vector
from .transfer_executions import agrees_with_torch

__all__ = ["TransferCudaExecution"]


class TransferCudaExecution(CudaKernels):
    """``transfer_cuda.cu``: one pass."""

    operator = "asn_transfer"
    names = ("transfer_forward", "transfer_backward")
    files = ("transfer_cuda.cu", "cuda.h", "transfer_step.h")
    macros = ("BACKWARD", "DTYPE", "STEPS", "VECTOR")

    def forward(self, s: Tensor, c: Coefficients, cut: float, f: Tensor) -> None:
        """Fill f, of the memory order of s."""
        self._launch(0, [s, f], (*c, cut))

    def backward(self, grad_f: Tensor, s: Tensor, c: Coefficients, cut: float, grad_s: Tensor) -> None:
        """Fill the gradient of s; all are of its memory order."""
        self._launch(1, [grad_f, s, grad_s], (*c, cut))

    def _launch(self, backward: int, arrays: list[Tensor], constants: tuple[float, ...]) -> None:
        device, dtype, size = arrays[0].device, arrays[0].dtype, arrays[0].numel()
        with self._backend.guard(device):
            width = vector(16 // dtype.itemsize, size, *arrays)
            kernel = self._kernel(device, (backward, DTYPES[dtype], 1, width))
            arguments = (*(array.data_ptr() for array in arrays), size, *map(float, constants))
            kernel((blocks(size, width),), (THREADS,), arguments)

    def _agrees_with_torch(self, device: torch.device, dtype: torch.dtype) -> bool:
        return agrees_with_torch(self, device, dtype)
