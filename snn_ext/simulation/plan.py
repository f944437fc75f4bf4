"""The order in which the nodes of a net are computed, for a chunk of time steps at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._draws import Draws
from ..neurons import AdaptiveSpikingNeuron, IntegrateAndFireNeuron
from ..ops.layout import dense
from .graph import Events, changes, compute, is_stateful
from .layers import rule_of

__all__ = ["Call", "Observer", "Plan", "ancestors"]

Observer = Callable[[str, nn.Module, Tensor], None]
"""``observe(name, module, spikes)``: the 0/1 spikes ``[T', N, ...]`` of one layer in the next T' steps."""
Call = Callable[[fx.Node, nn.Module, Tensor], Tensor]
"""``call(node, module, x_seq)`` returns the output of a layer of neurons for its input ``[T', N, ...]``."""


@dataclass
class Plan:
    """The part of a graph that some values depend on, in order, with everything that is constant in time set apart.

    Parameters
    ----------
    graph : fx.GraphModule
        The net.
    events : Events
        Its layers that emit spikes.
    targets : sequence of fx.Node
        Nodes whose values are wanted.
    known : set of fx.Node
        Nodes whose values will be given.
    prepare : callable, optional
        Returns for a layer with weights behind spikes a function that computes it; by default the layer itself.
    random : set of fx.Node
        Nodes that draw random numbers, others at every step.
    """

    graph: fx.GraphModule
    events: Events
    targets: Sequence[Any]
    known: frozenset[fx.Node] = frozenset()
    prepare: Callable[[nn.Module], Callable[[Tensor], Tensor]] | None = None
    random: frozenset[fx.Node] = frozenset()
    order: list[fx.Node] = field(init=False)  # varying in time, in the order of the forward pass
    steady: list[fx.Node] = field(init=False)  # constant in time
    _drawn: set[fx.Node] | None = field(init=False, default=None)  # by a probe
    _sequences: dict[tuple[fx.Node, int], Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        found = ancestors(self.targets, self.known)
        needed = [node for node in self.graph.graph.nodes if node in found]
        called = {str(node.target) for node in needed if node.op == "call_module"}
        self.modules = {name: self.graph.get_submodule(name) for name in called}
        self.given = [node for node in needed if node in self.known]
        varying: set[fx.Node] = set()
        for node in needed:
            own = node in self.known or node in self.random or changes(self._module(node))
            if own or any(n in varying for n in node.all_input_nodes):
                varying.add(node)
        self.steady = [n for n in needed if n not in varying]
        self._of_samples: set[fx.Node] = set()  # the others, as parameters, are the same for all samples
        for node in needed:
            if node.op == "placeholder" or not self._of_samples.isdisjoint(node.all_input_nodes):
                self._of_samples.add(node)
        self.order = [
            n for n in needed if n in varying and n not in self.known and n.op not in ("placeholder", "output")
        ]
        self._sources = self.events.sources
        self._layers: dict[fx.Node, Callable[[Tensor], Tensor]] = {}
        if self.prepare is not None:
            for node in self.order:
                module = self._module(node)
                if module is not None and rule_of(module).weighted and self.events.arriving[node.all_input_nodes[0]]:
                    self._layers[node] = self.prepare(module)
                elif _tiles(module):
                    self._layers[node] = partial(_max_of_tiles, module)
        wanted = set(self.targets)
        self._last_use: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(self.order):
            done = [n for n in node.all_input_nodes if n in varying and n not in seen and n not in wanted]
            self._last_use[node] = done
            seen.update(done)

    def constants(self, x: Tensor) -> dict[fx.Node, Any]:
        """Compute all that does not depend on time: everything before the first neuron or random number."""
        env: dict[fx.Node, Any] = {}
        self._sequences.clear()
        for node in self.steady:
            env[node] = _input(x) if node.op == "placeholder" else self._call(node, env)
        return env

    def chunk(
        self,
        constants: dict[fx.Node, Any],
        known: dict[fx.Node, Tensor],
        steps: int,
        samples: int,
        call: Call,
        observe: Observer | None = None,
        visit: Callable[[dict[fx.Node, Any]], None] | None = None,
    ) -> dict[fx.Node, Tensor]:
        """Compute the next steps; ``known`` is flattened to ``[T' N, ...]``, the result is ``[T', N, ...]``."""
        env: dict[fx.Node, Any] = {n: _input(x) if n.op == "placeholder" else x for n, x in known.items()}

        for node in self.order:
            module = self._module(node)
            if module is not None and is_stateful(module):
                source: Any = node.args[0]
                x_seq = (
                    env[source].unflatten(0, (steps, samples))
                    if source in env
                    else self._repeated(constants, source, steps)
                )
                env[node] = call(node, module, x_seq).flatten(0, 1)
            else:
                env[node] = self._call(node, {n: self._value(n, env, constants, steps) for n in node.all_input_nodes})
            if observe is not None and module is not None and node in self._sources:
                observe(self._sources[node], module, _binary(module, env[node].unflatten(0, (steps, samples))))
            if visit is not None:
                visit(env)
            for done in self._last_use[node]:
                env.pop(done, None)
        return {
            n: env[n].unflatten(0, (steps, samples)) if n in env else constants[n].expand(steps, *constants[n].shape)
            for n in self.targets
        }

    # No closures, which would keep the values of a chunk alive until the garbage collector comes.
    def _value(self, node: fx.Node, env: dict[fx.Node, Any], constants: dict[fx.Node, Any], steps: int) -> Any:
        if node in env:
            return env[node]
        constant = constants[node]
        if not isinstance(constant, Tensor):
            return self._size(node, constants, steps)
        return _spread(constant, steps) if node in self._of_samples else constant.clone()

    def _size(self, node: fx.Node, constants: dict[fx.Node, Any], steps: int) -> Any:
        """Return what depends on the size of the batch, which is that of all steps."""
        constant = constants[node]
        if isinstance(constant, Tensor):
            return _shape_of(constant, steps)
        return self._call(node, {n: self._size(n, constants, steps) for n in node.all_input_nodes})

    def probe(self, x: Tensor, call: Call) -> tuple[float, frozenset[fx.Node]]:
        """Run one step of one sample; return the bytes alive at once, and the nodes that draw random numbers."""
        peak, self._drawn = 0, set()

        def measure(env: dict[fx.Node, Any]) -> None:
            nonlocal peak
            peak = max(peak, sum(v.numel() * v.element_size() for v in env.values() if isinstance(v, Tensor)))

        self.chunk(self.constants(x[:1]), dict.fromkeys(self.given, x[:1]), 1, 1, call, visit=measure)
        drawn, self._drawn = self._drawn, None
        return float(peak), frozenset(drawn)

    def _repeated(self, constants: dict[fx.Node, Any], node: Any, steps: int) -> Tensor:
        """Return a constant at every step, in its own layout; kept, as each chunk needs it."""
        if (node, steps) not in self._sequences:
            x = constants[node]
            layout = (x.numel(), *dense(x.unsqueeze(0)).stride()[1:])
            x_seq = torch.empty_strided((steps, *x.shape), layout, dtype=x.dtype, device=x.device)
            self._sequences[node, steps] = x_seq.copy_(x)
        return self._sequences[node, steps]

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _call(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        if self._drawn is None or changes(self._module(node)):
            return self._compute(node, env)
        with Draws() as draws:
            value = self._compute(node, env)
        if draws.found:
            self._drawn.add(node)
        return value

    def _compute(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        if node in self._layers:
            return self._layers[node](env[node.all_input_nodes[0]])
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "get_attr":
            value: Any = self.graph
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        return compute(node, args, kwargs)


def ancestors(targets: Sequence[Any], known: frozenset[fx.Node] = frozenset()) -> set[fx.Node]:
    """Return the nodes that some nodes depend on, themselves included; nothing before known ones."""
    needed: set[fx.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            if node not in known:
                stack.extend(node.all_input_nodes)
    return needed


def _input(x: Tensor) -> Tensor:
    """Return a copy of an input, for an operation may write to it, in the layout that is fastest."""
    is_image = x.ndim == 4 and x.device.type == "cpu"
    return x.clone(memory_format=torch.channels_last if is_image else torch.preserve_format)


def _spread(value: Any, steps: int) -> Any:
    """Return a constant as ``[T' N, ...]``, as a copy: an operation may write to it."""
    return value.repeat(steps, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value


def _shape_of(value: Tensor, steps: int) -> Tensor:
    """Return a tensor without content in the shape of a constant as ``[T' N, ...]``."""
    return value.new_empty(1).expand(steps * value.shape[0], *value.shape[1:])


def _tiles(module: Any) -> bool:
    """Return True for a maximum over squares side by side, as it is nearly always."""
    plain = type(module) is nn.MaxPool2d and isinstance(module.kernel_size, int) and not module._forward_hooks
    return (
        plain
        and (module.stride, module.padding, module.dilation) == (module.kernel_size, 0, 1)
        and not (module.ceil_mode or module.return_indices or module._forward_pre_hooks)
    )


def _max_of_tiles(pool: Any, x: Tensor) -> Tensor:
    """Return the maxima of a pooling, which torch finds together with their places, and slowly."""
    size = pool.kernel_size
    if x.ndim != 4 or min(x.shape[2:]) < size:
        result: Tensor = pool(x)
        return result
    rows, columns = (n // size * size for n in x.shape[2:])
    of_rows = reduce(torch.maximum, (x[:, :, i:rows:size] for i in range(size)))
    return reduce(torch.maximum, (of_rows[..., i:columns:size] for i in range(size)))


def _binary(module: nn.Module, spikes: Tensor) -> Tensor:
    """Return spikes as 0 and 1, without value and sign."""
    valued = getattr(module, "scale_output", False) or getattr(module, "spike_height", "fixed") == "adaptive"
    binary = isinstance(module, IntegrateAndFireNeuron | AdaptiveSpikingNeuron) and not valued
    return spikes if binary else (spikes != 0).to(spikes.dtype)
