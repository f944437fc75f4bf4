"""``adaptive_spiking``, and its filters alone, as a torch operator: its declaration and the public functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from ... import functional
from ...functional.asn import (
    ASNState,
    Constants,
    PSPState,
    SpikeHeight,
    asn_constants,
    check_adaptive_arguments,
    check_potential_arguments,
    psp_constants,
)
from ...functional.integrate_and_fire import as_step, state_dtype
from ...functional.surrogates import Sigmoid, Surrogate, as_surrogate
from ..registry import check_definition_may_run, why_definition
from ..sequence import Sequence, SequenceOp, State, Step, Table

__all__ = ["OP", "Inputs", "Outputs", "Settings", "agreement_case", "adaptive_spiking", "postsynaptic_potential"]


class Inputs(NamedTuple):
    """Input current, bias, the states before the first step, and six constants in the order of ``Constants``."""

    current_seq: Sequence
    bias: Step
    psc: State
    s: State
    s_hat: State
    adaptation: State
    constants: Table


class Outputs(NamedTuple):
    """Spikes, their heights or the potential, and the states after the last step."""

    out_seq: Sequence
    psc_end: State
    s_end: State
    s_hat_end: State
    adaptation_end: State


class Settings(NamedTuple):
    """Everything that is not a tensor.

    The output is 0 and 1, or 0 and the threshold ("heights"), or S without any spike ("potential"); then the last two
    states are not used. The last three are the surrogate.
    """

    output: Literal["spikes", "heights", "potential"]
    analog_input: bool
    detach_adaptation: bool
    surrogate: int
    alpha: float
    gain: float


OP = SequenceOp(
    "adaptive_spiking",
    Inputs,
    Outputs,
    Settings,
    backward_only=("detach_adaptation", "surrogate"),
    used_states=lambda settings: 2 if settings.output == "potential" else 4,
)


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

    Parameters, results and errors are those of the definition; a forced implementation that cannot run raises a
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
    constants = (m_f, theta_0, tau_gamma, tau_eta, tau_beta, tau_phi)
    reason = why_definition(curve, current_seq, bias, *_parts(state), *constants) or _why_trained(constants)
    if reason is not None:
        check_definition_may_run(OP.name, reason)
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
    check_adaptive_arguments(current_seq, state, bias, analog_input, spike_height, detach_adaptation)
    c = asn_constants(current_seq, m_f, theta_0, tau_gamma, tau_eta, tau_beta, tau_phi, dt)
    output: Literal["spikes", "heights"] = "heights" if spike_height == "adaptive" else "spikes"
    known = cast(Surrogate, curve)
    settings = Settings(output, analog_input, detach_adaptation, known.id, known.alpha, known.gain)
    spike_seq, *end = _run(current_seq, state, bias, c, settings)
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
    constants = (tau_beta, tau_phi)
    reason = why_definition(None, current_seq, bias, *_parts(state), *constants) or _why_trained(constants)
    if reason is not None:
        check_definition_may_run(OP.name, reason)
        return functional.postsynaptic_potential(
            current_seq, state, bias=bias, analog_input=analog_input, tau_beta=tau_beta, tau_phi=tau_phi, dt=dt
        )
    check_potential_arguments(current_seq, state, bias, analog_input)
    c = psp_constants(current_seq, tau_beta, tau_phi, dt)
    s_seq, psc, s, *_ = _run(current_seq, state, bias, c, Settings("potential", analog_input, False, 0, 1.0, 1.0))
    return s_seq, PSPState(psc, s)


def _parts(state: object) -> tuple[object, ...]:
    return state if isinstance(state, tuple) else ()


def _why_trained(constants: tuple[Tensor | float | None, ...]) -> str | None:
    trained = any(isinstance(constant, Tensor) and constant.requires_grad for constant in constants)
    return "a constant needs a gradient, which only the definition has" if trained and torch.is_grad_enabled() else None


def _run(
    current_seq: Tensor,
    state: tuple[Tensor | float, ...] | None,
    bias: Tensor | float | None,
    c: Constants,
    settings: Settings,
) -> tuple[Tensor, ...]:
    dtype = state_dtype(current_seq.dtype)
    rest = torch.zeros((), dtype=dtype, device=current_seq.device)
    offset = rest if bias is None else as_step(bias, current_seq, dtype)
    start = [as_step(part, current_seq, dtype) for part in state or ()]
    psc, s, s_hat, adaptation = start + [rest] * (len(OP.states) - len(start))
    return OP(Inputs(current_seq, offset, psc, s, s_hat, adaptation, _stack(c, current_seq)), settings)


def _stack(c: Constants, current_seq: Tensor) -> Tensor:
    """Return the constants as ``[6]``, or as ``[6, N, ...]`` if one of them differs between neurons."""
    if all(constant.numel() == 1 for constant in c):
        return torch.stack([constant.reshape(()) for constant in c])
    return torch.stack([constant.expand(current_seq.shape[1:]) for constant in c])


def agreement_case(grid: Tensor, dtype: torch.dtype) -> tuple[Inputs, Settings]:
    """Return the case on which compiled code has to agree with torch before it is used."""
    psc, s, s_hat, adaptation = (grid[k].mul(0.002 * k) for k in range(len(OP.states)))
    constants = torch.tensor([0.1, 0.2, 0.9, 0.95, 0.8, 0.7], dtype=grid.dtype, device=grid.device)
    current_seq = grid.mul(0.07).remainder(0.5).to(dtype)
    inputs = Inputs(current_seq, grid[1].mul(0.01), psc, s, s_hat, adaptation, constants)
    return inputs, Settings("heights", False, False, 0, 4.0, 1.0)
