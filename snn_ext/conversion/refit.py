"""The layer that takes up a correction of the current into a layer of neurons."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn

from .._regression import correction
from ..simulation.layers import known_type, module_of
from .graph_tools import shape_of
from .weights import shift_rows

__all__ = ["feeder", "refit"]


def feeder(net: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the convolution or linear layer that can take up a correction of a sum, or ``None``.

    It reaches the sum through additions only. Of several the one with the most weights is taken, which is the last of
    the branch in a residual unit and not the projection.
    """
    found, stack = list[fx.Node](), [node]
    while stack:
        source = stack.pop()
        if len(source.users) > 1:
            continue
        if source.target is operator.add:
            stack.extend(source.all_input_nodes)
        elif _is_regression(net, source):
            found.append(source)
    return max(found, key=lambda n: _weights(module_of(net, n)), default=None)


def _weights(layer: Any) -> int:
    count: int = layer.weight.numel()
    return count


def _is_regression(net: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(net, node)
    if module is not None and known_type(module) is nn.Linear:
        return len(shape_of(node)) == 2
    return module is not None and known_type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def refit(layer: Any, inputs: Tensor, residual: Tensor) -> bool:
    """Give a layer new parameters, corrected for a residual; return False if no correction is better than none.

    Parameters
    ----------
    layer : nn.Module
        A convolution or a linear layer.
    inputs, residual : Tensor
        ``[M, C_in, *kernel]`` and ``[M, C_out]``, as for :func:`snn_ext._regression.correction`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> layer, x = nn.Linear(3, 2), torch.rand(64, 3)
    >>> wanted = x @ torch.ones(3, 2) + 1.0
    >>> refit(layer, x, wanted - layer(x))
    True
    >>> bool((layer(x) - wanted).abs().max() < 0.05)
    True
    """
    found = correction(inputs, residual.detach(), getattr(layer, "groups", 1))
    if found is None:
        return False
    slope, offset = found
    weight = layer.weight.detach() + slope.reshape(layer.weight.shape)
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    shift_rows(layer, offset)
    return True
