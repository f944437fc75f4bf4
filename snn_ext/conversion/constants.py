"""What a net computes whatever its samples are: sizes, numbers and tensors, which become arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from .graph_tools import bypass

__all__ = ["fold_constants"]


def fold_constants(graph: fx.GraphModule, x: Tensor) -> None:
    """Replace sizes by numbers, remove operations that return their input, and describe all other values.

    The net runs with two samples and with three. A size, a number or a type that is the same in both runs becomes a
    literal argument; the size of the batch stays a node. ``node.meta`` gets

    - ``"shape"`` of a tensor, for two samples, and ``"samples_first"``: whether its first dimension is the batch;
    - ``"constant"``, the value of a tensor that no input reaches, as a parameter or arithmetic with some;
    - ``"size"`` of what is no tensor: whether it holds none either, as the size of the batch.
    """
    two, three = (_Values(graph).values_for(x[:1].repeat(n, *[1] * (x.ndim - 1))) for n in (2, 3))
    varying, passed = set[fx.Node](), dict[fx.Node, fx.Node]()
    for node in list(graph.graph.nodes):
        value, other = two[node], three[node]
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
        if isinstance(value, _Shape):
            node.meta["shape"] = value.shape
            node.meta["samples_first"] = value.shape[:1] == (2,) and other.shape[:1] == (3,)
            if value.source is not None and node.op.startswith("call_") and "untraced" not in node.meta:
                passed[node] = passed.get(value.source, value.source)
                bypass(node, passed[node])
        elif isinstance(value, Tensor):
            if node not in varying:
                node.meta["constant"] = value
        elif node.op.startswith("call_") and _is_literal(value) and type(value) is type(other) and value == other:
            varying.discard(node)
            for user in list(node.users):
                _put(user, node, tuple(value) if isinstance(value, tuple) else value)
        else:
            node.meta["size"] = not _holds(value, _Shape)
    graph.graph.eliminate_dead_code()


class _Shape:
    """Stands for a tensor that is computed from the samples."""

    def __init__(self, value: Tensor, source: fx.Node | None) -> None:
        self.shape, self.source = value.shape, source  # the source is the argument that an operation returned as it was


class _Values(fx.Interpreter):
    """Keeps what every node returns, of tensors that the samples reach only the shape."""

    def values_for(self, x: Tensor) -> dict[fx.Node, Any]:
        self.values: dict[fx.Node, Any] = {}
        self.run(x)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        before = {source: (self.env[source], _version(self.env[source])) for source in n.all_input_nodes}
        value = super().run_node(n)
        if n.op == "placeholder" or any(_holds(self.values[source], _Shape) for source in n.all_input_nodes):
            same = [s for s, (v, version) in before.items() if v is value and _version(v) == version]
            self.values[n] = tree_map_only(Tensor, lambda v: _Shape(v, same[0] if same else None), value)
        else:
            self.values[n] = value
        return value


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
