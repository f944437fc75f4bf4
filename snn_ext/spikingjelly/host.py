"""The contract of SpikingJelly 2.0 for a node of any dynamics: attributes, states, step modes, counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from spikingjelly.activation_based import base, neuron, surrogate
from torch import Tensor, fx, nn

from .._counting import aside, counted
from .._errors import bad_type, bad_value, check_bool, check_choice, describe
from ..functional import as_surrogate
from ..neurons.base import Admits, ThresholdNeuron, admit_threshold, copied

__all__ = ["CopiedMemories", "HostNode", "States", "SurrogateFunction"]

SurrogateFunction = Callable[[Tensor], Tensor] | None
States = tuple[Any, ...]


class CopiedMemories(base.MemoryModule):
    """A module whose memories can be copied and pickled at any time: copies carry the values without the graph."""

    def __getstate__(self) -> dict[str, Any]:
        memories = {name: copied(value) for name, value in self._memories.items()}
        return self.__dict__ | {"_memories": memories}


class HostNode(ThresholdNeuron, CopiedMemories, neuron.BaseNode):
    """Base of all nodes: the contract of the host. The first memory, ``v``, is a float until the first step."""

    threshold_name = "v_threshold"
    admits: ClassVar[Admits] = {
        "v_threshold": admit_threshold,
        "v_reset": lambda node, value: _v_reset(value),
        "surrogate_function": lambda node, value: _surrogate(value),
        "detach_reset": lambda node, value: check_bool("detach_reset", value),
        "store_v_seq": lambda node, value: check_bool("store_v_seq", value),
    }
    keywords_elsewhere: ClassVar[dict[str, str]] = {
        "threshold": "v_threshold",
        "spike_grad": "surrogate_function",
        "reset_mechanism": "v_reset: None subtracts the threshold, 0.0 resets to zero",
    }
    detach_reset: bool
    _memories: dict[str, Any]
    _memories_rv: dict[str, Any]
    register_memory: Callable[..., None]
    _append_v_seq: Callable[[Tensor], None]
    multi_step_functional_forward: Callable[..., tuple[tuple[Tensor, ...], States]]  # of the dynamics
    _starts_from_memories: ClassVar[bool]
    """True if no method of the contract is a user's: the memories after a reset are enough for our own dynamics."""

    def _init_node(
        self,
        v_reset: float | None,
        surrogate_function: SurrogateFunction,
        detach_reset: bool,
        step_mode: str,
        store_v_seq: bool,
    ) -> None:
        v_reset, surrogate_function = _v_reset(v_reset), _surrogate(surrogate_function)
        check_bool("detach_reset", detach_reset)
        check_choice("step_mode", step_mode, ("s", "m"))
        neuron.BaseNode.__init__(self, 1.0, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        contract = "materialize_states", "single_step_functional_forward", "multi_step_functional_forward"
        cls._starts_from_memories = all(getattr(cls, name).__module__.startswith("snn_ext.") for name in contract)

    # -- to be defined by the dynamics ------------------------------------------------------------------------------

    def _states(self, x_seq: Tensor, states: States) -> States:
        """Return states for an input ``[T, N, ...]``: those given, or, where they do not fit it, those at the start.

        At the start one value may stand for all neurons.
        """
        raise NotImplementedError

    def _describe(self) -> str:
        raise NotImplementedError

    # -- the host's contract: pure transitions with explicit states -------------------------------------------------

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        """Return the memories as tensors of the shape of one step; those that do not fit the input start afresh."""
        x_seq = _input(inputs[0], step_mode)
        return tuple(_as_step(part, x_seq[0]) for part in self._states(x_seq, states))

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance one step: ``((x,), states) -> ((spike,), states)``; nothing is modified in place.

        Here and in ``multi_step_functional_forward`` states may also be memories as they are after a reset.
        """
        (spike_seq,), states = self.multi_step_functional_forward((inputs[0].unsqueeze(0),), states)
        return (spike_seq[0],), states

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the node; under an operation counter the memories are materialised first, as the counter reads them."""
        self._refuse_recomputation(self._memories["v"])
        self._warn_in_training()
        if counted():
            self._remember(self.materialize_states(args, tuple(self._memories.values()), self.step_mode))
        return super().forward(*args, **kwargs)

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the node on ``[N, ...]``; with ``store_v_seq``, ``v_seq`` grows by the first memory."""
        _input(x, "s")
        (spike,), states = self.single_step_functional_forward((x,), self._given((x, *args), "s"))
        self._remember(states)
        if self.store_v_seq:
            self._append_v_seq(states[0])
        return spike

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the node on ``[T, N, ...]``; with ``store_v_seq``, ``v_seq`` holds the first memory after every step."""
        _input(x_seq, "m")
        spike_seq, states, v_seq = self._run(x_seq, self._given((x_seq, *args), "m"))
        self._remember(states)
        if self.store_v_seq:
            self.v_seq = v_seq
        return spike_seq

    def _given(self, inputs: tuple[Tensor, ...], step_mode: str) -> States:
        """Return the memories for a functional forward, as tensors for one that a user has defined."""
        memories = tuple(self._memories.values())
        if self._starts_from_memories:
            return memories
        return self.materialize_states(inputs, memories, step_mode)

    def _run(self, x_seq: Tensor, states: States) -> tuple[Tensor, States, Tensor | None]:
        """Return spikes, states and, with ``store_v_seq``, the first memory after every step."""
        if not self.store_v_seq:
            (spike_seq,), states = self.multi_step_functional_forward((x_seq,), states)
            return spike_seq, states, None
        spikes, potentials = [], []
        for x in x_seq.split(1):
            (spike,), states = self.multi_step_functional_forward((x,), states)
            spikes.append(spike)
            potentials.append(states[0])
        return torch.cat(spikes), states, torch.stack(potentials)

    def _remember(self, states: States) -> None:
        self._memories.update(zip(self._memories, states, strict=True))
        self._leave(states[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return neuron.BaseNode._apply(self, fn)  # the host's does not take what torch passes to it in to_empty

    def reset(self) -> None:
        """Start a fresh sequence."""
        super().reset()
        self._left = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"v_seq": copied(self.v_seq), "_left": None}

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.reset()

    def extra_repr(self) -> str:
        text = (
            f"{self._describe()}, v_reset={self.v_reset}, detach_reset={self.detach_reset}, step_mode={self.step_mode}"
        )
        if not isinstance(self.surrogate_function, nn.Module):  # of which PyTorch has a line of its own
            text += f", surrogate_function={describe(self.surrogate_function)}"
        return text + (", store_v_seq=True" if self.store_v_seq else "")


def only_subtraction(reason: str) -> Admits:
    """Return the check of ``v_reset`` for a node without a reset to zero."""
    return {"v_reset": lambda node, value: None if value is None else bad_value("v_reset", value, f"None: {reason}")}


def _v_reset(value: Any) -> float | None:
    if not (value is None or type(value) in (int, float) and value == 0):
        bad_value("v_reset", value, "None (subtract the threshold) or 0.0 (reset to zero)")
    return None if value is None else 0.0


def _surrogate(function: SurrogateFunction) -> Callable[[Tensor], Tensor]:
    as_surrogate(function)
    # a new instance: the host's default instances are shared
    return surrogate.Sigmoid() if function is None else function


def _as_step(value: Any, x: Tensor) -> Any:
    """Return a state with one value for every neuron of a step ``[N, ...]``, in newly allocated memory."""
    if not isinstance(value, Tensor) or not value.is_floating_point():  # a step index
        return value
    if value.ndim == x.ndim and value.shape == x.shape:  # sizes alone would be compared, and bound, while exporting
        return value
    if counted() and not value.requires_grad and value.numel() == 1:
        return torch.full_like(x, aside(value.item), dtype=value.dtype)  # as the host does
    return torch.full_like(x, 0.0, dtype=value.dtype, requires_grad=False) + value


def _input(x: Any, step_mode: str) -> Tensor:
    """Return the input as ``[T, N, ...]``."""
    if isinstance(x, fx.Proxy):
        bad_type("x", x, "a tensor: snn_ext.to_nir exports these neurons to NIR; other tracers have to keep them whole")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        bad_type("x", x, "a floating tensor")
    if step_mode == "s":
        return x.unsqueeze(0)
    if x.ndim < 1 or x.shape[0] < 1:
        bad_value("x_seq", x, "[T, N, ...] with at least one time step")
    return x
