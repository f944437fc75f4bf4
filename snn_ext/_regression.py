"""Closed-form correction of the weights of a layer: ridge regression, its penalty chosen on rows that are held out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._samples import Samples

__all__ = ["ROWS", "correction", "correction_of_layer", "inputs_of"]

ROWS = 8192
"""Rows of a regression."""
_MANY = 2048
"""Inputs of a sum from which on a regression takes fewer rows: its time grows with the third power of them."""
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_HELD_OUT = 4
"""One part of so many decides on the penalty."""


def correction_of_layer(
    layer: Any, samples: Samples, means: Iterable[tuple[Tensor, Tensor]], memory: int
) -> tuple[Tensor, Tensor] | None:
    """Return the correction of the layer before a sum by what the mean of the sum over time lacks, if it is better.

    Parameters
    ----------
    layer : nn.Module
        A convolution, or a linear layer.
    samples : Samples
        Of the sum in the analog net.
    means : iterable of (Tensor, Tensor)
        For each batch the mean over time of the sum, ``[N, C, ...]``, and of the input of the layer.
    memory : int
        Bytes for the rows of the regression.

    Returns
    -------
    tuple of Tensor, or None
        As :func:`correction` does.
    """
    columns = layer.weight[0].numel()
    bytes_a_row = columns * layer.weight.element_size()
    if columns > _MANY or samples.current.shape[1] * bytes_a_row > memory:
        samples = samples.fewer(memory // bytes_a_row)
    arriving, inputs = [], []
    for batch, (current, x) in enumerate(means):
        arriving.append(samples.of(current.unsqueeze(0), batch)[0])
        inputs.append(inputs_of(layer, x, *samples.places[batch], samples.shape))
    return correction(torch.cat(inputs), (samples.current - torch.cat(arriving, 1)).T, getattr(layer, "groups", 1))


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
        Shape of the output, ``[N, C_out, ...]``, or of a sum in which an output of one place is repeated.
    """
    if isinstance(layer, nn.Linear):
        return x[sample]
    x, dims = F.pad(x, layer._reversed_padding_repeated_twice), len(shape) - 2
    index = []
    for dim, start in enumerate(torch.unravel_index(place, shape[2:])):
        taps = torch.arange(layer.kernel_size[dim], device=x.device) * layer.dilation[dim]
        last = x.shape[2 + dim] - 1 - taps[-1]  # where the window begins that is the only one of a repeated output
        where = (start[:, None] * layer.stride[dim]).clamp_max(last) + taps
        index.append(where.reshape(len(place), *(-1 if d == dim else 1 for d in range(dims))))
    found: Tensor = x[(sample.reshape(-1, *[1] * dims), slice(None), *index)]  # [M, *kernel, C_in]
    return found.movedim(-1, 1)


@torch.no_grad()
def correction(inputs: Tensor, residual: Tensor, groups: int = 1) -> tuple[Tensor, Tensor] | None:
    r"""Return the correction of weights and bias by ridge regression, if it is better on rows that are held out.

    .. math:: \Delta W, \Delta b = \arg\min \sum \| r - \Delta W x - \Delta b \|^2 + \lambda\, m\, \|\Delta W\|^2

    with m the mean of the diagonal of :math:`\sum x x^T`, and :math:`\lambda` by the error on the last quarter of the
    rows.

    Parameters
    ----------
    inputs : Tensor
        x, ``[M, C_in, *kernel]``.
    residual : Tensor
        r, ``[M, C_out]``.
    groups : int
        Groups of channels that do not mix.

    Returns
    -------
    tuple of Tensor, or None
        ``[C_out, C_in / groups * kernel]`` and ``[C_out]``; ``None`` if nothing is better than no correction.

    Examples
    --------
    >>> import torch
    >>> x = torch.rand(64, 3)
    >>> slope, offset = correction(x, x @ torch.ones(3, 2) + 1.0)
    >>> bool((slope - 1).abs().max() < 0.05), bool((offset - 1).abs().max() < 0.05)
    (True, True)
    """
    x, r = (v.reshape(len(v), groups, -1).transpose(0, 1) for v in (inputs, residual))  # [G, M, ..]
    held = x.shape[1] // _HELD_OUT
    if not held:
        return None
    fit = _Ridge(x[:, :-held], r[:, :-held])
    errors = [float((r[:, -held:] - fit.predict(x[:, -held:], penalty)).square().mean()) for penalty in _PENALTIES]
    if min(errors) >= float(r[:, -held:].square().mean()):
        return None
    fit = _Ridge(x, r)
    slope = fit.slope(_PENALTIES[errors.index(min(errors))])
    return slope.transpose(1, 2).flatten(0, 1), fit.offset(slope).flatten()


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
