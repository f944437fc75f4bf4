"""A layer of neurons of either host as a pure transition: states in, states out, and the module as it was."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..hosts import host_of
from ..neurons import ThresholdNeuron

__all__ = ["Potential", "advance", "own_copy", "runs_step_by_step"]


class Potential(nn.Module):
    """A neuron of snnTorch whose potential is the output; its spikes go nowhere."""

    emits_spikes = False

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        """Return the potential, the last of what the neuron returns."""
        return self.neuron(x)[-1]


def advance(module: Any, x_seq: Tensor, state: tuple[Any, ...] | None) -> tuple[Tensor, tuple[Any, ...]]:
    """Return what a layer emits for its input ``[T, N, ...]``, and its state; ``None`` is that after a reset.

    SpikingJelly's contract has pure transitions. A neuron of snnTorch keeps its state inside: a copy of it, with the
    same parameters, is the state.
    """
    neuron = module.neuron if isinstance(module, Potential) else module
    if host_of(neuron) == "snntorch":
        (twin,) = (own_copy(neuron),) if state is None else state
        return _run(twin, x_seq, 0 if neuron is module else -1), (twin,)
    state = tuple(module._memories_rv.values()) if state is None else state
    state = module.materialize_states((x_seq,), state, "m")
    (spikes,), state = module.multi_step_functional_forward((x_seq,), state)
    return spikes, state


def runs_step_by_step(module: Any) -> bool:
    """Return False for a neuron of snnTorch that takes whole sequences alone."""
    return host_of(module) != "snntorch" or hasattr(module, "reset_mem")


def own_copy(neuron: Any) -> Any:
    """Return a neuron of snnTorch with a state of its own, reset, and the same parameters."""
    twin = copy.copy(neuron)
    twin.__dict__["_buffers"] = dict(neuron._buffers)
    for name, value in vars(neuron).items():  # the host keeps a method of the neuron among its attributes
        if isinstance(value, MethodType) and value.__self__ is neuron:
            twin.__dict__[name] = MethodType(value.__func__, twin)
    twin.reset_mem()
    return twin


def _run(neuron: Any, x_seq: Tensor, part: int) -> Tensor:
    """Return the spikes, part 0 of what a neuron returns, or the potential, the last part."""

    def chosen(returned: Any) -> Tensor:
        return returned[part] if isinstance(returned, tuple) else returned

    if isinstance(neuron, ThresholdNeuron):  # ours take a sequence at once
        neuron.step_mode = "m"
        return chosen(neuron(x_seq))
    return torch.stack([chosen(neuron(x)) for x in x_seq])
