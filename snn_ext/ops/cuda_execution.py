"""The execution of ``integrate_and_fire`` on NVIDIA GPUs: which variant of the source a call needs, and its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from .cuda_launcher import DTYPES, THREADS, CudaKernels, address, blocks, vector
from .execution import SEGMENT, Settings
from .layout import is_one
from .self_test import agrees_with_torch

__all__ = ["CudaExecution"]

_RESETS = {"subtract": 0, "zero": 1, "none": 2}
# The backward kernel is launched with as many blocks as run at the same time, and these share the neurons: fewer
# partial sums to add up, and no half empty last wave. With few steps a thread has few loads in flight.
_RESIDENT_BLOCKS = {1: 8, 2: 8, 3: 6}  # a multiprocessor, by time steps; else 4


class CudaExecution(CudaKernels):
    """``integrate_and_fire_cuda.cu``."""

    operator = "integrate_and_fire"
    names = ("integrate_and_fire_forward", "integrate_and_fire_backward")
    files = ("integrate_and_fire_cuda.cu", "cuda.h", "integrate_and_fire_step.h")
    macros = (
        *("BACKWARD", "DTYPE", "STEPS", "VECTOR", "PER_STEP", "SCALED", "RESET", "FIRE_AT_THRESHOLD", "DETACH_RESET"),
        "SURROGATE",
    )

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
        """Integrate and fire."""
        time_steps, device = x_seq.shape[0], x_seq.device
        size = x_seq.numel() // time_steps
        with self._backend.guard(device):
            width = _width(False, time_steps, size, x_seq, v, v_end, spike_seq, checkpoints)
            kernel = self._kernel(device, _variant(False, x_seq, width, thresholds, scale, settings))
            arguments = (
                x_seq.data_ptr(),
                spike_seq.data_ptr(),
                v.data_ptr(),
                int(not is_one(v)),
                v_end.data_ptr(),
                thresholds.data_ptr(),
                address(scale),
                address(checkpoints),
                time_steps,
                size,
            )
            kernel((blocks(size, width),), (THREADS,), arguments)

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
        """Recompute the potential from the input and walk back; sums over neurons come from the same launch."""
        time_steps, device = x_seq.shape[0], x_seq.device
        size = x_seq.numel() // time_steps
        with self._backend.guard(device):
            if grad_spike_seq is None:  # rare: only the final potential was used
                grad_spike_seq = torch.zeros_like(x_seq)
            grad_v_sum, grad_v = (grad_v, None) if v.dim() == 0 else (None, grad_v)
            arrays = (grad_spike_seq, grad_v_end, x_seq, v, checkpoints, grad_x_seq, grad_v)
            width = _width(True, time_steps, size, *arrays)
            resident = _RESIDENT_BLOCKS.get(time_steps, 4) * self._backend.multiprocessors(device)
            grid = min(blocks(size, width), resident)
            sums = None
            if not (grad_v_sum is grad_thresholds is grad_scale is None):
                columns = thresholds.shape[0] + 2
                sums = torch.zeros(1 + columns * grid, dtype=torch.float64, device=device)  # the first: a counter
            kernel = self._kernel(device, _variant(True, x_seq, width, thresholds, scale, settings))
            arguments = (
                grad_spike_seq.data_ptr(),
                address(grad_v_end),
                x_seq.data_ptr(),
                v.data_ptr(),
                int(not is_one(v)),
                thresholds.data_ptr(),
                address(scale),
                address(checkpoints),
                address(grad_x_seq),
                address(grad_v),
                address(grad_v_sum),
                address(grad_thresholds),
                address(grad_scale),
                0 if sums is None else sums.data_ptr() + sums.element_size(),
                address(sums),
                time_steps,
                size,
                float(settings.alpha),
                float(settings.gain),
            )
            kernel((grid,), (THREADS,), arguments)

    def _agrees_with_torch(self, device: torch.device, dtype: torch.dtype) -> bool:
        return all(agrees_with_torch(self, device, time_steps, dtype) for time_steps in (4, 18))


def _variant(
    backward: bool, x_seq: Tensor, width: int, thresholds: Tensor, scale: Tensor | None, settings: Settings
) -> tuple[int, ...]:
    time_steps = x_seq.shape[0]
    return (
        int(backward),
        DTYPES[x_seq.dtype],
        time_steps if time_steps <= SEGMENT else 0,
        width,
        int(thresholds.shape[0] > 1),
        int(scale is not None),
        _RESETS[settings.reset],
        int(settings.fire_at_threshold),
        int(backward and settings.detach_reset),
        settings.surrogate if backward else 0,
    )


def _width(backward: bool, time_steps: int, size: int, x_seq: Tensor, *others: Tensor | None) -> int:
    """Return how many neurons a thread takes: as many as fit into 16 bytes and the registers, and are aligned."""
    most = 16 // x_seq.element_size()
    if backward:  # the charges of up to 16 steps are kept in registers
        most = min(most, 8 if time_steps <= 4 else 4 if time_steps <= 8 else 2)
    elif time_steps > SEGMENT:
        most = min(most, 4)
    return vector(most, size, x_seq, *others)
