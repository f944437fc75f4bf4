"""Visiting the layers of a spiking net one by one, with the spike trains of the finished layers kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from ..simulation.engine import Simulation
from ..simulation.graph import module_of, spike_value
from ..simulation.spike_train import SpikeTrain
from .graph_tools import calls_neuron
from .modules import Scale

__all__ = ["Layerwise", "waited"]


class Layerwise:
    """Visits the layers of neurons in the order of the forward pass; the cost is linear in depth.

    The spike trains of finished layers are kept, eight spikes to a byte, as long as a layer needs them and ``memory``
    allows; a train that does not fit is recomputed from the trains before it. The current into the visited layer is
    kept as well, if there is room, because searches read it several times.

    Parameters
    ----------
    net : fx.GraphModule
        A spiking net. The neurons of a layer may be changed while the layer is visited, not later.
    batches : sequence of Tensor
        Inputs of the net.
    time_steps : int
        T.
    memory : int
        Bytes for spike trains, and as many for the current into one layer.
    wait : int
        Each layer takes in one input and so many more before its first decision. Trains are those of the T decisions,
        one after the other, and are always kept: what a decision needs comes later than its step.
    """

    def __init__(
        self, net: fx.GraphModule, batches: Sequence[Tensor], time_steps: int, memory: int = 1 << 30, wait: int = 0
    ) -> None:
        self._simulation = Simulation(net, memory=memory)
        self.net, self.batches, self.time_steps, self.memory = self._simulation.graph, batches, time_steps, memory
        self.wait = wait
        self._trains: list[dict[fx.Node, SpikeTrain]] = [{} for _ in batches]
        self._current: dict[int, list[Tensor]] = {}
        self._node: fx.Node | None = None
        self._order = [n for n in self.net.graph.nodes if n.op == "output" or calls_neuron(self.net, n)]
        self._sources = {node: _sources(self.net, node) for node in self._order}

    def layers(self) -> list[fx.Node]:
        """Return the nodes of the graph that are layers of neurons, in the order of the forward pass."""
        return [node for node in self._order if node.op != "output"]

    def output(self) -> fx.Node:
        """Return the node whose value is the output."""
        return self._simulation.output()

    def current(self, node: fx.Node, batch: int) -> Iterator[Tensor]:
        """Yield what a layer takes in before each decision, for one batch, ``[T', N, ...]``, chunk after chunk.

        A scale right before the neurons may change with them: the value before the scale is kept.
        """
        if node is not self._node:
            self._node, self._current = node, {}
        before: Any = node.args[0]
        scale = module_of(self.net, before)
        if not isinstance(scale, Scale):
            yield from waited(self._kept(before, batch), self.wait)
            return
        scaled = (scale(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in self._kept(before.args[0], batch))
        yield from waited(scaled, self.wait)

    def _kept(self, source: fx.Node, batch: int) -> Iterator[Tensor]:
        """Yield a value chunk after chunk, from memory if it was kept; keep it if there is room."""
        if batch in self._current:
            yield from self._current[batch]
            return
        kept: list[Tensor] = []
        room = self.memory - sum(map(_nbytes, chain.from_iterable(self._current.values())))
        for values in self.values([source], batch):
            chunk = values[source]
            room -= _nbytes(chunk)
            kept = [*kept, chunk] if room >= 0 else []
            yield chunk
        if room >= 0:
            self._current[batch] = kept

    def values(self, nodes: Sequence[fx.Node], batch: int) -> Iterator[dict[fx.Node, Tensor]]:
        """Yield values of the graph for one batch, ``[T', N, ...]``, chunk after chunk; they are not kept."""
        return self._simulation.stream(self.batches[batch], self.time_steps, nodes, self._trains[batch])

    def forget(self) -> None:
        """Drop the current that is kept: the weights before the visited layer have changed."""
        self._node = None

    def is_constant(self, node: fx.Node) -> bool:
        """Return True if the current into a layer is the same at every step."""
        return self._simulation.is_constant(node.args[0])

    def finish(self, node: fx.Node) -> Iterator[tuple[int, Tensor]]:
        """Run a layer as its neurons are now, keep its spike trains, and yield each batch's chunks of spikes."""
        for batch in range(len(self.batches)):
            train: SpikeTrain | None = SpikeTrain(spike_value(self.net.get_submodule(str(node.target))))
            for spikes in self._simulation.neuron(node, self.current(node, batch)):
                if train is not None:
                    train.append(spikes)
                    if self._nbytes() + train.nbytes > self.memory and not self.wait:
                        train = None
                yield batch, spikes
            if train is not None:
                self._trains[batch][node] = train
        self._current = {}
        self._release(node)

    def _nbytes(self) -> int:
        return sum(train.nbytes for trains in self._trains for train in trains.values())

    def _release(self, finished: fx.Node) -> None:
        """Drop the trains that feed no later layer."""
        later = self._order[self._order.index(finished) + 1 :]
        for trains in self._trains:
            needed, stack = set[fx.Node](), list(later)
            while stack:
                for source in self._sources[stack.pop()] - needed:
                    needed.add(source)
                    if source not in trains:  # it will be recomputed from its sources
                        stack.append(source)
            for node in [n for n in trains if n not in needed]:
                del trains[node]


def _nbytes(chunk: Tensor) -> int:
    return chunk.untyped_storage().nbytes()


def _sources(net: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """Return the layers of neurons from which a node is reached without passing another one."""
    found, stack = set[fx.Node](), list(node.all_input_nodes)
    while stack:
        source = stack.pop()
        if calls_neuron(net, source):
            found.add(source)
        else:
            stack.extend(source.all_input_nodes)
    return found


def waited(chunks: Iterable[Tensor], wait: int) -> Iterator[Tensor]:
    """Yield for each decision the inputs that are new: the first takes ``wait`` more, the last ones take none."""
    missing, taken = wait, None
    for chunk in chunks:
        early, chunk = chunk[:missing], chunk[missing:]
        missing -= len(early)
        if len(early):
            taken = early.sum(0) if taken is None else taken + early.sum(0)
        if len(chunk):
            yield chunk if taken is None else torch.cat([chunk[:1] + taken, chunk[1:]])
            taken = None
    if wait:
        yield chunk.new_zeros(wait, *chunk.shape[1:])
