"""ASN as a node on the contract of SpikingJelly 2.0: the input, and the four states of the adaptive neuron as memories.

The mathematics is in :func:`snn_ext.functional.adaptive_spiking`.
"""

from __future__ import annotations

from torch import Tensor

from .._counting import aside
from .._errors import bad_value
from ..functional import ASNState
from ..functional.asn import SpikeHeight
from ..neurons.asn import AdaptiveSpikingNeuron, check_adaptive_options, for_step
from ..neurons.base import as_threshold, carried, refuse_backend
from .host import HostNode, States, SurrogateFunction, only_subtraction

__all__ = ["ASNNode"]


class ASNNode(AdaptiveSpikingNeuron, HostNode):
    r"""ASN: an adaptive spiking neuron, whose spikes encode the signal S by a threshold that rises with every spike.

    .. math::
        I_t = d_\beta I_{t-1} + x_t, \quad S_t = b + \phi * I, \quad z_t = 1[S_t - \hat S_t > \theta_t / 2], \quad
        \hat S \leftarrow \hat S + \theta_t z_t, \quad \theta \leftarrow \theta (1 + m_f z_t)

    with the order and the decays of :func:`snn_ext.functional.adaptive_spiking`. Constant activation S is carried by
    spikes of height ``h`` as f(S) (:func:`snn_ext.functional.asn_transfer`). Beside the input it has five memories:
    ``v``, which is S - S_hat and follows from the others, and ``psc``, ``s``, ``s_hat`` and ``adaptation``, the
    :class:`~snn_ext.functional.ASNState`.

    Parameters
    ----------
    v_threshold : float or Tensor
        Unit of the signal, one element; a buffer of shape ``[1]``. The threshold at rest is ``theta_0 * v_threshold``.
    v_reset : None
        0.0 is refused: a spike adds to S_hat, nothing is reset.
    detach_reset : bool
        Let no gradient through the spike in S_hat and the threshold.
    m_f : float or Tensor
        How much of itself every spike adds to the threshold, > 0: the smaller, the more precise, at more spikes.
        One value, one per channel ``[C]``, or any other shape that broadcasts to ``[N, ...]``.
    theta_0 : float or Tensor, optional
        Threshold at rest in units of ``v_threshold``, > 0; ``m_f`` by default.
    tau_gamma, tau_eta, tau_beta : float
        Time constants of threshold adaptation, refractory response and synapse in ms.
    tau_phi : float, optional
        Time constant of the membrane filter in ms, 0 for none; 5, and 50 for a read-out, by default.
    dt : float
        Length of a step in ms.
    bias : Tensor or nn.Parameter, optional
        Added to the activation, not to the current: one value, one per channel, or broadcastable to ``[N, ...]``.
    analog_input : bool
        The input is a current, not a weighted sum of spikes: the first layer of a net.
    spike_height : {"fixed", "adaptive"}
        Emit 1, or the threshold at the time of the spike: then the transfer function is linear.
    readout : bool
        Emit the activation S itself, without any spike: the last layer of a net.
    surrogate_function, step_mode, store_v_seq, backend
        As in :class:`ATIFuNode`.
    scale_output : bool
        Emit ``h`` instead of 1.

    Notes
    -----
    Pooling that is merged into the layer, filter, pool, spike: ``ASNNode(readout=True, tau_phi=5.0)``, the pooling,
    ``ASNNode(analog_input=True, tau_phi=0.0, bias=...)``.
    Source: Zambrano et al. 2017, equations 1-7.

    Examples
    --------
    >>> import torch
    >>> node = ASNNode(step_mode="m", analog_input=True, tau_phi=0.0)
    >>> node(torch.full((10, 1), 0.5)).flatten()
    tensor([1., 1., 1., 1., 0., 1., 0., 0., 0., 0.])
    >>> round(node.h.item(), 5)
    0.12443
    """

    admits = HostNode.admits | only_subtraction("a spike of an adaptive neuron adds to S_hat, nothing is reset")

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: None = None,
        surrogate_function: SurrogateFunction = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
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
        threshold = as_threshold("v_threshold", v_threshold)
        self.admits["v_reset"](self, v_reset)
        checked = check_adaptive_options(locals())
        self._init_node(v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        for name in ASNState._fields:
            self.register_memory(name, 0.0)
        self._init_adaptive(threshold, False, m_f, theta_0, checked, bias)

    def _states(self, x_seq: Tensor, states: States) -> States:
        shape = x_seq.shape[1:]
        if all(isinstance(part, Tensor) and part.shape == shape for part in states):
            return tuple(carried(part, x_seq) for part in states)
        for name, value in self._memories_rv.items():
            if isinstance(value, Tensor) or value != 0:
                bad_value(f"reset value of {name}", value, "0.0: these neurons start at rest")
        for name, value in zip(self._memories, states, strict=True):
            if not isinstance(value, Tensor) and value != 0:
                bad_value(name, value, "a tensor of the shape of a step, as all states of the neuron, or 0.0 at rest")
        rest = aside(self.start, x_seq)
        return (rest[0] if self.bias is None else aside(for_step, "bias", self.bias.to(rest[0]), x_seq)), *rest

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance a sequence: ``((x_seq,), states) -> ((spike_seq,), states)``; nothing is modified in place."""
        x_seq, state = inputs[0], ASNState(*self._states(inputs[0], states)[1:])
        spike_seq, state = self.integrate(x_seq, state, self.surrogate_function, self.detach_reset)
        return (spike_seq,), (self.unencoded(state), *state)
