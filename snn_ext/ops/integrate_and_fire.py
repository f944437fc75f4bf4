"""``integrate_and_fire`` as a torch operator: its public face, and the operators behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..functional.integrate_and_fire import Reset, check_integrate_and_fire_arguments, state_dtype
from ..functional.surrogates import Sigmoid, Surrogate, as_surrogate
from .execution import Settings, checkpoint_count
from .layout import as_step_of, dense, empty_step, in_order_of, is_one, savable
from .selection import check_definition_may_run, implementation, select, why_transformed

__all__ = ["integrate_and_fire"]


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

    Parameters, results and errors are those of the definition; a forced implementation that can not run raises a
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
    check_integrate_and_fire_arguments(x_seq, v, thresholds, detach_reset, reset, fire_at_threshold, scale)
    reason = why_transformed(x_seq, v, thresholds, scale)
    if not isinstance(curve, Surrogate) or reason is not None:
        if reason is None:
            implementation(
                "integrate_and_fire", x_seq.device, x_seq.dtype, surrogate=curve
            )  # raises if another is forced
        else:
            check_definition_may_run("integrate_and_fire", reason)
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
    dtype = state_dtype(x_seq.dtype)
    v = _as_state(v, x_seq, dtype)
    v = v.reshape(()) if v.numel() == 1 else v.expand(x_seq.shape[1:])
    thresholds = thresholds.to(dtype)
    if scale is not None:
        scale = _as_state(scale, x_seq, dtype).reshape(())
    trained = (x_seq, v, thresholds) if scale is None else (x_seq, v, thresholds, scale)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in trained)
    settings = (curve.id, curve.alpha, curve.gain, detach_reset, reset, fire_at_threshold)
    spike_seq, v_end, _ = torch.ops.snn_ext.integrate_and_fire.default(x_seq, v, thresholds, scale, *settings, keep)
    return spike_seq, v_end


def _as_state(value: Tensor | float, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(dtype)
    return torch.full((), value, dtype=dtype, device=x_seq.device)


# -- the operators -----------------------------------------------------------------------------------------------------
# An execution is selected when an operator runs, not when a model is compiled.

_SETTINGS = "int surrogate, float alpha, float gain, bool detach_reset, str reset, bool fire_at_threshold"

library = torch.library.Library("snn_ext", "FRAGMENT")
library.define(
    f"integrate_and_fire(Tensor x_seq, Tensor v, Tensor thresholds, Tensor? scale, {_SETTINGS}, bool keep_checkpoints)"
    " -> (Tensor spike_seq, Tensor v_end, Tensor checkpoints)"
)
library.define(
    "integrate_and_fire_backward(Tensor? grad_spike_seq, Tensor? grad_v_end, Tensor x_seq, Tensor v, Tensor thresholds,"
    f" Tensor? scale, Tensor checkpoints, {_SETTINGS}, bool[4] wanted)"
    " -> (Tensor grad_x_seq, Tensor grad_v, Tensor grad_thresholds, Tensor grad_scale)"
)


def _forward(
    x_seq: Tensor, v: Tensor, thresholds: Tensor, scale: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    x_seq = dense(x_seq)
    spike_seq, v_end, checkpoints = _empty_outputs(x_seq, v, settings[-1])
    if x_seq.numel():
        select("integrate_and_fire", x_seq.device, x_seq.dtype).forward(
            x_seq,
            v if is_one(v) else as_step_of(x_seq, v),
            thresholds.contiguous(),
            scale,
            Settings(*settings[:-1]),
            spike_seq=spike_seq,
            v_end=v_end,
            checkpoints=checkpoints if len(checkpoints) else None,
        )
    return spike_seq, v_end, checkpoints


def _empty_outputs(x_seq: Tensor, v: Tensor, keep_checkpoints: bool) -> tuple[Tensor, Tensor, Tensor]:
    count = checkpoint_count(x_seq.shape[0]) if keep_checkpoints else 0
    return (
        torch.empty_strided(x_seq.shape, x_seq.stride(), dtype=x_seq.dtype, device=x_seq.device),
        empty_step(x_seq, v.dtype),
        torch.empty((count, x_seq[0].numel() if count else 0), dtype=v.dtype, device=x_seq.device),
    )


def _backward(
    grad_spike_seq: Tensor | None,
    grad_v_end: Tensor | None,
    x_seq: Tensor,
    v: Tensor,
    thresholds: Tensor,
    scale: Tensor | None,
    checkpoints: Tensor,
    *settings: Any,
) -> list[Tensor]:
    x_seq = dense(x_seq)
    gradients = _empty_gradients(x_seq, v, thresholds, scale, settings[-1])
    if x_seq.numel() == 0:
        return [gradient.zero_() for gradient in gradients]
    grad_x_seq, grad_v, grad_thresholds, grad_scale = (
        gradient if wanted else None for gradient, wanted in zip(gradients, settings[-1], strict=True)
    )
    select("integrate_and_fire", x_seq.device, x_seq.dtype).backward(
        None if grad_spike_seq is None else in_order_of(x_seq, grad_spike_seq),
        None if grad_v_end is None else as_step_of(x_seq, grad_v_end),
        x_seq,
        v if is_one(v) else as_step_of(x_seq, v),
        thresholds.contiguous(),
        scale,
        checkpoints if len(checkpoints) else None,
        Settings(*settings[:-1]),
        grad_x_seq=grad_x_seq,
        grad_v=grad_v,
        grad_thresholds=grad_thresholds,
        grad_scale=grad_scale,
    )
    return gradients


def _empty_gradients(
    x_seq: Tensor, v: Tensor, thresholds: Tensor, scale: Tensor | None, wanted: list[bool]
) -> list[Tensor]:
    """Return room for the four gradients; an operator has to return tensors, so one not wanted has no element."""
    gradients = [
        torch.empty_strided(x_seq.shape, x_seq.stride(), dtype=x_seq.dtype, device=x_seq.device),
        empty_step(x_seq, v.dtype) if v.dim() else torch.empty_like(v),
        torch.empty(thresholds.shape, dtype=v.dtype, device=v.device),
        torch.empty((), dtype=v.dtype, device=v.device),
    ]
    return [g if w else torch.empty(0, dtype=g.dtype, device=g.device) for g, w in zip(gradients, wanted, strict=True)]


def _fake_forward(
    x_seq: Tensor, v: Tensor, thresholds: Tensor, scale: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_outputs(dense(x_seq), v, settings[-1])


def _fake_backward(
    grad_spike_seq: Tensor | None,
    grad_v_end: Tensor | None,
    x_seq: Tensor,
    v: Tensor,
    thresholds: Tensor,
    scale: Tensor | None,
    checkpoints: Tensor,
    *settings: Any,
) -> list[Tensor]:
    return _empty_gradients(dense(x_seq), v, thresholds, scale, settings[-1])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, ctx.settings = (*inputs[:4], output[2]), inputs[4:-1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.scaled = tensors[3] is not None
    ctx.save_for_backward(*(savable(tensor) for tensor in tensors if tensor is not None))


def _differentiate(
    ctx: Any, grad_spike_seq: Tensor | None, grad_v_end: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:4])
    *tensors, checkpoints = ctx.saved_tensors
    scale = tensors.pop() if ctx.scaled else None
    gradients = torch.ops.snn_ext.integrate_and_fire_backward.default(
        grad_spike_seq, grad_v_end, *tensors, scale, checkpoints, *ctx.settings, wanted
    )
    return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), *(None,) * 7


def _refuse_second_derivative(ctx: Any, *gradients: Tensor | None) -> None:
    raise RuntimeError(
        "integrate_and_fire: a second backward was asked for, through the gradient itself, want only the first: the fused "
        "operator has no second derivative; use snn_ext.functional.integrate_and_fire"
    )


library.impl("integrate_and_fire", _forward, "CompositeExplicitAutograd")
library.impl("integrate_and_fire_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("snn_ext::integrate_and_fire", _fake_forward, lib=library)
torch.library.register_fake("snn_ext::integrate_and_fire_backward", _fake_backward, lib=library)
torch.library.register_autograd(
    "snn_ext::integrate_and_fire", _differentiate, setup_context=_keep_for_backward, lib=library
)
torch.library.register_autograd("snn_ext::integrate_and_fire_backward", _refuse_second_derivative, lib=library)
