"""A layer with a state as a function, in either host: states by name go in and come out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import bad_value
from ..hosts import host_of, kind_of
from ..neurons import ThresholdNeuron
from ..simulation.advance import Potential, advance, own_copy

__all__ = ["States", "check_layer", "forget", "start", "transition"]

States = dict[str, Tensor]


def check_layer(name: str, module: Any, streaming: bool) -> None:
    """Raise for a layer that a program cannot hold."""
    if kind_of(module).__name__ == "PoissonEncoder":
        want = "encoder='direct' or 'if': its random numbers come from the bits of each sample"
        bad_value("net", f"{name}, a PoissonEncoder", want)
    if streaming and hasattr(module, "first") and hasattr(module, "time_steps"):
        want = "streaming=False: a layer that waits for its inputs counts the steps of one sample"
        bad_value("streaming", f"True with {name}, a {type(module).__name__}", want)


def start(module: Any, x_seq: Tensor) -> States:
    """Return the states of a layer after a reset, for an input ``[T, N, ...]``, each of the shape of a step."""
    neuron = _neuron(module)
    if host_of(neuron) != "snntorch":
        rest = tuple(neuron._memories_rv.values())
        found = neuron.materialize_states((x_seq,), rest, "m")
        return {name: torch.as_tensor(part) for name, part in zip(neuron._memories, found, strict=True)}
    if not isinstance(neuron, ThresholdNeuron):
        return {name: torch.zeros_like(x_seq[0]) for name in _buffers_of(neuron)}
    return {name: _as_step(part, x_seq) for name, part in _parts(_start(neuron, x_seq))}


def transition(module: Any, x_seq: Tensor, states: States | None) -> tuple[Tensor, States]:
    """Return what a layer emits for its input ``[T, N, ...]``, and its states; ``None`` are those after a reset."""
    neuron = _neuron(module)
    if host_of(neuron) != "snntorch":
        if states is None:
            return advance(module, x_seq, None)[0], {}
        (spikes,), end = neuron.multi_step_functional_forward((x_seq,), tuple(states.values()))
        return spikes, {name: torch.as_tensor(part) for name, part in zip(states, end, strict=True)}
    if isinstance(neuron, ThresholdNeuron):
        return _advance_ours(module, neuron, x_seq, states)
    if states is None:
        return advance(module, x_seq, None)[0], {}
    twin = own_copy(neuron)
    twin.__dict__["_buffers"] |= states
    emitted, _ = advance(module if neuron is module else Potential(twin), x_seq, (twin,))
    return emitted, {name: getattr(twin, name) for name in states}


def forget(module: Any) -> None:
    """Give the host's own neurons of snnTorch states without a shape, as they are made: a reset keeps the last one."""
    if host_of(module) == "snntorch" and not isinstance(module, ThresholdNeuron):
        for name in _buffers_of(module):
            module._buffers[name] = getattr(module, name).new_zeros(0)


def _neuron(module: Any) -> Any:
    return module.neuron if isinstance(module, Potential) else module


def _advance_ours(module: Any, neuron: Any, x_seq: Tensor, states: States | None) -> tuple[Tensor, States]:
    """Run a neuron of ``snn_ext.snntorch`` by its own dynamics, past the ``mem`` that the host looks at."""
    state = _start(neuron, x_seq)
    if states is not None:
        state = state._replace(**states)
    if neuron is module:
        emitted, _, state = neuron._advance(x_seq, state)
    else:
        _, potentials, state = neuron._advance_with_mem(x_seq, state)
        emitted = torch.stack(potentials)
    return emitted, dict(_parts(state))


def _start(neuron: Any, x_seq: Tensor) -> Any:
    return neuron.start(x_seq, neuron.thresholds()) if hasattr(neuron, "thresholds") else neuron.start(x_seq)


def _parts(state: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, part) for name, part in state._asdict().items() if part is not None)


def _as_step(part: Tensor, x_seq: Tensor) -> Tensor:
    """Return a state with one value for each neuron; a step index stays one number."""
    return torch.zeros_like(x_seq[0], dtype=part.dtype) + part if part.is_floating_point() else part


def _buffers_of(neuron: nn.Module) -> list[str]:
    """Return the names of the states of a neuron of snnTorch, which are its buffers outside of checkpoints."""
    return [name for name in neuron._buffers if name in neuron._non_persistent_buffers_set]
