"""Nets of the phased schedule by the counts of their spikes: each layer is computed once, whatever T is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from .engine import Simulation
from .graph import Interpreter, is_delay, is_max_pool, is_spiking, is_stateful, module_of
from .layers import known_type, rule_of, rule_of_node

__all__ = ["PhasedSimulation"]

CountObserver = Callable[[str, int, Tensor], None]
"""``observe(name, start, counts)``: the neurons ``[N, ...]`` of a layer fire in so many steps from ``start`` on."""


class PhasedSimulation:
    r"""Run a phased net under a constant input by integer counts.

    A neuron of a phased net gets all T inputs before it fires. So it fires

    .. math:: n = \min(T, \max(0, \lfloor (\sum_t x_t + V(0)) / \theta \rfloor))

    times, or once for each point of ATIF-nu that the charge reaches, in n steps one after the other, and the layer
    behind it sees the sum of its spikes. Counts and outputs are those of :class:`Simulation`, whose sums are rounded in
    another order.

    Parameters
    ----------
    simulation : Simulation
        Of the net; :meth:`admits` tells if it can be run by counts.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext import convert
    >>> _ = torch.manual_seed(0)
    >>> ann, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(16, 4)
    >>> snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=4)
    >>> simulation = Simulation(snn)
    >>> steps = torch.cat(list(simulation.run(x, snn.latency)))
    >>> torch.allclose(torch.cat(list(PhasedSimulation(simulation).run(x, snn.latency))), steps, atol=1e-6)
    True
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.graph: Any = simulation.graph
        self._names = simulation.events.sources
        self._readout = next(node for node in self.graph.graph.nodes if node.op == "output").args[0]

    @staticmethod
    def admits(simulation: Simulation, time_steps: int) -> bool:
        """Return True for a phased net that runs for its latency, if all its operations are known to be linear."""
        graph: Any = simulation.graph
        if getattr(graph, "schedule", "streaming") != "phased" or time_steps != graph.latency:
            return False
        return all(node.op in ("placeholder", "output") or _is_linear(graph, node) for node in graph.graph.nodes)

    @torch.no_grad()
    def run(self, x: Tensor, time_steps: int, observe: CountObserver | None = None) -> Iterator[Tensor]:
        """Yield the output ``[T', N, ...]`` of chunk after chunk: nothing, and then that of the last T steps."""
        length = self.graph.time_steps
        counts = _Counts(self.graph, length).run_on(x)
        first: dict[fx.Node, int] = {}
        for node in self.graph.graph.nodes:
            module = module_of(self.graph, node)
            before = max((first[n] for n in node.all_input_nodes), default=0)
            first[node] = getattr(module, "first", before + getattr(module, "delay", 0))
            if observe is not None and node in self._names:
                observe(self._names[node], first[node], counts[node])
        gate: Any = module_of(self.graph, self._readout)
        trains: Any = {node: _Train(value, length) for node, value in counts.items() if node is not self._readout}
        source = self._readout.all_input_nodes[0]
        silent = time_steps - length
        if source in trains:
            outputs = iter([trains[source].read(0, length)])
        else:
            outputs = (values[source] for values in self.simulation.stream(x, length, [source], trains))
        for output in outputs:
            if silent:
                yield output.new_zeros(()).expand(silent, *output.shape[1:])
                silent = 0
            yield output * gate.scale


def _is_linear(graph: Any, node: fx.Node) -> bool:
    """Return True if an operation on sums over time can be told from that on single steps."""
    module = module_of(graph, node)
    if is_stateful(module):
        is_phased = is_delay(module) or is_max_pool(module) or hasattr(module, "first")
        return is_phased and not getattr(module, "scale_output", False)
    return rule_of_node(graph, node).passes_unit or _is_affine(module)


def _is_affine(module: Any) -> bool:
    return rule_of(module).weighted or getattr(module, "is_affine", False)


class _Counts(Interpreter):
    """One pass of the net on sums over T steps."""

    def __init__(self, graph: fx.GraphModule, time_steps: int) -> None:
        super().__init__(graph)
        self.time_steps, self.counts = time_steps, dict[fx.Node, Tensor]()

    def run_on(self, x: Tensor) -> dict[fx.Node, Tensor]:
        """Return the count of every neuron, also behind poolings and delays, by the node that emits the spikes."""
        self.run(x)
        return self.counts

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if is_stateful(module_of(self.module, n)):  # type: ignore[arg-type]
            self.counts[n] = value
        return value

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().placeholder(target, args, kwargs) * self.time_steps

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: Any = self.fetch_attr(target)
        if is_max_pool(module):
            return known_type(module).forward(module, args[0])
        if is_spiking(module):
            return module.counts(args[0], self.time_steps)
        if is_delay(module):
            return args[0]
        y = super().call_module(target, args, kwargs)
        bias = getattr(module, "bias", None) if _is_affine(module) else None
        if bias is None or self.time_steps == 1:
            return y
        last = rule_of(module).feature_dim == -1
        return y.add_((self.time_steps - 1) * (bias if last else bias.reshape(-1, *[1] * (y.ndim - 2))))


class _Train:
    """A spike train that follows from counts: spikes come first."""

    def __init__(self, counts: Tensor, time_steps: int) -> None:
        self.counts, self.time_steps = counts, time_steps

    def read(self, start: int, stop: int) -> Tensor:
        """Return the spikes of steps ``start <= t < stop`` of T, ``[T', N, ...]``."""
        steps = torch.arange(start, stop, device=self.counts.device)
        return (self.counts > steps.reshape(-1, *[1] * self.counts.ndim)).to(self.counts.dtype)
