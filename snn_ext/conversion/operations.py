"""Turning one operation after the other into a layer that conversion knows, or refusing it by name.

An operation is looked up in three tables: the spellings of activations (:data:`.activations.ACTIVATIONS`), the
:data:`.handlers.HANDLERS` for calls that need a check or another form, and the table of layer types
(:data:`snn_ext.simulation.RULES`), whose entry is enough for any other layer.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from ..hosts import is_neuron
from ..simulation.layers import RULES, UNKNOWN, known_type, rule_of
from .activations import ACTIVATIONS, Activation
from .gates import gate_of
from .graph_tools import Operation, bypass, calls, is_data, refuse
from .handlers import HANDLERS
from .obstacles import Obstacles, instead_of

__all__ = ["canonicalize_operations", "is_size"]


def canonicalize_operations(graph: fx.GraphModule, activations: dict[str, Activation], obstacles: Obstacles) -> None:
    """Turn every operation of a graph into a known layer, collect the activations by name, and note what is refused."""
    for node in list(graph.graph.nodes):
        if node.op.startswith("call_") and is_data(node) and not is_size(node):
            with obstacles.noted():  # a size serves reshapes; others are refused at the end
                _canonicalize(Operation(graph, node), activations)


def _canonicalize(operation: Operation, activations: dict[str, Activation]) -> None:
    if not operation.node.meta.get("samples_first", True):
        if all(source.meta.get("samples_first", True) for source in operation.node.all_input_nodes):
            operation.refuse(", which mixes samples", "the batch as the first dimension")
        return  # what follows from it
    activation, handler = _look_up(ACTIVATIONS, operation), _look_up(HANDLERS, operation)
    gate = gate_of(operation)
    if activation is not None:
        found, source = activation(operation), operation.argument(0, "input")
        if found == Activation() and calls(source, activations):  # a ReLU of what is rectified already
            return bypass(operation.node, source)
        activations[operation.become(found.module())] = found
    elif gate is not None:
        operation.become(gate)
    elif handler is not None:
        handler(operation)
    else:
        _by_rule(operation)


def is_size(node: Any) -> bool:
    """Return True for a node whose value is the size of the batch, or depends on it, and is no tensor."""
    return isinstance(node, fx.Node) and bool(node.meta.get("size"))


def _look_up(table: dict[Any, Any], operation: Operation) -> Any:
    """Return the entry of an operation, for a module that of the nearest class."""
    kinds = (operation.target,) if operation.module is None else type(operation.module).__mro__
    return next((table[kind] for kind in kinds if kind in table), None)


# -- layers of the table -----------------------------------------------------------------------------------------------


def _by_rule(operation: Operation) -> None:
    """Accept what the table of layer types knows, as the plain layer of its entry."""
    rule, module, node = rule_of(operation.target), operation.module, operation.node
    if rule is UNKNOWN:
        _refuse_unknown(operation)
    if rule.identity:
        return bypass(node)
    if rule.weighted and getattr(module, "padding_mode", "zeros") != "zeros":
        operation.refuse(f" with padding_mode={module.padding_mode!r}", "padding_mode='zeros'")
    if getattr(module, "return_indices", False):
        operation.refuse(" with return_indices=True", "return_indices=False")
    if module is not None:
        operation.become(_plain(module))


def _plain(module: Any) -> Any:
    """Return a layer of a host, or of another subclass, as the layer of the table that it is."""
    if type(module) not in RULES:
        module.__class__ = known_type(module)
        module.__dict__.pop("_step_mode", None)
    return module


def _refuse_unknown(operation: Operation) -> None:
    module, reason = operation.module, operation.node.meta.get("untraced")
    if module is None:
        refuse(f"the call of {operation.name}", instead_of(operation), operation.node)
    if is_neuron(module) and not isinstance(module, nn.ReLU):
        operation.refuse(", a spiking neuron already", "a net of analog activations")
    if reason is not None:
        want = f"{operation.node.meta['traceable']}; for quantised activations QuantizedReLU"
        operation.refuse(f", which cannot be traced ({reason})", want)
    operation.refuse("", instead_of(operation))
