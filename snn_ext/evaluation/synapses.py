"""Synapses of a spiking net: to how many each spike leads, and what one pass of the analog net costs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .._errors import bad_value
from .graph import (
    TRANSPOSED_CONVOLUTIONS,
    WEIGHTED,
    Recorder,
    event_sources,
    is_delay,
    is_filter,
    is_max_pool,
    is_spiking,
    module_of,
    origins,
)

__all__ = ["Synapses", "count_synapses"]

_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@dataclass
class Synapses:
    """Synapses and multiply-accumulates of one sample.

    Attributes
    ----------
    fan_out : dict of str to Tensor
        For each layer that emits spikes, shaped as one sample of them: the number of weights that a spike of each
        neuron meets. Padding and stride are respected: a neuron at the border has fewer synapses. Average pooling,
        dropout and reshaping belong to the synapse behind them; a shortcut that reaches a neuron directly is one.
    fed_macs : dict of str to int
        Multiply-accumulates of the weighted layers that each of them feeds.
    macs : int
        Multiply-accumulates of one pass of the analog net: all weighted layers, border included.
    input_macs : int
        Those of the layers that the image reaches as an analog current. It is constant, so they are spent once.
    """

    fan_out: dict[str, Tensor] = field(default_factory=dict)
    fed_macs: dict[str, int] = field(default_factory=dict)
    macs: int = 0
    input_macs: int = 0


@torch.no_grad()
def count_synapses(graph: fx.GraphModule, x: Tensor) -> Synapses:
    """Count the synapses of a spiking net.

    Parameters
    ----------
    graph : fx.GraphModule
        A net in step mode "s"; its neurons are reset before and after.
    x : Tensor
        Input of one step, ``[N, ...]``.

    Returns
    -------
    Synapses

    Raises
    ------
    ValueError
        Names the operation that spikes meet and whose synapses are not known.

    Notes
    -----
    Source of the definition: a synaptic operation is one addition of a weight to a membrane potential, caused by one
    spike.
    """
    values = Recorder(graph).record(x[:1])
    arriving, sources = origins(graph), event_sources(graph)
    spiking: set[fx.Node] = set()  # what depends on spikes, through weights or not
    for node in graph.graph.nodes:
        if str(node.target) in sources or any(n in spiking for n in node.all_input_nodes):
            spiking.add(node)
    found = Synapses()
    triggered: dict[fx.Node, Tensor] = {}  # for each event at the output of a node: the synapses it leads to
    for node in reversed(graph.graph.nodes):
        module = module_of(graph, node)
        if isinstance(module, WEIGHTED):
            macs = _macs(module, values[node.args[0]], values[node])
            found.macs += macs
            if node in spiking and not arriving[node.args[0]]:
                bad_value(
                    "snn", f"{node.target} behind another layer with weights", "neurons between layers with weights"
                )
            for source in arriving[node.args[0]]:
                found.fed_macs[source] = found.fed_macs.get(source, 0) + macs
            if not arriving[node.args[0]]:
                found.input_macs += macs
        if not arriving[node]:
            continue
        triggered[node] = sum(
            (_through(graph, user, node, values, triggered) for user in node.users), torch.zeros_like(values[node])
        )
        if (source := str(node.target)) in sources:
            found.fan_out[source] = found.fan_out.get(source, 0) + triggered[node][0]
    return found


def _through(
    graph: fx.GraphModule, user: fx.Node, node: fx.Node, values: dict[fx.Node, Any], triggered: dict[fx.Node, Tensor]
) -> Tensor:
    """Return the synapses to which an event at ``node`` leads through one of its users."""
    module, value = module_of(graph, user), values[node]
    if user.op == "output":
        return torch.zeros_like(value)
    if isinstance(module, WEIGHTED):
        return _transpose(_ones_like_layer(module), value, torch.ones_like(values[user]))
    if is_spiking(module) or is_filter(module):
        return torch.ones_like(value)
    if is_max_pool(module):
        return torch.zeros_like(value)  # the spikes that it lets pass are counted behind it
    if user not in triggered:  # nothing behind it is fed
        return torch.zeros_like(value)
    return _transpose(_connections(graph, user, node, values), value, triggered[user])


def _transpose(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    """Apply the transpose of a linear function, taken at the shape of ``x``."""
    with torch.enable_grad():
        x = torch.zeros_like(x, dtype=torch.float64).requires_grad_()
        result: Tensor = torch.autograd.grad(function(x), x, gradient.double())[0]
    return result


def _ones_like_layer(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a weighted layer with every weight 1 and no bias."""
    weight = torch.ones_like(layer.weight, dtype=torch.float64)  # type: ignore[arg-type]
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(x, weight)
    dims = weight.ndim - 2
    common: dict[str, Any] = {
        "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups,
    }  # fmt: skip
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        transposed: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        return lambda x: transposed(x, weight, output_padding=layer.output_padding, **common)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    return lambda x: convolve(x, weight, **common)


def _connections(
    graph: fx.GraphModule, user: fx.Node, node: fx.Node, values: dict[fx.Node, Any]
) -> Callable[[Tensor], Tensor]:
    """Return an operation without weights as a linear function of one input, with 1 wherever the two are connected."""
    module = module_of(graph, user)
    if is_delay(module):
        return lambda x: x
    if isinstance(module, _AVERAGES):
        return _sum_pooling(module.kernel_size, module.stride, module.padding, module.ceil_mode, values[node].ndim - 2)
    kwargs: dict[str, Any] = {key: value for key, value in user.kwargs.items() if key != "input"}
    name = getattr(user.target, "__name__", str(user.target))
    if user.op != "call_module" and name in ("avg_pool1d", "avg_pool2d", "avg_pool3d"):
        given: dict[str, Any] = (
            dict(zip(("kernel_size", "stride", "padding", "ceil_mode"), user.args[1:], strict=False)) | kwargs
        )
        kernel = given["kernel_size"]
        return _sum_pooling(
            kernel, given.get("stride") or kernel, given.get("padding", 0), given.get("ceil_mode", False), int(name[8])
        )
    if isinstance(module, _ADAPTIVE_AVERAGES) or name.startswith("adaptive_avg_pool"):
        shape, target = values[node].shape, values[user].shape
        sizes = [_window_sizes(i, o) for i, o in zip(shape[2:], target[2:], strict=True)]
        windows = math.prod(size.view(-1, *[1] * (len(sizes) - 1 - d)) for d, size in enumerate(sizes))
        return lambda x: F.adaptive_avg_pool3d(_as_3d(x), _sizes_3d(target)).reshape(target) * windows
    if name == "mean":
        return lambda x: x.sum(*user.args[1:], **kwargs)

    def call(x: Tensor) -> Tensor:
        return _call(graph, user, node, values, x)

    return _checked(call, user, values[node])


def _checked(call: Callable[[Tensor], Tensor], user: fx.Node, value: Tensor) -> Callable[[Tensor], Tensor]:
    """Accept an operation that moves or adds its inputs, or scales each of them; refuse any other by name."""
    generator = torch.Generator(device=value.device).manual_seed(0)
    a, b = (torch.rand(value.shape, generator=generator, dtype=torch.float64, device=value.device) for _ in range(2))
    zero, ones = call(torch.zeros_like(a)), call(torch.ones_like(a))
    one_more = call(a + b) + zero - call(a) - call(b)
    linear = float(one_more.abs().max()) <= 1e-6 * float(ones.abs().max() + 1)
    per_input = ones - zero
    if linear and per_input.shape == a.shape and torch.allclose(call(a) - zero, a * per_input):
        return lambda x: x * (per_input != 0)  # a scale, whatever its value, is part of one synapse
    if linear and torch.equal(per_input, per_input.round()):
        return call
    bad_value(
        "snn", f"{user.op} {user.target} on spikes",
        "pooling, adding, concatenating, reshaping, scaling or a layer with weights, whose synapses can be counted",
    )  # fmt: skip


def _call(graph: fx.GraphModule, user: fx.Node, node: fx.Node, values: dict[fx.Node, Any], x: Tensor) -> Tensor:
    """Run one operation with ``x`` in place of the output of ``node``, and other spikes silent."""

    def argument(other: fx.Node) -> Any:
        if other is node:
            return x
        value = values[other]
        spikes = isinstance(value, Tensor) and value.is_floating_point() and other.op != "get_attr"
        return torch.zeros_like(value, dtype=x.dtype) if spikes else value

    arguments: Any = fx.map_arg((user.args, user.kwargs), argument)
    args, kwargs = arguments
    if user.op == "call_module":
        return graph.get_submodule(str(user.target))(*args, **kwargs)
    if user.op == "call_method":
        return getattr(args[0], str(user.target))(*args[1:], **kwargs)
    if user.target in (operator.iadd,):
        return args[0] + args[1]
    function: Any = user.target
    return function(*args, **kwargs)


def _sum_pooling(kernel: Any, stride: Any, padding: Any, ceil: bool, dims: int) -> Callable[[Tensor], Tensor]:
    def three(value: Any, fill: int) -> tuple[int, ...]:
        values = (value,) * dims if isinstance(value, int) else tuple(value)
        return (fill,) * (3 - dims) + values

    def pool(x: Tensor) -> Tensor:
        y = F.avg_pool3d(
            _as_3d(x), three(kernel, 1), three(stride, 1), three(padding, 0), ceil, True, divisor_override=1
        )
        return y.reshape(*x.shape[:2], *y.shape[5 - dims :])

    return pool


def _as_3d(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], *[1] * (5 - x.ndim), *x.shape[2:])


def _sizes_3d(shape: torch.Size) -> Any:
    return (1,) * (5 - len(shape)) + tuple(shape[2:])


def _window_sizes(inputs: int, outputs: int) -> Tensor:
    """Return how many inputs each output of an adaptive pooling has along one dimension."""
    i = torch.arange(outputs)
    return (-((-(i + 1) * inputs) // outputs) - (i * inputs) // outputs).double()


def _macs(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the multiply-accumulates of a layer for one sample, padding counted as it is multiplied."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        return x[0].numel() * weight[0].numel()
    return y[0].numel() * weight[0].numel()
