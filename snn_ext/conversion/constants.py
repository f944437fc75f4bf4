"""What a net computes whatever its samples are: sizes, numbers and tensors, which become arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from .graph_tools import bypass, name_of, refuse
from .values import SIZES, Values, reads_values, repeated

__all__ = ["fold_constants"]


def fold_constants(graph: fx.GraphModule, x: Tensor) -> None:
    """Replace sizes by numbers, remove operations that return their input, and describe all other values.

    The net runs with batches of two sizes. A size, a number or a type that is the same in both runs becomes a literal
    argument; the size of the batch stays a node; a number that is read from values is refused. ``node.meta`` gets

    - ``"shape"`` of a tensor, for two samples, and ``"samples_first"``: whether its first dimension is the batch;
    - ``"constant"``, the value of a tensor that no input reaches, as a parameter or arithmetic with some;
    - ``"size"`` of what is no tensor: whether it holds none either, as the size of the batch.
    """
    two, more = (_described(graph, repeated(x, n)) for n in SIZES)
    varying, passed = set[fx.Node](), dict[fx.Node, fx.Node]()
    for node in list(graph.graph.nodes):
        value, other = two[node], more[node]
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
        if isinstance(value, _Shape) or (isinstance(value, Tensor) and node in varying):
            node.meta["shape"] = value.shape
            node.meta["samples_first"] = (*value.shape[:1], *other.shape[:1]) == SIZES
            source = getattr(value, "source", None)
            if source is not None and node.op.startswith("call_") and "untraced" not in node.meta:
                passed[node] = passed.get(source, source)
                bypass(node, passed[node])
        elif isinstance(value, Tensor):
            node.meta["constant"] = value
        elif value is not None and not _holds(value, _Shape) and _is_read(node, two):
            want = "a forward pass that is the same for all values"
            refuse(f"the call of {name_of(node)}, which reads the values of a tensor", want, node)
        elif node.op.startswith("call_") and _is_literal(value) and type(value) is type(other) and value == other:
            varying.discard(node)
            for user in list(node.users):
                _put(user, node, tuple(value) if isinstance(value, tuple) else value)
            graph.graph.erase_node(node)  # an assertion too, which is never dead code
        else:
            node.meta["size"] = not _holds(value, _Shape)
    graph.graph.eliminate_dead_code()


class _Shape:
    """Stands for a tensor that is computed from the samples."""

    def __init__(self, value: Tensor, source: fx.Node | None) -> None:
        self.shape, self.source = value.shape, source  # the source is the argument that an operation returned as it was


def _described(graph: fx.GraphModule, x: Tensor) -> dict[fx.Node, Any]:
    """Return what every node returns, of tensors that the samples reach only the shape."""
    values, found = Values(graph, x, graph.graph), dict[fx.Node, Any]()
    last = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    for node in graph.graph.nodes:
        sources = node.all_input_nodes
        before = {source: _version(values.env[source]) for source in sources}
        value = values.value(node)
        if node.op == "placeholder" or any(_holds(found[source], _Shape) for source in sources):
            same = next((s for s in sources if values.env[s] is value and _version(value) == before[s]), None)
            found[node] = tree_map_only(Tensor, partial(_Shape, source=same), value)
        else:
            found[node] = value
        for source in sources:
            if last[source] is node:
                values.env[source] = None
    return found


def _is_read(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Return True for a number that comes from the values of the samples."""
    return any(_holds(values[source], _Shape) for source in node.all_input_nodes) and reads_values(node)


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) else 0


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    return value is None or (isinstance(value, fx.node.base_types) and not isinstance(value, Tensor))


def _holds(value: Any, kind: type) -> bool:
    return any(isinstance(leaf, kind) for leaf in tree_leaves(value))


def _put(user: fx.Node, node: fx.Node, value: Any) -> None:
    def literal(argument: Any) -> Any:
        return value if argument is node else argument

    user.args, user.kwargs = fx.node.map_aggregate((user.args, user.kwargs), literal)
