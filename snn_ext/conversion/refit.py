"""Closed-form correction of the weights before a layer of neurons, chosen by images that are held out."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..simulation.layers import known_type, module_of
from .graph_tools import shape_of
from .weights import shift_rows

__all__ = ["feeder", "inputs_of", "refit"]

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_HELD_OUT = 4
"""One part of so many decides on the penalty."""


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


def inputs_of(layer: Any, x: Tensor, sample: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
    """Return what a layer sees of its input ``x`` at some places of its output: ``[M, C_in, *kernel]``.

    Parameters
    ----------
    layer : nn.Module
        A convolution, or a linear layer, which has one place.
    x : Tensor
        ``[N, C_in, ...]``.
    sample, place : Tensor
        ``[M]``: the index of the sample, and that of the place in the flattened output.
    shape : torch.Size
        Shape of the output, ``[N, C_out, ...]``.
    """
    if isinstance(layer, nn.Linear):
        return x[sample]
    x, dims = F.pad(x, layer._reversed_padding_repeated_twice), len(shape) - 2
    index = []
    for dim, start in enumerate(torch.unravel_index(place, shape[2:])):
        taps = torch.arange(layer.kernel_size[dim], device=x.device) * layer.dilation[dim]
        where = start[:, None] * layer.stride[dim] + taps
        index.append(where.reshape(len(place), *(-1 if d == dim else 1 for d in range(dims))))
    found: Tensor = x[(sample.reshape(-1, *[1] * dims), slice(None), *index)]  # [M, *kernel, C_in]
    return found.movedim(-1, 1)


@torch.no_grad()
def refit(layer: Any, inputs: Tensor, residual: Tensor) -> bool:
    r"""Correct weights and bias of a layer by ridge regression, if that is better on rows that are held out.

    .. math:: \Delta W, \Delta b = \arg\min \sum \| r - \Delta W x - \Delta b \|^2 + \lambda\, m\, \|\Delta W\|^2

    with m the mean of the diagonal of :math:`\sum x x^T`, and :math:`\lambda` by the error on the last quarter of the
    rows.

    Parameters
    ----------
    layer : nn.Module
        A convolution or a linear layer; it gets new parameters.
    inputs : Tensor
        x, ``[M, C_in, *kernel]``.
    residual : Tensor
        r, ``[M, C_out]``.

    Returns
    -------
    bool
        False if no correction is better than none; the layer is unchanged then.

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
    groups = getattr(layer, "groups", 1)
    x, r = (v.reshape(len(v), groups, -1).transpose(0, 1) for v in (inputs, residual))  # [G, M, ..]
    held = x.shape[1] // _HELD_OUT
    if not held:
        return False
    fit = _Ridge(x[:, :-held], r[:, :-held])
    errors = [float((r[:, -held:] - fit.predict(x[:, -held:], penalty)).square().mean()) for penalty in _PENALTIES]
    if min(errors) >= float(r[:, -held:].square().mean()):
        return False
    fit = _Ridge(x, r)
    slope = fit.slope(_PENALTIES[errors.index(min(errors))])
    weight = layer.weight + slope.transpose(1, 2).reshape(layer.weight.shape)
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    shift_rows(layer, fit.offset(slope).flatten())
    return True


class _Ridge:
    """Ridge regression of ``[G, M, O]`` on ``[G, M, K]`` with an offset that is not penalised.

    The system that is solved is one of K unknowns, or of M where these are fewer: its dual.
    """

    def __init__(self, x: Tensor, r: Tensor) -> None:
        self._x, self._r = x.mean(1, keepdim=True), r.mean(1, keepdim=True)
        centred, wanted = x - self._x, r - self._r
        self._rows = centred if x.shape[1] < x.shape[2] else None
        left = centred if self._rows is None else centred.mT
        self._gram = (left.mT @ left).double()
        self._moment = (left.mT @ wanted).double() if self._rows is None else wanted.double()
        size = self._gram.diagonal(dim1=1, dim2=2).sum(1) / x.shape[2]
        self._size = torch.where(size > 0, size, torch.ones_like(size))  # no spike arrives

    def slope(self, penalty: float) -> Tensor:
        """Return ``[G, K, O]``."""
        system = self._gram.clone()
        system.diagonal(dim1=1, dim2=2).add_((penalty * self._size)[:, None])
        factor, failed = torch.linalg.cholesky_ex(system)  # by rounding, where columns are nearly equal
        solution = (
            torch.linalg.solve(system, self._moment) if failed.any() else torch.cholesky_solve(self._moment, factor)
        )
        return solution.to(self._x) if self._rows is None else self._rows.mT @ solution.to(self._x)

    def offset(self, slope: Tensor) -> Tensor:
        return self._r - self._x @ slope

    def predict(self, x: Tensor, penalty: float) -> Tensor:
        slope = self.slope(penalty)
        return x @ slope + self.offset(slope)
