"""ATIF-u, ATIF-nu, PCMP IF and ASN as nodes on the contract of SpikingJelly 2.0.

The mathematics is in :func:`snn_ext.functional.integrate_and_fire` and :func:`snn_ext.functional.adaptive_spiking`; here is
the state, and what the host expects of a node.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from .._counting import aside
from .._errors import bad_value
from ..functional import ASNState, state_dtype
from ..functional.asn import SpikeHeight
from ..functional.integrate_and_fire import Reset, broadcasts
from ..neurons.asn import AdaptiveNeuron, check_adaptive_options, for_step
from ..neurons.integrate_and_fire import (
    IntegrateAndFireNeuron,
    NonUniformIntegrateAndFireNeuron,
    as_points,
    as_threshold,
    as_time_steps,
    as_v_init,
    carried,
    check_recursion,
    only_points,
    refuse_backend,
)
from .host import HostNode, States, SurrogateFunction, only_subtraction

__all__ = ["ASNNode", "ATIFnuNode", "ATIFuNode", "PCMPIFNode"]


class _IntegrateAndFireNode(IntegrateAndFireNeuron, HostNode):
    """State of the three nodes: the potential, and for ATIF-nu the step index.

    The first memory, ``v``, is a float until the first step: 0.0 stands for V(0) = v_init * threshold, any other
    number for that potential. From then on it is a tensor, float32 for every input narrower than float64.
    """

    def _states(self, x_seq: Tensor, states: States) -> States:
        v, *index = states
        if not isinstance(v, Tensor) or v.shape != x_seq.shape[1:]:
            return self._start(x_seq, v), *(self._first_step() for _ in index)
        return carried(v, x_seq), *(t.cpu() if isinstance(t, Tensor) else self._first_step() + t for t in index)

    def _start(self, x_seq: Tensor, v: Any) -> Tensor:
        """Return V(0), one value or broadcastable; a float or a tensor given as reset value is honoured."""
        if isinstance(v, Tensor):  # of another shape: an earlier batch, or a reset value that is to be expanded
            v = self._memories_rv["v"]
        if isinstance(v, Tensor):
            if not broadcasts(v.shape, x_seq.shape[1:]):
                bad_value("reset value of v", v, f"a shape that broadcasts to one step, {list(x_seq.shape[1:])}")
            return v.to(device=x_seq.device, dtype=state_dtype(x_seq.dtype))
        if v == 0:
            return self.initial_potential(x_seq)
        return torch.full((), v, device=x_seq.device, dtype=state_dtype(x_seq.dtype))

    def get_reset_value(self, name: str) -> Any:
        """Return what a memory starts from; of ``v`` it is V(0), which the host's ``estimate_delay_start`` reads."""
        value = super().get_reset_value(name)
        if name != "v" or isinstance(value, Tensor) or value != 0:
            return value
        if self.v_init.numel() > 1:
            bad_value("v_init", self.v_init, "one value: the reset value of v has no shape that channels belong to")
        return self.initial_potential(self.v_init.new_empty(1, 1)).detach()

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance a sequence: ``((x_seq,), states) -> ((spike_seq,), states)``; nothing is modified in place."""
        spike_seq, states = self._integrate(inputs[0], states)
        return (spike_seq,), states

    def _run(self, x_seq: Tensor, states: States) -> tuple[Tensor, States, Tensor | None]:
        if not self.store_v_seq:
            return super()._run(x_seq, states)
        quantizer = self.quantizer(x_seq)  # of the whole sequence: its length scales the gradient
        spikes, potentials = [], []
        for x in x_seq.split(1):
            spike, states = self._integrate(x, states, quantizer)
            spikes.append(spike)
            potentials.append(states[0])
        return torch.cat(spikes), states, torch.stack(potentials)

    def _integrate(self, x_seq: Tensor, states: States, quantizer: Any = None) -> tuple[Tensor, States]:
        v, *index = states
        t = index[0] if index else self._first_step()
        surrogate, detach = self.surrogate_function, self.detach_reset
        spike_seq, v = self.integrate(x_seq, v, t, surrogate, detach, self._reset_kind(), quantizer)
        return spike_seq, (v, *(aside(self._after, t, len(x_seq)) for t in index))

    def _reset_kind(self) -> Reset:
        return "subtract" if self.v_reset is None else "zero"


class ATIFuNode(_IntegrateAndFireNode):
    r"""ATIF-u: integrate-and-fire with one trainable threshold, a uniform quantiser.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t \ge \theta], \quad v_t = h_t - \theta s_t, \quad v_0 = v_{init}\,\theta

    After T steps of constant input it has fired :math:`\min(T, \max(0, \lfloor (xT + v_0) / \theta \rfloor))` times;
    the decoded value is the firing rate times the threshold.

    Parameters
    ----------
    v_threshold : float or Tensor
        Initial threshold, one element; afterwards the trainable parameter ``v_threshold`` of shape ``[1]``. Keep it out
        of weight decay.
    v_reset : None or 0.0
        ``None`` subtracts the threshold, 0.0 resets to zero.
    surrogate_function : callable, optional
        Any surrogate of SpikingJelly, of snnTorch or of :mod:`snn_ext.functional`; ``Sigmoid(alpha=4)`` by default.
    detach_reset : bool
        Let no gradient through the spike in the reset.
    step_mode : {"s", "m"}
        Input ``[N, ...]`` or ``[T, N, ...]``.
    store_v_seq : bool
        Keep the potential after every step in ``v_seq`` (float32).
    v_init : float, Tensor or nn.Parameter
        Potential before the first step in units of the threshold: one value, or one per channel (dim 1). 0.5 turns the
        floor of the staircase into rounding. A parameter is trained.
    scale_output : bool
        Emit ``threshold`` in place of 1, so that the rate is the decoded value and the threshold learns its scale too.
    fire_at_threshold : bool
        ``True`` fires at ``h >= threshold`` (this host's habit), ``False`` at ``h > threshold``.
    grad_scale : None, float or "lsq"
        Factor on the threshold's gradient; "lsq" is ``1 / sqrt(neurons per sample * T)``, for step mode "m".
    backend
        Refused, with the name of what replaces it.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what is wanted.

    Notes
    -----
    Source: Castagnetti et al. 2023, equations 2-7 and 9-12.

    Examples
    --------
    >>> import torch
    >>> node = ATIFuNode(1.0, step_mode="m")
    >>> node(torch.full((4, 1), 0.5)).flatten()
    tensor([0., 1., 0., 1.], grad_fn=<ViewBackward0>)
    >>> node.v_threshold
    Parameter containing:
    tensor([1.], requires_grad=True)
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = None,
        surrogate_function: SurrogateFunction = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        v_init: float | Tensor = 0.0,
        scale_output: bool = False,
        fire_at_threshold: bool = True,
        grad_scale: float | str | None = None,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        threshold = as_threshold("v_threshold", v_threshold)
        self._init_node(v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        self._init_integrate_and_fire(v_init, scale_output, fire_at_threshold, grad_scale)
        self._set_threshold(threshold, trainable=True)


class PCMPIFNode(_IntegrateAndFireNode):
    r"""PCMP IF: integrate-and-fire with a fixed threshold and a pre-charged membrane potential.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t \ge \theta], \quad v_t = h_t - \theta s_t, \quad v_0 = V_{pc}\,\theta

    Parameters
    ----------
    v_threshold : float or Tensor
        The threshold, one element; a buffer of shape ``[1]``.
    precharge : float, Tensor or nn.Parameter
        Potential before the first step in units of the threshold, in [0, 1]: one value, or one per channel (dim 1).
    v_reset, surrogate_function, detach_reset, step_mode, store_v_seq, scale_output, fire_at_threshold, backend
        As in :class:`ATIFuNode`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what is wanted.

    Notes
    -----
    Source: Hwang et al. 2021, section "pre-charged membrane potential" and equation 2.

    Examples
    --------
    >>> import torch
    >>> PCMPIFNode(1.0, precharge=0.5, step_mode="m")(torch.full((4, 1), 0.5)).flatten()
    tensor([1., 0., 1., 0.])
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | None = None,
        surrogate_function: SurrogateFunction = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        precharge: float | Tensor = 0.5,
        scale_output: bool = False,
        fire_at_threshold: bool = True,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        threshold = as_threshold("v_threshold", v_threshold)
        as_v_init("precharge", precharge, 0.0, 1.0)
        self._init_node(v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        self._init_integrate_and_fire(precharge, scale_output, fire_at_threshold, None)
        self._set_threshold(threshold, trainable=False)

    @property
    def precharge(self) -> Tensor:
        """The pre-charge in units of the threshold, ``[1]`` or ``[C]``: another name for ``v_init``."""
        return self.v_init


class ATIFnuNode(NonUniformIntegrateAndFireNeuron, _IntegrateAndFireNode):
    r"""ATIF-nu: integrate-and-fire with T trainable quantisation points, a non-uniform quantiser.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t \ge V_t], \quad v_t = h_t - V_t s_t, \quad v_0 = v_{init}\,V_1

    The thresholds :math:`V_1..V_T` follow from the points ``p`` by :func:`snn_ext.functional.nonuniform_thresholds`,
    whose documentation says when the staircase has its edges exactly at the points, and that it breaks down where
    points are nearly equal (recursion "cumulative" does not). The decoded value is the firing
    rate times ``p_1``.

    The node counts its steps since the last reset in the memory ``t``: step by step, all at once and in chunks of time
    give the same spikes. More than T steps raise.

    Parameters
    ----------
    v_threshold : float or Tensor
        The clip level p_1 of a uniform start, ``p_k = (T - k + 1) / T * v_threshold``; or all T points, non-increasing.
        Afterwards the trainable parameter ``p`` of shape ``[T]``. Keep it out of weight decay.
    v_reset : None
        0.0 is refused: the thresholds are derived for a reset by subtraction.
    T, levels : int
        Number of steps. ``levels`` is the same, for the host's builders that take ``T`` themselves. Neither is needed
        where ``v_threshold`` holds the points.
    recursion : {"min", "paper", "cumulative"}
        How thresholds follow from ``p``; "cumulative" never resets.
    surrogate_function, detach_reset, step_mode, store_v_seq, v_init, fire_at_threshold, grad_scale, backend
        As in :class:`ATIFuNode`.
    scale_output : bool
        Emit ``p_1`` in place of 1.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what is wanted; also in the forward pass after T steps without a reset.

    Notes
    -----
    Source: Castagnetti et al. 2023, equations 14-19.

    Examples
    --------
    >>> import torch
    >>> node = ATIFnuNode(torch.tensor([1.0, 0.5, 0.25, 0.125]), T=4, step_mode="m")
    >>> node(torch.tensor([0.1, 0.125, 0.25, 0.5, 1.0]).expand(4, -1)).sum(0)
    tensor([0., 1., 2., 3., 4.], grad_fn=<SumBackward1>)
    """

    admits = (
        HostNode.admits
        | only_points("v_threshold")
        | only_subtraction("the thresholds of ATIF-nu are derived for a reset by subtraction")
    )

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: None = None,
        surrogate_function: SurrogateFunction = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        T: int | None = None,
        levels: int | None = None,
        recursion: str = "min",
        v_init: float | Tensor = 0.0,
        scale_output: bool = False,
        fire_at_threshold: bool = True,
        grad_scale: float | str | None = None,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        check_recursion(recursion)
        points = as_points("v_threshold", v_threshold, as_time_steps(T, levels, v_threshold))
        self.admits["v_reset"](self, v_reset)
        self._init_node(v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        delattr(self, "v_threshold")  # the host's float; p takes its place
        self.register_memory("t", 0)
        self._init_integrate_and_fire(v_init, scale_output, fire_at_threshold, grad_scale)
        self._init_points(points, recursion)

    def _reset_kind(self) -> Reset:
        return "none" if self.recursion == "cumulative" else "subtract"

    def _fresh_copy(self) -> ATIFnuNode:
        # A potential in a graph can not be deep-copied; the memo puts the start in its place.
        twin = copy.deepcopy(self, {id(self._memories["v"]): 0.0, id(self.v_seq): None})
        neuron.BaseNode.reset(twin)
        return twin


class ASNNode(AdaptiveNeuron, HostNode):
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
        Emit ``h`` in place of 1.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what is wanted.

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
        times = dict(tau_gamma=tau_gamma, tau_eta=tau_eta, tau_beta=tau_beta, tau_phi=tau_phi, dt=dt)
        options = dict(analog_input=analog_input, spike_height=spike_height, readout=readout, scale_output=scale_output)
        checked = check_adaptive_options(m_f, theta_0, times, options, bias)
        self._init_node(v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        for name in ASNState._fields:
            self.register_memory(name, 0.0)
        self._init_adaptive(threshold, False, m_f, theta_0, checked, options, bias)

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
        rest = aside(self.at_rest, x_seq)
        return (rest[0] if self.bias is None else aside(for_step, "bias", self.bias.to(rest[0]), x_seq)), *rest

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance a sequence: ``((x_seq,), states) -> ((spike_seq,), states)``; nothing is modified in place."""
        spike_seq, state = self.integrate(inputs[0], ASNState(*states[1:]), self.surrogate_function, self.detach_reset)
        return (spike_seq,), (self.unencoded(state), *state)
