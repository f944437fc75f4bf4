"""Small tools for graphs of layers: names, edits, and the refusal of what cannot be converted."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import fx, nn

from ..hosts import is_neuron
from ..simulation.layers import module_of

__all__ = [
    "Operation", "Refusal", "assign", "bypass", "calls", "calls_neuron", "free_name", "insert_behind", "is_data",
    "kind_of", "name_of", "of_inputs", "refuse", "shape_of",
]  # fmt: skip


class Refusal(ValueError):
    """What a net contains that cannot be converted, where, and what to train in its place."""

    def __init__(self, got: str, want: str, node: fx.Node | None = None) -> None:
        self.place = _place(node)
        super().__init__(f"ann: got {got}{self.place and f' ({self.place})'}, which cannot be converted, want {want}")
        self.got, self.want, self.node = got, want, node


def refuse(got: str, want: str, node: fx.Node | None = None) -> NoReturn:
    """Raise the :class:`Refusal` that names what a net contains, where, and what it should be replaced by."""
    raise Refusal(got, want, node)


def _place(node: fx.Node | None) -> str:
    """Return the module in which a function is called, and the source line of a call."""
    if node is None:
        return ""
    path, kind = next(reversed(node.meta.get("nn_module_stack", {"": ("", object)}).values()))
    inside = f"in {path}, a {kind.__name__}" if path and node.op != "call_module" else ""
    return "; ".join(filter(None, (inside, node.meta.get("source", ""))))


@dataclass(frozen=True)
class Operation:
    """The call of a module, a function or a tensor method in a graph."""

    graph: fx.GraphModule
    node: fx.Node

    @property
    def module(self) -> Any:
        """The module that is called; ``None`` for a function or a method."""
        return module_of(self.graph, self.node)

    @property
    def target(self) -> Any:
        """The key of the operation in tables: a module, a function, or the name of a method."""
        return self.node.target if self.module is None else self.module

    @property
    def name(self) -> str:
        """Name of the operation in error messages."""
        return name_of(self.node) if self.module is None else f"{kind_of(self.module)} {self.node.target}"

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument of the call, given by position or by name."""
        return self.node.args[index] if len(self.node.args) > index else self.node.kwargs.get(name, default)

    def become(self, module: nn.Module) -> str:
        """Call a module instead, on the first argument; return the name of the module."""
        if self.module is not None:
            name = str(self.node.target)
            assign(self.graph, name, module)
            return name
        name = free_name(self.graph, self.node.name)
        self.graph.add_submodule(name, module)
        source = self.argument(0, "input")
        self.node.op, self.node.target, self.node.args, self.node.kwargs = "call_module", name, (source,), {}
        return name

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function instead, with other arguments."""
        self.node.op, self.node.target, self.node.args, self.node.kwargs = "call_function", function, args, {}

    def constant(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument that no input of the net reaches: a number, or the tensor; refuse any other."""
        value = self.argument(index, name, default)
        if is_data(value):
            self.refuse(f" with an argument {name} that depends on the input", "a parameter, or a number")
        return value.meta["constant"] if isinstance(value, fx.Node) else value

    def refuse(self, got: str, want: str) -> NoReturn:
        """Raise the error that names this operation and its place; ``got`` follows the name."""
        refuse(f"{self.name}{got}", want, self.node)


def calls(node: Any, names: Container[str]) -> bool:
    """Return True for the call of one of some modules, given by name."""
    return isinstance(node, fx.Node) and node.op == "call_module" and str(node.target) in names


def calls_neuron(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return True for the call of a layer of neurons, or of a ReLU."""
    module = module_of(graph, node)
    return module is not None and is_neuron(module)


def of_inputs(graph: fx.GraphModule, activations: Container[str]) -> set[fx.Node]:
    """Return the values that are computed from the inputs without an activation."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "placeholder" or (sources and found.issuperset(sources) and not calls(node, activations)):
            found.add(node)
    return found


def shape_of(node: Any) -> torch.Size:
    """Return the shape of a value, for a batch of two samples."""
    shape: torch.Size = node.meta["shape"]
    return shape


def is_data(value: Any) -> bool:
    """Return True for a value that is computed from the samples, and is no size."""
    return isinstance(value, fx.Node) and "constant" not in value.meta


def kind_of(module: nn.Module) -> str:
    """Return the name of a layer type."""
    return type(module).__name__


def name_of(node: fx.Node) -> str:
    """Return the name of the module, function or method that a node calls."""
    return str(node.target if node.op == "call_module" else getattr(node.target, "__name__", node.target))


def assign(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a place in a net."""
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)


def free_name(graph: fx.GraphModule, name: str) -> str:
    """Return a name that no module of a graph has yet: ``name`` itself, or with a number."""
    taken = dict(graph.named_modules())
    found, k = name, 1
    while found in taken or hasattr(graph, found):
        k += 1
        found = f"{name}_{k}"
    return found


def bypass(node: fx.Node, source: fx.Node | None = None) -> None:
    """Remove an operation that returns one of its inputs, by default the first."""
    node.replace_all_uses_with(node.all_input_nodes[0] if source is None else source)
    node.graph.erase_node(node)


def insert_behind(
    graph: fx.GraphModule, source: fx.Node, name: str, module: nn.Module, users: list[fx.Node] | None = None
) -> fx.Node:
    """Call a new module on a value, for some of the operations that use the value (for all by default)."""
    users = list(source.users) if users is None else users
    graph.add_submodule(name, module)
    with graph.graph.inserting_after(source):
        node = graph.graph.call_module(name, (source,))
    node.meta = dict(source.meta)
    for user in users:
        user.replace_input_with(source, node)
    return node
