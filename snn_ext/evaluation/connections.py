"""Connections of an operation without weights, input by output, found by running it in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Connections", "connections", "is_linear"]

Linear = Callable[[Tensor], Tensor]
"""A function that is linear on the values of spikes, with f(0) = 0."""

# Smaller parts of a spike come from rounding a coordinate that lies on a grid point.
_NOTHING = 1e-6
# Largest matrix of inputs by outputs that is computed, in elements.
_DENSE = 1 << 24


@dataclass
class Connections:
    """The pattern B of an operation, ``[outputs, inputs]``: 1 where the two are connected, by any factor.

    Attributes
    ----------
    back : callable
        ``g -> B^T g`` in the shapes of the operation: for each input the sum of g over the outputs that it reaches.
    into : Tensor
        Number of inputs that reach each output, in the shape of the output.
    out : Tensor
        Number of outputs that each input reaches, in the shape of the input.
    """

    back: Linear
    into: Tensor
    out: Tensor


def connections(f: Linear, x: Tensor, separable: bool) -> Connections | None:
    """Return the pattern of a linear function at the shape of ``x``, or ``None`` if it cannot be found.

    Parameters
    ----------
    f : callable
        If it is separable, it is called with other batches and channels too.
    x : Tensor
        One input, of positive numbers.
    separable : bool
        The function treats all channels alike, and each spatial dimension of ``[N, C, ...]`` by itself: pooling and
        interpolation.
    """
    ones = torch.ones_like(x)
    sums = f(ones)
    if sums.shape == x.shape and torch.allclose(f(x), x * sums, rtol=1e-9, atol=1e-9):
        scaled = (sums.abs() > 0).to(x)
        return Connections(lambda g: g * scaled, scaled, scaled)
    if separable:
        return _separable(f, x)
    return _copies(f, x, sums) or _sums(f, x, sums) or _dense(f, x, sums)


def is_linear(f: Linear, draw: Callable[[], Tensor]) -> bool:
    """Return True if f is additive and homogeneous on some inputs from ``draw``."""
    for _ in range(3):
        a, b = draw(), draw()
        if not torch.allclose(f(a + b), f(a) + f(b), rtol=1e-9, atol=1e-9):
            return False
        if not torch.allclose(f(3 * a), 3 * f(a), rtol=1e-9, atol=1e-9):
            return False
    return True


def _copies(f: Linear, x: Tensor, sums: Tensor) -> Connections | None:
    """Connections where each output is one input times a factor, or 0: views, padding, nearest neighbours."""
    source, found = _identify(f(_marks(x)), sums, _marks(x))
    if not found:
        return None
    there = source >= 0
    index = source[there]

    def back(g: Tensor) -> Tensor:
        return torch.zeros_like(x).flatten().index_add_(0, index, g.flatten()[there]).reshape(x.shape)

    return Connections(back, there.to(x).reshape(sums.shape), back(torch.ones_like(sums)))


def _sums(f: Linear, x: Tensor, sums: Tensor) -> Connections | None:
    """Connections where each input reaches one output, or none: means, pooling without overlap."""
    marks = _marks(sums)
    with torch.enable_grad():
        y = f(point := x.clone().requires_grad_())
        if not y.requires_grad:
            return None
        ones, marked = (torch.autograd.grad(y, point, g, retain_graph=True)[0] for g in (torch.ones_like(y), marks))
    target, found = _identify(marked, ones, marks)
    if not found:
        return None
    there = (target >= 0).to(x).reshape(x.shape)
    index = target.clamp_min(0)
    into = torch.zeros_like(sums).flatten().index_add_(0, index, there.flatten()).reshape(sums.shape)
    return Connections(lambda g: g.flatten()[index].reshape(x.shape) * there, into, there)


def _separable(f: Linear, x: Tensor) -> Connections:
    patterns = []
    for dim, size in enumerate(x.shape[2:], 2):
        one_hot = torch.eye(size, dtype=x.dtype, device=x.device)
        shape = [size, 1, *(size if d == dim else 1 for d in range(2, x.ndim))]
        y = f(one_hot.reshape(shape).expand(size, 1, *x.shape[2:]).contiguous())
        reached = (y.abs() > _NOTHING).movedim(dim, 1).flatten(2).any(2)
        patterns.append(reached.to(x))  # [inputs, outputs] along this dimension

    def along(g: Tensor, matrices: list[Tensor]) -> Tensor:
        for dim, matrix in enumerate(matrices, 2):
            g = (g.movedim(dim, -1) @ matrix).movedim(-1, dim)
        return g

    into = along(torch.ones_like(x), patterns)
    transposed = [pattern.T for pattern in patterns]
    return Connections(lambda g: along(g, transposed), into, along(torch.ones_like(into), transposed))


def _dense(f: Linear, x: Tensor, sums: Tensor) -> Connections | None:
    if x.numel() * sums.numel() > _DENSE:
        return None
    rows = []
    for index in range(x.numel()):
        one = torch.zeros_like(x)
        one.view(-1)[index] = 1.0
        rows.append(f(one).abs().flatten() > _NOTHING)
    pattern = torch.stack(rows).to(x)  # [inputs, outputs]
    into, out = pattern.sum(0).reshape(sums.shape), pattern.sum(1).reshape(x.shape)
    return Connections(lambda g: (pattern @ g.flatten()).reshape(x.shape), into, out)


def _marks(x: Tensor) -> Tensor:
    """Return a different number for each element, in [1, 2)."""
    generator = torch.Generator().manual_seed(x.numel())
    order = torch.randperm(x.numel(), generator=generator, device="cpu").to(x)
    shift = torch.rand(x.numel(), generator=generator, dtype=x.dtype, device="cpu").to(x)
    return (1 + (order + 0.5 * shift) / x.numel()).reshape(x.shape)


def _identify(marked: Tensor, plain: Tensor, marks: Tensor) -> tuple[Tensor, bool]:
    """Return the index of the mark in each value (a mark times ``plain``), -1 for none; and True if all have one."""
    order = marks.flatten().argsort()
    ordered, marked, plain = marks.flatten()[order], marked.flatten(), plain.flatten()
    there = plain.abs() > 0
    ratio = torch.where(there, marked / plain, 1.0)
    above = torch.searchsorted(ordered, ratio).clamp_max(len(ordered) - 1)
    below = (above - 1).clamp_min(0)
    nearest = torch.where((ordered[above] - ratio).abs() < (ordered[below] - ratio).abs(), above, below)
    exact = (ordered[nearest] - ratio).abs() <= 1e-3 / len(ordered) ** 2 + 1e-14
    return torch.where(there, order[nearest], -1), bool((exact | (~there & (marked == 0))).all())
