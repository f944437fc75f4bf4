"""The base of all neurons here: a threshold, attributes that are checked when set, start values, and checkpoints.

It knows no host. A neuron is made of this class, its dynamics, and the class of a host.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_real
from ..functional import state_dtype

__all__ = [
    "MIN_THRESHOLD", "Admits", "ThresholdNeuron", "admit_threshold", "as_threshold", "carried", "copied", "known",
    "non_increasing", "per_channel", "positive", "refuse_backend", "show",
]  # fmt: skip

MIN_THRESHOLD = 1e-6
"""Thresholds and quantisation points are clamped here in the forward pass; their gradient passes straight through."""

Admits = dict[str, Callable[[Any, Any], Any]]


class ThresholdNeuron(nn.Module):
    """Base of every neuron: a threshold under the host's name, checked attributes, tolerant loading of checkpoints."""

    _version = 2  # hosts' own neurons are version 1: tells whose checkpoint is being loaded
    threshold_name: ClassVar[str]  # the host's name for the threshold
    threshold_per_channel: ClassVar[bool] = False  # may be a vector, one for each channel
    dynamics: ClassVar[str]  # of which operator: replacing one by another loses it
    resizable: ClassVar[tuple[str, ...]]  # buffers that take the shape of a checkpoint's; no host's neuron has them
    resizable_ndim: ClassVar[int] = 1  # up to which they do
    admits: ClassVar[Admits] = {}
    """Attributes of the host by name: a function of neuron and new value that returns what is set, or raises."""
    keywords_elsewhere: ClassVar[dict[str, str]] = {}
    """Arguments that the neurons of the other host have, and what stands for each here."""
    step_mode: str
    _warned_of_floor: bool = False
    _left: tuple[Any, int] | None = None  # the state after the last forward pass, and the backward pass that ran it
    _start_values: dict[str, Tensor]

    def __new__(cls, *values: Any, **keywords: Any) -> Any:
        """Refuse a keyword of the other host's neurons in words: Python's own error does not know what it is here."""
        for name in keywords.keys() & cls.keywords_elsewhere.keys():
            taken = inspect.signature(cls.__init__).parameters
            if name not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
                want = cls.keywords_elsewhere[name]
                raise TypeError(f"{name}: got it as an argument of {cls.__name__}, want {want}")
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "backend":
            refuse_backend(value)
        admit = self.admits.get(name)
        super().__setattr__(name, value if admit is None else admit(self, value))

    def train(self, mode: bool = True) -> Any:
        """Set the mode, as every epoch does; a trained threshold that has fallen below its floor warns once."""
        raw = getattr(self, self.threshold_name, None)
        if isinstance(raw, nn.Parameter) and not raw.is_meta and not hasattr(raw, "device_mesh"):
            self._warn_of_floor(raw, 3)
        return super().train(mode)

    def _warn_in_training(self) -> None:
        """Warn of a threshold below its floor in the step that uses it, where looking at it costs nothing.

        That is on the CPU: a GPU would be waited for, so there the change of mode has to do.
        """
        if self._warned_of_floor or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        raw = self._parameters.get(self.threshold_name)
        if raw is None or not raw.requires_grad or type(raw) is not nn.Parameter or not raw.is_cpu:
            return
        if not torch._C._len_torch_dispatch_stack() and not torch._C._is_tracing():
            self._warn_of_floor(raw, 6)

    def _warn_of_floor(self, raw: Tensor, stacklevel: int) -> None:
        low = raw.detach().min().item()
        if low < MIN_THRESHOLD and not self._warned_of_floor:
            self._warned_of_floor = True
            warnings.warn(
                f"{self.threshold_name}: got {low:.4g} by training, want at least {MIN_THRESHOLD}, which is used "
                "in its place; its gradient still passes and can bring it back",
                stacklevel=stacklevel,
            )

    # -- the state of a sequence -----------------------------------------------------------------------------------

    def _refuse_recomputation(self, state: Any) -> None:
        """Raise where a backward pass runs the neuron again from the state that the forward pass has left.

        ``torch.utils.checkpoint`` does so to save memory: it knows nothing of states, and its gradients would silently
        be those of other spikes. A state that somebody else has set, or a sequence within the backward pass, may run.
        """
        if torch.compiler.is_compiling() or self._left is None or self._left[0] is not state:
            return
        if self._left[1] != _backward_pass() != _NONE:
            raise RuntimeError(
                f"{type(self).__name__}: got a forward pass inside a backward pass (torch.utils.checkpoint?) which "
                "starts from the state that the forward pass has left, want the same start for both: reset the net at "
                "the beginning of the function that is checkpointed, or, in SpikingJelly, use "
                "memopt.checkpoint_module, which keeps the states"
            )

    def _leave(self, state: Any) -> None:
        """Note which state a forward pass leaves."""
        if not torch.compiler.is_compiling():
            self._left = state, _backward_pass()

    # -- parameters and buffers with the value that they start from ----------------------------------------------

    def _hold(self, name: str, start: Tensor, trainable: bool = False) -> None:
        """Register a parameter or a buffer, and keep its start value for neurons made on the meta device."""
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
        """Replace the threshold of the host's constructor."""
        if hasattr(self, self.threshold_name):
            delattr(self, self.threshold_name)
        self._hold(self.threshold_name, threshold, trainable)

    def _take_threshold(self, value: Tensor) -> None:
        """Set the threshold to a tensor of any shape that it may have; where that changes, a parameter gives way."""
        old = self._raw_threshold()
        if value.shape == old.shape:
            old.data.copy_(value)
            return
        self._set_threshold(value.detach().to(old, copy=True), isinstance(old, nn.Parameter))
        self._raw_threshold().requires_grad_(old.requires_grad)

    def _raw_threshold(self) -> Tensor:
        return cast(Tensor, getattr(self, self.threshold_name))

    def _describe_threshold(self) -> str:
        raw = self._raw_threshold()
        trained = isinstance(raw, nn.Parameter) and raw.requires_grad
        return f"{self.threshold_name}={show(raw, MIN_THRESHOLD)}{' (trained)' if trained else ''}"

    def reset_parameters(self) -> None:
        """Restore the thresholds and constants that the neuron was made with; the next step starts a sequence.

        Call it after ``to_empty`` for a net that was built on the meta device, as for PyTorch's own layers.

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
        """Load a checkpoint; one of the host's own neuron, which has no threshold, leaves the threshold as it is."""
        foreign = local_metadata.get("version") != self._version and prefix + self.resizable[0] not in state_dict
        key = prefix + self.threshold_name
        for name, own in (*self._parameters.items(), *self._buffers.items()):
            value = state_dict.get(prefix + name)  # the hosts' threshold, beta and w have no dimension
            if value is not None and own is not None and value.ndim == 0 and own.ndim == 1:
                state_dict[prefix + name] = value.reshape(1)
        for name in (*self.resizable, *([self.threshold_name] if self.threshold_per_channel else [])):
            value, own = state_dict.get(prefix + name), getattr(self, name)
            if value is not None and not isinstance(own, nn.Parameter) and 1 <= value.ndim <= self.resizable_ndim:
                setattr(self, name, own.new_ones(value.shape))  # one value, one per channel, ...
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        ours = {key, *(prefix + name for name in self.resizable)} if foreign else set()
        missing_keys.extend(name for name in missing if name not in ours)


def admit_threshold(neuron: ThresholdNeuron, value: Any) -> Any:
    """Let the threshold be set to a number or a tensor, of one element or, where it may be, of one for each channel."""
    name, per_channel = neuron.threshold_name, neuron.threshold_per_channel
    own = neuron._parameters.get(name, neuron._buffers.get(name))
    if own is None:  # the host's constructor, or a parametrisation
        return value
    if isinstance(value, nn.Parameter):
        if value.ndim != 1 or (len(value) > 1 and not per_channel):
            shapes = "[1] or [C]" if per_channel else "[1]"
            bad_value(name, value, f"a parameter of shape {shapes}: others cannot be sharded")
        return value
    if isinstance(value, Tensor) and not isinstance(own, nn.Parameter):
        if value.numel() != 1 and not (per_channel and value.ndim == 1 and len(value)):
            bad_value(name, value, f"one element{', or a vector with one for each channel' if per_channel else ''}")
        if not value.is_meta and not bool(((value >= MIN_THRESHOLD) & (value < torch.inf)).all()):
            bad_value(name, value.tolist(), f"finite numbers >= {MIN_THRESHOLD}")
        return value.reshape(-1)
    if isinstance(value, Tensor) and value.requires_grad:
        bad_value(name, value, "a number or an nn.Parameter: this threshold is trained itself")
    new = as_threshold(name, value, per_channel=per_channel)
    if len(new) > 1 and new.shape != own.shape:
        bad_value(
            name, value, f"one value, or {len(own)} as it has; for others an nn.Parameter, known to its optimizer"
        )
    with torch.no_grad():
        filled = new.to(own).expand_as(own)
        return own.copy_(filled) if isinstance(own, nn.Parameter) else filled.clone()


def _restore(neuron: nn.Module, name: str, own: Tensor, start: Tensor) -> None:
    """Write a start value into a parameter, plain or sharded, or replace a buffer by it."""
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


_NONE = -1  # no backward pass


def _backward_pass() -> int:
    """Return a number for the backward pass in which this thread is."""
    return int(torch._C._current_graph_task_id())


def copied(state: Any) -> Any:
    """Return a part of a state as a copy or a pickle takes it: no tensor of a graph, of which none can be made."""
    return state.detach() if isinstance(state, Tensor) and state.requires_grad and not state.is_leaf else state


def carried(state: Tensor, x_seq: Tensor) -> Tensor:
    """Return a state on the device of an input, in the dtype of its state, and usable by autograd."""
    if not torch.compiler.is_compiling() and state.is_inference() and not torch.is_inference_mode_enabled():
        state = state.clone()
    return state.to(device=x_seq.device, dtype=state_dtype(x_seq.dtype))


# -- checks of constructor arguments -----------------------------------------------------------------------------------


def as_threshold(name: str, value: Any, *, per_channel: bool = False) -> Tensor:
    """Return a threshold as a ``[1]`` float32 tensor; it has to be finite and at least ``MIN_THRESHOLD``.

    With ``per_channel`` it may be a vector with one for each channel, ``[C]``.
    """
    want = f"a finite number >= {MIN_THRESHOLD}"
    if per_channel and isinstance(value, Tensor) and value.ndim == 1 and len(value) > 1:
        want = f"one finite number >= {MIN_THRESHOLD} for each channel"
        if not value.is_floating_point():
            bad_type(name, value, want)
        if not bool((known(name, value).isfinite() & (value >= MIN_THRESHOLD)).all()):
            bad_value(name, value.tolist(), want)
        return value.detach().to("cpu", torch.float32, copy=True)
    if isinstance(value, Tensor):
        if value.numel() != 1:
            bad_value(name, value, "one element" + (", or a vector with one for each channel" if per_channel else ""))
        value = known(name, value).item()
    check_real(name, value, want, MIN_THRESHOLD)
    return torch.tensor([value], dtype=torch.float32, device="cpu")


def known(name: str, value: Tensor) -> Tensor:
    """Return a tensor after checking that it has values, as tensors on the meta device do not."""
    if value.is_meta:
        bad_value(name, value, "values: a tensor on the meta device has none, give a number or a tensor on the CPU")
    return value


def refuse_backend(backend: Any) -> None:
    """Refuse the ``backend=`` of older SpikingJelly code, and name its successor."""
    if backend is not None:
        raise ValueError(
            f"backend: got {backend!r}, want no such argument; SpikingJelly 2.0 has removed it, and snn_ext selects "
            f"the implementation by itself: ask snn_ext.ops.implementation, force with use_implementation"
        )


def per_channel(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Return one value without a dimension, or ``[C]`` in a shape that broadcasts to one step of input."""
    if value.numel() == 1:
        return value.reshape(())
    if len(shape) < 2 or shape[1] != len(value):
        bad_value(name, value, f"one value, or one per channel (dim 1) of an input {list(shape)}")
    return value.reshape(-1, *(1,) * (len(shape) - 2))


def show(x: Tensor, floor: float = -math.inf) -> str:
    """Return the values of a small tensor as text, and the floor that is used for those below it."""
    if x.is_meta:
        return f"[{len(x)}]"
    values = [f"{value:.4g}" + (f" ({floor} in use)" if value < floor else "") for value in x.detach().tolist()]
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


def non_increasing(points: Tensor) -> Tensor:
    """Return points ``[T]`` that do not increase, by a running maximum from the tail."""
    running = points[-1]
    found = [running]
    for point in points.flip(0)[1:]:
        running = torch.maximum(point, running)
        found.append(running)
    return torch.stack(found[::-1])


def positive(x: Tensor) -> Tensor:
    """Clamp at ``MIN_THRESHOLD``; the added term is exactly zero and passes the gradient straight through."""
    if not torch.is_grad_enabled():
        return x.clamp_min(MIN_THRESHOLD)
    return x.detach().clamp_min(MIN_THRESHOLD) + (x - x.detach())
