"""Simulation of a spiking net layer by layer, in chunks of time with carried state: fast, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from .._errors import bad_value, check_count
from ..ops.registry import select
from .advance import advance
from .graph import as_graph, changes, evaluating, events_of, module_of, output_of
from .plan import Call, Observer, Plan, ancestors
from .randomness import as_before

__all__ = ["Simulation"]

# Samples times steps in one chunk: enough to keep the convolutions busy, few enough to stay in the caches. A small net
# takes more of them, up to _MAX_STEPS; a very small one, which spends its time in calls, far more.
_SAMPLES_A_CHUNK, _CACHE, _MIN_STEPS, _MAX_STEPS = 32, 24 << 20, 4, 32
_VERY_SMALL, _MAX_STEPS_OF_VERY_SMALL = 12 << 20, 512
# A layer's input and output are alive at once, and a convolution may reorder both.
_WORKSPACE = 3.0


class Simulation:
    """Run a net of spiking neurons under a constant input, or frame by frame.

    Every layer gets a chunk of time steps at once: stateless layers with time flattened into the batch, neurons as a
    sequence with their potential carried from chunk to chunk. Values that do not depend on spikes are computed once. A
    net that draws random numbers itself, as by ``torch.rand_like(x) < x``, runs step by step.
    The simulation keeps its states apart: the net is neither reset nor changed, and the result is that of
    ``for t in range(T): net(x)`` in step mode "s" after a reset. The weights are those at the start of a run: change
    them between runs, in any way, but not during a run.

    Parameters
    ----------
    net : nn.Module
        A converted net, a :class:`snn_ext.ConstantInputNet`, or any net that can be traced, of step mode "s" or "m".
    chunk : int, optional
        Time steps at a time; by default the fastest number that fits into ``memory``.
    memory : int
        Bytes that the activations of a chunk may take, beside the net itself and the states.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext.simulation import Simulation
    >>> from snn_ext.spikingjelly import PCMPIFNode
    >>> net = nn.Sequential(nn.Identity(), PCMPIFNode(1.0, precharge=0.5))
    >>> torch.cat(list(Simulation(net).run(torch.tensor([[0.5, 0.25]]), time_steps=4))).sum(0)
    tensor([[2., 1.]])
    """

    def __init__(self, net: nn.Module, *, chunk: int | None = None, memory: int = 1 << 30) -> None:
        self.graph = as_graph(net)
        if chunk is not None:
            check_count("chunk", chunk)
        check_count("memory", memory)
        self.events = events_of(self.graph)
        self.chunk, self.memory = chunk, memory
        self._bytes_a_step: dict[tuple[int, ...], float] = {}
        self._random: frozenset[fx.Node] | None = None  # not known yet
        self._prepared: dict[nn.Module, _Prepared] = {}
        self._plans: dict[Any, Plan] | None = None  # kept while nobody changes the net

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Prepare weights and order of the net in the first of several runs alone: it stays as it is in the block."""
        before, self._plans = self._plans, {}
        try:
            yield
        finally:
            self._plans = before

    def run(self, x: Tensor, time_steps: int, observe: Observer | None = None) -> Iterator[Tensor]:
        """Yield the output ``[T', N, ...]`` of chunk after chunk under the constant input ``x`` of shape ``[N, ...]``.

        Parameters
        ----------
        x : Tensor
            Input of every step.
        time_steps : int
            T, the sum of all T'.
        observe : callable, optional
            Gets the spikes of each spiking layer, chunk after chunk.
        """
        output = self.output()
        for values in self.stream(x, time_steps, [output], observe=observe):
            yield values[output]

    def run_frames(self, frames: Tensor, observe: Observer | None = None) -> Iterator[Tensor]:
        """Yield the output ``[T', N, ...]`` of chunk after chunk; frame t of ``[T, N, ...]`` is the input of step t."""
        if not isinstance(frames, Tensor) or frames.ndim < 3 or 0 in frames.shape[:2]:
            bad_value("frames", frames, "a tensor [T, N, ...] with at least one step and one sample")
        output, shown = self.output(), {n: _Shown(frames) for n in self.graph.graph.nodes if n.op == "placeholder"}
        steps = self.steps(frames[0], frames=True)
        for values in self.stream(frames[0], len(frames), [output], shown, observe=observe, steps=steps):
            yield values[output]

    @torch.no_grad()
    def stream(
        self,
        x: Tensor,
        time_steps: int,
        targets: Sequence[Any],
        trains: Mapping[fx.Node, Train] | None = None,
        *,
        observe: Observer | None = None,
        states: dict[fx.Node, tuple[Any, ...]] | None = None,
        steps: int | None = None,
    ) -> Iterator[dict[fx.Node, Tensor]]:
        """Yield the values ``[T', N, ...]`` of some nodes of the graph, chunk after chunk.

        Parameters
        ----------
        x, time_steps, observe
            As in :meth:`run`.
        targets : sequence of fx.Node
            Nodes whose values are wanted; only nodes that they depend on run.
        trains : dict, optional
            Known spike trains by node: nothing before them runs.
        states : dict, optional
            States of the neurons by node, which the run continues from and writes to.
        steps : int, optional
            Steps of a chunk, by default :meth:`steps`.
        """
        check_count("time_steps", time_steps)
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 1:
            bad_value("x", x, "a tensor [N, ...] with at least one sample")
        trains = {} if trains is None else trains
        step, random = self.steps(x) if steps is None else steps, self.random(x)
        key = tuple(targets), frozenset(trains), torch.is_autocast_enabled(x.device.type)
        plan = None if self._plans is None else self._plans.pop(key, None)  # a run that is under way keeps its own
        if plan is None:
            plan = Plan(self.graph, self.events, targets, frozenset(trains), prepare=self._layer, random=random)
        states = {} if states is None else states
        modules = [m for m in self.graph.modules() if m is not self.graph]
        with evaluating(modules):
            constants = plan.constants(x)
        if random:  # a number that is drawn once for all samples of a step would be drawn once for all steps of a chunk
            step = 1
        for start in range(0, time_steps, step):
            steps = min(step, time_steps - start)
            known = {node: trains[node].read(start, start + steps).flatten(0, 1) for node in plan.given}
            with evaluating(modules):  # but not while the caller has the chunk
                values = plan.chunk(constants, known, steps, len(x), _carry(states), observe)
            yield values
        if self._plans is not None:
            self._plans[key] = plan

    @torch.no_grad()
    def neuron(
        self, node: fx.Node, currents: Iterable[Tensor], states: dict[fx.Node, tuple[Any, ...]] | None = None
    ) -> Iterator[Tensor]:
        """Yield the output of one layer of neurons for a current that comes in chunks of time."""
        call = _carry({} if states is None else states)
        module = self.graph.get_submodule(str(node.target))
        for current in currents:
            yield call(node, module, current)

    def is_constant(self, node: Any) -> bool:
        """Return True if a value is the same at every step, as it depends on no neuron and no encoder."""
        return not any(changes(module_of(self.graph, n)) for n in ancestors([node]))

    def random(self, x: Tensor) -> frozenset[fx.Node]:
        """Return the nodes that draw random numbers, at every step anew; ``x`` are samples ``[N, ...]``."""
        if self._random is None:
            self._probe(x)
        return self._random or frozenset()

    def output(self) -> fx.Node:
        """Return the node whose value is the output."""
        output = output_of(self.graph)
        if not isinstance(output, fx.Node):
            bad_value("net", f"a net that returns {output!r}", "a net that returns one tensor")
        return output

    def _layer(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return a function that computes a layer for spikes; a new one if the layer has changed since the last run."""
        if torch.is_autocast_enabled(_weights(layer)[0].device.type):
            return layer  # autocast decides how it rounds
        if layer not in self._prepared or not self._prepared[layer].is_current():
            self._prepared[layer] = _Prepared(layer)
        return self._prepared[layer].run

    def steps(self, x: Tensor, frames: bool = False) -> int:
        """Return how many steps a chunk has for a batch ``x``, the input of all steps or one of the frames."""
        if self.chunk is not None:
            return self.chunk
        key = (*x.shape[1:], frames)
        if key not in self._bytes_a_step:
            self._bytes_a_step[key] = self._probe(x, frames)
        bytes_a_step = max(1.0, self._bytes_a_step[key] * len(x))
        fastest = max(_MIN_STEPS, math.ceil(_SAMPLES_A_CHUNK / len(x)), int(_CACHE / bytes_a_step))
        very_small = min(_MAX_STEPS_OF_VERY_SMALL, int(_VERY_SMALL / bytes_a_step))
        fastest, affordable = max(min(fastest, _MAX_STEPS), very_small), self.memory / (_WORKSPACE * bytes_a_step)
        return max(1, min(fastest, int(affordable)))

    @torch.no_grad()
    def _probe(self, x: Tensor, frames: bool = False) -> float:
        """Run one step to find the nodes that draw random numbers; return the bytes that it takes for one sample."""
        shown = frozenset(n for n in self.graph.graph.nodes if frames and n.op == "placeholder")
        plan = Plan(self.graph, self.events, [self.output()], shown)
        with evaluating([m for m in self.graph.modules() if m is not self.graph]), as_before(x.device):
            size, self._random = plan.probe(x, _carry({}))
        return size


class Train(Protocol):
    """Values ``[T, N, ...]`` of a node that are known."""

    def read(self, start: int, stop: int) -> Tensor:
        """Return those of steps ``start <= t < stop``, ``[T', N, ...]``."""


class _Shown:
    """Frames as a known train."""

    def __init__(self, frames: Tensor) -> None:
        self.frames = frames

    def read(self, start: int, stop: int) -> Tensor:
        return self.frames[start:stop]


class _Prepared:
    """Function that computes a layer for spikes, with a copy of the weights that were packed for it.

    The content is compared, because neither address nor version of a tensor shows every change: a write to
    ``weight.data`` leaves the version, and a new tensor may get the address of the old one.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self._settings = layer, _settings(layer)
        self.run: Callable[[Tensor], Tensor] = self._settings[0].prepare(layer)
        self._packed = [] if self.run is layer else [p.detach().clone() for p in _weights(layer)]

    def is_current(self) -> bool:
        """Return True if the layer is still as it was prepared; a layer that is not packed notices its own weights."""
        return self._settings == _settings(self.layer) and all(map(torch.equal, self._packed, _weights(self.layer)))


def _weights(layer: nn.Module) -> list[Tensor]:
    return [p for p in (layer.weight, layer.bias) if isinstance(p, Tensor)]


def _settings(layer: nn.Module) -> tuple[Any, ...]:
    """Return all that the packed form of a layer depends on, except the values of its weights; first the packer."""
    execution = select("spike_convolution", layer.weight.device, layer.weight.dtype)  # type: ignore[arg-type]
    kinds = [(p.shape, p.dtype, p.device) for p in _weights(layer)]
    return execution, layer.extra_repr(), bool(layer._forward_hooks or layer._forward_pre_hooks), kinds


def _carry(states: dict[fx.Node, tuple[Any, ...]]) -> Call:
    """Return a function that calls a neuron with the given states."""

    def call(node: fx.Node, module: Any, x_seq: Tensor) -> Tensor:
        spikes, states[node] = advance(module, x_seq, states.get(node))
        return spikes

    return call
