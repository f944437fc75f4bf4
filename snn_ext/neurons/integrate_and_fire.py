"""ATIF-u, ATIF-nu and PCMP IF in either host: from their parameters to the arguments of one operator.

The classes are mixins for ``nn.Module`` and know no host. The class of a host adds where the state is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._counting import aside, counted, counted_integrate_and_fire
from .._errors import bad_value, check_count
from ..functional import best_points, best_threshold, state_dtype, uniform_points
from ..functional.integrate_and_fire import Reset
from ..functional.quantization import Recursion, thresholds_of_points
from ..ops import integrate_and_fire
from .arguments import check_options
from .base import Admits, ThresholdNeuron, non_increasing, per_channel, positive, show
from .leak import Leak

__all__ = [
    "IFState", "IntegrateAndFireNeuron", "NonUniformIntegrateAndFireNeuron", "Thresholds", "no_leak", "only_points",
]  # fmt: skip


class Thresholds(NamedTuple):
    """Thresholds in use: positive, in float32 or float64."""

    of_steps: Tensor
    """``[1]`` for all steps, ``[T]``, or ``[1, C]`` for all steps, one for each channel."""
    clip_level: Tensor
    """``[1]`` or ``[C]``: the largest value that T steps can carry, which is the value of one spike times T."""


class IFState(NamedTuple):
    """State between two steps."""

    v: Tensor
    """Potential after the reset: one value, one per channel, or one per neuron."""
    t: Any = None
    """Index of the next step, a 0-dim tensor; ``None`` where the threshold is the same at every step."""


class IntegrateAndFireNeuron(ThresholdNeuron):
    """One threshold, or one per channel, trainable or not, and an initial potential in units of it: ATIF-u and PCMP IF.

    The class of a host says how a spike resets the potential (:meth:`_reset_kind`), keeps an :class:`IFState`, and runs
    :meth:`thresholds`, :meth:`start` where there is no state yet, and :meth:`integrate`.
    """

    dynamics = "integrate-and-fire"
    threshold_per_channel = True
    resizable = ("v_init",)
    v_init: Tensor
    scale_output: bool
    fire_at_threshold: bool
    grad_scale: float | str | None

    def _init_integrate_and_fire(
        self,
        v_init: float | Tensor,
        scale_output: bool,
        fire_at_threshold: bool,
        grad_scale: float | str | None,
    ) -> None:
        start = check_options(v_init, scale_output, fire_at_threshold, grad_scale)
        self.scale_output, self.fire_at_threshold, self.grad_scale = scale_output, fire_at_threshold, grad_scale
        self._hold("v_init", v_init if isinstance(v_init, nn.Parameter) else start)

    def fit(self, inputs: Tensor, time_steps: int) -> None:
        """Set the threshold to the one that quantises recorded inputs with the best SQNR in ``time_steps`` steps.

        Parameters
        ----------
        inputs : Tensor
            Recorded inputs of the layer, any shape; at least one is positive.
        time_steps : int
            T.

        Examples
        --------
        >>> from snn_ext.spikingjelly import ATIFuNode
        >>> node = ATIFuNode()
        >>> node.fit(torch.linspace(0, 1, 100), time_steps=4)
        >>> round(node.v_threshold.item(), 1)
        0.8
        """
        setattr(self, self.threshold_name, best_threshold(inputs, time_steps, v_init=self._one_v_init()))

    def _one_v_init(self) -> float:
        if self.v_init.numel() != 1:
            bad_value("v_init", self.v_init, "one value: the best threshold is known for one initial potential a layer")
        return float(self.v_init.detach())

    @torch.no_grad()
    def counts(self, charge: Tensor, time_steps: int) -> Tensor:
        """Return how often the neurons fire in T steps if all charge is there before they do.

        Parameters
        ----------
        charge : Tensor
            Sum of the inputs of T steps, ``[N, ...]``.
        time_steps : int
            T.

        Examples
        --------
        >>> from snn_ext.spikingjelly import ATIFuNode
        >>> ATIFuNode(1.0).counts(torch.tensor([[-2.0, 1.5, 9.0]]), time_steps=4)
        tensor([[0., 1., 4.]])
        """
        thresholds = self.thresholds()
        spike = per_channel(self.threshold_name, thresholds.clip_level, charge.shape)
        level = (charge + self.initial_potential(charge.unsqueeze(0), thresholds)).div_(spike)
        count = level.floor_() if self.fire_at_threshold else level.ceil_().sub_(1.0)
        return count.clamp_(0.0, time_steps).to(charge.dtype)

    # -- from parameters to the operator ------------------------------------------------------------------------

    def thresholds(self, x_seq: Tensor | None = None) -> Thresholds:
        """Return the thresholds in use; for an input ``[T, N, ...]``, ``grad_scale`` acts on their gradient."""
        threshold = self._in_use(self._raw_threshold(), x_seq)
        return Thresholds(threshold.unsqueeze(0) if len(threshold) > 1 else threshold, threshold)

    def start(self, x_seq: Tensor, thresholds: Thresholds) -> IFState:
        """Return the state at the start of a sequence ``[T, N, ...]``."""
        return IFState(self.initial_potential(x_seq, thresholds))

    def initial_potential(self, x_seq: Tensor, thresholds: Thresholds) -> Tensor:
        """Return V(0) = v_init * thresholds[0]: one value, or one per channel for one step ``[N, ...]``."""
        v_init = self.v_init.to(device=x_seq.device, dtype=state_dtype(x_seq.dtype))
        return per_channel("v_init", v_init, x_seq.shape[1:]) * self._of_step(thresholds, 0, x_seq.shape[1:])

    def integrate(
        self, x_seq: Tensor, state: IFState, thresholds: Thresholds, surrogate: Any, detach_reset: bool
    ) -> tuple[Tensor, IFState]:
        """Run the operator on ``[T, N, ...]``; returns spikes and the state after them."""
        leak, scale = aside(self.leak, x_seq), thresholds.clip_level if self.scale_output else None
        of_channels = thresholds.of_steps.ndim > 1
        spike_seq, v = (counted_integrate_and_fire if counted() else integrate_and_fire)(
            x_seq,
            state.v,
            aside(self._for_operator, thresholds, state.t, x_seq),
            surrogate=surrogate,
            detach_reset=detach_reset,
            reset=self._reset_kind(),
            fire_at_threshold=self.fire_at_threshold,
            scale=None if of_channels else scale,
            decay=leak.decay,
            charge=leak.charge,
        )
        if of_channels and scale is not None:  # the operator multiplies by one value
            spike_seq = spike_seq * per_channel(self.threshold_name, scale, x_seq.shape[1:]).to(x_seq.dtype)
        return spike_seq, IFState(v, None if state.t is None else aside(torch.add, state.t, len(x_seq)))

    def leak(self, x_seq: Tensor) -> Leak:
        """Return the leak for an input ``[T, N, ...]``; none, unless a mixin has one."""
        return Leak()

    def _describe_leak(self) -> str:
        return ""

    def _reset_kind(self) -> Reset:
        """Return what a spike does to the potential; the host's class knows by which attribute that is set."""
        raise NotImplementedError

    def _of_steps(self, thresholds: Thresholds, t: Any, time_steps: int) -> Tensor:
        """Return the thresholds of ``time_steps`` steps from step ``t`` on."""
        return thresholds.of_steps

    def _of_step(self, thresholds: Thresholds, step: int, shape: torch.Size) -> Tensor:
        """Return the threshold of a step in a shape that broadcasts to one step of input."""
        return per_channel(self.threshold_name, thresholds.of_steps[step].reshape(-1), shape)

    def _for_operator(self, thresholds: Thresholds, t: Any, x_seq: Tensor) -> Tensor:
        """Return the same in the shape that the operator takes: ``[1]``, ``[T]``, or ``[1, 1, C, 1, ...]``."""
        if thresholds.of_steps.ndim > 1:
            return self._of_step(thresholds, 0, x_seq.shape[1:]).expand(1, *x_seq.shape[1:])
        return self._of_steps(thresholds, t, len(x_seq))

    def _in_use(self, raw: Tensor, x_seq: Tensor | None, time_steps: int | None = None) -> Tensor:
        """Return thresholds or points as they are used: wide, positive, with the factor on their gradient."""
        factor = None if x_seq is None else self._gradient_factor(x_seq, time_steps)
        return positive(_scale_gradient(_wide(raw), factor))

    def _gradient_factor(self, x_seq: Tensor, time_steps: int | None) -> float | None:
        if not torch.is_grad_enabled():
            return None  # one step at a time is no obstacle then
        if self.grad_scale != "lsq":
            return cast("float | None", self.grad_scale)
        if time_steps is None and self.step_mode == "s" and len(x_seq) == 1:
            raise ValueError(
                "grad_scale: got 'lsq' in step mode 's', want step_mode='m', where the number of steps is known"
            )
        samples = x_seq.shape[1] if x_seq.ndim > 1 else 1
        neurons = x_seq[0].numel() // max(samples, 1)
        if self.threshold_per_channel:
            neurons //= len(self._raw_threshold())  # that share one
        return float((max(neurons, 1) * (time_steps or len(x_seq))) ** -0.5)

    def _describe(self) -> str:
        parts = [self._describe_threshold(), f"v_init={show(self.v_init)}"]
        parts += [self._describe_leak()] if self._describe_leak() else []
        parts += ["scale_output=True"] if self.scale_output else []
        parts += [] if self.fire_at_threshold else ["fire_at_threshold=False"]
        parts += [f"grad_scale={self.grad_scale!r}"] if self.grad_scale is not None else []
        return ", ".join(parts)


class NonUniformIntegrateAndFireNeuron(IntegrateAndFireNeuron):
    """T thresholds, computed from T trainable quantisation points ``p``: ATIF-nu."""

    threshold_name = "p"
    threshold_per_channel = False
    p: nn.Parameter
    recursion: Recursion
    _fresh_copy: Callable[[], Any]  # a deep copy without state; the host's class knows what its state is

    def _init_points(self, points: Tensor, recursion: str, trainable: bool = True) -> None:
        self.recursion = cast(Recursion, recursion)
        self._set_threshold(points, trainable=True)
        self.p.requires_grad_(trainable)

    @property
    def T(self) -> int:
        """Number of steps, one for each quantisation point."""
        return len(self.p)

    def quantization_points(self) -> Tensor:
        """Return ``p`` as it is used: positive, and non-increasing by a running maximum from the tail."""
        return self._points()

    def at(self, T: int) -> Any:
        """Return a copy of this neuron with the same quantiser for another number of steps.

        The points are interpolated linearly over the fraction of steps, ``q(n / T) = p_{T-n+1}``, ``q(0) = 0``, which
        keeps a uniform quantiser uniform and any other non-increasing.

        Parameters
        ----------
        T : int
            The new number of steps.

        Examples
        --------
        >>> from snn_ext.spikingjelly import ATIFnuNode
        >>> ATIFnuNode(1.0, T=4).at(2).p.tolist()
        [1.0, 0.5]
        """
        check_count("T", T)
        edges = self.quantization_points().detach().double().flip(0)
        edges = torch.cat((edges.new_zeros(1), edges))  # q at 0, 1/T, ..., 1
        position = torch.arange(1, T + 1, dtype=edges.dtype, device=edges.device) * self.T / T
        below = position.floor().long().clamp(max=self.T - 1)
        points = torch.lerp(edges[below], edges[below + 1], position - below)
        twin = self._fresh_copy()
        twin._set_threshold(points.flip(0).to(self.p.dtype), trainable=True)
        twin.p.requires_grad_(self.p.requires_grad)
        return twin

    def fit(self, inputs: Tensor, time_steps: int) -> None:
        """Set the points to those that quantise recorded inputs best; uniform ones where ``v_init`` is not 0."""
        if time_steps != self.T:
            bad_value("time_steps", time_steps, f"{self.T}, the number of points")
        v_init = self._one_v_init()
        if v_init == 0:
            points = best_points(inputs, self.T)
        else:
            points = uniform_points(best_threshold(inputs, self.T, v_init=v_init), self.T)
        self.p.data.copy_(points)

    @torch.no_grad()
    def counts(self, charge: Tensor, time_steps: int) -> Tensor:
        """Return the number of points that the charge reaches: what the neurons aim at, for T points in T steps."""
        charged = charge + self.initial_potential(charge.unsqueeze(0), self.thresholds())
        reaches = torch.ge if self.fire_at_threshold else torch.gt
        count = torch.zeros_like(charge)
        for point in self.quantization_points() * time_steps:
            count += reaches(charged, point)
        return count

    def thresholds(self, x_seq: Tensor | None = None) -> Thresholds:
        points = self._points(x_seq)
        return Thresholds(positive(thresholds_of_points(points, self.recursion)), points[:1])

    def start(self, x_seq: Tensor, thresholds: Thresholds) -> IFState:
        # A tensor, for an int would be compiled in: one graph a step. On the CPU, where looking at it costs nothing.
        return super().start(x_seq, thresholds)._replace(t=torch.zeros((), dtype=torch.int64, device="cpu"))

    def _reset_kind(self) -> Reset:
        return "none" if self.recursion == "cumulative" else super()._reset_kind()

    def _points(self, x_seq: Tensor | None = None) -> Tensor:
        return non_increasing(self._in_use(self.p, x_seq, self.T))

    def _of_steps(self, thresholds: Thresholds, t: Any, time_steps: int) -> Tensor:
        if torch.compiler.is_compiling():
            within = torch.as_tensor(t + time_steps <= self.T)
            torch._assert_async(within, f"x_seq: got more than T={self.T} steps since the last reset; {_TOO_MANY}")
            steps = t + torch.arange(time_steps, device="cpu")
            return thresholds.of_steps[steps.to(thresholds.of_steps.device)]
        first = int(t)
        if first + time_steps > self.T:
            raise ValueError(
                f"x_seq: got step {first + time_steps} since the last reset, want at most T={self.T}, one a threshold; "
                + _TOO_MANY
            )
        return thresholds.of_steps[first : first + time_steps]

    def _describe(self) -> str:
        return f"T={self.T}, recursion={self.recursion!r}, " + super()._describe()


_TOO_MANY = "reset the net before each sample, or use .at(T) for more steps"


# -- attributes of the host ------------------------------------------------------------------------------------------


no_leak = "the thresholds of ATIF-nu are derived for a potential that keeps its charge"


def only_points(name: str) -> Admits:
    """Return checks for a neuron with points ``p`` instead of the host's threshold of this name."""

    def admit(neuron: Any, value: Any) -> Any:
        if hasattr(neuron, "recursion"):  # not the host's constructor
            bad_value(name, value, "no such attribute: the thresholds of ATIF-nu follow from its points, p")
        return value

    return {name: admit, "T": lambda neuron, value: bad_value("T", value, f"{neuron.T}: use .at(T) for other steps")}


# -- exact tensor helpers -----------------------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    return x.to(state_dtype(x.dtype))


def _scale_gradient(x: Tensor, factor: float | None) -> Tensor:
    """Multiply the gradient but not the value: the added term is exactly zero."""
    return x if factor is None else x.detach() + (x - x.detach()) * factor
