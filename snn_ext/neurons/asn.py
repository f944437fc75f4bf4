"""The adaptive spiking neuron (ASN) in either host: from its parameters to the arguments of one operator.

The class is a mixin for ``nn.Module`` and knows no host. The class of a host adds where the state is kept.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, ops
from .._counting import counted
from .._errors import bad_type, bad_value, check_bool, check_choice
from ..functional import ASNState, asn_spike_height, asn_transfer, state_dtype
from ..functional.asn import SpikeHeight, check_constant, check_constant_values
from ..functional.integrate_and_fire import broadcasts
from .base import ThresholdNeuron, known, per_channel, positive

__all__ = ["AdaptiveSpikingNeuron", "as_constant", "check_adaptive_options", "for_step"]


class AdaptiveSpikingNeuron(ThresholdNeuron):
    """The constants of an adaptive spiking neuron, and its precision, which may be changed at any time."""

    dynamics = "adaptive"
    resizable = ("m_f", "theta_0")
    resizable_ndim = 8
    m_f: Tensor
    theta_0: Tensor
    bias: Tensor | None
    tau_gamma: float
    tau_eta: float
    tau_beta: float
    tau_phi: float
    dt: float
    analog_input: bool
    spike_height: SpikeHeight
    readout: bool
    scale_output: bool

    def _init_adaptive(
        self,
        threshold: Tensor,
        trainable: bool,
        m_f: Any,
        theta_0: Any,
        checked: dict[str, Any],
        bias: Any,
    ) -> None:
        self._set_threshold(threshold, trainable)
        for name, value in checked.items():
            setattr(self, name, value)
        self._hold("m_f", as_constant("m_f", m_f))
        self._hold("theta_0", as_constant("theta_0", m_f if theta_0 is None else theta_0))
        if bias is None:
            self.register_buffer("bias", None)
        else:
            self._hold("bias", bias if isinstance(bias, nn.Parameter) else bias.detach().clone())

    def set_precision(self, m_f: float | Tensor, theta_0: float | Tensor | None = None) -> None:
        """Change the precision of the neurons and keep their state.

        The weights that receive their spikes must then be multiplied by the new :attr:`h` instead of the old one;
        :func:`snn_ext.set_precision` does so for a whole net.

        Parameters
        ----------
        m_f : float or Tensor
            Adaptation of the threshold a spike, > 0; smaller is more precise and fires more. One value, one per channel
            ``[C]``, or any other shape that broadcasts to ``[N, ...]``, such as ``[N, 1, 1, 1]`` for one per sample.
        theta_0 : float or Tensor, optional
            Threshold at rest in units of the neuron's threshold; ``m_f`` by default.

        Examples
        --------
        >>> from snn_ext.spikingjelly import ASNNode
        >>> node = ASNNode()
        >>> node.set_precision(0.2)
        >>> node.theta_0
        tensor([0.2000])
        """
        new = as_constant("m_f", m_f), as_constant("theta_0", m_f if theta_0 is None else theta_0)
        self.m_f, self.theta_0 = (value.to(self.m_f) for value in new)

    @property
    def h(self) -> Tensor:
        """Height of a spike in the neuron's units: the factor on the weights that receive its spikes."""
        if self.spike_height == "adaptive":
            return torch.ones_like(self.m_f)
        height = asn_spike_height(
            self.m_f, self.theta_0, tau_gamma=self.tau_gamma, tau_eta=self.tau_eta, tau_beta=self.tau_beta
        )
        return height.to(self.m_f.dtype) * self._unit()

    def options(self) -> dict[str, Any]:
        """Return the arguments that are not tensors, to build a neuron like this one in either host."""
        names = ("tau_gamma", "tau_eta", "tau_beta", "tau_phi", "dt", "analog_input", "spike_height", "readout")
        return {name: getattr(self, name) for name in (*names, "scale_output")}

    @property
    def emits_spikes(self) -> bool:
        """True if the output is a spike train; False for a read-out and for the filter before a pooling."""
        return not self.readout

    def analog(self, current: Tensor) -> tuple[Tensor, Tensor]:
        """Return rate and output of the neuron in the equivalent analog net, for a constant mean current ``[N, ...]``.

        Returns
        -------
        rate : Tensor
            Spikes per step that carry f(S), at most 1; 0 where the threshold is never reached.
        output : Tensor
            Mean effect of the spikes on the receiving layer: f(S) in units of the height of a spike, or S.
        """
        x_seq = current.unsqueeze(0)
        s = current if self.bias is None else current + for_step("bias", self.bias, x_seq).to(current.dtype)
        if self.readout:
            return torch.zeros_like(s), s
        m_f, theta_0 = (for_step(name, getattr(self, name), x_seq).to(s.dtype) for name in ("m_f", "theta_0"))
        unit = self._unit().detach().to(s.dtype).reshape(())
        signal = s / unit

        def encoded(tau_beta: float) -> Tensor:
            """Return f(S) over h: the mean sum of spikes that a synapse has filtered."""
            taus: dict[str, Any] = {"tau_gamma": self.tau_gamma, "tau_eta": self.tau_eta, "tau_beta": tau_beta}
            height = asn_spike_height(m_f, theta_0, **taus).to(s.dtype)
            return asn_transfer(signal, m_f, theta_0, **taus) / height

        spikes = encoded(self.tau_eta)
        rate = -math.expm1(-self.dt / self.tau_eta) * spikes.masked_fill(signal <= theta_0 / 2, 0.0)
        if self.spike_height == "adaptive":
            return rate.clamp_max(1.0), s.clamp_min(0.0)
        output = spikes if self.tau_beta == self.tau_eta else encoded(self.tau_beta)
        return rate.clamp_max(1.0), output * for_step("h", self.h, x_seq).to(s.dtype) if self.scale_output else output

    # -- from parameters to the operator ----------------------------------------------------------------------------

    def integrate(
        self, x_seq: Tensor, state: ASNState, surrogate: Any, detach_adaptation: bool
    ) -> tuple[Tensor, ASNState]:
        """Run the operator on ``[T, N, ...]``; returns spikes, or the potential S of a read-out, and the state."""
        bias = None if self.bias is None else for_step("bias", self.bias, x_seq)
        operators: Any = functional if counted() else ops  # bit-equal; counters know what the definition is made of
        if self.readout:
            times = self._times("tau_beta", "tau_phi", "dt")
            s_seq, filtered = operators.postsynaptic_potential(
                x_seq, tuple(state[:2]), bias=bias, analog_input=self.analog_input, **times
            )
            others = (part.expand(x_seq.shape[1:]) for part in state[2:])  # unused, but of one shape with the rest
            return s_seq, ASNState(*filtered, *others)
        dtype = state_dtype(x_seq.dtype)
        threshold = self._unit().to(dtype).reshape(())
        spike_seq, state = operators.adaptive_spiking(
            x_seq,
            state,
            bias=bias,
            analog_input=self.analog_input,
            m_f=for_step("m_f", self.m_f, x_seq),
            theta_0=for_step("theta_0", self.theta_0, x_seq).to(dtype) * threshold,
            **self._times("tau_gamma", "tau_eta", "tau_beta", "tau_phi", "dt"),
            spike_height=self.spike_height,
            surrogate=surrogate,
            detach_adaptation=detach_adaptation,
        )
        if self.scale_output and self.spike_height == "fixed":
            spike_seq = (spike_seq * for_step("h", self.h, x_seq)).to(x_seq.dtype)
        return spike_seq, state

    def start(self, x_seq: Tensor) -> ASNState:
        """Return the state at rest for an input ``[T, N, ...]``: one value for all neurons."""
        zero = torch.zeros((), dtype=state_dtype(x_seq.dtype), device=x_seq.device)
        return ASNState(zero, zero, zero, zero)

    def unencoded(self, state: ASNState) -> Tensor:
        """Return S - S_hat, the part of the signal that spikes have not encoded yet."""
        s = state.s
        if self.bias is not None:
            s = for_step("bias", self.bias, s.unsqueeze(0)).to(s.dtype) + s
        return s - state.s_hat

    def _unit(self) -> Tensor:
        """Return the unit of the signal as it is used: positive, whatever training has done to it."""
        raw = self._raw_threshold()
        return positive(raw) if raw.requires_grad else raw

    def _times(self, *names: str) -> dict[str, float]:
        return {name: getattr(self, name) for name in names}

    def _describe(self) -> str:
        parts = [self._describe_threshold()]
        if self.readout:
            parts = ["readout=True"]
        else:
            parts += [f"m_f={_show(self.m_f)}", f"theta_0={_show(self.theta_0)}"]
        parts += [f"{name}={value:g}" for name, value in self._times("tau_phi", "dt").items()]
        parts += [] if self.spike_height == "fixed" else ["spike_height='adaptive'"]
        parts += [f"{name}=True" for name in ("analog_input", "scale_output") if getattr(self, name)]
        return ", ".join(parts)


# -- checks of constructor arguments -----------------------------------------------------------------------------------


def as_constant(name: str, value: Any) -> Tensor:
    """Return a constant as a float32 tensor: ``[1]``, or the shape that it has."""
    if not isinstance(value, Tensor):
        return torch.tensor([check_constant(name, value)], dtype=torch.float32, device="cpu")
    if not value.is_floating_point() or value.numel() < 1:
        bad_value(name, value, "a number > 0 or a floating tensor of them")
    check_constant_values(name, known(name, value))
    constant = value.detach().float().clone()
    return constant.reshape(1) if constant.ndim == 0 else constant


_TIMES = ("tau_gamma", "tau_eta", "tau_beta", "tau_phi", "dt")
_OPTIONS = ("analog_input", "spike_height", "readout", "scale_output")


def check_adaptive_options(given: dict[str, Any]) -> dict[str, Any]:
    """Check the arguments common to both hosts, the ``locals()`` of a constructor.

    Return the attributes that they become: the time constants as floats, ``tau_phi`` filled in, and the options.
    """
    m_f, theta_0, bias = given["m_f"], given["theta_0"], given["bias"]
    times, options = ({name: given[name] for name in names} for names in (_TIMES, _OPTIONS))
    for name, value in (("m_f", m_f), ("theta_0", m_f if theta_0 is None else theta_0)):
        as_constant(name, value)
    for name, value in options.items():
        if name == "spike_height":
            check_choice(name, value, ("fixed", "adaptive"))
        else:
            check_bool(name, value)
    if options["readout"] and options["scale_output"]:
        bad_value("scale_output", True, "False with readout=True: a read-out has no spikes")
    if bias is not None and (not isinstance(bias, Tensor) or not bias.is_floating_point()):
        bad_type(
            "bias", bias, "None or a floating tensor: one value, one per channel [C], or broadcastable to [N, ...]"
        )
    if times["tau_phi"] is None:
        times["tau_phi"] = 50.0 if options["readout"] else 5.0
    return {name: check_constant(name, value) for name, value in times.items()} | options


def for_step(name: str, value: Tensor, x_seq: Tensor) -> Tensor:
    """Reshape one value, or one per channel, to broadcast to a step; other shapes have to broadcast already."""
    if value.numel() > 1 and value.ndim != 1:
        if not broadcasts(value.shape, x_seq.shape[1:]):
            bad_value(name, value, f"a shape that broadcasts to one step of input, {list(x_seq.shape[1:])}")
        return value
    return per_channel(name, value, x_seq.shape[1:])


def _show(x: Tensor) -> str:
    return f"{x.item():.4g}" if x.numel() == 1 and not x.is_meta else str(list(x.shape))
