"""Gates: values between 0 and 1 that multiply others, as those of squeeze-and-excitation and of split attention."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..simulation.layers import before_moves, module_of, rule_of_node
from .graph_tools import Operation, is_data, shape_of

__all__ = ["MULTIPLICATIONS", "gate_of", "gates", "is_factor", "is_gate"]

MULTIPLICATIONS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_")
"""Functions and methods that multiply two values."""


def gate_of(operation: Operation) -> nn.Module | None:
    """Return the gate that a call is, if it only multiplies other values, perhaps reshaped or expanded."""
    kinds = type(operation.module).__mro__ if operation.module is not None else (operation.target,)
    make = next((_GATES[kind] for kind in kinds if kind in _GATES), None)
    return make(operation) if make is not None and _only_multiplies(operation.graph, operation.node) else None


def _only_multiplies(graph: fx.GraphModule, node: fx.Node) -> bool:
    return bool(node.users) and all(_multiplies(graph, node, user) for user in node.users)


def _multiplies(graph: fx.GraphModule, node: fx.Node, user: fx.Node) -> bool:
    if rule_of_node(graph, user).moves and user.args[0] is node:
        return _only_multiplies(graph, user)
    return user.op != "call_module" and user.target in MULTIPLICATIONS and all(map(is_data, user.args))


def is_gate(graph: fx.GraphModule, node: Any) -> bool:
    """Return True for the call of a gate."""
    return isinstance(module_of(graph, node), nn.Sigmoid | nn.Hardsigmoid | nn.Softmax)


def is_factor(graph: fx.GraphModule, node: Any) -> bool:
    """Return True for a gate, and for one that is reshaped or expanded."""
    return is_gate(graph, before_moves(graph, node))


def gates(graph: fx.GraphModule) -> list[str]:
    """Return the names of the gates of a canonical graph."""
    return [str(node.target) for node in graph.graph.nodes if is_gate(graph, node)]


def _softmax(operation: Operation) -> nn.Module | None:
    """Return the gate of each of several branches, unless it mixes samples."""
    module = operation.module
    dim = operation.argument(1, "dim") if module is None else module.dim
    return None if dim is None or dim % len(shape_of(operation.node)) == 0 else nn.Softmax(dim)


_GATES: dict[Any, Callable[[Operation], nn.Module | None]] = {
    **dict.fromkeys(
        (nn.Sigmoid, torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"), lambda operation: nn.Sigmoid()
    ),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), lambda operation: nn.Hardsigmoid()),
    **dict.fromkeys((nn.Softmax, torch.softmax, F.softmax, "softmax"), _softmax),
}
