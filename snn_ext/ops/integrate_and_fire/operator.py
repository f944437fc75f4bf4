"""``integrate_and_fire`` as a torch operator: its declaration and the public function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ... import functional
from ...functional.integrate_and_fire import Charge, Norm, Reset, check_integrate_and_fire_arguments, state_dtype
from ...functional.surrogates import Sigmoid, Surrogate, as_surrogate
from ..deferred import parts_of
from ..registry import check_definition_may_run, why_definition
from ..sequence import Channel, ChannelTable, One, OptionalStep, PerStep, Sequence, SequenceOp, State

__all__ = ["OP", "Inputs", "Outputs", "Settings", "agreement_case", "integrate_and_fire"]


class Inputs(NamedTuple):
    """Input current, potential before the first step, thresholds, value of a spike, constant of the leak, and a norm.

    The names of the norm's parts are those of the definition; gains and shifts have gradients.
    """

    x_seq: Sequence
    v: State
    thresholds: PerStep
    scale: One
    decay: OptionalStep = None
    norm_gain: Channel = None
    norm_shift: Channel = None
    norm_center: ChannelTable = None


class Outputs(NamedTuple):
    """Spikes, and the potential after the last step."""

    spike_seq: Sequence
    v_end: State


class Settings(NamedTuple):
    """Everything that is not a tensor; the surrogate is the three before the last."""

    reset: Reset
    fire_at_threshold: bool
    detach_reset: bool
    surrogate: int
    alpha: float
    gain: float
    charge: Charge = "add"


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
    decay: Tensor | float | None = None,
    charge: Charge = "add",
    norm: Norm | None = None,
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
    x_seq, norm = parts_of(x_seq, norm)
    curve = as_surrogate(surrogate)
    reason = why_definition(curve, x_seq, v, thresholds, scale, decay, *(norm or ()))
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
            decay=decay,
            charge=charge,
            norm=norm,
        )
    check_integrate_and_fire_arguments(
        x_seq, v, thresholds, detach_reset, reset, fire_at_threshold, scale, decay, charge, norm
    )
    dtype = state_dtype(x_seq.dtype)
    v = _as_state(v, x_seq, dtype)
    decay = None if decay is None else _as_state(decay, x_seq, dtype)
    scale = None if scale is None else _as_one(scale, x_seq, dtype).reshape(())
    known = cast(Surrogate, curve)
    settings = Settings(reset, fire_at_threshold, detach_reset, known.id, known.alpha, known.gain, charge)
    if thresholds.ndim > 1:
        thresholds = thresholds.reshape(1) if thresholds.numel() == 1 else thresholds.expand(1, *x_seq.shape[1:])
    center, gain, shift = (None, None, None) if norm is None else (part.to(dtype) for part in norm)
    center = None if center is None else center.detach()
    spike_seq, v_end = OP(Inputs(x_seq, v, thresholds.to(dtype), scale, decay, gain, shift, center), settings)
    return spike_seq, v_end


def _as_state(value: Tensor | float, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    """Return one element without a dimension, or one for each neuron of a step."""
    value = _as_one(value, x_seq, dtype)
    if value.dim() == 0:
        return value
    return value.reshape(()) if value.numel() == 1 else value.expand(x_seq.shape[1:])


def _as_one(value: Tensor | float, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
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
