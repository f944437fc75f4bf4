"""A small case that a compiled execution has to get right before it is used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .adaptive_execution import AdaptiveExecution, AdaptiveSettings
from .adaptive_torch import STATES, AdaptiveTorchExecution
from .execution import SEGMENT, Execution, Settings, checkpoint_count
from .torch_execution import TorchExecution

__all__ = ["adaptive_agrees_with_torch", "agrees_with_torch", "undisturbed"]

CPU = torch.device("cpu")


def undisturbed(test: Callable[[], bool]) -> bool:
    """Run a self-test in a thread of its own, where none of the caller's modes is on.

    Autocast, ``inference_mode``, a default device, the transforms of ``torch.func``, fake tensors and counters of
    operations all belong to a thread. The default dtype does not: a self-test names the dtype of everything it makes.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     undisturbed(lambda: torch.ones(1).is_meta)
    False
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(test).result()


def agrees_with_torch(
    execution: Execution, device: torch.device, time_steps: int = 18, dtype: torch.dtype = torch.float32
) -> bool:
    """Compare one case with torch, forward and backward.

    A compiler may be broken in more ways than refusing to compile.

    Examples
    --------
    >>> agrees_with_torch(TorchExecution(), torch.device("cpu"))
    True
    """
    (*exact, grad_x, grad_t), (*want, want_x, want_t) = (
        _results(execution, device, time_steps, dtype),
        _results(TorchExecution(), CPU, time_steps, dtype),
    )
    return all(map(torch.equal, exact, want)) and _close(grad_x, want_x) and _close(grad_t, want_t)


def _close(found: Tensor, want: Tensor) -> bool:
    rough = 1e-4 if want.dtype == torch.float32 else 1e-2
    return torch.allclose(found, want, rtol=rough, atol=rough)


def _results(execution: Execution, device: torch.device, time_steps: int, dtype: torch.dtype) -> list[Tensor]:
    size = 40 if time_steps <= SEGMENT else 37  # a multiple of every vector, and a prime
    grid = _grid(time_steps, size)
    x_seq = grid.mul(0.7).remainder(5.0).sub(2.0).to(device, dtype)
    g = grid.mul(0.3).remainder(1.0).to(device, dtype)
    thresholds = grid[0, :time_steps].div(time_steps).add(0.5).to(device)
    v = torch.full((), 0.25, dtype=torch.float32, device=device).expand(size)
    settings = Settings(0, 4.0, 1.0, False, "subtract", True)
    spike_seq, grad_x_seq = torch.empty_like(x_seq), torch.empty_like(x_seq)
    v_end, grad_thresholds = torch.empty(size, dtype=torch.float32, device=device), torch.empty_like(thresholds)
    count = checkpoint_count(time_steps)
    checkpoints = torch.empty(count, size, dtype=torch.float32, device=device) if count else None
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


def adaptive_agrees_with_torch(
    execution: AdaptiveExecution, device: torch.device, time_steps: int = 18, dtype: torch.dtype = torch.float32
) -> bool:
    """Compare one case of ``adaptive_spiking`` with torch, forward and backward.

    Examples
    --------
    >>> adaptive_agrees_with_torch(AdaptiveTorchExecution(), torch.device("cpu"))
    True
    """
    exact, gradients = _adaptive_results(execution, device, time_steps, dtype)
    want, want_gradients = _adaptive_results(AdaptiveTorchExecution(), CPU, time_steps, dtype)
    return all(map(torch.equal, exact, want)) and all(map(_close, gradients, want_gradients))


def _adaptive_results(
    execution: AdaptiveExecution, device: torch.device, time_steps: int, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    size = 40 if time_steps <= SEGMENT else 37
    grid = _grid(time_steps, size)
    current_seq = grid.mul(0.07).remainder(0.5).to(device, dtype)
    g = grid.mul(0.3).remainder(1.0).to(device, dtype)
    bias = grid[1].mul(0.01).to(device)
    start = [grid[k].mul(0.002 * k).to(device) for k in range(STATES)]
    constants = torch.tensor([0.1, 0.2, 0.9, 0.95, 0.8, 0.7], dtype=torch.float32, device=device)
    settings = AdaptiveSettings(0, 4.0, 1.0, False, False, "heights")
    out_seq, grad_current_seq, grad_bias = (torch.empty_like(tensor) for tensor in (current_seq, current_seq, bias))
    end, grad_start = ([torch.empty_like(bias) for _ in range(STATES)] for _ in range(2))
    count = checkpoint_count(time_steps)
    checkpoints = torch.empty(count, STATES, size, dtype=torch.float32, device=device) if count else None
    execution.forward(
        *(current_seq, bias, start, constants, settings), out_seq=out_seq, end=end, checkpoints=checkpoints
    )
    incoming: list[Tensor | None] = list(end)
    execution.backward(
        g,
        incoming,
        *(current_seq, bias, start, constants, checkpoints, settings),
        grad_current_seq=grad_current_seq,
        grad_bias=grad_bias,
        grad_start=list(grad_start),
    )
    kept = [] if checkpoints is None else [checkpoints]
    exact, gradients = [out_seq, *end, *kept], [grad_current_seq, grad_bias, *grad_start]
    return [tensor.cpu() for tensor in exact], [tensor.cpu() for tensor in gradients]


def _grid(time_steps: int, size: int) -> Tensor:
    """Return 0, 1, 2 ... on the CPU; a user may have set another default device or dtype."""
    return torch.arange(time_steps * size, dtype=torch.float32, device="cpu").reshape(time_steps, size)
