"""Synapses of a spiking net: the number that each spike meets, and the multiply-accumulates of the analog net."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from .._errors import bad_value
from ..simulation.graph import (
    Events,
    Recorder,
    compute,
    events_of,
    is_delay,
    is_filter,
    is_gate,
    is_max_pool,
    is_spiking,
)
from ..simulation.layers import Rule, before_moves, module_of, rule_of, rule_of_node
from .connections import Connections, connections, is_linear

__all__ = ["Synapses", "count_synapses"]

# Largest layer whose neurons are followed one by one.
_ONE_BY_ONE = 4096


@dataclass
class Synapses:
    """Synapses and multiply-accumulates of one sample.

    Attributes
    ----------
    fan_out : dict of str to Tensor
        For each layer that emits spikes, shaped as one sample of them: the number of weights that a spike of each
        neuron meets. Padding and stride are respected: a neuron at the border has fewer synapses. Average pooling,
        interpolation, dropout and reshaping belong to the synapse behind them; a shortcut that reaches a neuron
        directly is one.
    fed_macs : dict of str to int
        Multiply-accumulates of the weighted layers that each of them feeds.
    macs : int
        Multiply-accumulates of one pass of the analog net: all weighted layers, border included.
    input_macs : int
        Those of the layers that the image reaches as an analog current. It is constant, so they are spent once.
    step_macs : int
        Those of the layers behind other layers with weights, without neurons between. What reaches them is a weighted
        sum of spikes, another one at every step, so they are spent at every step.
    """

    fan_out: dict[str, Tensor] = field(default_factory=dict)
    fed_macs: dict[str, int] = field(default_factory=dict)
    macs: int = 0
    input_macs: int = 0
    step_macs: int = 0


@torch.no_grad()
def count_synapses(graph: fx.GraphModule, x: Tensor, events: Events | None = None) -> Synapses:
    """Count the synapses of a spiking net.

    Parameters
    ----------
    graph : fx.GraphModule
        A net in step mode "s"; its neurons are reset before and after.
    x : Tensor
        Input of one step, ``[N, ...]``.
    events : Events, optional
        The layers that emit spikes, if they are known already, as in :class:`Simulation`.

    Returns
    -------
    Synapses

    Raises
    ------
    ValueError
        Names the operation that spikes meet and whose synapses are not known.

    Notes
    -----
    A synaptic operation is one addition of a weight to a membrane potential, caused by one spike. Operations between a
    spike and the weights are merged into the weights, by their factors that are not 0: an interpolated spike meets the
    weights of all pixels of which it is a part. A pixel is met once, also if a spike reaches it in several ways.

    A layer whose input is a weighted sum of spikes, as behind a linear bottleneck, adds up no weights: it multiplies,
    at every step, and its operations are ``step_macs``. The layer before it has synapses as any other.
    """
    with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False):
        return _Count(graph, x[:1].clone(), events_of(graph) if events is None else events).synapses()


class _Count:
    """Backward pass through a graph that accumulates the synapses which an event at each node meets."""

    def __init__(self, graph: fx.GraphModule, x: Tensor, events: Events) -> None:
        self.graph, self.values = graph, Recorder(graph).record(x)
        self.arriving, self.names, self.kinds, self.sources = (
            events.arriving,
            events.names,
            events.kinds,
            events.sources,
        )
        self.moving: set[fx.Node] = set()  # depends on spikes, through weights or not
        self.mixed: set[fx.Node] = set()  # holds sums of spikes times weights
        for node in graph.graph.nodes:
            module, before = module_of(graph, node), node.all_input_nodes
            if node in self.sources or any(n in self.moving for n in before):
                self.moving.add(node)
            ends = node in self.sources or is_gate(module)  # a train of spikes begins, or a factor of one
            if not ends and (any(n in self.mixed for n in before) or node in self.moving and _mixes(module)):
                self.mixed.add(node)
        self.met: dict[fx.Node, Tensor] = {}  # synapses that an event at a node meets at the next step
        self.triggered: dict[fx.Node, Tensor] = {}  # the same, and those behind operations without weights
        self.edges: dict[fx.Node, dict[fx.Node, Connections]] = {}
        self._modules: dict[str, nn.Module] = {}

    def synapses(self) -> Synapses:
        found = Synapses()
        for node in reversed(self.graph.graph.nodes):
            module: Any = module_of(self.graph, node)
            rule = rule_of(module)
            if rule.weighted:
                self._count_macs(found, node, module, rule)
            elif node in self.moving and _has_weights(module) and not is_gate(module):
                self._refuse_weights(node, module)
            if node in self.sources:
                found.fan_out[self.sources[node]] = self._triggered(node)[0]
            if not any(self.arriving[n] for n in node.all_input_nodes) or node.op == "output" or is_max_pool(module):
                continue  # the spikes that a max pooling lets pass are counted behind it
            source = node.all_input_nodes[0]
            if rule.weighted:
                if source in self.mixed:
                    continue  # it multiplies
                self._meet(source, _transpose(_ones(rule, module), self.values[source], self.values[node]))
            elif is_spiking(module) or is_filter(module):
                self._meet(source, torch.ones_like(self.values[source], dtype=torch.float64))
            elif node in self.triggered and bool((self.triggered[node] != 0).any()):
                self.edges[node] = self._connections(node)
                for arriving, edge in self.edges[node].items():
                    self._add(arriving, edge.back(self.triggered[node]))
        for node, name in self.sources.items():
            if self._is_reached_twice(name):
                found.fan_out[name] = self._one_by_one(node, name)[0]
        if found.step_macs and getattr(self.graph, "schedule", "streaming") != "streaming":
            # a layer works in the steps of its own phase only
            bad_value("snn", "layers with weights behind each other in a phased net", "neurons between them")
        return found

    def _count_macs(self, found: Synapses, node: fx.Node, layer: nn.Module, rule: Rule) -> None:
        before = node.all_input_nodes[0]
        macs = rule.macs(layer, self.values[before], self.values[node])
        found.macs += macs
        if before in self.mixed:
            found.step_macs += macs
        elif not self.arriving[before]:
            found.input_macs += macs
        else:
            for source in self.arriving[before]:
                found.fed_macs[source] = found.fed_macs.get(source, 0) + macs

    def _meet(self, node: fx.Node, synapses: Tensor) -> None:
        self.met[node] = self.met.get(node, 0) + synapses
        self._add(node, synapses)

    def _add(self, node: fx.Node, synapses: Tensor) -> None:
        self.triggered[node] = self._triggered(node) + synapses

    def _triggered(self, node: fx.Node) -> Tensor:
        nothing = torch.zeros_like(self.values[node], dtype=torch.float64)
        return self.triggered.get(node, nothing)

    # -- operations without weights ----------------------------------------------------------------------------------

    def _connections(self, node: fx.Node) -> dict[fx.Node, Connections]:
        """Return the connections of an operation for each of its inputs; refuse one that is not linear in spikes."""
        if is_delay(module_of(self.graph, node)):
            x = torch.ones_like(self.values[node], dtype=torch.float64)
            return {node.args[0]: Connections(lambda g: g, x, x)}  # type: ignore[dict-item]
        inputs = list(dict.fromkeys(self._inputs(node)))
        separable = len(inputs) == 1 and rule_of_node(self.graph, node).separable
        silent = {n: torch.zeros_like(self.values[n], dtype=torch.float64) for n in inputs}
        generator = torch.Generator().manual_seed(0)
        signed = any(self.kinds[name] == "input" for name in self.arriving[node])  # events of an encoder have a sign

        def draw(source: fx.Node) -> Tensor:
            x = torch.rand(silent[source].shape, generator=generator, dtype=torch.float64, device="cpu")
            return x.to(silent[source].device) - (0.5 if signed else -0.125)

        def run(given: dict[fx.Node, Tensor]) -> Tensor:
            result: Tensor = self._run(node, {n: x.clone() for n, x in given.items()})  # it may write to its inputs
            return result

        def alone(source: fx.Node) -> Callable[[Tensor], Tensor]:
            def call(x: Tensor) -> Tensor:
                return run(silent | {source: x}) - run(silent | {source: torch.zeros_like(x)})

            return call

        try:
            together = {n: draw(n) for n in inputs}
            parts = torch.stack([alone(n)(x) for n, x in together.items()]).sum(0)
            additive = torch.allclose(run(together) - run(silent), parts, rtol=1e-9, atol=1e-9)
            found: dict[fx.Node, Connections] = {}
            for source in (n for n in inputs if self.arriving[n]):
                call = alone(source)
                linear = additive and is_linear(call, partial(draw, source))
                edge = connections(call, draw(source).abs() + 0.125, separable) if linear else None
                if edge is None:
                    self._refuse(node)
                found[source] = edge
            return found
        except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
            self._refuse(node, f" ({error})")

    def _refuse_weights(self, node: fx.Node, module: Any) -> NoReturn:
        want = "its type to have an entry in snn_ext.simulation.RULES"
        bad_value("snn", f"{node.target} with weights, a {type(module).__name__}", want)

    def _refuse(self, node: fx.Node, reason: str = "") -> NoReturn:
        bad_value(
            "snn", f"{node.op} {self.names.get(node, node.target)} on spikes{reason}",
            "pooling, interpolation, adding, concatenating, reshaping, scaling or a layer with weights, whose synapses "
            "can be counted",
        )  # fmt: skip

    def _inputs(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the tensors that change with spikes and enter an operation; for a part of a result of several tensors,
        the inputs of that operation."""
        for source in node.all_input_nodes:
            value = self.values[source]
            if isinstance(value, Tensor):
                if source in self.moving and value.is_floating_point() and not self._is_gate(source):
                    yield source
            elif source in self.moving and _holds_tensors(value):
                yield from self._inputs(source)

    def _is_gate(self, node: fx.Node) -> bool:
        return is_gate(module_of(self.graph, before_moves(self.graph, node)))  # a factor of spikes, and none itself

    def _run(self, node: fx.Node, env: dict[fx.Node, Tensor]) -> Any:
        """Run one operation in float64, and those before it that are not in ``env``; other spikes are 0.

        Values that do not depend on spikes differ from sample to sample: arbitrary numbers other than 0 replace them.
        """

        def value(source: fx.Node) -> Any:
            if source in env:
                return env[source]
            known = self.values[source]
            if source.op == "get_attr":
                return tree_map(_double, known)
            if source not in self.moving or self._is_gate(source):
                return tree_map(_any_number, known)
            if not _holds_tensors(known):
                return known  # a size
            if source in self.sources or not self.arriving[source]:
                return tree_map(lambda v: 0 * _double(v), known)
            env[source] = self._run(source, env)
            return env[source]

        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            if is_delay(module_of(self.graph, node)):
                return args[0]
            target = str(node.target)
            if target not in self._modules:
                self._modules[target] = copy.deepcopy(self.graph.get_submodule(target)).double().eval()
            return self._modules[target](*args, **kwargs)
        return compute(node, args, kwargs)

    # -- a spike that reaches a weight in several ways ---------------------------------------------------------------

    def _is_reached_twice(self, name: str) -> bool:
        """Return True if a spike of a layer may reach a value in several ways: spread first, gathered later."""
        spread = {node: False for node, other in self.sources.items() if other == name}
        for node in self.graph.graph.nodes:
            edges = {n: edge for n, edge in self.edges.get(node, {}).items() if n in spread}
            if not edges:
                continue
            several = len(edges) > 1 or any(spread[n] for n in edges)
            if several and int(torch.stack([edge.into for edge in edges.values()]).sum(0).max()) > 1:
                return True
            spread[node] = several or any(int(edge.out.max()) > 1 for edge in edges.values())
        return False

    def _one_by_one(self, source: fx.Node, name: str) -> Tensor:
        """Follow the spike of each neuron of a layer, and add up the synapses that it meets."""
        silent = torch.zeros_like(self.values[source], dtype=torch.float64)
        if silent.numel() > _ONE_BY_ONE:
            want = f"one way to each weight, or at most {_ONE_BY_ONE} neurons"
            bad_value("snn", f"spikes of {name} that reach a weight in several ways", want)
        ends = {node: met for node, met in self.met.items() if name in self.arriving[node]}

        def follow(x: Tensor) -> dict[fx.Node, Tensor]:
            env = {source: x}
            return {node: env[node] if node in env else self._run(node, env) for node in ends}

        rest, fan_out = follow(silent.clone()), silent.clone()
        for index in range(silent.numel()):
            x = silent.clone()
            x.view(-1)[index] = 1.0
            reached = follow(x)
            fan_out.view(-1)[index] = sum(
                float(met[(reached[node] - rest[node]).abs() > 1e-9].sum()) for node, met in ends.items()
            )
        return fan_out


def _mixes(module: nn.Module | None) -> bool:
    return rule_of(module).weighted or is_filter(module)


def _has_weights(module: nn.Module | None) -> bool:
    """Return True for a layer that mixes values by parameters; a factor per channel mixes none."""
    if is_spiking(module):  # recurrent ones, in layers of its own
        return module is not None and any(True for child in module.children() for _ in child.parameters())
    return module is not None and any(p.ndim > 1 for p in module.parameters())


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensors, value)))


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _any_number(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    generator = torch.Generator().manual_seed(1)
    return torch.rand(value.shape, generator=generator, dtype=torch.float64, device="cpu").to(value.device) + 1.0


def _ones(rule: Rule, layer: Any) -> Callable[[Tensor], Tensor]:
    """Return a weighted layer with every weight 1 and no bias."""
    assert rule.apply is not None
    apply, weight = rule.apply, torch.ones_like(layer.weight, dtype=torch.float64)
    return lambda x: apply(layer, x, weight)


def _transpose(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Apply the transpose of a linear function to ones of the shape of ``y``, taken at the shape of ``x``."""
    with torch.enable_grad():
        x = torch.zeros_like(x, dtype=torch.float64).requires_grad_()
        result: Tensor = torch.autograd.grad(function(x), x, torch.ones_like(y, dtype=torch.float64))[0]
    return result
