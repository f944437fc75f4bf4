"""Running neurons under SpikingJelly's operation counters: in operations that the counters know.

The counters know PyTorch's operations and the host's fused ones by name and cannot be taught others, so they would
count a fused operator of this package as free.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from . import functional
from .functional.integrate_and_fire import Reset
from .functional.surrogates import Surrogate, as_surrogate

__all__ = ["aside", "counted", "counted_integrate_and_fire"]


def counted() -> bool:
    """Return True while an operation counter of SpikingJelly is active; their module is not imported to find out."""
    counters = sys.modules.get("spikingjelly.activation_based.op_counter.base")
    if counters is None or torch.compiler.is_compiling() or not torch._C._len_torch_dispatch_stack():
        return False
    return any(isinstance(mode, counters.DispatchCounterMode) for mode in _get_current_dispatch_mode_stack())


def aside(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function uncounted: for computations that a chip would not do at every step, such as thresholds."""
    if not counted():
        return function(*args)
    with _disable_current_modes():
        return function(*args)


def counted_integrate_and_fire(
    x_seq: Tensor, v: Tensor, thresholds: Tensor, *, surrogate: Any, reset: Reset, scale: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Run the steps of the host's ``IFNode`` where the dynamics is the same, so that equal spikes cost the same.

    Otherwise the definition runs: for a threshold that is being trained, ties that do not fire, a surrogate that is not
    the host's, a leak, reset "none", and infinite potentials with a reset to zero.
    """
    trained = torch.is_grad_enabled() and thresholds.requires_grad
    known = isinstance(surrogate, nn.Module) and isinstance(as_surrogate(surrogate), Surrogate)
    as_the_host = known and options["fire_at_threshold"] and not trained and reset in ("subtract", "zero")
    as_the_host = as_the_host and options.get("decay") is None
    if not as_the_host or (reset == "zero" and not aside(_all_finite, x_seq, v)):
        return functional.integrate_and_fire(
            x_seq, v, thresholds, surrogate=surrogate, reset=reset, scale=scale, **options
        )
    from spikingjelly.activation_based.functional import if_multi_step

    settings = (None if reset == "subtract" else 0.0, surrogate, options["detach_reset"])
    levels = aside(thresholds.tolist)
    v = v.expand(x_seq.shape[1:])
    if len(levels) == 1:
        spike_seq, v, _ = if_multi_step(x_seq, v, levels[0], *settings)
    else:
        spikes = []
        for x, level in zip(x_seq.split(1), levels, strict=True):
            spike, v, _ = if_multi_step(x, v, level, *settings)
            spikes.append(spike)
        spike_seq = torch.cat(spikes)
    return (spike_seq if scale is None else spike_seq * scale).to(x_seq.dtype), v


def _all_finite(*tensors: Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
