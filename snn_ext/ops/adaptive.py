"""``adaptive_spiking`` and its filters alone as a torch operator: their public face, and the operators behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..functional.asn import (
    ASNState,
    Constants,
    PSPState,
    SpikeHeight,
    asn_constants,
    check_adaptive_arguments,
    check_potential_arguments,
    psp_constants,
)
from ..functional.integrate_and_fire import as_step, state_dtype
from ..functional.surrogates import Sigmoid, Surrogate, as_surrogate
from .adaptive_execution import AdaptiveSettings, Output
from .execution import checkpoint_count
from .layout import as_step_of, as_steps_of, dense, empty_step, in_order_of, is_one, savable
from .selection import check_definition_may_run, implementation, select, why_transformed

__all__ = ["adaptive_spiking", "postsynaptic_potential"]

STATES = 4


def adaptive_spiking(
    current_seq: Tensor,
    state: ASNState | tuple[Tensor | float, ...] | None = None,
    *,
    bias: Tensor | float | None = None,
    analog_input: bool = False,
    m_f: Tensor | float = 0.1,
    theta_0: Tensor | float | None = None,
    tau_gamma: Tensor | float = 15.0,
    tau_eta: Tensor | float = 50.0,
    tau_beta: Tensor | float = 50.0,
    tau_phi: Tensor | float = 5.0,
    dt: float = 1.0,
    spike_height: SpikeHeight = "fixed",
    surrogate: Surrogate | Callable[[Tensor], Tensor] = Sigmoid(4.0),
    detach_adaptation: bool = True,
) -> tuple[Tensor, ASNState]:
    """Run :func:`snn_ext.functional.adaptive_spiking`, bit-equal, by the selected implementation.

    Parameters, results and errors are those of the definition; a forced implementation that can not run raises a
    ``RuntimeError``. A surrogate that is not one of the known curves, constants that need a gradient, forward-mode
    derivatives and what ``torch.func`` transforms are run by the definition itself.

    For the backward pass the input is kept, and for more than 16 steps the state before every 16th; nothing without
    gradients. There is no second derivative: asking for one raises a ``RuntimeError``.

    Examples
    --------
    >>> import torch
    >>> adaptive_spiking(torch.full((10, 1), 0.5), analog_input=True, tau_phi=0)[0].flatten()
    tensor([1., 1., 1., 1., 0., 1., 0., 0., 0., 0.])
    """
    curve = as_surrogate(surrogate)
    check_adaptive_arguments(current_seq, state, bias, analog_input, spike_height, detach_adaptation)
    c = asn_constants(current_seq, m_f, theta_0, tau_gamma, tau_eta, tau_beta, tau_phi, dt)
    reason = why_transformed(current_seq, bias, *(state or ()), *c) or _why_trained(c)
    if not isinstance(curve, Surrogate) or reason is not None:
        if reason is not None:
            check_definition_may_run("adaptive_spiking", reason)
        else:
            implementation("adaptive_spiking", current_seq.device, current_seq.dtype, surrogate=curve)
        return functional.adaptive_spiking(
            current_seq,
            state,
            bias=bias,
            analog_input=analog_input,
            m_f=m_f,
            theta_0=theta_0,
            tau_gamma=tau_gamma,
            tau_eta=tau_eta,
            tau_beta=tau_beta,
            tau_phi=tau_phi,
            dt=dt,
            spike_height=spike_height,
            surrogate=curve,
            detach_adaptation=detach_adaptation,
        )
    output: Output = "heights" if spike_height == "adaptive" else "spikes"
    settings = AdaptiveSettings(curve.id, curve.alpha, curve.gain, detach_adaptation, analog_input, output)
    spike_seq, end = _run(current_seq, state, bias, c, settings)
    return spike_seq, ASNState(*end)


def postsynaptic_potential(
    current_seq: Tensor,
    state: PSPState | tuple[Tensor | float, ...] | None = None,
    *,
    bias: Tensor | float | None = None,
    analog_input: bool = False,
    tau_beta: Tensor | float = 50.0,
    tau_phi: Tensor | float = 5.0,
    dt: float = 1.0,
) -> tuple[Tensor, PSPState]:
    """Run :func:`snn_ext.functional.postsynaptic_potential`, bit-equal, by the implementation of ``adaptive_spiking``.

    Examples
    --------
    >>> import torch
    >>> postsynaptic_potential(torch.ones(2, 1), tau_phi=0)[0].flatten()
    tensor([1.0000, 1.9802])
    """
    check_potential_arguments(current_seq, state, bias, analog_input)
    c = psp_constants(current_seq, tau_beta, tau_phi, dt)
    reason = why_transformed(current_seq, bias, *(state or ()), *c) or _why_trained(c)
    if reason is not None:
        check_definition_may_run("adaptive_spiking", reason)
        return functional.postsynaptic_potential(
            current_seq, state, bias=bias, analog_input=analog_input, tau_beta=tau_beta, tau_phi=tau_phi, dt=dt
        )
    s_seq, end = _run(current_seq, state, bias, c, AdaptiveSettings(0, 1.0, 1.0, True, analog_input, "potential"))
    return s_seq, PSPState(*end[:2])


def _why_trained(c: Constants) -> str | None:
    trained = torch.is_grad_enabled() and any(constant.requires_grad for constant in c)
    return "a constant needs a gradient, which only the definition has" if trained else None


def _run(
    current_seq: Tensor,
    state: tuple[Tensor | float, ...] | None,
    bias: Tensor | float | None,
    c: Constants,
    settings: AdaptiveSettings,
) -> tuple[Tensor, list[Tensor]]:
    dtype = state_dtype(current_seq.dtype)
    rest = torch.zeros((), dtype=dtype, device=current_seq.device)
    offset = rest if bias is None else as_step(bias, current_seq, dtype)
    start = [as_step(part, current_seq, dtype) for part in state or ()]
    start += [rest] * (STATES - len(start))
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (current_seq, offset, *start))
    out_seq, *end, _ = torch.ops.snn_ext.adaptive_spiking.default(
        current_seq, offset, *start, _stack(c, current_seq), *settings, keep
    )
    return out_seq, end


def _stack(c: Constants, current_seq: Tensor) -> Tensor:
    """Return the constants as ``[6]``, or as ``[6, N, ...]`` if one of them differs between neurons."""
    if all(constant.numel() == 1 for constant in c):
        return torch.stack([constant.reshape(()) for constant in c])
    return torch.stack([constant.expand(current_seq.shape[1:]) for constant in c])


# -- the operators -----------------------------------------------------------------------------------------------------
# An execution is selected when an operator runs, not when a model is compiled.

_STATE = "Tensor psc, Tensor s, Tensor s_hat, Tensor adaptation"
_SETTINGS = "int surrogate, float alpha, float gain, bool detach_adaptation, bool analog_input, str output"
_INPUTS = 2 + STATES  # that may need a gradient

library = torch.library.Library("snn_ext", "FRAGMENT")
library.define(
    f"adaptive_spiking(Tensor current_seq, Tensor bias, {_STATE}, Tensor constants, {_SETTINGS}, bool keep_checkpoints)"
    " -> (Tensor out_seq, Tensor psc_end, Tensor s_end, Tensor s_hat_end, Tensor adaptation_end, Tensor checkpoints)"
)
library.define(
    "adaptive_spiking_backward(Tensor? grad_out_seq, Tensor? grad_psc_end, Tensor? grad_s_end, Tensor? grad_s_hat_end,"
    f" Tensor? grad_adaptation_end, Tensor current_seq, Tensor bias, {_STATE}, Tensor constants, Tensor checkpoints,"
    f" {_SETTINGS}, bool[{_INPUTS}] wanted)"
    " -> (Tensor grad_current_seq, Tensor grad_bias, Tensor grad_psc, Tensor grad_s, Tensor grad_s_hat,"
    " Tensor grad_adaptation)"
)


def _forward(current_seq: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    start, constants, settings = list(rest[:STATES]), rest[STATES], AdaptiveSettings(*rest[STATES + 1 : -1])
    current_seq = dense(current_seq)
    out_seq, *end, checkpoints = _empty_outputs(current_seq, bias, settings, rest[-1])
    if current_seq.numel():
        count = _states(settings)
        select("adaptive_spiking", current_seq.device, current_seq.dtype).forward(
            current_seq,
            *_in_order(current_seq, bias, start[:count], constants),
            settings,
            out_seq=out_seq,
            end=end[:count],
            checkpoints=checkpoints if len(checkpoints) else None,
        )
    return out_seq, *end, checkpoints


def _empty_outputs(
    current_seq: Tensor, bias: Tensor, settings: AdaptiveSettings, keep_checkpoints: bool
) -> tuple[Tensor, ...]:
    dtype, device, spikes = bias.dtype, bias.device, settings.output != "potential"
    count = checkpoint_count(current_seq.shape[0]) if keep_checkpoints and spikes else 0
    return (
        torch.empty_strided(current_seq.shape, current_seq.stride(), dtype=current_seq.dtype, device=device),
        *(empty_step(current_seq, dtype) for _ in range(_states(settings))),
        *(torch.empty(0, dtype=dtype, device=device) for _ in range(STATES - _states(settings))),
        torch.empty((count, STATES, current_seq[0].numel() if count else 0), dtype=dtype, device=device),
    )


def _states(settings: AdaptiveSettings) -> int:
    """How many states there are: without spikes there is neither S_hat nor adaptation."""
    return 2 if settings.output == "potential" else STATES


def _in_order(
    current_seq: Tensor, bias: Tensor, start: list[Tensor], constants: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return arrays that are ``[N]`` in the memory order of the input, or one element."""
    if not all(map(is_one, start)):
        start = [as_step_of(current_seq, part) for part in start]
    return (
        bias if is_one(bias) else as_step_of(current_seq, bias),
        start,
        as_steps_of(current_seq, constants) if constants.dim() > 1 else constants.contiguous(),
    )


def _backward(*arguments: Any) -> list[Tensor]:
    incoming, (current_seq, bias), rest = arguments[: 1 + STATES], arguments[1 + STATES : 3 + STATES], arguments[7:]
    start, constants, checkpoints = list(rest[:STATES]), rest[STATES], rest[STATES + 1]
    settings, wanted = AdaptiveSettings(*rest[STATES + 2 : -1]), rest[-1]
    current_seq = dense(current_seq)
    gradients = _empty_gradients(current_seq, bias, start, wanted)
    if current_seq.numel() == 0:
        return [gradient.zero_() for gradient in gradients]
    count = _states(settings)
    for unused in gradients[2 + count :]:  # of states that there are not
        unused.zero_()
    grad_out_seq, *grad_end = incoming
    grad_current_seq, grad_bias, *grad_start = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    select("adaptive_spiking", current_seq.device, current_seq.dtype).backward(
        None if grad_out_seq is None else in_order_of(current_seq, grad_out_seq),
        [None if part is None else as_step_of(current_seq, part) for part in grad_end[:count]],
        current_seq,
        *_in_order(current_seq, bias, start[:count], constants),
        checkpoints if len(checkpoints) else None,
        settings,
        grad_current_seq=grad_current_seq,
        grad_bias=grad_bias,
        grad_start=grad_start[:count],
    )
    return gradients


def _empty_gradients(current_seq: Tensor, bias: Tensor, start: list[Tensor], wanted: list[bool]) -> list[Tensor]:
    """Return room for the gradients; an operator has to return tensors, so one not wanted has no element."""
    gradients = [
        torch.empty_strided(
            current_seq.shape, current_seq.stride(), dtype=current_seq.dtype, device=current_seq.device
        ),
        *(empty_step(current_seq, part.dtype) for part in (bias, *start)),
    ]
    return [g if w else torch.empty(0, dtype=g.dtype, device=g.device) for g, w in zip(gradients, wanted, strict=True)]


def _fake_forward(current_seq: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _empty_outputs(dense(current_seq), bias, AdaptiveSettings(*rest[STATES + 1 : -1]), rest[-1])


def _fake_backward(*arguments: Any) -> list[Tensor]:
    current_seq, bias, *start = arguments[1 + STATES : 3 + 2 * STATES]
    return _empty_gradients(dense(current_seq), bias, start, arguments[-1])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.settings = inputs[: _INPUTS + 1], inputs[_INPUTS + 1 : -1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[-1])
    ctx.save_for_backward(*map(savable, (*tensors, output[-1])))


def _differentiate(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:_INPUTS])
    gradients = torch.ops.snn_ext.adaptive_spiking_backward.default(
        *incoming[:-1], *ctx.saved_tensors, *ctx.settings, wanted
    )
    return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), *(None,) * (len(ctx.settings) + 2)


def _refuse_second_derivative(ctx: Any, *gradients: Tensor | None) -> None:
    raise RuntimeError(
        "adaptive_spiking: a second backward was asked for, through the gradient itself, want only the first: the "
        "fused operator has no second derivative; use snn_ext.functional.adaptive_spiking"
    )


library.impl("adaptive_spiking", _forward, "CompositeExplicitAutograd")
library.impl("adaptive_spiking_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("snn_ext::adaptive_spiking", _fake_forward, lib=library)
torch.library.register_fake("snn_ext::adaptive_spiking_backward", _fake_backward, lib=library)
torch.library.register_autograd(
    "snn_ext::adaptive_spiking", _differentiate, setup_context=_keep_for_backward, lib=library
)
torch.library.register_autograd("snn_ext::adaptive_spiking_backward", _refuse_second_derivative, lib=library)
