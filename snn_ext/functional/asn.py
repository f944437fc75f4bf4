"""The adaptive spiking neuron (ASN): it encodes a signal by spikes of a threshold that rises with every spike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._errors import bad_type, bad_value, check_bool, check_choice, check_real
from .integrate_and_fire import as_step, check_device, check_sequence, check_step, state_dtype
from .surrogates import Sigmoid, Surrogate, as_surrogate, spike

__all__ = ["ASNState", "PSPState", "adaptive_spiking", "postsynaptic_potential"]

SpikeHeight = Literal["fixed", "adaptive"]


class ASNState(NamedTuple):
    r"""State of adaptive spiking neurons after a step, each ``[N, ...]``.

    Examples
    --------
    >>> import torch
    >>> spike_seq, state = adaptive_spiking(torch.ones(3, 2))
    >>> state.psc.shape
    torch.Size([2])
    """

    psc: Tensor
    """:math:`I`, the post-synaptic current."""
    s: Tensor
    """:math:`S` without the bias: the current after the membrane filter."""
    s_hat: Tensor
    r""":math:`\hat S`, what the neuron's own spikes have encoded so far."""
    adaptation: Tensor
    r""":math:`\theta - \theta_0`, how far the threshold is above rest."""


class PSPState(NamedTuple):
    """State of the synaptic and the membrane filter, each ``[N, ...]``: the first two of :class:`ASNState`.

    Examples
    --------
    >>> import torch
    >>> postsynaptic_potential(torch.ones(3, 2), analog_input=True)[1].psc
    tensor([1., 1.])
    """

    psc: Tensor
    s: Tensor


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
    r"""Encode a signal by the spikes of adaptive neurons.

    With :math:`d_x = e^{-dt / \tau_x}` and in this order, one rounding an operation:

    .. math::
        I_t &= d_\beta I_{t-1} + x_t \quad (x_t \text{ with } \mathtt{analog\_input}) \\
        s_t &= (1 - d_\phi) I_t + d_\phi s_{t-1}, \qquad S_t = b + s_t \\
        z_t &= 1[S_t - d_\eta \hat S_{t-1} > \theta_t / 2] \\
        \hat S_t &= d_\eta \hat S_{t-1} + \theta_t z_t \\
        a_{t+1} &= d_\gamma (a_t + m_f \theta_t z_t), \qquad \theta_{t+1} = \theta_0 + a_{t+1}

    The backward pass replaces the derivative of the step by the surrogate's, at
    :math:`S_t - d_\eta \hat S_{t-1} - \theta_t / 2`; everything else is differentiated as it stands, the constants
    included. This is the definition that every faster execution has to match bit for bit in spikes and state.

    Parameters
    ----------
    current_seq : Tensor
        Input, ``[T, N, ...]``, any floating dtype, T >= 1: the weighted sum of the spikes that come in at each step, or
        with ``analog_input`` the current itself.
    state : ASNState, optional
        State after the step before; at rest by default. Its four parts broadcast to ``[N, ...]``.
    bias : Tensor or float, optional
        Added to the activation S, not to the current; broadcastable to ``[N, ...]``.
    analog_input : bool
        The input is a current that needs no synapse: the first layer of a net.
    m_f : Tensor or float
        How much of itself every spike adds to the threshold, > 0.
    theta_0 : Tensor or float, optional
        Threshold at rest, > 0; ``m_f`` by default, as in the paper.
    tau_gamma, tau_eta, tau_beta : Tensor or float
        Time constants of threshold adaptation, refractory response and synapse in ms, > 0.
    tau_phi : Tensor or float
        Time constant of the membrane filter in ms; 0 for none.
    dt : float
        Length of a step in ms, > 0.
    spike_height : {"fixed", "adaptive"}
        A spike is emitted as 1, or as the threshold at its time: then the transfer function is linear above half the
        resting threshold.
    surrogate : Surrogate or callable
        Gradient of the spike.
    detach_adaptation : bool
        Let no gradient through the spike in the neuron's own :math:`\hat S` and threshold.

    Returns
    -------
    spike_seq : Tensor
        ``[T, N, ...]`` in the dtype of ``current_seq``; 0 and 1, or 0 and the threshold.
    state : ASNState
        State after the last step; float64 for float64 input, float32 for any narrower one.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong. Constants that are tensors are checked on the CPU only, and not while compiling.

    Notes
    -----
    Constants, bias and state may differ by sample, channel or position: any shape that broadcasts to ``[N, ...]``.
    A neuron may change its precision (``m_f``, ``theta_0``) between two calls; the state carries over.
    Source: Zambrano et al. 2017 (arXiv 1710.04838), equations 1, 2 and 4-7; the adaptive height is in its discussion.

    Examples
    --------
    >>> import torch
    >>> spike_seq, state = adaptive_spiking(torch.full((500, 1), 0.5), analog_input=True)
    >>> int(spike_seq.sum())                                    # in half a second
    48
    """
    surrogate = as_surrogate(surrogate)
    check_adaptive_arguments(current_seq, state, bias, analog_input, spike_height, detach_adaptation)
    c = asn_constants(current_seq, m_f, theta_0, tau_gamma, tau_eta, tau_beta, tau_phi, dt)
    dtype = state_dtype(current_seq.dtype)
    psc, s, s_hat, adaptation = (as_step(part, current_seq, dtype) for part in state or (0.0,) * 4)
    offset = None if bias is None else as_step(bias, current_seq, dtype)
    spikes, state = [], ASNState(psc, s, s_hat, adaptation)
    for current in current_seq.to(dtype):
        out, state = adaptive_step(current, state, offset, c, analog_input, spike_height, surrogate, detach_adaptation)
        spikes.append(out)
    return torch.stack(spikes).to(current_seq.dtype), state


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
    r"""Filter incoming spikes to the activation S, without spiking: what a read-out is, and what pooling is applied to.

    .. math::
        I_t = d_\beta I_{t-1} + x_t \quad (x_t \text{ with } \mathtt{analog\_input}), \qquad
        s_t = (1 - d_\phi) I_t + d_\phi s_{t-1}, \qquad S_t = b + s_t

    Followed by pooling and by :func:`adaptive_spiking` with ``analog_input=True`` and ``tau_phi=0`` it is a layer with
    pooling merged into it: filter, pool, spike.

    Parameters
    ----------
    current_seq, bias, analog_input, tau_beta, tau_phi, dt
        As in :func:`adaptive_spiking`.
    state : PSPState, optional
        State after the step before; at rest by default.

    Returns
    -------
    s_seq : Tensor
        S, ``[T, N, ...]``, in the dtype of ``current_seq``.
    state : PSPState
        State after the last step, float32 or float64.

    Notes
    -----
    Source: Zambrano et al. 2017, equations 1, 4 and 5.

    Examples
    --------
    >>> import torch
    >>> postsynaptic_potential(torch.ones(2, 1), tau_phi=0)[0].flatten()
    tensor([1.0000, 1.9802])
    """
    check_potential_arguments(current_seq, state, bias, analog_input)
    c = psp_constants(current_seq, tau_beta, tau_phi, dt)
    dtype = state_dtype(current_seq.dtype)
    psc, s = (as_step(part, current_seq, dtype) for part in state or (0.0, 0.0))
    offset = None if bias is None else as_step(bias, current_seq, dtype)
    potentials = []
    for current in current_seq.to(dtype):
        psc, s = filter_step(psc, s, current, analog_input, c)
        potentials.append(s if offset is None else offset + s)
    return torch.stack(potentials).to(current_seq.dtype), PSPState(psc, s)


def adaptive_step(
    current: Tensor,
    state: ASNState,
    offset: Tensor | None,
    c: Constants,
    analog_input: bool,
    spike_height: str,
    surrogate: Surrogate | Callable[[Tensor], Tensor],
    detach_adaptation: bool,
) -> tuple[Tensor, ASNState]:
    """Take one step of :func:`adaptive_spiking`, with all tensors in the dtype of the state."""
    psc, s = filter_step(state.psc, state.s, current, analog_input, c)
    theta = c.theta_0 + state.adaptation
    s_hat = state.s_hat * c.decay_eta
    z = spike((s if offset is None else offset + s) - s_hat, 0.5 * theta, surrogate, fire_at_threshold=False)
    jump = theta * (z.detach() if detach_adaptation else z)
    s_hat = s_hat + jump
    adaptation = (state.adaptation + c.m_f * jump) * c.decay_gamma
    return theta * z if spike_height == "adaptive" else z, ASNState(psc, s, s_hat, adaptation)


def filter_step(psc: Tensor, s: Tensor, current: Tensor, analog_input: bool, c: Constants) -> tuple[Tensor, Tensor]:
    """Take one step of the synaptic and the membrane filter."""
    psc = current if analog_input else psc * c.decay_beta + current
    return psc, (1.0 - c.decay_phi) * psc + c.decay_phi * s


# -- constants ---------------------------------------------------------------------------------------------------------


class Constants(NamedTuple):
    """The constants as a step needs them, in the dtype of the state; each without a dimension or broadcastable."""

    m_f: Tensor
    theta_0: Tensor
    decay_beta: Tensor
    decay_eta: Tensor
    decay_gamma: Tensor
    decay_phi: Tensor


_REASONS = {
    "m_f": "each spike has to raise the threshold",
    "theta_0": "at rest, any input at all would reach the threshold",
    "tau_gamma": "the threshold would not adapt, or grow without limit",
    "tau_eta": "the neuron would not remember what its spikes have encoded, or never forget",
    "tau_beta": "a spike would have no effect, or a lasting one",
    "tau_phi": "a filter cannot be faster than none, which is 0",
    "dt": "time goes forward",
}


def asn_constants(
    current_seq: Tensor,
    m_f: Tensor | float,
    theta_0: Tensor | float | None,
    tau_gamma: Tensor | float,
    tau_eta: Tensor | float,
    tau_beta: Tensor | float,
    tau_phi: Tensor | float,
    dt: float,
) -> Constants:
    """Check the constants for an input and return what a step needs of them."""
    dt = check_constant("dt", dt)
    theta_0 = m_f if theta_0 is None else theta_0
    named = {"m_f": m_f, "theta_0": theta_0, "tau_beta": tau_beta, "tau_eta": tau_eta, "tau_gamma": tau_gamma}
    for name, value in {**named, "tau_phi": tau_phi}.items():
        _check_constant_of_step(name, value, current_seq)
    dtype = state_dtype(current_seq.dtype)
    m_f, theta_0 = (
        v.to(dtype) if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=current_seq.device)
        for v in (m_f, theta_0)
    )
    return Constants(m_f, theta_0, *(_decay(tau, dt, current_seq) for tau in (tau_beta, tau_eta, tau_gamma, tau_phi)))


def psp_constants(current_seq: Tensor, tau_beta: Tensor | float, tau_phi: Tensor | float, dt: float) -> Constants:
    """Check the constants of a neuron that does not spike; the others are of no effect."""
    return asn_constants(current_seq, 1.0, 1.0, 1.0, 1.0, tau_beta, tau_phi, dt)


def check_constant(name: str, value: Tensor | float) -> float:
    """Return a constant that is a number; it has to be finite and > 0 (``tau_phi``: >= 0)."""
    want = _want(name)
    number = check_real(name, value, want, 0.0)
    if number == 0.0 and name != "tau_phi":
        bad_value(name, value, want)
    return number


def check_constant_values(name: str, value: Tensor) -> None:
    """Raise for a bad value in a constant that is a tensor, where looking at it costs nothing."""
    if not may_be_looked_at(value):
        return
    values = value.detach()
    positive = values >= 0 if name == "tau_phi" else values > 0
    if not bool((positive & values.isfinite()).all()):
        bad_value(name, values.flatten()[:8].tolist(), _want(name))


def may_be_looked_at(value: Tensor) -> bool:
    """Return True if the values of a tensor are at hand: on the CPU, and not while they are traced or mapped over."""
    hidden = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return value.device.type == "cpu" and not hidden


def _check_constant_of_step(name: str, value: Tensor | float, current_seq: Tensor) -> None:
    if not isinstance(value, Tensor):
        check_constant(name, value)
        return
    check_step(name, value, "current_seq", current_seq)
    check_device(name, value, "current_seq", current_seq)
    check_constant_values(name, value)


def _want(name: str) -> str:
    return f"a finite number {'>= 0' if name == 'tau_phi' else '> 0'}: {_REASONS[name]}"


def _decay(tau: Tensor | float, dt: float, current_seq: Tensor) -> Tensor:
    """Return exp(-dt / tau), rounded once to the dtype of the state; 0 for tau = 0."""
    dtype = state_dtype(current_seq.dtype)
    if isinstance(tau, Tensor):
        return torch.exp(-dt / tau.double()).to(dtype)
    decay = math.exp(-dt / tau) if tau else 0.0
    return torch.full((), decay, dtype=dtype, device=current_seq.device)


# -- the other arguments -----------------------------------------------------------------------------------------------


def check_adaptive_arguments(
    current_seq: Tensor,
    state: object,
    bias: Tensor | float | None,
    analog_input: bool,
    spike_height: str,
    detach_adaptation: bool,
) -> None:
    """Raise for the first argument of :func:`adaptive_spiking` that cannot be used; constants have their own check."""
    _check_input(current_seq, state, ASNState, bias, analog_input)
    check_choice("spike_height", spike_height, ("fixed", "adaptive"))
    check_bool("detach_adaptation", detach_adaptation)


def check_potential_arguments(
    current_seq: Tensor, state: object, bias: Tensor | float | None, analog_input: bool
) -> None:
    """Raise for the first argument of :func:`postsynaptic_potential` that cannot be used."""
    _check_input(current_seq, state, PSPState, bias, analog_input)


def _check_input(
    current_seq: Tensor,
    state: object,
    kind: type[ASNState] | type[PSPState],
    bias: Tensor | float | None,
    analog_input: bool,
) -> None:
    check_sequence("current_seq", current_seq)
    if state is not None:
        if not isinstance(state, tuple) or len(state) != len(kind._fields):
            bad_type("state", state, f"None (at rest) or the {kind.__name__} of the last call: {kind._fields}")
        for name, part in zip(kind._fields, state, strict=True):
            check_step(f"state.{name}", part, "current_seq", current_seq)
            check_device(f"state.{name}", part, "current_seq", current_seq)
    if bias is not None:
        check_step("bias", bias, "current_seq", current_seq)
        check_device("bias", bias, "current_seq", current_seq)
    check_bool("analog_input", analog_input)
