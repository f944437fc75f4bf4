"""Gates: values between 0 and 1 that multiply others, as those of squeeze-and-excitation."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..simulation.layers import module_of
from .graph_tools import Operation, is_data

__all__ = ["MULTIPLICATIONS", "gate_of", "gates", "is_gate"]

MULTIPLICATIONS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_")
"""Functions and methods that multiply two values."""


def gate_of(operation: Operation) -> nn.Module | None:
    """Return the gate that a call is, if it only multiplies other values, as in squeeze-and-excitation."""
    kinds = type(operation.module).__mro__ if operation.module is not None else (operation.target,)
    kind = next((_GATES[kind] for kind in kinds if kind in _GATES), None)
    return kind() if kind is not None and operation.node.users and all(map(_multiplies, operation.node.users)) else None


def _multiplies(node: fx.Node) -> bool:
    return node.op != "call_module" and node.target in MULTIPLICATIONS and all(map(is_data, node.args))


def is_gate(graph: fx.GraphModule, node: Any) -> bool:
    """Return True for the call of a gate."""
    return isinstance(module_of(graph, node), nn.Sigmoid | nn.Hardsigmoid)


def gates(graph: fx.GraphModule) -> list[str]:
    """Return the names of the gates of a canonical graph."""
    return [str(node.target) for node in graph.graph.nodes if is_gate(graph, node)]


_GATES: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((nn.Sigmoid, torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"), nn.Sigmoid),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), nn.Hardsigmoid),
}
