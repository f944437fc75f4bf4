"""Operations that need a check, or another form, to be layers that conversion knows."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .gates import MULTIPLICATIONS, is_factor
from .graph_tools import Operation, bypass, free_name, insert_behind, is_data, refuse, shape_of
from .modules import Scale
from .padding import PADDING
from .weights import affine_of, per_channel

__all__ = ["HANDLERS"]

Handler = Callable[[Operation], None]


# -- affine functions --------------------------------------------------------------------------------------------------


def _batch_norm(operation: Operation) -> None:
    if operation.module.running_mean is None:
        operation.refuse(" without running statistics", "track_running_stats=True")
    operation.become(Scale(*affine_of(operation.module)))


def _functional_batch_norm(operation: Operation) -> None:
    if operation.argument(5, "training", False):
        operation.refuse(" with the statistics of the batch", "training=False")
    _with_constants(operation)


def _arithmetic(operation: Operation) -> None:
    """Accept a sum or a difference of two values, and arithmetic of one value with constants."""
    node, first, second = operation.node, operation.argument(0, "input"), operation.argument(1, "other")
    if any(isinstance(v, fx.Node) and v.meta.get("size") for v in (first, second)):
        operation.refuse(" with a number that depends on the size of the batch", "a number")
    if not (is_data(first) and is_data(second)):
        return _with_constants(operation)
    known = (*_ADDITIONS, *_SUBTRACTIONS, *MULTIPLICATIONS)
    if node.kwargs.keys() - {"other"} or len(node.args) > 2 or operation.target not in known:
        operation.refuse(" of two values", "x + y or x - y; a constant factor may be anywhere")
    if operation.target in MULTIPLICATIONS:
        return _gated(operation, first, second)
    if operation.target in _SUBTRACTIONS:
        name = free_name(operation.graph, f"{node.name}_negative")
        second = insert_behind(operation.graph, second, name, Scale(-torch.ones(1, dtype=torch.float64)), [node])
    operation.call(operator.add, first, second)  # never in place: a neuron's spikes are used twice


def _gated(operation: Operation, first: fx.Node, second: fx.Node) -> None:
    """Accept the product of a value and a gate."""
    if is_factor(operation.graph, first):
        first, second = second, first
    if not is_factor(operation.graph, second) or is_factor(operation.graph, first):
        operation.refuse(" of two values", "a product with a constant, or with a gate: a sigmoid or a softmax")
    operation.call(operator.mul, first, second)


def _with_constants(operation: Operation) -> None:
    """Turn a call that is an affine function of its one value into a :class:`Scale`: from its results for 0 and 1."""
    node = operation.node
    (value,) = (n for n in node.all_input_nodes if is_data(n))
    zeros = torch.zeros(shape_of(value), dtype=torch.float64, device=_device(operation))
    offset, total = (_result(operation, value, x) for x in (zeros, zeros + 1.0))
    bias, weight = per_channel(offset), per_channel(total - offset)
    if bias is None or weight is None or offset.shape != zeros.shape or not bool((weight + bias).isfinite().all()):
        operation.refuse(" with such a constant", "a number, or one for each channel, that scales or shifts a value")
    if bool((weight == 1).all()) and not bool(bias.any()):
        return bypass(node, value)
    node.args, node.kwargs = (value,), {}
    operation.become(Scale(weight, bias if bool(bias.any()) else None))


def _result(operation: Operation, value: fx.Node, x: Tensor) -> Tensor:
    """Return what an operation computes for one value, in float64."""

    def argument(node: fx.Node) -> Any:
        return x.clone() if node is value else _double(node.meta["constant"])

    args, kwargs = fx.map_arg((operation.node.args, operation.node.kwargs), argument)
    target: Any = operation.node.target
    result: Tensor = (
        getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
    )
    return result


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _device(operation: Operation) -> torch.device | None:
    constants = (n.meta["constant"] for n in operation.node.all_input_nodes if "constant" in n.meta)
    return next((c.device for c in constants if c.ndim), None)


# -- layers as functions -----------------------------------------------------------------------------------------------


def _linear(operation: Operation) -> None:
    _become_layer(operation, nn.Linear, operation.constant(1, "weight"), operation.constant(2, "bias"))


def _matmul(operation: Operation) -> None:
    first, weight = operation.argument(0, "input"), operation.constant(1, "other")
    if not is_data(first) or weight.ndim != 2:
        operation.refuse(" of other than a value and a matrix", "x @ weight")
    _become_layer(operation, nn.Linear, weight.T.contiguous(), None)


def _convolution(kind: type[nn.Module], *names: str) -> Handler:
    def handler(operation: Operation) -> None:
        options = {name: operation.argument(k, name) for k, name in enumerate(names, 3)}
        given = {name: value for name, value in options.items() if value is not None}
        _become_layer(operation, kind, operation.constant(1, "weight"), operation.constant(2, "bias"), **given)

    return handler


def _become_layer(operation: Operation, kind: Any, weight: Tensor, bias: Tensor | None, **options: Any) -> None:
    """Call a layer with some weights, in place of the function."""
    inputs, outputs = weight.shape[1] * options.get("groups", 1), weight.shape[0]
    if kind.__name__.startswith("ConvTranspose"):
        inputs, outputs = weight.shape[0], weight.shape[1] * options.get("groups", 1)
    size = (tuple(weight.shape[2:]),) if weight.ndim > 2 else ()
    layer = kind(inputs, outputs, *size, bias=False, device="meta", **options)
    layer.weight, layer.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    operation.become(layer)


# -- poolings ----------------------------------------------------------------------------------------------------------

_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def _max_pool(kind: type[nn.Module]) -> Handler:
    def handler(operation: Operation) -> None:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = {name: operation.argument(k, name) for k, name in enumerate(names, 1)}
        operation.become(kind(**{name: value for name, value in given.items() if value is not None}))

    return handler


def _adaptive_max_pool(operation: Operation) -> None:
    before, after = (shape_of(node)[2:] for node in (operation.node.args[0], operation.node))
    size = tuple(a // b for a, b in zip(before, after, strict=True))
    if any(a % b for a, b in zip(before, after, strict=True)):
        operation.refuse(f" of {list(before)} to {list(after)}", "a MaxPool of fixed size")
    operation.become(_MAX_POOLS[len(size) - 1](size))


# -- moving elements ---------------------------------------------------------------------------------------------------


def _reshape(operation: Operation) -> None:
    """Write a reshape without the size of the batch."""
    node = operation.node
    source, after = node.args[0], shape_of(node)
    if after == shape_of(source):
        bypass(node, source)  # type: ignore[arg-type]
    elif len(after) == 2:
        operation.become(nn.Flatten(1))
    else:
        operation.call(torch.reshape, source, (-1, *after[1:]))


def _expand(operation: Operation) -> None:
    """Write an expansion without the size of the batch."""
    if not is_data(operation.node.args[0]):
        operation.refuse(" of a constant to the size of the batch", "x + constant, or the constant as a bias")
    operation.call(torch.broadcast_to, operation.node.args[0], (-1, *shape_of(operation.node)[1:]))


def _split(operation: Operation) -> None:
    """Turn the parts that are used into slices."""
    source, dim = operation.node.args[0], operation.argument(2, "dim", 0)
    sizes = _part_sizes(operation, shape_of(source)[dim])
    starts = [0, *accumulate(sizes)]
    for user, part in _parts(operation).items():
        index = part % len(sizes)
        Operation(operation.graph, user).call(torch.narrow, source, dim, starts[index], sizes[index])


def _unbind(operation: Operation) -> None:
    """Turn the parts that are used into elements of a dimension."""
    source, dim = operation.node.args[0], operation.argument(1, "dim", 0)
    before = (slice(None),) * (dim % len(shape_of(source)))
    for user, part in _parts(operation).items():
        Operation(operation.graph, user).call(operator.getitem, source, (*before, part))


def _parts(operation: Operation) -> dict[fx.Node, int]:
    """Return the uses of the parts of a value, with the number of the part."""
    users = operation.node.users
    parts: dict[fx.Node, Any] = {user: user.args[1] for user in users if user.target is operator.getitem}
    if len(parts) < len(users) or not all(isinstance(part, int) for part in parts.values()):
        operation.refuse(" whose parts are used together", "each part on its own")
    return parts


def _part_sizes(operation: Operation, size: int) -> list[int]:
    """Return the sizes of the parts, by an example."""
    names = ("chunks", "split_size", "split_size_or_sections", "indices_or_sections", "indices", "sections")
    given = next(value for name in names if (value := operation.argument(1, name)) is not None)
    name = operation.target if isinstance(operation.target, str) else operation.target.__name__
    return [len(part) for part in getattr(torch.empty(size), name)(given)]


def _pad(operation: Operation) -> None:
    constant = operation.argument(2, "mode", "constant") == "constant"
    _check_padding(operation, operation.argument(3, "value") if constant else None)


def _constant_pad(operation: Operation) -> None:
    module = operation.module
    _check_padding(operation, module.value)
    operation.call(F.pad, operation.node.args[0], module.padding, "constant", module.value)


def _check_padding(operation: Operation, value: float | None) -> None:
    if value not in (None, 0, -math.inf):  # a maximum pooling absorbs the last
        operation.refuse(" with other values than 0", PADDING)


def _attribute(operation: Operation) -> None:
    """Accept the attributes of a tensor that are the tensor, or another order of its elements."""
    source, name = operation.node.args
    if name == "data":
        bypass(operation.node, source)  # type: ignore[arg-type]
    elif name == "mT" and len(shape_of(source)) > 2:
        operation.call(torch.transpose, source, -2, -1)
    else:
        refuse(f"the attribute {name}", "a method or a function that conversion knows", operation.node)


def _dropout(operation: Operation) -> None:
    operation.refuse(" that is on in evaluation", "training=self.training")  # one that is off does nothing, and is gone


# -- the table ---------------------------------------------------------------------------------------------------------

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__radd__", "__iadd__")
_SUBTRACTIONS = (operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract")
_QUOTIENTS = (
    operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_", "divide",
)  # fmt: skip
_OTHERS = (operator.neg, torch.neg, "neg", "neg_", torch.rsub, "rsub")
_RESHAPES = (
    torch.flatten, torch.reshape, torch.squeeze, torch.unflatten, torch.unsqueeze,
    "flatten", "view", "reshape", "squeeze", "unflatten", "unsqueeze", "view_as", "reshape_as",
    nn.Flatten, nn.Unflatten,
)  # fmt: skip
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout)
_CONVOLUTION = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")

HANDLERS: dict[Any, Handler] = {
    Scale: lambda operation: None,
    _BatchNorm: _batch_norm,
    F.batch_norm: _functional_batch_norm,
    **dict.fromkeys((*_ADDITIONS, *_SUBTRACTIONS, *MULTIPLICATIONS, *_QUOTIENTS), _arithmetic),
    **dict.fromkeys(_OTHERS, _arithmetic),
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, operator.matmul, "matmul"), _matmul),
    **dict.fromkeys((F.conv1d, torch.conv1d), _convolution(nn.Conv1d, *_CONVOLUTION)),
    **dict.fromkeys((F.conv2d, torch.conv2d), _convolution(nn.Conv2d, *_CONVOLUTION)),
    **dict.fromkeys((F.conv3d, torch.conv3d), _convolution(nn.Conv3d, *_CONVOLUTION)),
    F.conv_transpose1d: _convolution(nn.ConvTranspose1d, *_TRANSPOSED),
    F.conv_transpose2d: _convolution(nn.ConvTranspose2d, *_TRANSPOSED),
    F.conv_transpose3d: _convolution(nn.ConvTranspose3d, *_TRANSPOSED),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), _max_pool(nn.MaxPool1d)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool(nn.MaxPool2d)),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), _max_pool(nn.MaxPool3d)),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), _adaptive_max_pool),
    **dict.fromkeys((F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), _adaptive_max_pool),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to", torch.broadcast_to), _expand),
    **dict.fromkeys((torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"), _split),
    **dict.fromkeys((torch.unbind, "unbind"), _unbind),
    getattr: _attribute,
    F.pad: _pad,
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), _constant_pad),
    **dict.fromkeys(_DROPOUTS, _dropout),
}
"""From the class of a module, a function, or the name of a tensor method to what is done to a call of it."""
