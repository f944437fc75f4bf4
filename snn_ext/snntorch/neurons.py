"""ATIF-u, ATIF-nu and PCMP IF as neurons of snnTorch 1.0: subclasses of ``snn.Leaky``.

The mathematics is in :func:`snn_ext.functional.integrate_and_fire`; here is the state: the potential after the reset,
``v``, beside the host's ``mem``, which is the potential before its own reset.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..functional.integrate_and_fire import Reset, charged
from ..neurons.arguments import as_points, as_time_steps, as_v_init, check_options, check_recursion
from ..neurons.base import Admits, as_threshold, refuse_backend
from ..neurons.integrate_and_fire import (
    IFState,
    IntegrateAndFireNeuron,
    NonUniformIntegrateAndFireNeuron,
    Thresholds,
    no_leak,
    only_points,
)
from ..neurons.leak import BetaLeak
from .host import HostNeuron, neutral

__all__ = ["PCMPIF", "ATIFnu", "ATIFu"]


class _IntegrateAndFireLeaky(IntegrateAndFireNeuron, HostNeuron):
    """The potential after the reset is carried over, beside a ``mem`` from before it."""

    def _init_leaky(self, given: dict[str, Any], v_init: float | Tensor) -> None:
        """Check and set what all three neurons have; ``given`` are the arguments of the constructor by name."""
        refuse_backend(given["backend"])
        options = v_init, given["scale_output"], given["fire_at_threshold"], given["grad_scale"]
        check_options(*options)  # before the host lists this neuron
        self._init_host(given)
        self._init_integrate_and_fire(*options)

    def _advance(self, x_seq: Tensor, state: IFState | None) -> tuple[Tensor, Tensor, IFState]:
        reset = self._reset_kind()
        if reset == "zero":  # leaves nothing to find mem from
            spk, mem_seq, state = self._advance_with_mem(x_seq, state)
            return spk, mem_seq[-1], state
        thresholds = self.thresholds(x_seq)
        before = self.start(x_seq, thresholds) if state is None else state
        spk, state = self._run(x_seq, before, thresholds)
        if reset in ("none", "delayed"):
            return spk, state.v, state
        # mem from the potential after the reset: exact, but for one rounding above twice the threshold
        threshold = self._for_operator(thresholds, before.t, x_seq)[-1]
        return spk, torch.where(spk[-1].detach() != 0, state.v + threshold, state.v), state

    def _advance_with_mem(self, x_seq: Tensor, state: IFState | None) -> tuple[Tensor, list[Tensor], IFState]:
        thresholds = self.thresholds(x_seq)
        state = self.start(x_seq, thresholds) if state is None else state
        spikes, mems = [], []
        for x in x_seq.split(1):
            mem = charged(state.v, x[0].to(state.v.dtype), *self.leak(x))
            spk, state = self._run(x, state, thresholds)
            if self._reset_kind() == "delayed":
                mem = state.v
            if state.v.requires_grad and not mem.requires_grad:
                # The host detaches by mem.detach_(): give it a mem to which that does something.
                mem = mem + 0.0 * thresholds.of_steps.sum()
            spikes.append(spk)
            mems.append(mem)
        return torch.cat(spikes), mems, state

    def _run(self, x_seq: Tensor, state: IFState, thresholds: Thresholds) -> tuple[Tensor, IFState]:
        # The spike in the reset is detached, as everywhere in this host.
        return self.integrate(x_seq, state, thresholds, self.spike_grad, detach_reset=True)

    def _reset_kind(self) -> Reset:
        return cast(Reset, self.reset_mechanism)

    def _fresh_copy(self) -> Any:
        twin = copy.deepcopy(self)
        twin.reset_mem()
        return twin


class _DecayingLeaky(BetaLeak, _IntegrateAndFireLeaky):
    """The two neurons whose potential may leak; it is then carried as the host does, from before its reset."""

    keywords_elsewhere: ClassVar[dict[str, str]] = HostNeuron.keywords_elsewhere | {
        "tau": "beta: with decay_input=False, a tau of SpikingJelly is 1 / (1 - beta)",
        "learn_tau": "learn_beta",
    }
    admits: ClassVar[Admits] = HostNeuron.admits | BetaLeak.admits_leak

    def _init_leaky(self, given: dict[str, Any], v_init: float | Tensor) -> None:
        super()._init_leaky(given, v_init)
        self._init_leak(given["beta"], given["learn_beta"])

    def _reset_kind(self) -> Reset:
        kind = super()._reset_kind()
        return "delayed" if kind == "subtract" and self.leaks else kind


class ATIFu(_DecayingLeaky):
    r"""ATIF-u: integrate-and-fire with one trainable threshold, a uniform quantiser.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t > \theta], \quad v_t = h_t - \theta s_t, \quad v_0 = v_{init}\,\theta

    ``mem``, as returned, is :math:`h_t`: what ``snn.Leaky(beta=1)`` returns. With ``beta`` below 1, or learned, the
    potential leaks in the operations and the order of the host:
    :math:`h_t = \beta h_{t-1} + x_t - \theta s_{t-1}`.

    Parameters
    ----------
    threshold : float or Tensor
        Initial threshold: one value, or one per channel (dim 1); afterwards ``threshold`` of shape ``[1]`` or ``[C]``.
        Keep it out of weight decay.
    spike_grad : callable, optional
        Any surrogate of snnTorch, of SpikingJelly or of :mod:`snn_ext.functional`; the host's ``atan(2)`` by default.
    surrogate_disable : bool
        No gradient through spikes.
    init_hidden : bool
        Keep the state inside; the forward pass takes the input alone and returns ``spk``.
    learn_threshold : bool
        Train the threshold.
    reset_mechanism : {"subtract", "zero", "none"}
        What a spike does to the potential.
    output : bool
        Return ``(spk, mem)`` also with ``init_hidden=True``: for the last layer.
    step_mode : {"s", "m"}
        Input ``[N, ...]``, the host's habit, or ``[T, N, ...]``.
    v_init : float, Tensor or nn.Parameter
        Potential before the first step in units of the threshold: one value, or one per channel (dim 1).
    scale_output : bool
        Emit ``threshold`` instead of 1.
    fire_at_threshold : bool
        ``False`` fires at ``h > threshold`` (this host's habit), ``True`` at ``h >= threshold``.
    grad_scale : None, float or "lsq"
        Factor on the threshold's gradient; "lsq" is ``1 / sqrt(neurons per sample * T)``, for step mode "m".
    beta : float or Tensor
        Decay of the potential in a step, in [0, 1]: one value, or one per channel (dim 1). 1 is no leak. A tensor of
        another shape, as ``snn.Leaky`` takes one for each neuron, is refused: :func:`snn_ext.accelerate` runs these.
    learn_beta : bool
        Train the decay; ``beta`` is then a parameter of shape ``[1]`` or ``[C]``.
    inhibition, state_quant, graded_spikes_factor, learn_graded_spikes_factor, reset_delay, backend
        Options of the host without a meaning here: anything but the value that does nothing is refused.

    Notes
    -----
    Source: Castagnetti et al. 2023, equations 2-7 and 9-12.

    Examples
    --------
    >>> import torch
    >>> neuron = ATIFu(0.9, init_hidden=True)
    >>> [neuron(torch.tensor([0.5])).item() for _ in range(4)]
    [0.0, 1.0, 0.0, 1.0]
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = True,
        reset_mechanism: str = "subtract",
        state_quant: bool = False,
        output: bool = False,
        graded_spikes_factor: float = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
        *,
        beta: float | Tensor = 1.0,
        step_mode: str = "s",
        v_init: float | Tensor = 0.0,
        scale_output: bool = False,
        fire_at_threshold: bool = False,
        grad_scale: float | str | None = None,
        backend: None = None,
    ) -> None:
        value = as_threshold("threshold", threshold, per_channel=True)
        self._init_leaky(locals(), v_init)
        self._set_threshold(value, learn_threshold)


class PCMPIF(_DecayingLeaky):
    r"""PCMP IF: integrate-and-fire with a pre-charged membrane potential.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t > \theta], \quad v_t = h_t - \theta s_t, \quad v_0 = V_{pc}\,\theta

    Parameters
    ----------
    threshold : float or Tensor
        The threshold: one value, or one per channel (dim 1); ``threshold`` of shape ``[1]`` or ``[C]``.
    learn_threshold : bool
        Train the threshold; off by default.
    precharge : float, Tensor or nn.Parameter
        Potential before the first step in units of the threshold, in [0, 1]: one value, or one per channel (dim 1).
    others
        As in :class:`ATIFu`.

    Notes
    -----
    Source: Hwang et al. 2021, section "pre-charged membrane potential" and equation 2.

    Examples
    --------
    >>> import torch
    >>> neuron = PCMPIF(1.0, precharge=0.75, init_hidden=True)
    >>> [neuron(torch.tensor([0.5])).item() for _ in range(4)]
    [1.0, 0.0, 1.0, 0.0]
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
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
        beta: float | Tensor = 1.0,
        step_mode: str = "s",
        precharge: float | Tensor = 0.5,
        scale_output: bool = False,
        fire_at_threshold: bool = False,
        grad_scale: float | str | None = None,
        backend: None = None,
    ) -> None:
        value = as_threshold("threshold", threshold, per_channel=True)
        as_v_init("precharge", precharge, 0.0, 1.0)
        self._init_leaky(locals(), precharge)
        self._set_threshold(value, learn_threshold)

    @property
    def precharge(self) -> Tensor:
        """The pre-charge in units of the threshold, ``[1]`` or ``[C]``: another name for ``v_init``."""
        return self.v_init


class ATIFnu(NonUniformIntegrateAndFireNeuron, _IntegrateAndFireLeaky):
    r"""ATIF-nu: integrate-and-fire with T trainable quantisation points, a non-uniform quantiser.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t > V_t], \quad v_t = h_t - V_t s_t, \quad v_0 = v_{init}\,V_1

    The thresholds follow from the points ``p`` by :func:`snn_ext.functional.nonuniform_thresholds`. More than T steps
    without a reset raise.

    Parameters
    ----------
    threshold : float or Tensor
        The clip level p_1 of a uniform start, or all T points, non-increasing; afterwards the parameter ``p`` ``[T]``.
    T, levels : int
        Number of steps; ``levels`` is the same, where a builder of nets takes ``T`` itself. Neither is needed where
        ``threshold`` holds the points.
    recursion : {"min", "paper", "cumulative"}
        How thresholds follow from ``p``; "cumulative" never resets.
    reset_mechanism : {"subtract"}
        The thresholds are derived for a reset by subtraction: anything else is refused.
    others
        As in :class:`ATIFu`.

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
    >>> neuron = ATIFnu(torch.tensor([1.0, 0.5, 0.25, 0.1]), T=4, step_mode="m", init_hidden=True)
    >>> neuron(torch.tensor([0.05, 0.15, 0.3, 0.6, 1.1]).expand(4, -1)).sum(0)
    tensor([0., 1., 2., 3., 4.], grad_fn=<SumBackward1>)
    """

    only_subtraction = "the thresholds of ATIF-nu are derived for it"
    admits: ClassVar[Admits] = HostNeuron.admits | only_points("threshold") | {"beta": neutral("beta", f"1: {no_leak}")}

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = True,
        reset_mechanism: str = "subtract",
        state_quant: bool = False,
        output: bool = False,
        graded_spikes_factor: float = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
        *,
        T: int | None = None,
        levels: int | None = None,
        recursion: str = "min",
        beta: float = 1.0,
        step_mode: str = "s",
        v_init: float | Tensor = 0.0,
        scale_output: bool = False,
        fire_at_threshold: bool = False,
        grad_scale: float | str | None = None,
        backend: None = None,
    ) -> None:
        check_recursion(recursion)
        points = as_points("threshold", threshold, as_time_steps(T, levels, threshold))
        self._init_leaky(locals(), v_init)
        del self.threshold  # the host's buffer; p takes its place
        self._init_points(points, recursion, learn_threshold)
