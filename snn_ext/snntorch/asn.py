"""ASN as a neuron of snnTorch 1.0: a subclass of ``snn.Leaky`` that carries the four states of the adaptive neuron."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._errors import bad_type, bad_value
from ..functional import ASNState
from ..functional.asn import SpikeHeight
from ..neurons.asn import AdaptiveSpikingNeuron, check_adaptive_options
from ..neurons.base import Admits, as_threshold, refuse_backend
from .host import HostNeuron

__all__ = ["ASN"]


class ASN(AdaptiveSpikingNeuron, HostNeuron):
    r"""ASN: an adaptive spiking neuron, whose spikes encode the signal S by a threshold that rises with every spike.

    .. math::
        I_t = d_\beta I_{t-1} + x_t, \quad S_t = b + \phi * I, \quad z_t = 1[S_t - \hat S_t > \theta_t / 2], \quad
        \hat S \leftarrow \hat S + \theta_t z_t, \quad \theta \leftarrow \theta (1 + m_f z_t)

    with the order and the decays of :func:`snn_ext.functional.adaptive_spiking`. ``mem``, as returned, is
    :math:`S_t - \hat S_t` before the spike; it tells the host's reset and detach, but does not hold the state.

    Parameters
    ----------
    threshold : float or Tensor
        Unit of the signal, one element; ``threshold`` of shape ``[1]``. The threshold at rest is
        ``theta_0 * threshold``.
    init_hidden : bool
        The state, of four tensors, is kept inside: only ``True``.
    learn_threshold : bool
        Train the unit of the signal. Gradients of constants are computed by the definition, not by a fused operator.
    reset_mechanism : {"subtract"}
        A spike adds to S_hat: anything else is refused.
    m_f, theta_0, tau_gamma, tau_eta, tau_beta, tau_phi, dt, bias, analog_input, spike_height, readout, scale_output
        As in :class:`snn_ext.spikingjelly.ASNNode`; see :func:`snn_ext.functional.adaptive_spiking`.
    others
        As in :class:`ATIFu`.

    Notes
    -----
    The spike in S_hat and the threshold is detached, as the one in the reset everywhere in this host.
    Source: Zambrano et al. 2017, equations 1-7.

    Examples
    --------
    >>> import torch
    >>> neuron = ASN(analog_input=True, tau_phi=0.0)
    >>> [int(neuron(torch.tensor([0.5]))) for _ in range(10)]
    [1, 1, 1, 1, 0, 1, 0, 0, 0, 0]
    """

    explicit_mem = False
    only_subtraction = "a spike adds to S_hat, nothing is reset"
    admits: ClassVar[Admits] = HostNeuron.admits | {"init_hidden": lambda neuron, value: _check_init_hidden(value)}

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = True,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: bool = False,
        output: bool = False,
        graded_spikes_factor: float = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
        *,
        beta: float = 1.0,
        step_mode: str = "s",
        m_f: float | Tensor = 0.1,
        theta_0: float | Tensor | None = None,
        tau_gamma: float = 15.0,
        tau_eta: float = 50.0,
        tau_beta: float = 50.0,
        tau_phi: float | None = None,
        dt: float = 1.0,
        bias: Tensor | None = None,
        analog_input: bool = False,
        spike_height: SpikeHeight = "fixed",
        readout: bool = False,
        scale_output: bool = False,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        value = as_threshold("threshold", threshold)
        checked = check_adaptive_options(locals())  # before the host lists this neuron
        _check_init_hidden(init_hidden)
        self._init_host(locals())
        self._init_adaptive(value, learn_threshold, m_f, theta_0, checked, bias)

    def _advance(self, x_seq: Tensor, state: ASNState | None) -> tuple[Tensor, Tensor, ASNState]:
        state = self.start(x_seq) if state is None else state
        parts = []
        if len(x_seq) > 1:  # mem of the last step needs the state before it
            spk, state = self.integrate(x_seq[:-1], state, self.spike_grad, True)
            parts.append(spk)
        spk, mems, state = self._advance_with_mem(x_seq[-1:], state)
        return torch.cat([*parts, spk]), mems[-1], state

    def _advance_with_mem(self, x_seq: Tensor, state: ASNState | None) -> tuple[Tensor, list[Tensor], ASNState]:
        state = self.start(x_seq) if state is None else state
        spikes, mems = [], []
        for x in x_seq.split(1):
            encoded = state.s_hat * math.exp(-self.dt / self.tau_eta)
            spk, state = self.integrate(x, state, self.spike_grad, True)
            mem = self.unencoded(state._replace(s_hat=encoded))
            if state.s_hat.requires_grad and not mem.requires_grad:
                # The host detaches by mem.detach_(): give it a mem to which that does something.
                mem = mem + 0.0 * self._raw_threshold().to(mem.dtype)
            spikes.append(spk)
            mems.append(mem)
        return torch.cat(spikes), mems, state


def _check_init_hidden(init_hidden: Any) -> bool:
    if not isinstance(init_hidden, bool):
        bad_type("init_hidden", init_hidden, "True")
    if not init_hidden:
        bad_value("init_hidden", init_hidden, "True: the state is four tensors, which one mem passed along cannot hold")
    return True
