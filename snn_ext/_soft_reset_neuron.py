"""What ATIF-u, ATIF-nu and PCMP IF share in both hosts: from their parameters to the arguments of one operator.

The classes here are mixins for ``nn.Module`` and know no host. A host's node adds the state and the host's habits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from ._errors import bad_value, check_bool, check_choice, check_count, check_real
from .functional import state_dtype, uniform_points
from .functional.quantization import Recursion, thresholds_of_points
from .functional.soft_reset import Reset
from .ops import soft_reset_if

MIN_THRESHOLD = 1e-6
"""Thresholds and quantisation points are clamped here in the forward pass; their gradient passes straight through."""


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
    step_mode: str

    def _set_threshold(self, threshold: Tensor, trainable: bool) -> None:
        """Put the threshold where the host's constructor has left its own."""
        if hasattr(self, self.threshold_name):
            delattr(self, self.threshold_name)
        if trainable:
            self.register_parameter(self.threshold_name, nn.Parameter(threshold))
        else:
            self.register_buffer(self.threshold_name, threshold)

    def _raw_threshold(self) -> Tensor:
        return cast(Tensor, getattr(self, self.threshold_name))

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


class SoftResetNeuron(ThresholdNeuron):
    """One threshold ``[1]``, trainable or not, and an initial potential in units of it: ATIF-u and PCMP IF."""

    resizable = ("v_init",)
    v_init: Tensor
    scale_output: bool
    fire_at_threshold: bool
    grad_scale: float | str | None

    def _init_soft_reset(
        self,
        v_init: float | Tensor,
        scale_output: bool,
        fire_at_threshold: bool,
        grad_scale: float | str | None,
    ) -> None:
        start = check_options(v_init, scale_output, fire_at_threshold, grad_scale)
        self.scale_output, self.fire_at_threshold, self.grad_scale = scale_output, fire_at_threshold, grad_scale
        if isinstance(v_init, nn.Parameter):
            self.register_parameter("v_init", v_init)
        else:
            self.register_buffer("v_init", start)

    # -- from parameters to the operator ------------------------------------------------------------------------

    def quantizer(self, x_seq: Tensor) -> Quantizer:
        """Return thresholds and clip level for an input ``[T, N, ...]``, in the dtype of the state."""
        threshold = _positive(_scale_gradient(_wide(self._raw_threshold()), self._gradient_factor(x_seq)))
        return Quantizer(threshold, threshold)

    def initial_potential(self, x_seq: Tensor) -> Tensor:
        """Return V(0) = v_init * thresholds[0]: one value, or one per channel for one step ``[N, ...]``."""
        v_init = self.v_init.to(device=x_seq.device, dtype=state_dtype(x_seq.dtype))
        return per_channel("v_init", v_init, x_seq.shape[1:]) * self.quantizer(x_seq).thresholds[0]

    def integrate(
        self,
        x_seq: Tensor,
        v: Tensor,
        t: int,
        surrogate: Any,
        detach_reset: bool,
        reset: Reset,
        quantizer: Quantizer | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the operator on ``[T, N, ...]`` from potential ``v`` at step index ``t``."""
        thresholds, clip_level = quantizer or self.quantizer(x_seq)
        return soft_reset_if(
            x_seq,
            v,
            self._thresholds_of_steps(thresholds, t, x_seq.shape[0]),
            surrogate=surrogate,
            detach_reset=detach_reset,
            reset=reset,
            fire_at_threshold=self.fire_at_threshold,
            scale=clip_level if self.scale_output else None,
        )

    def _thresholds_of_steps(self, thresholds: Tensor, t: int, time_steps: int) -> Tensor:
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


class NonUniformSoftResetNeuron(SoftResetNeuron):
    """T thresholds, computed from T trainable quantisation points ``p``: ATIF-nu."""

    threshold_name = "p"
    p: nn.Parameter
    T: int
    recursion: Recursion
    _fresh_copy: Callable[[], Any]  # a deep copy without state; the host's class knows what its state is

    def _init_points(self, points: Tensor, T: int, recursion: str) -> None:
        self.T = T
        self.recursion = cast(Recursion, recursion)
        self._set_threshold(points, trainable=True)

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
        twin.T = T
        twin.p = nn.Parameter(points.flip(0).to(self.p.dtype), requires_grad=self.p.requires_grad)
        return twin

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

    def _thresholds_of_steps(self, thresholds: Tensor, t: int, time_steps: int) -> Tensor:
        if t + time_steps > self.T:
            raise ValueError(
                f"x_seq: got step {t + time_steps} since the last reset, want at most T={self.T}, one a threshold; "
                f"reset the net before each sample, or use .at(T) for more steps"
            )
        return thresholds[t : t + time_steps]

    def _sequence_length(self, x_seq: Tensor) -> int:
        return self.T

    def _describe(self) -> str:
        return f"T={self.T}, recursion={self.recursion!r}, " + super()._describe()


# -- checks of constructor arguments ----------------------------------------------------------------------------


def as_threshold(name: str, value: Any) -> Tensor:
    """Return a threshold as a ``[1]`` float32 tensor; it has to be finite and at least ``MIN_THRESHOLD``."""
    want = f"a finite number >= {MIN_THRESHOLD}"
    if isinstance(value, Tensor):
        if value.numel() != 1:
            bad_value(name, value, "one element")
        value = value.item()
    check_real(name, value, want, MIN_THRESHOLD)
    return torch.tensor([value], dtype=torch.float32)


def as_points(name: str, value: Any, T: int) -> Tensor:
    """Return quantisation points as a ``[T]`` float32 tensor, from all or from the clip level of uniform ones."""
    if isinstance(value, list | tuple) and len(value) > 1:
        value = torch.tensor(value, dtype=torch.float32)
    if not isinstance(value, Tensor) or value.numel() == 1:
        return uniform_points(as_threshold(name, value), T)
    points = value.detach().float().clone()
    if points.shape != (T,):
        bad_value(name, value, f"one element, or the quantisation points [T] = [{T}]")
    if not points.isfinite().all() or points[-1] < MIN_THRESHOLD or (points.diff() > 0).any():
        bad_value(name, points.tolist(), f"finite non-increasing quantisation points >= {MIN_THRESHOLD}")
    return points


def as_v_init(name: str, value: Any, low: float = -torch.inf, high: float = torch.inf) -> Tensor:
    """Return an initial potential in units of the threshold as a ``[1]`` or ``[C]`` float32 tensor."""
    want = "a finite number, or a vector with one per channel" + (
        f", in [{low:g}, {high:g}]" if high < torch.inf else ""
    )
    if not isinstance(value, Tensor):
        return torch.tensor([check_real(name, value, want, low, high)], dtype=torch.float32)
    if not value.is_floating_point() or value.ndim > 1 or value.numel() < 1:
        bad_value(name, value, want)
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


def check_time_steps(T: Any, recursion: Any) -> None:
    """Check the two arguments that only ATIF-nu has."""
    check_count("T", T)
    check_choice("recursion", recursion, ("min", "paper", "cumulative"))


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
