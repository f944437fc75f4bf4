"""Nets whose forward pass runs all time steps, as the graph of one step."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, fx, nn

from .._errors import first_line
from ..hosts import host_of, is_container, is_encoder, reset_neurons
from .advance import Potential
from .engine import Simulation
from .graph import (
    as_graph,
    graph_of,
    in_step_mode,
    is_stateful,
    module_of,
    not_training,
    output_of,
    size_dim,
)  # fmt: skip
from .plan import ancestors
from .randomness import Drawing

__all__ = ["Steps", "steps_of"]

# Share of the outputs in which the steps may differ from the net as it is: rounding may move a spike here and there.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Steps:
    """A net of one step, taken from a forward pass that may run all of them.

    Attributes
    ----------
    graph : fx.GraphModule
        The net of one step.
    time_steps : int or None
        Number of steps of the forward pass, where it sets one.
    frames : {"TN", "NT"} or None
        Order in which the forward pass picks frames from its input; ``None`` where it picks none.
    last : bool
        The output of the last step is the answer, instead of all of them or their mean.
    """

    graph: fx.GraphModule
    time_steps: int | None = None
    frames: str | None = None
    last: bool = False
    _whole: fx.GraphModule | None = None  # the forward pass
    _outputs: tuple[fx.Node, ...] = ()  # there: of each step, or of the sequence
    _is_sequence: bool = False
    _is_plain: bool = False  # layers behind each other, which may be such that sequences do not pass them
    _sequential: tuple[nn.Module, ...] = ()  # modules in step mode "m"
    _repeated: tuple[fx.Node, ...] = ()  # what such a sequence shows at every step

    @torch.no_grad()
    def check(self, x_seq: Tensor, name: str) -> None:
        """Compare some steps, ``[T, N, ...]``, with the forward pass as it is; ``ValueError`` where they differ."""
        if self._whole is None:
            return
        if self._is_plain:
            x_seq = x_seq[:, :2]
        want: Tensor | None = None
        try:
            want, random = self._forward(self._whole, x_seq)
            got = torch.cat(list(Simulation(self.graph).run_frames(x_seq)))[-len(want) :]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:  # of shapes
            if self._is_plain and want is None:
                return
            _refuse(name, f"a forward pass whose steps cannot be taken apart ({first_line(error)})")
        if random & self._shared():
            _refuse(name, "a forward pass that draws random numbers once for several steps")
        is_random = random or any(is_encoder(module) and not is_stateful(module) for module in self._whole.modules())
        differs = not is_random and (got - want).abs().sum() > _TOLERANCE * want.abs().sum()
        if got.shape != want.shape or bool(differs):
            _refuse(name, "a forward pass whose steps depend on more than its input and the states of its neurons")

    def _shared(self) -> set[fx.Node]:
        """Return the nodes of the forward pass whose values several steps get."""
        if self._is_sequence:
            return ancestors(self._repeated)
        assert self._whole is not None
        calls = _calls(self._whole)
        known, shared, seen = frozenset(n for nodes in calls.values() for n in nodes), set[fx.Node](), set[fx.Node]()
        for step in zip(*calls.values(), strict=True):
            found = ancestors([n.args[0] for n in step], known)
            shared |= found & seen
            seen |= found
        return shared

    def _forward(self, whole: fx.GraphModule, x_seq: Tensor) -> tuple[Tensor, set[fx.Node]]:
        """Return the outputs ``[T, N, ...]``, or ``[1, N, ...]`` of the last step, and the nodes that draw."""
        takes_sequences = self.frames is not None or self.time_steps is None
        x = x_seq.transpose(0, 1) if self.frames == "NT" else x_seq if takes_sequences else x_seq[0]
        run = Drawing(whole, keep=True)
        reset_neurons(whole)
        try:
            modules = [module for module in whole.modules() if module is not whole]
            with not_training(modules), in_step_mode("m", self._sequential):
                run.run(x)
        finally:
            reset_neurons(whole)
        outputs = [run.env[node] for node in self._outputs]
        return outputs[0] if self._is_sequence else torch.stack(outputs), run.random


def steps_of(net: nn.Module, name: str = "net", frames: int | None = None) -> Steps:
    """Return the net of one step; ``frames`` is the number of those that the forward pass may loop over.

    A forward pass may be that of one step already. Or it runs a loop over the steps, each of which calls every neuron
    once, and returns the outputs of all steps, their sum or mean, or the last of them; of several results the first
    counts. Or its neurons, in step mode "m", get the sequence that it makes of its input.

    Raises
    ------
    ValueError
        If a step is none of these: it depends on other steps through more than the states of the neurons.
    """
    if hasattr(net, "one_step"):
        return Steps(as_graph(net, name))
    graph = graph_of(net, name, frames)
    steps = _taken_apart(graph, name)
    looped = graph.meta.get("frame_dims", set())
    if looped and looped != {{"TN": 0, "NT": 1}.get(str(steps.frames))}:
        _refuse(name, "a loop over a size of the input that is not the number of frames")
    return steps


def _taken_apart(graph: fx.GraphModule, name: str) -> Steps:
    calls = _calls(graph)
    counts = {len(nodes) for nodes in calls.values()}
    if counts <= {1}:
        return _sequence(graph, calls, name) or _single(graph, calls, name)
    if len(counts) > 1:
        return Steps(as_graph(graph, name))  # which names the neuron, if one is called twice
    return _loop(graph, calls, counts.pop(), name)


def _calls(graph: fx.GraphModule) -> dict[nn.Module, list[fx.Node]]:
    """Return the calls of each layer with a state, in order."""
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if module is not None and is_stateful(module):
            calls.setdefault(module, []).append(node)
    return calls


def _single(graph: fx.GraphModule, calls: dict[nn.Module, list[fx.Node]], name: str) -> Steps:
    """One step: only neurons of snnTorch that hand their potential on need another graph."""
    result = output_of(graph)
    if isinstance(result, fx.Node) and not any(_returns_state(module) for module in calls):
        return Steps(as_graph(graph, name))
    while isinstance(result, tuple | list) and result:
        result = result[0]
    return Steps(_Slice(graph, calls, 0, name).graph(result))


# -- a loop over the steps -------------------------------------------------------------------------------------------


def _loop(graph: fx.GraphModule, calls: dict[nn.Module, list[fx.Node]], time_steps: int, name: str) -> Steps:
    step = dict.fromkeys(graph.graph.nodes, 0)  # in which a node is computed, from 1; 0 before the loop
    own = {node: index for nodes in calls.values() for index, node in enumerate(nodes, 1)}
    for node in graph.graph.nodes:
        step[node] = own.get(node, max((step[n] for n in node.all_input_nodes), default=0))
    outputs = _Readout(graph, step, time_steps).outputs(output_of(graph))
    last = len(outputs) == 1
    combined = last and len({own[node] for node in ancestors(outputs, frozenset(own)) & own.keys()}) > 1
    if combined or [step[node] for node in outputs] != ([time_steps] if last else [*range(1, time_steps + 1)]):
        want = "one output for each of them, the stack, sum or mean of these, or the output of the last"
        _refuse(name, f"a loop over the steps that does not return {want}")
    part = _Slice(graph, calls, time_steps - 1, name)
    return Steps(part.graph(outputs[-1]), time_steps, part.frames, last, graph, tuple(outputs))


class _Readout:
    """Finds the outputs of the steps behind what a loop makes of them."""

    def __init__(self, graph: fx.GraphModule, step: dict[fx.Node, int], time_steps: int) -> None:
        self.graph, self.step, self.time_steps = graph, step, time_steps

    def outputs(self, result: Any) -> list[fx.Node]:
        """Return the outputs of all steps, or that of the last."""
        if isinstance(result, tuple | list) and result:
            return self._list(result) or self.outputs(result[0])
        return (self._all(result) or [result]) if isinstance(result, fx.Node) else []

    def _list(self, result: Any) -> list[fx.Node]:
        nodes = [n for n in result if isinstance(n, fx.Node)]
        each = [self.step[n] for n in nodes] == [*range(1, self.time_steps + 1)]
        return nodes if each and len(nodes) == len(result) else []

    def _all(self, node: fx.Node, over: int | None = None) -> list[fx.Node]:
        """Return the outputs whose stack, sum or mean a node is, ``over`` a dimension; none if it is something else."""
        inner, reduced, scaled = node.args[0] if node.args else None, _reduced(node), _scaled(node)
        if isinstance(scaled, fx.Node):
            return self._all(scaled, over)
        if reduced is not None and over is None:
            return self._all(inner, reduced) if isinstance(inner, fx.Node) else []
        if node.target is torch.stack and isinstance(inner, tuple | list):
            return self._list(inner) if over in (None, _dim(node)) else []
        return self._list([*self._terms(node)]) if node.target in _ADDITIONS and over is None else []

    def _terms(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield what a sum adds up from step to step; where it adds nothing of the step before, it is a term itself."""
        before, now = sorted(node.args[:2], key=self._step_of) if node.target in _ADDITIONS else (None, node)
        first = self.step[node] == 1 and self._is_zero(before)
        if not isinstance(now, fx.Node) or not first and not 0 < self._step_of(before) == self.step[node] - 1:
            yield node
            return
        if not first:
            yield from self._terms(before)  # type: ignore[arg-type]
        yield now

    def _step_of(self, value: Any) -> int:
        return self.step[value] if isinstance(value, fx.Node) else 0

    def _is_zero(self, value: Any) -> bool:
        """Return True for zeros, with which a sum begins."""
        if not isinstance(value, fx.Node):
            return bool(value == 0)
        if value.op == "get_attr":
            return not bool(operator.attrgetter(str(value.target))(self.graph).any())
        return value.target in (torch.zeros_like, "new_zeros")


_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def _reduced(node: fx.Node) -> int | None:
    """Return the dimension over which a node takes the sum or mean."""
    dim = _dim(node, None) if node.target in (torch.sum, torch.mean, "sum", "mean") else None
    dim = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
    return dim if isinstance(dim, int) else None


def _scaled(node: fx.Node) -> Any:
    """Return what a node multiplies with a number > 0, or divides by one; ``None`` for another operation."""
    if node.target not in _PRODUCTS + _QUOTIENTS or len(node.args) != 2:
        return None
    first, second = node.args
    if node.target in _PRODUCTS and _is_positive(first):
        return second
    return first if _is_positive(second) else None


_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_QUOTIENTS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")


def _is_positive(value: Any) -> bool:
    """Return True for a number > 0: one in the code, a size of the input, or a product or quotient of such."""
    if not isinstance(value, fx.Node):
        return isinstance(value, int | float) and value > 0
    return size_dim(value) is not None or _is_positive(_scaled(value))


def _dim(node: fx.Node, default: Any = 0) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", default)


# -- a sequence in step mode "m" -------------------------------------------------------------------------------------


def _sequence(graph: fx.GraphModule, calls: dict[nn.Module, list[fx.Node]], name: str) -> Steps | None:
    """Return the net of one step where all steps are computed at once; ``None`` for a net in step mode "s"."""
    sequential = tuple(module for module in graph.modules() if getattr(module, "step_mode", "s") == "m")
    if not sequential and not any(map(is_container, graph.modules())):
        return None
    behind = set[fx.Node]()  # neurons
    for node in graph.graph.nodes:
        if module_of(graph, node) in calls or any(n in behind for n in node.all_input_nodes):
            behind.add(node)
    before = (node for node in graph.graph.nodes if node not in behind)
    repeats = {node: found for node in before if (found := _repeated(node)) is not None}
    result = output_of(graph)
    while isinstance(result, tuple | list) and result:
        result = result[0]
    output = result
    while isinstance(output, fx.Node) and (_reduced(output) == 0 or _scaled(output) is not None):
        output = output.args[0] if _reduced(output) == 0 else _scaled(output)
    if not repeats and output is result:  # its operations may still mean other dimensions of a sequence
        if not sequential or not isinstance(output, fx.Node) or any(_returns_state(module) for module in calls):
            return None
        return Steps(as_graph(graph, name), None, None, False, graph, (output,), True, True, sequential)
    if not isinstance(output, fx.Node) or len({steps for _, steps in repeats.values()}) > 1:
        _refuse(name, "neurons in step mode 'm' behind sequences of several lengths")
    part = _Slice(graph, calls, 0, name, {node: source for node, (source, _) in repeats.items()})
    time_steps = next((steps for _, steps in repeats.values()), None)
    shown = tuple(source for source, _ in repeats.values())
    return Steps(part.graph(output), time_steps, None, False, graph, (output,), True, False, sequential, shown)


def _repeated(node: fx.Node) -> tuple[fx.Node, int] | None:
    """Return what a node shows at every step ``[T, ...]``, and T; ``None`` for any other operation."""
    source: Any = node.args[0] if node.args else None
    if node.target is torch.stack and _dim(node) == 0 and isinstance(source, tuple | list):
        return (source[0], len(source)) if len(set(source)) == 1 and len(source) > 1 else None
    if node.target not in ("repeat", "expand") or not isinstance(source, fx.Node):
        return None
    sizes: Any = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
    others = sizes[1:] if node.target == "repeat" else ()
    if not isinstance(sizes[0], int) or sizes[0] < 2 or any(size != 1 for size in others):
        return None
    if source.target in ("unsqueeze", torch.unsqueeze) and source.args[1:] == (0,):
        source = source.args[0]
    return source, sizes[0]


# -- the part of a graph that is one step ----------------------------------------------------------------------------


class _Slice:
    """Copies one step out of a graph: call number ``index`` of each neuron, without the states that it is handed."""

    def __init__(
        self,
        graph: fx.GraphModule,
        calls: dict[nn.Module, list[fx.Node]],
        index: int,
        name: str,
        same: dict[fx.Node, fx.Node] | None = None,
    ) -> None:
        self.whole, self.index, self.name = graph, index, name
        self.frames: Literal["TN", "NT"] | None = None  # in which the step picks a frame of the input
        self.neurons = {nodes[index]: module for module, nodes in calls.items()}
        self.others = {node for nodes in calls.values() for node in nodes} - self.neurons.keys()
        self.same = {} if same is None else same  # nodes that another one stands for
        self._graph, self._copies = fx.Graph(), dict[fx.Node, fx.Node]()
        self._potentials: dict[str, Potential] = {}

    def graph(self, output: Any) -> fx.GraphModule:
        """Return the graph that computes a node."""
        if not isinstance(output, fx.Node):
            _refuse(self.name, f"a forward pass that returns {output!r}")
        self._output = output
        self._graph.output(self._copy(output))
        used = {str(n.target) for n in self._graph.nodes if n.op in ("call_module", "get_attr")} - {*self._potentials}
        parts = {target: operator.attrgetter(target)(self.whole) for target in used}
        return as_graph(fx.GraphModule(parts | self._potentials, self._graph), self.name)

    def _copy(self, node: fx.Node) -> fx.Node:
        """Copy a node with all that it depends on, in the order of the forward pass."""
        needed, stack = set[fx.Node](), [node]
        while stack:
            if (n := stack.pop()) not in needed:
                needed.add(n)
                stack.extend(self._inputs(n))
        for n in self.whole.graph.nodes:
            if n in needed:
                self._copies[n] = self._new(n)
        return self._copies[node]

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        if node in self.same:
            return [self.same[node]]
        if node in self.others:
            _refuse(self.name, f"{node.target}, whose output of one call is input of another")
        if node in self.neurons:
            if not node.args or not isinstance(node.args[0], fx.Node):
                _refuse(self.name, f"{node.target} without an input as its first argument")
            return [node.args[0]]
        part = self._part(node)
        if part == "potential":
            return self._inputs(node.args[0])  # type: ignore[arg-type]
        if part == "spikes" or self._picks(node):
            return [node.args[0]]  # type: ignore[list-item]
        return node.all_input_nodes

    def _new(self, node: fx.Node) -> fx.Node:
        if node in self.same:
            return self._copies[self.same[node]]
        if node in self.neurons:
            return self._graph.call_module(str(node.target), (self._copies[node.args[0]],))  # type: ignore[index]
        part = self._part(node)
        if part == "spikes":
            return self._copies[node.args[0]]  # type: ignore[index]
        if part == "potential":
            return self._potential(node.args[0])
        order = self._picks(node)
        if order is not None:
            self.frames = order
            return self._copies[node.args[0]]  # type: ignore[index]
        return self._graph.node_copy(node, self._copies.__getitem__)

    def _part(self, node: fx.Node) -> Literal["spikes", "potential"] | None:
        """Return which part of what a neuron of snnTorch returns a node is; refuse states that are not the answer."""
        source: Any = node.args[0] if node.args else None
        if node.target is not operator.getitem or not _returns_state(self.neurons.get(source)):
            return None
        if node.args[1] == 0:
            return "spikes"
        if node is not self._output or node.args[1] not in (-1, len(self.neurons[source]._non_persistent_buffers_set)):
            _refuse(self.name, f"a forward pass that goes on with the state of {source.target}, not its spikes")
        return "potential"

    def _potential(self, call: Any) -> fx.Node:
        name = f"{call.target}_potential".replace(".", "_")
        self._potentials[name] = Potential(self.neurons[call])
        return self._graph.call_module(name, (self._copies[call.args[0]],))

    def _picks(self, node: fx.Node) -> Literal["TN", "NT"] | None:
        """Return in which order a node picks the frame of this step from the input."""
        source: Any = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "placeholder" or not self.others:
            return None
        if node.target in ("select", torch.select) and node.args[1] in (0, 1) and node.args[2] == self.index:
            return "NT" if node.args[1] else "TN"
        if node.target is not operator.getitem:
            return None
        where: Any = node.args[1]
        if where == self.index:
            return "TN"
        whole = slice(None)
        if isinstance(where, tuple) and where[:2] == (whole, self.index) and all(w in (whole, ...) for w in where[2:]):
            return "NT"
        return None


def _returns_state(module: Any) -> bool:
    """Return True for a neuron of snnTorch that returns its potential beside the spikes."""
    if module is None or host_of(module) != "snntorch":
        return False
    return bool(getattr(module, "output", False) or not getattr(module, "init_hidden", True))


def _refuse(name: str, got: str) -> NoReturn:
    want = "a net of one step, or a loop of equal steps whose neurons carry the only states"
    raise ValueError(f"{name}: got {got}, want {want}")  # in full
