"""The native execution of ``adaptive_spiking`` on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import torch
from torch import Tensor

from .adaptive_execution import AdaptiveSettings
from .adaptive_torch import AdaptiveTorchExecution
from .execution import checkpoint_count
from .layout import is_one
from .native_execution import DTYPES, NativeLibrary, address, threads_for, types

__all__ = ["AdaptiveNativeExecution"]

_OUTPUTS = {"spikes": 0, "heights": 1, "potential": 2}


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
            _OUTPUTS[settings.output],
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
            _OUTPUTS[settings.output],
            settings.analog_input,
            settings.detach_adaptation,
            settings.surrogate,
            settings.alpha,
            settings.gain,
            threads_for(current_seq),
        )

    def _passes_self_test(self) -> bool:
        return _agrees_with_torch(self)


def _addresses(tensors: list[Tensor] | list[Tensor | None]) -> Any:
    return (ctypes.c_void_p * 4)(*map(address, tensors))  # NULL for those that are missing


def _agrees_with_torch(native: AdaptiveNativeExecution) -> bool:
    """Compare one small case, forward and backward."""
    time_steps, size = 18, 37
    grid = torch.arange(time_steps * size, dtype=torch.float32).reshape(time_steps, size)
    current_seq, g = grid.mul(0.07).remainder(0.5), grid.mul(0.3).remainder(1.0)
    bias, start = grid[1].mul(0.01), [grid[k].mul(0.002 * k) for k in range(4)]
    constants = torch.tensor([0.1, 0.2, 0.9, 0.95, 0.8, 0.7])
    settings = AdaptiveSettings(0, 4.0, 1.0, False, False, "heights")
    found: list[list[Tensor]] = []
    executions: tuple[Any, ...] = (native, AdaptiveTorchExecution())
    for execution in executions:
        out_seq, grad_current_seq, grad_bias = (torch.empty_like(t) for t in (current_seq, current_seq, bias))
        end, grad_start = ([torch.empty(size) for _ in range(4)] for _ in range(2))
        checkpoints = torch.empty(checkpoint_count(time_steps), 4, size)
        execution.forward(
            *(current_seq, bias, start, constants, settings), out_seq=out_seq, end=end, checkpoints=checkpoints
        )
        execution.backward(
            *(g, list(end), current_seq, bias, start, constants, checkpoints, settings),
            grad_current_seq=grad_current_seq,
            grad_bias=grad_bias,
            grad_start=list(grad_start),
        )
        found.append([out_seq, *end, checkpoints, grad_current_seq, grad_bias, *grad_start])
    return all(map(torch.equal, found[0][:6], found[1][:6])) and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found[0][6:], found[1][6:], strict=True)
    )
