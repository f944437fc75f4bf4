"""Activations with a slope below zero, as two rectifiers: one for each sign."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .graph_tools import Operation, free_name
from .modules import Scale

__all__ = ["split_signs"]


def split_signs(graph: fx.GraphModule) -> None:
    r"""Write LeakyReLU, PReLU and the absolute value as layers of neurons for each sign.

    .. math:: f(x) = \max(0, x) + a \min(0, x) = \mathrm{relu}(x) - a\, \mathrm{relu}(-x)

    A rate is not negative: the second layer fires for negative values, and its synapses have the factor ``-a``.
    """
    for node in list(graph.graph.nodes):
        operation = Operation(graph, node)
        kinds = type(operation.module).__mro__ if operation.module is not None else (operation.target,)
        slope_of = next((SLOPES[kind] for kind in kinds if kind in SLOPES), None)
        if slope_of is not None:
            _split(operation, torch.as_tensor(slope_of(operation), dtype=torch.float64).detach().reshape(-1))


def _split(operation: Operation, slope: Tensor) -> None:
    graph, node = operation.graph, operation.node
    users, source = list(node.users), operation.argument(0, "input")
    name = operation.become(nn.ReLU())

    def call(kind: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        target = free_name(graph, f"{name}_{kind}")
        graph.add_submodule(target, module)
        return graph.graph.call_module(target, args)

    with graph.graph.inserting_before(node.next):
        negated = call("negated", Scale(-torch.ones(1, dtype=torch.float64)), source)
        negative = call("negative", nn.ReLU(), negated)
        scaled = call("slope", Scale(-slope), negative)
        both = graph.graph.call_function(operator.add, (node, scaled))
    for made in (negated, negative, scaled, both):
        made.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, both)


SLOPES: dict[Any, Callable[[Operation], Any]] = {
    nn.LeakyReLU: lambda operation: operation.module.negative_slope,
    nn.PReLU: lambda operation: operation.module.weight,
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), lambda o: o.argument(1, "negative_slope", 0.01)),
    **dict.fromkeys((F.prelu, torch.prelu, "prelu"), lambda operation: operation.constant(1, "weight")),
    **dict.fromkeys((torch.abs, torch.absolute, operator.abs, "abs", "absolute"), lambda operation: -1.0),
}
"""From the class of a module, a function or the name of a tensor method to the slope below zero, ``[1]`` or ``[C]``."""
