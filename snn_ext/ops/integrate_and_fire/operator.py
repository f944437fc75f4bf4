"""``integrate_and_fire`` as a torch operator: its declaration and the public function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ... import functional
from ...functional.integrate_and_fire import Reset, check_integrate_and_fire_arguments, state_dtype
from ...functional.surrogates import Sigmoid, Surrogate, as_surrogate
from ..registry import check_definition_may_run, why_definition
from ..sequence import One, PerStep, Sequence, SequenceOp, State

__all__ = ["OP", "Inputs", "Outputs", "Settings", "agreement_case", "integrate_and_fire"]


class Inputs(NamedTuple):
    """Input current, potential before the first step, thresholds, and value of a spike."""

    x_seq: Sequence
    v: State
    thresholds: PerStep
    scale: One


class Outputs(NamedTuple):
    """Spikes, and the potential after the last step."""

    spike_seq: Sequence
    v_end: State


class Settings(NamedTuple):
    """Everything that is not a tensor; the last three are the surrogate."""

    reset: Reset
    fire_at_threshold: bool
    detach_reset: bool
    surrogate: int
    alpha: float
    gain: float


OP = SequenceOp("integrate_and_fire", Inputs, Outputs, Settings, backward_only=("detach_reset", "surrogate"))


def integrate_and_fire(
    x_seq: Tensor,
    v: Tensor | float,
    thresholds: Tensor,
    *,
    surrogate: Surrogate | Callable[[Tensor], Tensor] = Sigmoid(4.0),
    detach_reset: bool = False,
    reset: Reset = "subtract",
    fire_at_threshold: bool = True,
    scale: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Run :func:`snn_ext.functional.integrate_and_fire`, bit-equal, by the selected implementation.

    Parameters, results and errors are those of the definition; a forced implementation that cannot run raises a
    ``RuntimeError``. A surrogate that is not one of the known curves, forward-mode derivatives and what ``torch.func``
    transforms are run by the definition itself.

    For the backward pass the input is kept, and for more than 16 steps the potential before every 16th; nothing
    without gradients. There is no second derivative: asking for one raises a ``RuntimeError``.

    Examples
    --------
    >>> import torch
    >>> integrate_and_fire(torch.full((4, 1), 0.5), 0.0, torch.tensor([1.0]))[0].flatten()
    tensor([0., 1., 0., 1.])
    """
    curve = as_surrogate(surrogate)
    reason = why_definition(curve, x_seq, v, thresholds, scale)
    if reason is not None:
        check_definition_may_run(OP.name, reason)
        return functional.integrate_and_fire(
            x_seq,
            v,
            thresholds,
            surrogate=curve,
            detach_reset=detach_reset,
            reset=reset,
            fire_at_threshold=fire_at_threshold,
            scale=scale,
        )
    check_integrate_and_fire_arguments(x_seq, v, thresholds, detach_reset, reset, fire_at_threshold, scale)
    dtype = state_dtype(x_seq.dtype)
    v = _as_state(v, x_seq, dtype)
    if v.dim() > 0:
        v = v.reshape(()) if v.numel() == 1 else v.expand(x_seq.shape[1:])
    scale = None if scale is None else _as_state(scale, x_seq, dtype).reshape(())
    known = cast(Surrogate, curve)
    settings = Settings(reset, fire_at_threshold, detach_reset, known.id, known.alpha, known.gain)
    spike_seq, v_end = OP(Inputs(x_seq, v, thresholds.to(dtype), scale), settings)
    return spike_seq, v_end


def _as_state(value: Tensor | float, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(dtype)
    return torch.full((), value, dtype=dtype, device=x_seq.device)


def agreement_case(grid: Tensor, dtype: torch.dtype) -> tuple[Inputs, Settings]:
    """Return the case on which compiled code has to agree with torch before it is used."""
    time_steps, size = grid.shape
    inputs = Inputs(
        x_seq=grid.mul(0.7).remainder(5.0).sub(2.0).to(dtype),
        v=torch.full((), 0.25, dtype=grid.dtype, device=grid.device).expand(size),
        thresholds=grid[0, :time_steps].div(time_steps).add(0.5),
        scale=None,
    )
    return inputs, Settings("subtract", True, False, 0, 4.0, 1.0)
