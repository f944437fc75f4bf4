"""What ATIF-u, ATIF-nu and PCMP IF share in both hosts: from their parameters to the arguments of one operator.

The classes here are mixins for ``nn.Module`` and know no host. A host's node adds the state and the host's habits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._counting import aside, counted, counted_integrate_and_fire
from .._errors import bad_value, check_bool, check_choice, check_count, check_real
from ..functional import best_points, best_threshold, state_dtype, uniform_points
from ..functional.integrate_and_fire import Reset
from ..functional.quantization import Recursion, thresholds_of_points
from ..ops import integrate_and_fire

MIN_THRESHOLD = 1e-6
"""Thresholds and quantisation points are clamped here in the forward pass; their gradient passes straight through."""


Admits = dict[str, Callable[[Any, Any], Any]]


class Quantizer(NamedTuple):
    """What the operator needs of the parameters."""

    thresholds: Tensor  # [1] or [T]
    clip_level: Tensor  # [1]: value of one spike times T, the scale of the output


class ThresholdNeuron(nn.Module):
    """What every neuron of this package has: a threshold under the host's name, and tolerance of hosts' checkpoints."""

    _version = 2  # hosts' own neurons are version 1: tells whose checkpoint is being loaded
    threshold_name: ClassVar[str]  # the host's name for the threshold
    resizable: ClassVar[tuple[str, ...]]  # buffers that take the shape of a checkpoint's; no host's neuron has them
    resizable_ndim: ClassVar[int] = 1  # up to which they do
    admits: ClassVar[Admits] = {}
    """Attributes of the host by name: a function of neuron and new value that returns what is set, or raises."""
    step_mode: str
    _start_values: dict[str, Tensor]

    def __setattr__(self, name: str, value: Any) -> None:
        admit = self.admits.get(name)
        super().__setattr__(name, value if admit is None else admit(self, value))

    # -- parameters and buffers with the value that they start from ----------------------------------------------

    def _hold(self, name: str, start: Tensor, trainable: bool = False) -> None:
        """Register a parameter or a buffer, and remember its start value outside of both, for the meta device."""
        if not start.is_meta:
            self.__dict__.setdefault("_start_values", {})[name] = start.detach().cpu().clone()
        if isinstance(start, nn.Parameter):
            self.register_parameter(name, start)
            return
        value = start.to(torch.get_default_device()) if start.device.type == "cpu" else start
        if trainable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _set_threshold(self, threshold: Tensor, trainable: bool) -> None:
        """Put the threshold where the host's constructor has left its own."""
        if hasattr(self, self.threshold_name):
            delattr(self, self.threshold_name)
        self._hold(self.threshold_name, threshold, trainable)

    def _raw_threshold(self) -> Tensor:
        return cast(Tensor, getattr(self, self.threshold_name))

    def reset_parameters(self) -> None:
        """Bring thresholds and constants back to what the neuron was made with; the next step starts a sequence.

        This is what a net that was built on the meta device needs after ``to_empty``, as PyTorch's own layers do.

        Examples
        --------
        >>> import torch
        >>> from snn_ext.spikingjelly import ATIFuNode
        >>> with torch.device("meta"):
        ...     node = ATIFuNode(0.75)
        >>> node.to_empty(device="cpu").reset_parameters()
        >>> node.v_threshold.item()
        0.75
        """
        for name in (*self._parameters, *self._buffers):
            own = self._parameters.get(name, self._buffers.get(name))
            if name in self._start_values and own is not None:
                _restore(self, name, own, self._start_values[name])

    # -- step index: only of neurons whose threshold depends on it -----------------------------------------------

    def _first_step(self) -> Any:
        """Return the step index at the start of a sequence."""
        return None

    def _after(self, t: Any, time_steps: int) -> Any:
        """Return the step index after some more steps."""
        return t

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load; a checkpoint of the host's own neuron, which has no threshold, keeps the one that is here."""
        foreign = local_metadata.get("version") != self._version and prefix + self.resizable[0] not in state_dict
        key = prefix + self.threshold_name
        if key in state_dict and state_dict[key].ndim == 0:
            state_dict[key] = state_dict[key].reshape(1)
        for name in self.resizable:
            value, own = state_dict.get(prefix + name), getattr(self, name)
            if value is not None and not isinstance(own, nn.Parameter) and 1 <= value.ndim <= self.resizable_ndim:
                setattr(self, name, own.new_empty(value.shape))  # one value, one per channel, ...
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        ours = {key, *(prefix + name for name in self.resizable)} if foreign else set()
        missing_keys.extend(name for name in missing if name not in ours)


class IntegrateAndFireNeuron(ThresholdNeuron):
    """One threshold ``[1]``, trainable or not, and an initial potential in units of it: ATIF-u and PCMP IF."""

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

    # -- from parameters to the operator ------------------------------------------------------------------------

    def quantizer(self, x_seq: Tensor) -> Quantizer:
        """Return thresholds and clip level for an input ``[T, N, ...]``, in the dtype of the state."""
        threshold = _positive(_scale_gradient(_wide(self._raw_threshold()), self._gradient_factor(x_seq)))
        return Quantizer(threshold, threshold)

    def initial_potential(self, x_seq: Tensor) -> Tensor:
        """Return V(0) = v_init * thresholds[0]: one value, or one per channel for one step ``[N, ...]``."""
        return cast(Tensor, aside(self._initial_potential, x_seq))

    def _initial_potential(self, x_seq: Tensor) -> Tensor:
        v_init = self.v_init.to(device=x_seq.device, dtype=state_dtype(x_seq.dtype))
        return per_channel("v_init", v_init, x_seq.shape[1:]) * self.quantizer(x_seq).thresholds[0]

    def integrate(
        self,
        x_seq: Tensor,
        v: Tensor,
        t: Any,
        surrogate: Any,
        detach_reset: bool,
        reset: Reset,
        quantizer: Quantizer | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the operator on ``[T, N, ...]`` from potential ``v`` at step index ``t``."""
        thresholds, clip_level = quantizer or aside(self.quantizer, x_seq)
        return (counted_integrate_and_fire if counted() else integrate_and_fire)(
            x_seq,
            v,
            aside(self._thresholds_of_steps, thresholds, t, x_seq.shape[0]),
            surrogate=surrogate,
            detach_reset=detach_reset,
            reset=reset,
            fire_at_threshold=self.fire_at_threshold,
            scale=clip_level if self.scale_output else None,
        )

    def _thresholds_of_steps(self, thresholds: Tensor, t: Any, time_steps: int) -> Tensor:
        return thresholds

    def _gradient_factor(self, x_seq: Tensor) -> float | None:
        if self.grad_scale != "lsq":
            return cast("float | None", self.grad_scale)
        samples = x_seq.shape[1] if x_seq.ndim > 1 else 1
        neurons = x_seq[0].numel() // max(samples, 1)
        return float((max(neurons, 1) * self._sequence_length(x_seq)) ** -0.5)

    def _sequence_length(self, x_seq: Tensor) -> int:
        if self.step_mode == "s" and x_seq.shape[0] == 1:
            raise ValueError(
                "grad_scale: got 'lsq' in step mode 's', want step_mode='m', where the number of steps is known"
            )
        return x_seq.shape[0]

    def _describe(self) -> str:
        parts = [f"{self.threshold_name}={_show(self._raw_threshold())}", f"v_init={_show(self.v_init)}"]
        parts += ["scale_output=True"] if self.scale_output else []
        parts += [] if self.fire_at_threshold else ["fire_at_threshold=False"]
        parts += [f"grad_scale={self.grad_scale!r}"] if self.grad_scale is not None else []
        return ", ".join(parts)


class NonUniformIntegrateAndFireNeuron(IntegrateAndFireNeuron):
    """T thresholds, computed from T trainable quantisation points ``p``: ATIF-nu."""

    threshold_name = "p"
    p: nn.Parameter
    recursion: Recursion
    _fresh_copy: Callable[[], Any]  # a deep copy without state; the host's class knows what its state is

    def _init_points(self, points: Tensor, recursion: str) -> None:
        self.recursion = cast(Recursion, recursion)
        self._set_threshold(points, trainable=True)

    @property
    def T(self) -> int:
        """Number of steps, one for each quantisation point."""
        return len(self.p)

    def quantization_points(self) -> Tensor:
        """Return ``p`` as it is used: positive, and non-increasing by a running maximum from the tail."""
        return self._points(None)

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

    def quantizer(self, x_seq: Tensor) -> Quantizer:
        points = self._points(self._gradient_factor(x_seq))
        return Quantizer(_positive(thresholds_of_points(points, self.recursion)), points[:1])

    def _points(self, gradient_factor: float | None) -> Tensor:
        raw = _positive(_scale_gradient(_wide(self.p), gradient_factor))
        running = raw[-1]
        points = [running]
        for k in range(self.T - 2, -1, -1):
            running = torch.maximum(raw[k], running)
            points.append(running)
        return torch.stack(points[::-1])

    def _first_step(self) -> Tensor:
        # A tensor, for an int would be compiled in: one graph a step. On the CPU, where looking at it costs nothing.
        return torch.zeros((), dtype=torch.int64, device="cpu")

    def _after(self, t: Tensor, time_steps: int) -> Tensor:
        return t + time_steps

    def _thresholds_of_steps(self, thresholds: Tensor, t: Any, time_steps: int) -> Tensor:
        if torch.compiler.is_compiling():
            within = torch.as_tensor(t + time_steps <= self.T)
            torch._assert_async(within, f"x_seq: got more than T={self.T} steps since the last reset; {_TOO_MANY}")
            return thresholds[(t + torch.arange(time_steps, device="cpu")).to(thresholds.device)]
        first = int(t)
        if first + time_steps > self.T:
            raise ValueError(
                f"x_seq: got step {first + time_steps} since the last reset, want at most T={self.T}, one a threshold; "
                + _TOO_MANY
            )
        return thresholds[first : first + time_steps]

    def _sequence_length(self, x_seq: Tensor) -> int:
        return self.T

    def _describe(self) -> str:
        return f"T={self.T}, recursion={self.recursion!r}, " + super()._describe()


_TOO_MANY = "reset the net before each sample, or use .at(T) for more steps"


# -- attributes of the host ------------------------------------------------------------------------------------------


def admit_threshold(neuron: ThresholdNeuron, value: Any) -> Any:
    """Let a number or a tensor of one element take the place of the threshold, as it may in the hosts' neurons."""
    name = neuron.threshold_name
    own = neuron._parameters.get(name, neuron._buffers.get(name))
    if own is None:  # the host's constructor, or a parametrisation
        return value
    if isinstance(value, nn.Parameter):
        if value.ndim == 0:
            bad_value(name, value, "a parameter of shape [1]: others can not be sharded")
        return value
    if isinstance(value, Tensor) and not isinstance(own, nn.Parameter):
        if value.numel() != 1:
            bad_value(name, value, "one element")
        return value.reshape(1)
    if isinstance(value, Tensor) and value.requires_grad:
        bad_value(name, value, "a number or an nn.Parameter: this threshold is trained itself")
    with torch.no_grad():
        new = torch.full_like(own, as_threshold(name, value).item())
        return own.copy_(new) if isinstance(own, nn.Parameter) else new


def only_points(name: str) -> Admits:
    """Return the checks of a neuron that has points in the place of the host's threshold of this name."""

    def admit(neuron: Any, value: Any) -> Any:
        if hasattr(neuron, "recursion"):  # not the host's constructor
            bad_value(name, value, "no such attribute: the thresholds of ATIF-nu follow from its points, p")
        return value

    return {name: admit, "T": lambda neuron, value: bad_value("T", value, f"{neuron.T}: use .at(T) for other steps")}


def _restore(neuron: nn.Module, name: str, own: Tensor, start: Tensor) -> None:
    """Write a start value into a parameter, plain or sharded, or put it in the place of a buffer."""
    with torch.no_grad():
        if start.shape != own.shape:  # a buffer resized by a checkpoint or by set_precision
            setattr(neuron, name, start.to(own))
        elif start.numel() == 1:
            own.fill_(start.item())
        elif hasattr(own, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            sharded: Any = own
            sharded.copy_(distribute_tensor(start.to(own.device), sharded.device_mesh, sharded.placements))
        else:
            own.copy_(start)


def carried(state: Tensor, x_seq: Tensor) -> Tensor:
    """Return a state for an input: on its device, in the dtype that goes with it, and fit for autograd."""
    if not torch.compiler.is_compiling() and state.is_inference() and not torch.is_inference_mode_enabled():
        state = state.clone()
    return state.to(device=x_seq.device, dtype=state_dtype(x_seq.dtype))


# -- checks of constructor arguments ----------------------------------------------------------------------------


def as_threshold(name: str, value: Any) -> Tensor:
    """Return a threshold as a ``[1]`` float32 tensor; it has to be finite and at least ``MIN_THRESHOLD``."""
    want = f"a finite number >= {MIN_THRESHOLD}"
    if isinstance(value, Tensor):
        if value.numel() != 1:
            bad_value(name, value, "one element")
        value = known(name, value).item()
    check_real(name, value, want, MIN_THRESHOLD)
    return torch.tensor([value], dtype=torch.float32, device="cpu")


def as_points(name: str, value: Any, T: int) -> Tensor:
    """Return quantisation points as a ``[T]`` float32 tensor, from all or from the clip level of uniform ones."""
    if isinstance(value, list | tuple) and len(value) > 1:
        value = torch.tensor(value, dtype=torch.float32, device="cpu")
    if not isinstance(value, Tensor) or value.numel() == 1:
        with torch.device("cpu"):  # whatever the default: start values are kept
            return uniform_points(as_threshold(name, value), T)
    points = value.detach().float().clone()
    if points.shape != (T,):
        bad_value(name, value, f"one element, or the quantisation points [T] = [{T}]")
    known(name, points)
    if not points.isfinite().all() or points[-1] < MIN_THRESHOLD or (points.diff() > 0).any():
        bad_value(name, points.tolist(), f"finite non-increasing quantisation points >= {MIN_THRESHOLD}")
    return points


def as_v_init(name: str, value: Any, low: float = -torch.inf, high: float = torch.inf) -> Tensor:
    """Return an initial potential in units of the threshold as a ``[1]`` or ``[C]`` float32 tensor."""
    want = "a finite number, or a vector with one per channel" + (
        f", in [{low:g}, {high:g}]" if high < torch.inf else ""
    )
    if not isinstance(value, Tensor):
        return torch.tensor([check_real(name, value, want, low, high)], dtype=torch.float32, device="cpu")
    if not value.is_floating_point() or value.ndim > 1 or value.numel() < 1:
        bad_value(name, value, want)
    known(name, value)
    if not value.isfinite().all() or value.min() < low or value.max() > high:
        bad_value(name, value.tolist(), want)
    return value.detach().float().clone().reshape(-1)


def per_channel(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Return one value without a dimension, or ``[C]`` in a shape that broadcasts to one step of input."""
    if value.numel() == 1:
        return value.reshape(())
    if len(shape) < 2 or shape[1] != len(value):
        bad_value(name, value, f"one value, or one per channel (dim 1) of an input {list(shape)}")
    return value.reshape(-1, *(1,) * (len(shape) - 2))


def check_options(v_init: Any, scale_output: Any, fire_at_threshold: Any, grad_scale: Any) -> Tensor:
    """Check what all three neurons have in both hosts; return the initial potential as a tensor."""
    check_bool("scale_output", scale_output)
    check_bool("fire_at_threshold", fire_at_threshold)
    _check_grad_scale(grad_scale)
    if isinstance(v_init, nn.Parameter) and v_init.ndim != 1:
        bad_value("v_init", v_init, "a parameter of shape [1] or [C]: other shapes can not be sharded")
    return as_v_init("v_init", v_init)


def check_recursion(recursion: Any) -> None:
    """Check how thresholds are to follow from points."""
    check_choice("recursion", recursion, ("min", "paper", "cumulative"))


def as_time_steps(T: Any, levels: Any, points: Any) -> int:
    """Return the number of steps of an ATIF-nu, which has two names: ``T`` is taken where a host's builder has one."""
    if T is not None and levels is not None and T != levels:
        bad_value("levels", levels, f"T={T}, or only one of the two: they are the same")
    if T is None and levels is None:
        if isinstance(points, list | tuple | Tensor) and len(torch.as_tensor(points).reshape(-1)) > 1:
            return len(points)
        raise TypeError("T: got None, want the number of steps; levels=... is the same, where a builder takes T itself")
    return check_count("T", T) if T is not None else check_count("levels", levels)


def known(name: str, value: Tensor) -> Tensor:
    """Return a tensor that has values: start values are kept, for neurons that are made on the meta device."""
    if value.is_meta:
        bad_value(name, value, "values: a tensor on the meta device has none, give a number or a tensor on the CPU")
    return value


def refuse_backend(backend: Any) -> None:
    """Explain what took the place of the ``backend=`` of older SpikingJelly code."""
    if backend is not None:
        raise ValueError(
            f"backend: got {backend!r}, want no such argument; SpikingJelly 2.0 has removed it, and snn_ext selects "
            f"the implementation by itself: ask snn_ext.ops.implementation, force with use_implementation"
        )


def _check_grad_scale(value: Any) -> None:
    want = "None, 'lsq' or a number > 0"
    if value is None or value == "lsq":
        return
    if isinstance(value, str) or check_real("grad_scale", value, want) <= 0:
        bad_value("grad_scale", value, want)


# -- exact tensor helpers -----------------------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    return x.to(state_dtype(x.dtype))


def _positive(x: Tensor) -> Tensor:
    """Clamp at ``MIN_THRESHOLD``; the added term is an exact zero that carries the gradient straight through."""
    if not torch.is_grad_enabled():
        return x.clamp_min(MIN_THRESHOLD)
    return x.detach().clamp_min(MIN_THRESHOLD) + (x - x.detach())


def _scale_gradient(x: Tensor, factor: float | None) -> Tensor:
    """Multiply the gradient, not the value: the added term is an exact zero."""
    return x if factor is None else x.detach() + (x - x.detach()) * factor


def _show(x: Tensor) -> str:
    if x.is_meta:
        return f"[{len(x)}]"
    values = [f"{value:.4g}" for value in x.detach().tolist()]
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"
