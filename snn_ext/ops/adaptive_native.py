"""The native execution of ``adaptive_spiking`` on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import torch
from torch import Tensor

from .adaptive_execution import OUTPUTS, AdaptiveSettings
from .layout import is_one
from .native_execution import DTYPES, NativeLibrary, address, threads_for, types
from .self_test import adaptive_agrees_with_torch

__all__ = ["AdaptiveNativeExecution"]


class AdaptiveNativeExecution(NativeLibrary):
    """``adaptive_cpu.c``."""

    source = "adaptive_cpu.c"
    functions: ClassVar[dict[str, tuple[list[Any], Any]]] = {
        "adaptive_forward": (types("pp pi pi p pi p ll iiii"), None),
        "adaptive_backward": (types("pp p pi pi pi p ppp ll iiiii ff i"), None),
    }

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
        time_steps = current_seq.shape[0]
        self._library.adaptive_forward(
            current_seq.data_ptr(),
            out_seq.data_ptr(),
            *(bias.data_ptr(), not is_one(bias)),
            *(_addresses(start), not is_one(start[0])),
            _addresses(end),
            *(constants.data_ptr(), constants.dim() > 1),
            address(checkpoints),
            time_steps,
            current_seq.numel() // time_steps,
            DTYPES[current_seq.dtype],
            OUTPUTS[settings.output],
            settings.analog_input,
            threads_for(current_seq),
        )

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
        time_steps = current_seq.shape[0]
        self._library.adaptive_backward(
            address(grad_out_seq),
            _addresses(grad_end),
            current_seq.data_ptr(),
            *(bias.data_ptr(), not is_one(bias)),
            *(_addresses(start), not is_one(start[0])),
            *(constants.data_ptr(), constants.dim() > 1),
            address(checkpoints),
            address(grad_current_seq),
            address(grad_bias),
            _addresses(grad_start),
            time_steps,
            current_seq.numel() // time_steps,
            DTYPES[current_seq.dtype],
            OUTPUTS[settings.output],
            settings.analog_input,
            settings.detach_adaptation,
            settings.surrogate,
            settings.alpha,
            settings.gain,
            threads_for(current_seq),
        )

    def _passes_self_test(self) -> bool:
        return adaptive_agrees_with_torch(self, torch.device("cpu"))


def _addresses(tensors: list[Tensor] | list[Tensor | None]) -> Any:
    return (ctypes.c_void_p * 4)(*map(address, tensors))  # NULL for those that are missing
