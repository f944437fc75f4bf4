"""Turning one operation after the other into a layer that conversion knows, or refusing it by name.

An operation is looked up in three tables: the spellings of activations (:data:`.activations.ACTIVATIONS`), the
:data:`HANDLERS` of this module for calls that need a check or another form, and the table of layer types
(:data:`snn_ext.simulation.RULES`), whose entry is enough for any other layer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..hosts import is_neuron
from ..simulation.layers import RULES, UNKNOWN, known_type, rule_of
from .activations import ACTIVATIONS, Activation
from .graph_tools import Operation, bypass, kind_of, refuse, shape_of

__all__ = ["ARITHMETIC", "canonicalize_operations", "is_size"]

ARITHMETIC = (operator.add, operator.mul, operator.floordiv, operator.sub, operator.truediv, operator.neg)


def canonicalize_operations(graph: fx.GraphModule, activations: dict[str, Activation]) -> None:
    """Turn every operation of a graph into a known layer, and collect the activations by name."""
    for node in list(graph.graph.nodes):
        operation = Operation(graph, node)
        if node.op == "output" and not isinstance(node.args[0], fx.Node):
            refuse(f"an output of {node.args[0]!r}", "a net that returns one tensor")
        if not node.op.startswith("call_") or is_size(node):  # sizes serve reshapes; others are refused at the end
            continue
        activation, handler = _look_up(ACTIVATIONS, operation), _look_up(HANDLERS, operation)
        if activation is not None:
            found = activation(operation)
            activations[operation.become(found.module())] = found
        elif handler is not None:
            handler(operation)
        else:
            _by_rule(operation)


def is_size(node: Any) -> bool:
    """Return True for a node whose value is a size, or arithmetic with sizes, and no tensor."""
    return isinstance(node, fx.Node) and "shape" not in node.meta and node.op in ("call_method", "call_function")


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
    if shape_of(node)[0] != shape_of(node.all_input_nodes[0])[0]:
        operation.refuse(", which mixes samples", "the batch as the first dimension")
    if module is not None:
        operation.become(_plain(module))


def _plain(module: Any) -> Any:
    """Return a layer of a host, or of another subclass, as the layer of the table that it is."""
    if type(module) not in RULES:
        module.__class__ = known_type(module)
        module.__dict__.pop("_step_mode", None)
    return module


def _refuse_unknown(operation: Operation) -> None:
    module, target = operation.module, operation.target
    if module is None:
        hint = "ReLU, ReLU6, clamp, average or maximum pooling, addition, concatenation, flattening or dropout"
        if target in _LAYERS_AS_FUNCTIONS:
            hint = "an nn.Module for the layer, so that scales can be folded into its weights"
        elif target in _PRODUCTS:
            hint = "layers, addition and concatenation; a constant factor belongs into the weights of a layer"
        refuse(f"the call of {operation.name}", hint, operation.node)
    if is_neuron(module):
        operation.refuse(", a spiking neuron already", "a net of analog activations")
    hint = "a ReLU, ReLU6, clamp or QuantizedReLU in its place, and the net trained with it"
    is_last = any(user.op == "output" for user in operation.node.users)
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Sigmoid) and is_last:
        hint = "the net without it: convert what gives the logits, and apply it to the mean of the output"
    elif isinstance(module, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool3d):
        hint = "a MaxPool of fixed size"
    elif "Norm" in kind_of(module):
        hint = "a batch norm, which is an affine function after training"
    operation.refuse("", hint)


_LAYERS_AS_FUNCTIONS = (
    F.conv1d, F.conv2d, F.conv3d, F.linear, F.batch_norm, torch.conv2d, torch.matmul, operator.matmul
)  # fmt: skip
_PRODUCTS = (*ARITHMETIC, "mul", "sub", torch.mul, torch.sub, torch.div)


# -- operations that need a check, or another form ---------------------------------------------------------------------


def _batch_norm(operation: Operation) -> None:
    module = operation.module
    if module.running_mean is None:
        operation.refuse(" without running statistics", "track_running_stats=True")
    mean = module.running_mean
    norm: Any = nn.BatchNorm1d(
        module.num_features, module.eps, affine=module.affine, device=mean.device, dtype=mean.dtype
    )
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norm.__class__ = next((kind for kind in kinds if isinstance(module, kind)), nn.BatchNorm2d)
    norm.load_state_dict(module.state_dict(), strict=False)
    operation.become(norm.eval())


def _max_pool(kind: type[nn.Module]) -> Callable[[Operation], None]:
    def handler(operation: Operation) -> None:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = {name: operation.argument(k, name) for k, name in enumerate(names, 1)}
        operation.become(kind(**{name: value for name, value in given.items() if value is not None}))

    return handler


def _reshape(operation: Operation) -> None:
    """Accept a reshape that flattens all but the batch, or does nothing."""
    node = operation.node
    before, after = shape_of(node.args[0]), shape_of(node)
    if after == before:
        bypass(node)
    elif len(after) == 2 and after[0] == before[0]:
        operation.become(nn.Flatten(1))
    elif node.target not in (torch.squeeze, "squeeze", torch.flatten, "flatten") or after[:2] != before[:2]:
        operation.refuse(f" from {list(before)} to {list(after)}", "flattening of all dimensions but the batch")


def _add(operation: Operation) -> None:
    node = operation.node
    if len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args) or node.kwargs:
        operation.refuse(" of other than two values", "x + y; a constant belongs into a bias")
    node.target, node.op = operator.add, "call_function"  # never in place: a neuron's spikes are used twice


def _concatenate(operation: Operation) -> None:
    if operation.argument(1, "dim", 0) % len(shape_of(operation.node)) == 0:
        operation.refuse(" along the batch", "dim >= 1")


def _mean(operation: Operation) -> None:
    dims, rank = operation.argument(1, "dim"), len(shape_of(operation.node.args[0]))
    dims = (dims,) if isinstance(dims, int) else dims
    if dims is None or any(d % rank < 2 for d in dims):
        operation.refuse(" over the batch or the channels", "a mean over spatial dimensions")


def _index(operation: Operation) -> None:
    index: Any = operation.node.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if index[0] not in (slice(None), Ellipsis) or not all(isinstance(i, slice) or i is Ellipsis for i in index):
        operation.refuse(", an index into the batch or a single element", "slices that keep the batch")


def _pad(operation: Operation) -> None:
    if operation.argument(2, "mode", "constant") != "constant" or operation.argument(3, "value", 0) not in (0, None):
        operation.refuse(" with other values than 0", "zero padding")


HANDLERS: dict[Any, Callable[[Operation], None]] = {
    _BatchNorm: _batch_norm,
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), _max_pool(nn.MaxPool1d)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool(nn.MaxPool2d)),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), _max_pool(nn.MaxPool3d)),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze"), _reshape),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _add),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenate),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    operator.getitem: _index,
    F.pad: _pad,
}
"""From the class of a module, a function, or the name of a tensor method to what is done to a call of it."""
