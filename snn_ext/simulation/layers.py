"""The table of layer types: the facts about each that conversion, counting and simulation need, in one place."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["RULES", "UNKNOWN", "Rule", "before_moves", "known_type", "module_of", "rule_of", "rule_of_node"]

Apply = Callable[[Any, Tensor, Tensor], Tensor]
Window = Callable[[Any, torch.Size, torch.Size], int | None]


@dataclass(frozen=True)
class Rule:
    """Facts about one layer type, function or tensor method.

    Attributes
    ----------
    apply : callable, optional
        For a layer with weights: ``apply(layer, x, weight)`` computes it with the given weights and no bias. Such a
        layer has an attribute ``weight``, and ``bias`` (a tensor or None); it turns spikes into currents.
    transposed : bool
        The weights are ``[in, out / groups, ...]`` and not ``[out, in / groups, ...]``.
    feature_dim : int
        Dimension of the input that the weights mix: 1, or -1 for ``nn.Linear``.
    pooling : {"max", "mean"}, optional
        The layer pools over windows in space. Maximum poolings commute with ReLU, and emit a new spike train.
    window : callable, optional
        For a mean: ``window(layer, shape_before, shape_after)`` returns over how many values it is taken, ``None``
        if that is not one number.
    identity : bool
        The output is the input when the net is evaluated, as with dropout.
    passes_unit : bool
        ``f(u x) = u f(x)`` for any number u > 0, so a scale may be moved through it. One with several inputs passes
        a unit that all of them have. Units per channel are found by running it.
    fractional_bits : int or None
        How many bits the output needs more than its inputs to be exact, digits behind the point and growth of sums
        together; ``None`` if it need not be a binary fraction, as an average over three.
    separable : bool
        Each channel is treated alike and each spatial dimension by itself, so its synapses are found one dimension at
        a time. It is an acceleration alone: the synapses of any other operation are found by running it.
    """

    apply: Apply | None = None
    transposed: bool = False
    feature_dim: int = 1
    pooling: Literal["max", "mean"] | None = None
    window: Window | None = None
    identity: bool = False
    passes_unit: bool = False
    fractional_bits: int | None = 0
    separable: bool = False

    @property
    def weighted(self) -> bool:
        """True for a layer with weights, which end a train of spikes and take up its unit."""
        return self.apply is not None

    @property
    def commutes_with_relu(self) -> bool:
        """True for maximum pooling: it may be moved to the other side of an activation."""
        return self.pooling == "max"

    @property
    def moves(self) -> bool:
        """True for an operation that only moves elements, or repeats them."""
        return self.passes_unit and self.fractional_bits == 0 and self.pooling is None

    def macs(self, layer: Any, x: Tensor, y: Tensor) -> int:
        """Return the multiply-accumulates of a weighted layer for one sample; padding is counted, as it is computed."""
        return (x if self.transposed else y)[0].numel() * layer.weight[0].numel()

    def bits_behind(self, layer: Any, before: torch.Size, after: torch.Size) -> int | None:
        """Return :attr:`fractional_bits` at these shapes of a batch; those of a mean depend on its window."""
        if self.window is None:
            return self.fractional_bits
        window = self.window(layer, before, after)
        return None if window is None or window & (window - 1) else int(math.log2(window))


UNKNOWN = Rule(fractional_bits=None)
"""The rule of everything that has no entry: conversion refuses it."""


def rule_of(layer: Any) -> Rule:
    """Return the rule of a module, a function or the name of a tensor method; :data:`UNKNOWN` without an entry.

    Examples
    --------
    >>> rule_of(nn.Linear(2, 3)).weighted, rule_of(torch.relu) is UNKNOWN
    (True, True)
    """
    key = known_type(layer) if isinstance(layer, nn.Module) else layer
    return RULES.get(key, UNKNOWN)


def known_type(module: nn.Module) -> Any:
    """Return the first class of a module, in the order of inheritance, that is in :data:`RULES`, or ``None``."""
    for kind in type(module).__mro__:
        if kind in RULES:
            return kind
    return None


def rule_of_node(graph: fx.GraphModule, node: fx.Node) -> Rule:
    """Return the rule of what a node of a graph calls."""
    return rule_of(module_of(graph, node) if node.op == "call_module" else node.target)


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def before_moves(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the value whose elements a value consists of: reshapes, expansions and the like are passed over."""
    while rule_of_node(graph, node).moves and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


# -- entries ---------------------------------------------------------------------------------------------------------


def _linear(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def _convolution(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = layer._conv_forward(x, weight, None)  # knows every padding mode
    return result


def _transposed_convolution(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    convolve: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.ndim - 3]
    options = ("stride", "padding", "output_padding", "groups", "dilation")
    result: Tensor = convolve(x, weight, None, *(getattr(layer, option) for option in options))
    return result


def _fixed_window(pool: Any, before: torch.Size, after: torch.Size) -> int | None:
    if pool.ceil_mode or not pool.count_include_pad or getattr(pool, "divisor_override", None) is not None:
        return None  # smaller at the border, or no mean
    size = pool.kernel_size
    return size ** (len(before) - 2) if isinstance(size, int) else math.prod(size)


def _adaptive_window(pool: Any, before: torch.Size, after: torch.Size) -> int | None:
    if any(a % b for a, b in zip(before[2:], after[2:], strict=True)):
        return None
    return math.prod(before[2:]) // math.prod(after[2:])


_CONVOLUTION = Rule(apply=_convolution)
_TRANSPOSED = Rule(apply=_transposed_convolution, transposed=True)
_MAX_POOL = Rule(pooling="max", passes_unit=True)
_AVERAGE_POOL = Rule(pooling="mean", window=_fixed_window, passes_unit=True, separable=True)
_ADAPTIVE_POOL = Rule(pooling="mean", window=_adaptive_window, passes_unit=True, separable=True)
_MEAN = Rule(passes_unit=True, fractional_bits=None, separable=True)  # over a window that the rule does not know
_IDENTITY = Rule(identity=True, passes_unit=True)
_MOVE = Rule(passes_unit=True)  # of elements, which stay what they are
_SUM = Rule(passes_unit=True, fractional_bits=1)

RULES: dict[Any, Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONVOLUTION),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _TRANSPOSED),
    nn.Linear: Rule(apply=_linear, feature_dim=-1),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _MAX_POOL),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _AVERAGE_POOL),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _ADAPTIVE_POOL),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _MEAN),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), _MOVE),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), _MOVE),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), _MOVE),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), _MOVE),
    **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), _MOVE),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _IDENTITY),
    **dict.fromkeys((nn.AlphaDropout, nn.FeatureAlphaDropout), _IDENTITY),
    # functions, and tensor methods by name
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _SUM),
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _SUM),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate, torch.stack), _MOVE),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten), _MOVE),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"), _MOVE),
    **dict.fromkeys((torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim), _MOVE),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim"), _MOVE),
    **dict.fromkeys((operator.getitem, torch.narrow, torch.select, torch.tile, torch.broadcast_to, F.pad), _MOVE),
    **dict.fromkeys(("narrow", "select", "repeat", "expand", "expand_as", "broadcast_to", "tile"), _MOVE),
    **dict.fromkeys((F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle), _MOVE),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout), _IDENTITY),
    **dict.fromkeys(("contiguous", "detach", "clone", "float", torch.clone), _IDENTITY),
    **dict.fromkeys((torch.mean, "mean", torch.sum, "sum"), Rule(passes_unit=True, fractional_bits=None)),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), _MEAN),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), _MEAN),
    **dict.fromkeys((F.interpolate, F.upsample, F.upsample_nearest, F.upsample_bilinear), _MEAN),
}
"""By the class of a layer (and of those that inherit from it), the function, or the name of the tensor method."""
