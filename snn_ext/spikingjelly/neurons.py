"""ATIF-u, ATIF-nu and PCMP IF as nodes on the contract of SpikingJelly 2.0.

The mathematics is in :func:`snn_ext.functional.integrate_and_fire`; here is the state.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .._counting import aside
from .._errors import bad_value
from ..functional import state_dtype
from ..functional.integrate_and_fire import Reset, broadcasts
from ..neurons.arguments import as_points, as_time_steps, as_v_init, check_recursion
from ..neurons.base import as_threshold, carried, refuse_backend
from ..neurons.integrate_and_fire import (
    IFState,
    IntegrateAndFireNeuron,
    NonUniformIntegrateAndFireNeuron,
    Thresholds,
    no_leak,
    only_points,
)
from ..neurons.leak import TauLeak
from .host import HostNode, States, SurrogateFunction, only_subtraction

__all__ = ["ATIFnuNode", "ATIFuNode", "PCMPIFNode"]


class _IntegrateAndFireNode(IntegrateAndFireNeuron, HostNode):
    """State of the three nodes: the potential, and for ATIF-nu the step index.

    The first memory, ``v``, is a float until the first step: 0.0 stands for V(0) = v_init * threshold, any other
    number for that potential. From then on it is a tensor, float32 for every input narrower than float64.
    """

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance a sequence: ``((x_seq,), states) -> ((spike_seq,), states)``; nothing is modified in place."""
        x_seq, thresholds = inputs[0], aside(self.thresholds, inputs[0])
        spike_seq, state = self._advance(x_seq, self._state(x_seq, states, thresholds), thresholds)
        return (spike_seq,), state[: len(states)]

    def _run(self, x_seq: Tensor, states: States) -> tuple[Tensor, States, Tensor | None]:
        if not self.store_v_seq:
            return super()._run(x_seq, states)
        thresholds = self.thresholds(x_seq)  # of the whole sequence: its length scales the gradient
        state, spikes, potentials = self._state(x_seq, states, thresholds), [], []
        for x in x_seq.split(1):
            spike, state = self._advance(x, state, thresholds)
            spikes.append(spike)
            potentials.append(state.v)
        return torch.cat(spikes), state[: len(states)], torch.stack(potentials)

    def _advance(self, x_seq: Tensor, state: IFState, thresholds: Thresholds) -> tuple[Tensor, IFState]:
        return self.integrate(x_seq, state, thresholds, self.surrogate_function, self.detach_reset)

    def _reset_kind(self) -> Reset:
        return "subtract" if self.v_reset is None else "zero"

    # -- memories -----------------------------------------------------------------------------------------------

    def _states(self, x_seq: Tensor, states: States) -> States:
        return self._state(x_seq, states, aside(self.thresholds, x_seq))[: len(states)]

    def _state(self, x_seq: Tensor, memories: States, thresholds: Thresholds) -> IFState:
        """Return the state that memories stand for; a float or a tensor given as reset value of ``v`` is honoured."""
        v, *index = memories
        if isinstance(v, Tensor) and v.shape == x_seq.shape[1:]:
            return IFState(carried(v, x_seq), *(t.cpu() if isinstance(t, Tensor) else t for t in index))
        state: IFState = aside(self.start, x_seq, thresholds)
        if isinstance(v, Tensor):  # of another shape: an earlier batch, or a reset value that is to be expanded
            v = self._memories_rv["v"]
        if isinstance(v, Tensor):
            if not broadcasts(v.shape, x_seq.shape[1:]):
                bad_value("reset value of v", v, f"a shape that broadcasts to one step, {list(x_seq.shape[1:])}")
            return state._replace(v=v.to(device=x_seq.device, dtype=state_dtype(x_seq.dtype)))
        if v == 0:
            return state
        return state._replace(v=torch.full((), v, device=x_seq.device, dtype=state_dtype(x_seq.dtype)))

    def get_reset_value(self, name: str) -> Any:
        """Return what a memory starts from; of ``v`` it is V(0), which the host's ``estimate_delay_start`` reads."""
        value = super().get_reset_value(name)
        if name != "v" or isinstance(value, Tensor) or value != 0:
            return value
        per_channel = ("v_init", self.threshold_name) if self.threshold_per_channel else ("v_init",)
        for held in per_channel:
            if getattr(self, held).numel() > 1:
                want = "one value: the reset value of v has no shape that channels belong to"
                bad_value(held, getattr(self, held), want)
        return self.initial_potential(self.v_init.new_empty(1, 1), self.thresholds()).detach()


class _LeakyNode(TauLeak, _IntegrateAndFireNode):
    """The two nodes whose potential may leak."""

    keywords_elsewhere = HostNode.keywords_elsewhere | {
        "beta": "tau: with decay_input=False, a beta of snnTorch is 1 - 1 / tau",
        "learn_beta": "learn_tau",
    }
    admits = HostNode.admits | TauLeak.admits_leak


class ATIFuNode(_LeakyNode):
    r"""ATIF-u: integrate-and-fire with one trainable threshold, a uniform quantiser.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t \ge \theta], \quad v_t = h_t - \theta s_t, \quad v_0 = v_{init}\,\theta

    With ``tau`` the potential leaks, in the operations of the host's ``LIFNode``, or with ``learn_tau`` of its
    ``ParametricLIFNode``: :math:`h_t = v_{t-1} + (x_t - v_{t-1}) / \tau`, or
    :math:`v_{t-1} - v_{t-1} / \tau + x_t` without ``decay_input``.

    Without a leak, after T steps of constant input it has fired
    :math:`\min(T, \max(0, \lfloor (xT + v_0) / \theta \rfloor))` times;
    the decoded value is the firing rate times the threshold.

    Parameters
    ----------
    v_threshold : float or Tensor
        Initial threshold: one value, or one per channel (dim 1); afterwards the trainable parameter ``v_threshold`` of
        shape ``[1]`` or ``[C]``. Keep it out of weight decay.
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
        Emit ``threshold`` instead of 1, so that the rate is the decoded value and the threshold learns its scale too.
    fire_at_threshold : bool
        ``True`` fires at ``h >= threshold`` (this host's habit), ``False`` at ``h > threshold``.
    grad_scale : None, float or "lsq"
        Factor on the threshold's gradient; "lsq" is ``1 / sqrt(neurons per sample * T)``, for step mode "m".
    tau : None, float or Tensor
        Time constant of the leak in steps, > 1: one value, or one per channel (dim 1), a buffer; ``None`` is no leak.
    decay_input : bool
        Let the input decay too.
    learn_tau : bool
        Train the time constant: ``tau = 1 / sigmoid(w)`` with the parameter ``w`` of shape ``[1]`` or ``[C]``.
    backend
        Refused, with the name of what replaces it.

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
        tau: float | Tensor | None = None,
        decay_input: bool = True,
        learn_tau: bool = False,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        threshold = as_threshold("v_threshold", v_threshold, per_channel=True)
        self._init_node(v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        self._init_leak(tau, decay_input, learn_tau)
        self._init_integrate_and_fire(v_init, scale_output, fire_at_threshold, grad_scale)
        self._set_threshold(threshold, trainable=True)


class PCMPIFNode(_LeakyNode):
    r"""PCMP IF: integrate-and-fire with a fixed threshold and a pre-charged membrane potential.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t \ge \theta], \quad v_t = h_t - \theta s_t, \quad v_0 = V_{pc}\,\theta

    Parameters
    ----------
    v_threshold : float or Tensor
        The threshold: one value, or one per channel (dim 1); a buffer of shape ``[1]`` or ``[C]``.
    precharge : float, Tensor or nn.Parameter
        Potential before the first step in units of the threshold, in [0, 1]: one value, or one per channel (dim 1).
    v_reset, surrogate_function, detach_reset, step_mode, store_v_seq, scale_output, fire_at_threshold
        As in :class:`ATIFuNode`.
    tau, decay_input, learn_tau, backend
        As in :class:`ATIFuNode`.

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
        tau: float | Tensor | None = None,
        decay_input: bool = True,
        learn_tau: bool = False,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        threshold = as_threshold("v_threshold", v_threshold, per_channel=True)
        as_v_init("precharge", precharge, 0.0, 1.0)
        self._init_node(v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        self._init_leak(tau, decay_input, learn_tau)
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
        Emit ``p_1`` instead of 1.
    tau : None
        A leak is refused: the thresholds are derived for a potential that keeps its charge.

    Raises
    ------
    ValueError
        In the forward pass, after T steps without a reset.

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
        | {"tau": lambda node, value: None if value is None else bad_value("tau", value, f"None: {no_leak}")}
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
        tau: None = None,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        self.admits["tau"](self, tau)
        check_recursion(recursion)
        points = as_points("v_threshold", v_threshold, as_time_steps(T, levels, v_threshold))
        self.admits["v_reset"](self, v_reset)
        self._init_node(v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        delattr(self, "v_threshold")  # the host's float; p takes its place
        self.register_memory("t", 0)
        self._init_integrate_and_fire(v_init, scale_output, fire_at_threshold, grad_scale)
        self._init_points(points, recursion)

    def _fresh_copy(self) -> ATIFnuNode:
        twin = copy.deepcopy(self)
        twin.reset()
        return twin
