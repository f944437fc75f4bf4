"""ATIF-u, ATIF-nu and PCMP IF as neurons of snnTorch 1.0: subclasses of ``snn.Leaky`` with ``beta = 1``.

The mathematics is in :func:`snn_ext.functional.soft_reset_if`; here is the state, and what the host expects.
The host carries ``mem``, the potential before its own reset, and resets and detaches a neuron by replacing or detaching
that tensor. These neurons carry the potential after reset, ``v``, beside it and notice both.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, cast

import snntorch as snn
import torch
from torch import Tensor

from .._errors import bad_type, bad_value, check_bool, check_choice
from .._soft_reset_neuron import (
    NonUniformSoftResetNeuron,
    Quantizer,
    SoftResetNeuron,
    ThresholdNeuron,
    as_points,
    as_threshold,
    as_v_init,
    check_options,
    check_time_steps,
    refuse_backend,
)
from ..functional import ATan, as_surrogate, state_dtype
from ..functional.soft_reset import Reset

__all__ = ["PCMPIF", "ATIFnu", "ATIFu"]


class HostNeuron(ThresholdNeuron, snn.Leaky):
    """State and host habits of all neurons."""

    threshold_name = "threshold"
    mem: Tensor
    reset_mechanism_val: Tensor
    _own_mem: Tensor | None  # the mem of the last call; another one in its place means that the host has reset
    _mem_seq: Tensor | None  # all mems of the last call in step mode "m", where they are passed along
    _v: Any  # what is carried over: the potential after reset, or a named tuple of tensors; None at the start
    _mem_version: int  # of that mem: a change in place would be lost
    _t: int  # steps since the start of the sequence
    _time_in_batch: int | None  # T while bptt feeds [T * N, ...]

    def _init_neuron(
        self,
        spike_grad: Callable[[Tensor], Tensor] | None,
        surrogate_disable: bool,
        init_hidden: bool,
        reset_mechanism: str,
        output: bool,
        step_mode: str,
        meaningless: dict[str, Any],
    ) -> None:
        _refuse_options(meaningless)
        for name, flag in (("surrogate_disable", surrogate_disable), ("init_hidden", init_hidden), ("output", output)):
            check_bool(name, flag)
        check_choice("reset_mechanism", reset_mechanism, ("subtract", "zero", "none"))
        check_choice("step_mode", step_mode, ("s", "m"))
        # The host's closures can not be pickled: the same curve as an object can. Its default is atan(2).
        surrogate = ATan(2.0) if spike_grad is None else as_surrogate(spike_grad)
        snn.Leaky.__init__(
            self,
            beta=1.0,
            spike_grad=surrogate,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            reset_mechanism=reset_mechanism,
            output=output,
        )
        self.step_mode = step_mode
        self._time_in_batch = None
        self._forget()

    # -- forward -------------------------------------------------------------------------------------------------

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """Advance by one step ``[N, ...]`` (step mode "s") or by a sequence ``[T, N, ...]`` ("m").

        Returns ``spk`` with ``init_hidden=True``; ``(spk, mem)`` without it or with ``output=True``. ``mem`` is the
        potential before the reset, in float32 or float64, of the shape of ``spk``. A ``mem`` that did not come from
        this neuron's last call starts a fresh sequence.
        """
        if not isinstance(input_, Tensor):
            bad_type("input_", input_, "a tensor")
        if mem is not None and self.init_hidden:
            raise TypeError("`mem` should not be passed as an argument while `init_hidden=True`")
        if mem is not None and not isinstance(mem, Tensor):
            bad_type("mem", mem, "a tensor, as returned by the last call")
        x_seq = self._as_sequence(input_)
        v, t = self._state(x_seq, mem)
        if self.init_hidden and not self.output:
            spk, mem, v = self._integrate(x_seq, v, t)
            self._remember(mem, v, t + len(x_seq))
            return self._as_input(spk)
        spk, mem_seq, v = self._integrate_with_mem(x_seq, v, t)
        self._remember(mem_seq[-1], v, t + len(x_seq))
        if self.step_mode == "s" and self._time_in_batch is None:
            return spk[0], self.mem  # this very tensor: the next call knows it by it
        stacked = torch.stack(mem_seq)
        if not self.init_hidden:
            self._mem_seq = stacked  # kept, so that no other tensor can get its memory and be taken for it
        return self._as_input(spk), self._as_input(stacked)

    def _as_sequence(self, input_: Tensor) -> Tensor:
        if self._time_in_batch is not None:  # bptt: [T * N, ...]
            return input_.unflatten(0, (self._time_in_batch, -1))
        if self.step_mode == "s":
            return input_.unsqueeze(0)
        if input_.ndim < 1 or input_.shape[0] < 1:
            bad_value("input_", input_, "[T, N, ...] with at least one time step")
        return input_

    def _as_input(self, seq: Tensor) -> Tensor:
        if self._time_in_batch is not None:
            return seq.flatten(0, 1)
        return seq[0] if self.step_mode == "s" else seq

    # -- what the dynamics is made of -------------------------------------------------------------------------------

    def _start(self, x_seq: Tensor) -> Any:
        """Return what is carried over at the start of a sequence."""
        raise NotImplementedError

    def _integrate(self, x_seq: Tensor, v: Any, t: int) -> tuple[Tensor, Tensor, Any]:
        """Return spikes, the last ``mem`` and what is carried over."""
        raise NotImplementedError

    def _integrate_with_mem(self, x_seq: Tensor, v: Any, t: int) -> tuple[Tensor, list[Tensor], Any]:
        """Return spikes, every ``mem`` and what is carried over."""
        raise NotImplementedError

    def _describe(self) -> str:
        raise NotImplementedError

    # -- state ---------------------------------------------------------------------------------------------------

    def _state(self, x_seq: Tensor, mem: Tensor | None) -> tuple[Any, int]:
        """Return (v, t): carried over, unless the host has reset, another ``mem`` came or the shape has changed."""
        v = self._v
        if v is not None and self._own_mem is not None and self._version_of(self._own_mem) != self._mem_version:
            raise ValueError(
                "mem: got it modified in place, want it unchanged: this neuron carries its own potential; "
                "reset the neuron, or pass zeros to start afresh"
            )
        own = self.mem is self._own_mem and self._is_last(mem)
        if v is None or _shape(v) != x_seq.shape[1:] or not own:
            if mem is not None and not torch.compiler.is_compiling() and bool((mem != 0).any()):
                warnings.warn(
                    "mem: got a potential that this neuron did not return from its last call, want that one (not a "
                    "copy, nor another neuron's) or zeros; a fresh sequence starts",
                    stacklevel=4,
                )
            return self._start(x_seq), 0
        if not (self.mem if mem is None else mem).requires_grad:
            v = _mapped(Tensor.detach, v)
        device, dtype = x_seq.device, state_dtype(x_seq.dtype)
        return _mapped(lambda part: part.to(device=device, dtype=dtype), v), self._t

    def _is_last(self, mem: Tensor | None) -> bool:
        """Whether ``mem`` is what the last call returned: the tensor, its last step, or either of them detached."""
        if mem is None or mem is self.mem:
            return True
        returned = self.mem if self.step_mode == "s" else self._mem_seq
        return returned is not None and mem.untyped_storage().data_ptr() == returned.untyped_storage().data_ptr()

    def _remember(self, mem: Tensor, v: Any, t: int) -> None:
        self.mem = self._own_mem = mem
        self._mem_version = self._version_of(mem)
        self._v, self._t = v, t

    @staticmethod
    def _version_of(mem: Tensor) -> int:
        """How often a tensor was modified in place; unknown to the compiler and of inference tensors."""
        return 0 if torch.compiler.is_compiling() or mem.is_inference() else mem._version

    def _forget(self) -> None:
        self._own_mem = None
        self._mem_seq = None
        self._v = None
        self._t = 0
        self._mem_version = 0

    def reset_mem(self) -> Tensor:
        """Start a fresh sequence; returns the host's zero ``mem``, which may be passed to the first step."""
        self._forget()
        self.mem = torch.zeros_like(self.mem)
        return self.mem

    def detach_mem(self) -> None:
        """Cut the state off the graph, as truncated backpropagation through time does between chunks."""
        if self._v is not None:
            own = self.mem is self._own_mem
            self._v, self.mem = _mapped(Tensor.detach, self._v), self.mem.detach()
            self._own_mem, self._mem_seq = (self.mem if own else None), None
            self._mem_version = self._version_of(self.mem)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        own = self.mem is self._own_mem
        super()._apply(fn, recurse)  # replaces the buffer mem
        self._own_mem = self.mem if own else None
        self._mem_version = self._version_of(self.mem)
        self._v = None if self._v is None else _mapped(fn, self._v)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: leave out a state that the host has reset; it may hang in a graph."""
        state = self.__dict__.copy()
        if self.mem is not self._own_mem:
            state.update(_own_mem=None, _mem_seq=None, _v=None, _t=0)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mem_version = self._version_of(self.mem)  # copies count afresh

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, want in (("beta", 1.0), ("graded_spikes_factor", 1.0)):
            value = state_dict.get(prefix + name)
            if value is not None and bool((value != want).any()):
                args[-1].append(
                    f"{prefix}{name}: got {value.tolist()}, want {want:g}: these neurons have no leak and binary spikes"
                )
                return
        value = state_dict.get(f"{prefix}reset_mechanism_val")
        if value is not None and int(value) != int(self.reset_mechanism_val):
            args[-1].append(
                f"{prefix}reset_mechanism_val: got {int(value)}, want {int(self.reset_mechanism_val)}: the "
                f"reset_mechanism of this neuron is {self.reset_mechanism!r}, and a checkpoint does not change it"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        text = f"{self._describe()}, reset_mechanism={self.reset_mechanism!r}, step_mode={self.step_mode!r}"
        return text + "".join(f", {name}=True" for name in ("init_hidden", "output") if getattr(self, name))


class _SoftResetLeaky(SoftResetNeuron, HostNeuron):
    """The potential after reset is carried over, beside a ``mem`` from before it."""

    def _start(self, x_seq: Tensor) -> Tensor:
        return self.initial_potential(x_seq)

    def _integrate(self, x_seq: Tensor, v: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        reset = self._reset_kind()
        if reset == "zero":  # leaves nothing to find mem from
            spk, mem_seq, v = self._integrate_with_mem(x_seq, v, t)
            return spk, mem_seq[-1], v
        quantizer = self.quantizer(x_seq)
        spk, v = self._run(x_seq, v, t, quantizer)
        return spk, v if reset == "none" else _before_reset(spk[-1], v, quantizer, t + len(x_seq) - 1), v

    def _integrate_with_mem(self, x_seq: Tensor, v: Tensor, t: int) -> tuple[Tensor, list[Tensor], Tensor]:
        quantizer = self.quantizer(x_seq)
        spikes, mems = [], []
        for i, x in enumerate(x_seq.split(1)):
            mem = v + x[0].to(v.dtype)
            spk, v = self._run(x, v, t + i, quantizer)
            if v.requires_grad and not mem.requires_grad:
                # The host detaches by mem.detach_(): give it a mem to which that does something.
                mem = mem + 0.0 * quantizer.thresholds[0]
            spikes.append(spk)
            mems.append(mem)
        return torch.cat(spikes), mems, v

    def _reset_kind(self) -> Reset:
        return cast(Reset, self.reset_mechanism)

    def _run(self, x_seq: Tensor, v: Tensor, t: int, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        # The spike in the reset is detached, as everywhere in this host.
        return self.integrate(x_seq, v, t, self.spike_grad, True, self._reset_kind(), quantizer)

    def _fresh_copy(self) -> Any:
        # A state in a graph can not be deep-copied; the memo puts an empty one in its place.
        twin = copy.deepcopy(self, {id(self.mem): self.mem.new_zeros(0), id(self._v): None, id(self._mem_seq): None})
        twin.reset_mem()
        snn.SpikingNeuron.instances.append(twin)  # as a constructor does, so that the host resets it
        return twin


class ATIFu(_SoftResetLeaky):
    r"""ATIF-u: integrate-and-fire with one trainable threshold, a uniform quantiser.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t > \theta], \quad v_t = h_t - \theta s_t, \quad v_0 = v_{init}\,\theta

    ``mem``, as returned, is :math:`h_t`: what ``snn.Leaky(beta=1)`` returns.

    Parameters
    ----------
    threshold : float or Tensor
        Initial threshold, one element; afterwards ``threshold`` of shape ``[1]``. Keep it out of weight decay.
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
        Emit ``threshold`` in place of 1.
    fire_at_threshold : bool
        ``False`` fires at ``h > threshold`` (this host's habit), ``True`` at ``h >= threshold``.
    grad_scale : None, float or "lsq"
        Factor on the threshold's gradient; "lsq" is ``1 / sqrt(neurons per sample * T)``, for step mode "m".
    beta, inhibition, learn_beta, state_quant, graded_spikes_factor, learn_graded_spikes_factor, reset_delay, backend
        Options of the host without a meaning here: anything but the value that does nothing is refused.

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
        beta: float = 1.0,
        step_mode: str = "s",
        v_init: float | Tensor = 0.0,
        scale_output: bool = False,
        fire_at_threshold: bool = False,
        grad_scale: float | str | None = None,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        value = as_threshold("threshold", threshold)
        check_options(v_init, scale_output, fire_at_threshold, grad_scale)  # before the host lists this neuron
        check_bool("learn_threshold", learn_threshold)
        self._init_neuron(
            spike_grad,
            surrogate_disable,
            init_hidden,
            reset_mechanism,
            output,
            step_mode,
            dict(
                beta=beta,
                inhibition=inhibition,
                learn_beta=learn_beta,
                state_quant=state_quant,
                graded_spikes_factor=graded_spikes_factor,
                learn_graded_spikes_factor=learn_graded_spikes_factor,
                reset_delay=reset_delay,
            ),
        )
        self._init_soft_reset(v_init, scale_output, fire_at_threshold, grad_scale)
        self._set_threshold(value, learn_threshold)


class PCMPIF(_SoftResetLeaky):
    r"""PCMP IF: integrate-and-fire with a pre-charged membrane potential.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t > \theta], \quad v_t = h_t - \theta s_t, \quad v_0 = V_{pc}\,\theta

    Parameters
    ----------
    threshold : float or Tensor
        The threshold, one element; ``threshold`` of shape ``[1]``.
    learn_threshold : bool
        Train the threshold; off by default.
    precharge : float, Tensor or nn.Parameter
        Potential before the first step in units of the threshold, in [0, 1]: one value, or one per channel (dim 1).
    others
        As in :class:`ATIFu`.

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
        beta: float = 1.0,
        step_mode: str = "s",
        precharge: float | Tensor = 0.5,
        scale_output: bool = False,
        fire_at_threshold: bool = False,
        grad_scale: float | str | None = None,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        value = as_threshold("threshold", threshold)
        as_v_init("precharge", precharge, 0.0, 1.0)
        check_options(precharge, scale_output, fire_at_threshold, grad_scale)
        check_bool("learn_threshold", learn_threshold)
        self._init_neuron(
            spike_grad,
            surrogate_disable,
            init_hidden,
            reset_mechanism,
            output,
            step_mode,
            dict(
                beta=beta,
                inhibition=inhibition,
                learn_beta=learn_beta,
                state_quant=state_quant,
                graded_spikes_factor=graded_spikes_factor,
                learn_graded_spikes_factor=learn_graded_spikes_factor,
                reset_delay=reset_delay,
            ),
        )
        self._init_soft_reset(precharge, scale_output, fire_at_threshold, grad_scale)
        self._set_threshold(value, learn_threshold)

    @property
    def precharge(self) -> Tensor:
        """The pre-charge in units of the threshold, ``[1]`` or ``[C]``: another name for ``v_init``."""
        return self.v_init


class ATIFnu(NonUniformSoftResetNeuron, _SoftResetLeaky):
    r"""ATIF-nu: integrate-and-fire with T trainable quantisation points, a non-uniform quantiser.

    .. math::
        h_t = v_{t-1} + x_t, \quad s_t = 1[h_t > V_t], \quad v_t = h_t - V_t s_t, \quad v_0 = v_{init}\,V_1

    The thresholds follow from the points ``p`` by :func:`snn_ext.functional.nonuniform_thresholds`. More than T steps
    without a reset raise.

    Parameters
    ----------
    threshold : float or Tensor
        The clip level p_1 of a uniform start, or all T points, non-increasing; afterwards the parameter ``p`` ``[T]``.
    T : int
        Number of steps.
    recursion : {"min", "paper", "cumulative"}
        How thresholds follow from ``p``; "cumulative" never resets.
    reset_mechanism : {"subtract"}
        The thresholds are derived for a reset by subtraction: anything else is refused.
    others
        As in :class:`ATIFu`.

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
    >>> neuron = ATIFnu(torch.tensor([1.0, 0.5, 0.25, 0.1]), T=4, step_mode="m", init_hidden=True)
    >>> neuron(torch.tensor([0.05, 0.15, 0.3, 0.6, 1.1]).expand(4, -1)).sum(0)
    tensor([0., 1., 2., 3., 4.], grad_fn=<SumBackward1>)
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
        T: int,
        recursion: str = "min",
        beta: float = 1.0,
        step_mode: str = "s",
        v_init: float | Tensor = 0.0,
        scale_output: bool = False,
        fire_at_threshold: bool = False,
        grad_scale: float | str | None = None,
        backend: None = None,
    ) -> None:
        refuse_backend(backend)
        check_time_steps(T, recursion)
        points = as_points("threshold", threshold, T)
        check_options(v_init, scale_output, fire_at_threshold, grad_scale)
        check_bool("learn_threshold", learn_threshold)
        if reset_mechanism != "subtract":
            bad_value("reset_mechanism", reset_mechanism, "'subtract': the thresholds of ATIF-nu are derived for it")
        self._init_neuron(
            spike_grad,
            surrogate_disable,
            init_hidden,
            reset_mechanism,
            output,
            step_mode,
            dict(
                beta=beta,
                inhibition=inhibition,
                learn_beta=learn_beta,
                state_quant=state_quant,
                graded_spikes_factor=graded_spikes_factor,
                learn_graded_spikes_factor=learn_graded_spikes_factor,
                reset_delay=reset_delay,
            ),
        )
        del self.threshold  # the host's buffer; p takes its place
        self._init_soft_reset(v_init, scale_output, fire_at_threshold, grad_scale)
        self._init_points(points, T, recursion)
        self.p.requires_grad_(learn_threshold)

    def _reset_kind(self) -> Reset:
        return "none" if self.recursion == "cumulative" else "subtract"


def _mapped(fn: Callable[[Tensor], Tensor], v: Any) -> Any:
    """Apply to what is carried over: a tensor or a named tuple of tensors."""
    return fn(v) if isinstance(v, Tensor) else type(v)(*map(fn, v))


def _shape(v: Any) -> torch.Size:
    return v.shape if isinstance(v, Tensor) else v[0].shape


def _before_reset(spk: Tensor, v: Tensor, quantizer: Quantizer, t: int) -> Tensor:
    """Return ``mem`` from the potential after reset; exact, but for one rounding above twice the threshold."""
    thresholds = quantizer.thresholds
    threshold = thresholds[min(t, len(thresholds) - 1)]
    return torch.where(spk.detach() != 0, v + threshold, v)


def _refuse_options(options: dict[str, Any]) -> None:
    """Raise for an option of the host that has no meaning for these neurons."""
    want = {
        "beta": (1.0, "1: these neurons do not leak"),
        "inhibition": (False, "False: there is no inhibition here"),
        "learn_beta": (False, "False: there is no leak to learn"),
        "state_quant": (False, "False: the state is kept in full precision"),
        "graded_spikes_factor": (1.0, "1: spikes are binary, or scaled by scale_output=True"),
        "learn_graded_spikes_factor": (False, "False: spikes are binary, or scaled by scale_output=True"),
        "reset_delay": (True, "True: the host's reset_delay=False never fires on a stored charge"),
    }
    for name, value in options.items():
        neutral, text = want[name]
        if isinstance(value, Tensor) or value is None or value != neutral:
            bad_value(name, value, text)
