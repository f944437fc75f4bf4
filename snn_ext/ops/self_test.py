"""A small case that a compiled execution has to get right before it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from .execution import Execution, Settings, checkpoint_count
from .torch_execution import TorchExecution

__all__ = ["agrees_with_torch"]


def agrees_with_torch(execution: Execution, device: torch.device, time_steps: int = 18) -> bool:
    """Compare one case with torch, forward and backward.

    A compiler may be broken in more ways than refusing to compile.

    Examples
    --------
    >>> agrees_with_torch(TorchExecution(), torch.device("cpu"))
    True
    """
    (*exact, grad_x, grad_t), (*want, want_x, want_t) = (
        _results(execution, device, time_steps),
        _results(TorchExecution(), torch.device("cpu"), time_steps),
    )
    return all(map(torch.equal, exact, want)) and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in ((grad_x, want_x), (grad_t, want_t))
    )


def _results(execution: Execution, device: torch.device, time_steps: int) -> list[Tensor]:
    size = 37
    grid = torch.arange(time_steps * size, dtype=torch.float32).reshape(time_steps, size)
    x_seq, g = grid.mul(0.7).remainder(5.0).sub(2.0).to(device), grid.mul(0.3).remainder(1.0).to(device)
    v, thresholds = torch.tensor(0.25).to(device).expand(size), torch.linspace(0.5, 1.5, time_steps).to(device)
    settings = Settings(0, 4.0, 1.0, False, "subtract", True)
    spike_seq, grad_x_seq = torch.empty_like(x_seq), torch.empty_like(x_seq)
    v_end, grad_thresholds = torch.empty_like(x_seq[0]), torch.empty_like(thresholds)
    count = checkpoint_count(time_steps)
    checkpoints = torch.empty(count, size, device=device) if count else None
    execution.forward(x_seq, v, thresholds, None, settings, spike_seq=spike_seq, v_end=v_end, checkpoints=checkpoints)
    execution.backward(
        *(g, v_end, x_seq, v, thresholds, None, checkpoints, settings),
        grad_x_seq=grad_x_seq,
        grad_v=None,
        grad_thresholds=grad_thresholds,
        grad_scale=None,
    )
    kept = [] if checkpoints is None else [checkpoints]
    return [tensor.cpu() for tensor in (spike_seq, v_end, *kept, grad_x_seq, grad_thresholds)]
