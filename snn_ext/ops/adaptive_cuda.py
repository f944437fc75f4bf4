"""The execution of ``adaptive_spiking`` on NVIDIA GPUs: which variant of the source a call needs, and its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from .adaptive_execution import OUTPUTS, AdaptiveSettings
from .adaptive_torch import STATES
from .cuda_launcher import DTYPES, THREADS, CudaKernels, address, blocks, vector
from .execution import SEGMENT
from .layout import is_one
from .self_test import adaptive_agrees_with_torch

__all__ = ["AdaptiveCudaExecution"]


class AdaptiveCudaExecution(CudaKernels):
    """``adaptive_cuda.cu``."""

    operator = "adaptive_spiking"
    names = ("adaptive_forward", "adaptive_backward")
    files = ("adaptive_cuda.cu", "cuda.h", "integrate_and_fire_step.h", "adaptive_step.h")
    macros = (
        *("BACKWARD", "DTYPE", "STEPS", "VECTOR", "OUTPUT", "ANALOG_INPUT", "UNIFORM", "DETACH_ADAPTATION"),
        "SURROGATE",
    )

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
        """Filter, adapt and fire."""
        time_steps, device = current_seq.shape[0], current_seq.device
        size = current_seq.numel() // time_steps
        with self._backend.guard(device):
            rows = constants if constants.dim() > 1 else None
            width = _width(False, current_seq, bias, *start, rows, out_seq, *end, checkpoints)
            kernel = self._kernel(device, _variant(False, current_seq, width, constants, settings))
            arguments = (
                current_seq.data_ptr(),
                out_seq.data_ptr(),
                *(bias.data_ptr(), int(not is_one(bias))),
                *(*_addresses(start), int(not is_one(start[0]))),
                *_addresses(end),
                constants.data_ptr(),
                address(checkpoints),
                time_steps,
                size,
            )
            kernel((blocks(size, width),), (THREADS,), arguments)

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
        """Recompute the state from the input and walk back."""
        time_steps, device = current_seq.shape[0], current_seq.device
        size = current_seq.numel() // time_steps
        with self._backend.guard(device):
            if grad_out_seq is None:  # rare: only the final states were used
                grad_out_seq = torch.zeros_like(current_seq)
            rows = constants if constants.dim() > 1 else None
            arrays = (grad_out_seq, *grad_end, bias, *start, rows, checkpoints)
            width = _width(True, current_seq, *arrays, grad_current_seq, grad_bias, *grad_start)
            kernel = self._kernel(device, _variant(True, current_seq, width, constants, settings))
            arguments = (
                grad_out_seq.data_ptr(),
                *_addresses(grad_end),
                current_seq.data_ptr(),
                *(bias.data_ptr(), int(not is_one(bias))),
                *(*_addresses(start), int(not is_one(start[0]))),
                constants.data_ptr(),
                address(checkpoints),
                address(grad_current_seq),
                address(grad_bias),
                *_addresses(grad_start),
                time_steps,
                size,
                float(settings.alpha),
                float(settings.gain),
            )
            kernel((blocks(size, width),), (THREADS,), arguments)

    def _agrees_with_torch(self, device: torch.device, dtype: torch.dtype) -> bool:
        return all(adaptive_agrees_with_torch(self, device, time_steps, dtype) for time_steps in (4, 18))


def _variant(
    backward: bool, current_seq: Tensor, width: int, constants: Tensor, settings: AdaptiveSettings
) -> tuple[int, ...]:
    time_steps, spikes = current_seq.shape[0], settings.output != "potential"
    return (
        int(backward),
        DTYPES[current_seq.dtype],
        time_steps if time_steps <= SEGMENT else 0,
        width,
        OUTPUTS[settings.output],
        int(settings.analog_input),
        int(constants.dim() == 1),
        int(backward and spikes and settings.detach_adaptation),
        settings.surrogate if backward and spikes else 0,
    )


def _width(backward: bool, current_seq: Tensor, *others: Tensor | None) -> int:
    """Return how many neurons a thread takes: as many as fit into 16 bytes and the registers, and are aligned."""
    time_steps = current_seq.shape[0]
    most = 16 // current_seq.element_size()
    if backward:  # potential and threshold of up to 16 steps are kept in registers
        most = min(most, 4 if time_steps <= 4 else 2)
    elif time_steps > SEGMENT:
        most = min(most, 4)
    return vector(most, current_seq.numel() // time_steps, current_seq, *others)


def _addresses(tensors: list[Tensor] | list[Tensor | None]) -> list[int]:
    return [*map(address, tensors), *(0,) * (STATES - len(tensors))]
