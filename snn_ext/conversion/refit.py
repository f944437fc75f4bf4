"""The layer that takes up a correction of the current into a layer of neurons."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from .._before import can_be_corrected, summands
from ..simulation.layers import module_of
from .graph_tools import shape_of
from .weights import shift_rows

__all__ = ["feeder", "refit"]


def feeder(net: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the convolution or linear layer that can take up a correction of a sum, or ``None``.

    Of several the one with the most weights is taken, which is the last of the branch in a residual unit and not the
    projection.
    """
    layers: dict[fx.Node, Any] = {source: module_of(net, source) for source in summands(node)}
    found = [source for source, layer in layers.items() if can_be_corrected(layer, shape_of(node))]
    return max(found, key=lambda source: layers[source].weight.numel(), default=None)


def refit(layer: Any, slope: Tensor, offset: Tensor) -> None:
    """Give a layer new parameters, corrected by :func:`snn_ext._regression.correction`."""
    weight = layer.weight.detach() + slope.reshape(layer.weight.shape)
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    shift_rows(layer, offset)
