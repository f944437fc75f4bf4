"""Moving maximum poolings to one side of the activations, with which they commute."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ..simulation.layers import module_of, rule_of_node
from .activations import Activation
from .gates import is_factor
from .graph_tools import calls, free_name, insert_behind, kind_of, of_inputs, refuse, shape_of
from .modules import Scale

__all__ = ["pool_before_activations", "pool_behind_activations"]

Activations = dict[str, Activation]


def pool_behind_activations(graph: fx.GraphModule, activations: Activations) -> None:
    """Put maximum poolings behind activations, for spikes can be pooled and currents cannot.

    Raises
    ------
    ValueError
        If values are pooled that are weighted sums of spikes.
    """
    _pool_before_factors(graph)
    moved = True
    while moved:
        moved = False
        for node in list(graph.graph.nodes):
            pool = node.args[0] if calls(node, activations) else None
            if isinstance(pool, fx.Node) and len(pool.users) == 1 and _is_max_pool(graph, pool):
                source = pool.args[0]
                node.replace_all_uses_with(pool)
                pool.args, node.args, node.meta = (node,), (source,), dict(source.meta)  # type: ignore[union-attr]
                node.append(pool)
                moved = True
    spikes, analog = set[fx.Node](), of_inputs(graph, activations)
    for node in graph.graph.nodes:
        if _is_max_pool(graph, node) and not {*analog, *spikes}.issuperset(node.all_input_nodes):
            kind = kind_of(graph.get_submodule(str(node.target)))
            refuse(f"{kind} {node.target} of values that no activation made", "it behind an activation", node)
        passed = spikes.issuperset(node.all_input_nodes) and node.op != "placeholder"
        if calls(node, activations) or (passed and not rule_of_node(graph, node).weighted):
            spikes.add(node)


def _pool_before_factors(graph: fx.GraphModule) -> None:
    """Put maximum poolings before factors that are not negative: of a batch norm behind a ReLU, and a gate's."""
    for pool in list(graph.graph.nodes):
        while _is_max_pool(graph, pool) and (_pooled_before_scale(graph, pool) or _pooled_before_gate(graph, pool)):
            pass
    graph.graph.eliminate_dead_code()


def _pooled_before_scale(graph: fx.GraphModule, pool: fx.Node) -> bool:
    source: Any = pool.args[0]
    scale = module_of(graph, source)
    if not isinstance(scale, Scale) or bool((scale.weight < 0).any()):
        return False
    insert_behind(graph, pool, free_name(graph, f"{source.target}_pooled"), Scale(scale.weight, scale.bias))
    pool.replace_input_with(source, source.args[0])
    return True


def _pooled_before_gate(graph: fx.GraphModule, pool: fx.Node) -> bool:
    """Move a pooling before the product with a gate that is the same everywhere in space."""
    product: Any = pool.args[0]
    if product.target is not operator.mul or not is_factor(graph, product.args[1]):
        return False
    value, gate = product.args
    shape = shape_of(gate)
    if len(shape) != len(shape_of(value)) or any(size != 1 for size in shape[2:]):
        return False
    users = list(pool.users)
    with graph.graph.inserting_after(pool):
        behind = graph.graph.call_function(operator.mul, (pool, gate))
    behind.meta = dict(pool.meta)
    for user in users:
        user.replace_input_with(pool, behind)
    pool.replace_input_with(product, value)
    return True


def pool_before_activations(graph: fx.GraphModule, activations: Activations) -> None:
    """Put maximum poolings before activations, where adaptive neurons take them in.

    An activation that is used without the pooling too gets a copy behind it.

    Raises
    ------
    ValueError
        If a pooling has no activation beside it.
    """
    _pool_before_factors(graph)
    moved = True
    while moved:
        moved = False
        for pool in list(graph.graph.nodes):
            if not _is_max_pool(graph, pool) or not calls(pool.args[0], activations):
                continue
            before = pool.args[0]
            name, alone = str(before.target), len(before.users) == 1
            if not alone:
                name = free_name(graph, f"{name}_pooled")
                activations[name] = activations[str(before.target)]
                graph.add_submodule(name, activations[name].module())
            with graph.graph.inserting_after(pool):
                behind = graph.graph.call_module(name)
            behind.meta = dict(pool.meta)
            pool.replace_all_uses_with(behind)
            behind.args, pool.args = (pool,), (before.args[0],)
            if alone:
                graph.graph.erase_node(before)
            moved = True
    for node in graph.graph.nodes:
        if _is_max_pool(graph, node) and not all(_is_activated(graph, user, activations) for user in node.users):
            kind = kind_of(graph.get_submodule(str(node.target)))
            refuse(f"{kind} {node.target} without an activation beside it", "one before or behind it")


def _is_activated(graph: fx.GraphModule, node: fx.Node, activations: Activations) -> bool:
    """Return True for an activation, and for a pooling that feeds nothing but activations."""
    if calls(node, activations):
        return True
    pools = node.op == "call_module" and rule_of_node(graph, node).pooling is not None
    return pools and all(_is_activated(graph, user, activations) for user in node.users)


def _is_max_pool(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and rule_of_node(graph, node).commutes_with_relu
