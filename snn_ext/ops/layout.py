"""From tensors in any dense layout with time outermost to arrays that are ``[T][N]`` and ``[N]`` in memory."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "as_step_of", "as_steps_of", "dense", "empty_step", "flat", "in_memory_order", "in_order_of", "is_one", "savable",
]  # fmt: skip


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


def in_memory_order(tensor: Tensor) -> Tensor | None:
    """Return the elements of a dense tensor as they follow each other in memory; ``None`` for gaps or overlap.

    Examples
    --------
    >>> x = torch.arange(6).reshape(2, 3)
    >>> in_memory_order(x.T), in_memory_order(x[:, :2]), in_memory_order(x[:1].expand(2, 3))
    (tensor([0, 1, 2, 3, 4, 5]), None, None)
    """
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return None
            expected *= size
    return tensor.as_strided((tensor.numel(),), (1,))


def in_order_of(x_seq: Tensor, other: Tensor) -> Tensor:
    """Return a tensor of the shape of a dense sequence with its elements in the same order of memory."""
    if _same_strides(other, x_seq.stride(), x_seq.shape):
        return other
    return torch.empty_strided(x_seq.shape, x_seq.stride(), dtype=other.dtype, device=other.device).copy_(other)


def as_step_of(x_seq: Tensor, v: Tensor) -> Tensor:
    """Return a tensor of the shape of one step of a dense sequence with its elements in the same order of memory."""
    if _same_strides(v, x_seq.stride()[1:], x_seq.shape[1:]):
        return v
    return empty_step(x_seq, v.dtype).copy_(v)


def as_steps_of(x_seq: Tensor, stack: Tensor) -> Tensor:
    """Return ``[K, N, ...]`` with each of the K in the order of memory of one step of a dense sequence."""
    strides = (x_seq[0].numel(), *x_seq.stride()[1:])
    if _same_strides(stack, strides, stack.shape):
        return stack
    return torch.empty_strided(stack.shape, strides, dtype=stack.dtype, device=stack.device).copy_(stack)


def empty_step(x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor of the shape and layout of one step of a dense sequence."""
    return torch.empty_strided(x_seq.shape[1:], x_seq.stride()[1:], dtype=dtype, device=x_seq.device)


def is_one(v: Tensor) -> bool:
    """Return True if a tensor is one element, expanded or not.

    Examples
    --------
    >>> is_one(torch.ones(1, 1).expand(2, 3)), is_one(torch.ones(3).expand(2, 3))
    (True, False)
    """
    return not any(v.stride()) or v.numel() == 1


def savable(tensor: Tensor) -> Tensor:
    """Return a tensor that may be kept for a backward pass: a state may come from ``torch.inference_mode``.

    Examples
    --------
    >>> with torch.inference_mode():
    ...     v = torch.ones(1)
    >>> savable(v).is_inference()
    False
    """
    return tensor.clone() if tensor.is_inference() else tensor


def flat(array: Tensor, *shape: int) -> Tensor:
    """Return the memory of a dense tensor as ``shape``, contiguous."""
    return array.as_strided(shape, (*shape[1:], 1))


def _same_strides(tensor: Tensor, strides: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    found = tensor.stride()
    return found == strides or all(a == b or n == 1 for a, b, n in zip(found, strides, shape, strict=True))
