"""From tensors in any dense layout with time outermost to the flat arrays of an execution."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense", "empty_step", "flat_like", "flat_or_one", "flat_seq", "flat_step"]


def dense(x_seq: Tensor) -> Tensor:
    """Return ``[T, N, ...]`` as it is if its steps follow each other and have no gaps, whatever the order inside.

    Examples
    --------
    >>> x_seq = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    >>> dense(x_seq) is x_seq, dense(x_seq.transpose(0, 1)).is_contiguous()
    (True, True)
    """
    if x_seq.is_contiguous():
        return x_seq
    expected = 1
    for stride, size in sorted(zip(x_seq.stride()[1:], x_seq.shape[1:], strict=True)):
        if size != 1:
            if stride != expected:
                return x_seq.contiguous()
            expected *= size
    return x_seq if x_seq.shape[0] == 1 or x_seq.stride(0) == expected else x_seq.contiguous()


def flat_seq(x_seq: Tensor) -> Tensor:
    """Return a dense sequence as ``[T, N]``, the neurons in the order of memory."""
    size = x_seq.numel() // x_seq.shape[0]
    return x_seq.as_strided((x_seq.shape[0], size), (size, 1))


def flat_like(other: Tensor, x_seq: Tensor) -> Tensor:
    """Return a tensor of the shape of a dense sequence as ``[T, N]``, its neurons in the order of that sequence."""
    if not _same_order(other.stride(), x_seq):
        other = torch.empty_strided(x_seq.shape, x_seq.stride(), dtype=other.dtype, device=other.device).copy_(other)
    return flat_seq(other)


def flat_step(v: Tensor, x_seq: Tensor) -> Tensor:
    """Return a tensor of the shape of one step as ``[N]``, its neurons in the order of a dense sequence."""
    if not _same_order((0, *v.stride()), x_seq[:1]):
        v = empty_step(x_seq, v.dtype).copy_(v)
    return v.as_strided((v.numel(),), (1,))


def flat_or_one(v: Tensor, x_seq: Tensor) -> Tensor:
    """Do as :func:`flat_step`, but return one element that is expanded to the shape of a step as ``[1]``."""
    if all(stride == 0 or size == 1 for stride, size in zip(v.stride(), v.shape, strict=True)):
        return v.as_strided((1,), (1,))
    return flat_step(v, x_seq)


def empty_step(x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor of the shape and layout of one step of a dense sequence."""
    return torch.empty_strided(x_seq.shape[1:], x_seq.stride()[1:], dtype=dtype, device=x_seq.device)


def _same_order(strides: tuple[int, ...], x_seq: Tensor) -> bool:
    return all(a == b or n == 1 for a, b, n in zip(strides, x_seq.stride(), x_seq.shape, strict=True))
