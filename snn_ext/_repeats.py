"""Tensors that are computed again in the backward pass, found in the graph of autograd: :func:`found_again`.

A casted weight and a convolution's output are known by their node. A sum is only supposed to be one of a norm's output
and of what is kept: it is computed at once and has to have the same bits, so that nothing is believed of a graph which
hides operations in place and says nothing of those without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._kept import Again, Kept, whole
from .ops.layout import in_memory_order

__all__ = ["MARK", "Norm", "found_again", "origin"]

MARK = "snn_ext"
"""Entry in the metadata of the node of a norm, a :class:`Norm`."""

Made = Mapping[tuple[Any, int], Kept]
"""The output of a node, as it is kept."""

_VIEWS = ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "AsStridedBackward", "AliasBackward")
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def origin(tensor: Tensor) -> tuple[Any, int]:
    """Return the node that made a tensor, views left out, and which output of it the tensor is; ``None`` for a leaf."""
    return _through_views(tensor.grad_fn, tensor.output_nr)


def found_again(tensor: Tensor, made: Made, convolutions: bool) -> Again | None:
    """Return how to compute a tensor again, with the same bits; ``None`` if it has to be kept.

    The output of a convolution, which takes most of the time of a net, only if that is wanted.
    """
    node, _ = origin(tensor)
    name = "" if node is None else node.name()
    if name.startswith("ToCopyBackward"):
        return _cast(tensor, node)
    if name.startswith("TBackward") and node.next_functions[0][0].name().startswith("ToCopyBackward"):
        return _cast(tensor.t(), node.next_functions[0][0])  # of a linear layer
    if name.startswith("ConvolutionBackward") and convolutions:
        return _convolution(tensor, node)
    if name.startswith("AddBackward") or "CopySlices" in name:
        return _sum(tensor, node, made)
    return None


# -- weights under autocast --------------------------------------------------------------------------------------------


def _cast(tensor: Tensor, node: Any) -> Again | None:
    parameter = getattr(node.next_functions[0][0], "variable", None)
    if parameter is None or tensor._version or parameter.device != tensor.device:
        return None
    if (parameter.shape, parameter.stride()) != (tensor.shape, tensor.stride()) or in_memory_order(tensor) is None:
        return None
    return Again(partial(_as_dtype, tensor.dtype), whole(parameter.detach()))


def _as_dtype(dtype: torch.dtype, parameter: Tensor) -> Tensor:
    return parameter.to(dtype)


# -- convolutions ------------------------------------------------------------------------------------------------------


def _convolution(tensor: Tensor, node: Any) -> Again | None:
    x, weight, bias = _saved(node, "input"), _saved(node, "weight"), _bias(node)
    has_bias = node._saved_bias_sym_sizes_opt not in (None, (0,))
    if x is None or weight is None or (has_bias and bias is None):
        return None
    if tensor._version or tensor.untyped_storage().nbytes() != tensor.nbytes:  # changed unseen, or a part
        return None
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    again = Again(partial(_convolved, *(getattr(node, f"_saved_{name}") for name in names)), x, weight, bias)
    again.hold(tensor.detach())  # for the sums that follow
    return again


def _saved(node: Any, name: str) -> Kept | None:
    """Return what a node keeps, if it was kept under our hooks."""
    found = getattr(node, f"_raw_saved_{name}").data
    return found if isinstance(found, Kept) else None


def _bias(node: Any) -> Kept | None:
    source = node.next_functions[2][0]  # none for a frozen bias
    if source is not None and source.name().startswith("ToCopyBackward"):
        source = source.next_functions[0][0]
    variable = getattr(source, "variable", None)
    return None if variable is None else whole(variable.detach())


def _convolved(*arguments: Any) -> Tensor:
    *settings, x, weight, bias = arguments
    bias = None if bias is None else bias.to(weight.dtype)
    found: Tensor = torch.ops.aten.convolution(x, weight, bias, *settings)
    return found


# -- sums --------------------------------------------------------------------------------------------------------------


class Norm(NamedTuple):
    """Left with the node of a norm: how to compute its output from its input and tensors of one element a channel."""

    compute: Callable[..., Tensor]
    tensors: tuple[Kept | None, ...]
    note_use: Callable[[], None]


def _sum(tensor: Tensor, node: Any, made: Made) -> Again | None:
    sources = [_through_views(*function) for function in node.next_functions]
    norms = [None if source is None else source.metadata.get(MARK) for source, _ in sources]
    norms = [norm if isinstance(norm, Norm) else None for norm in norms]
    if len(sources) != 2 or not any(norms) or tensor.element_size() not in _INTEGERS:
        return None
    pairs = zip(sources, norms, strict=True)
    kept = [made.get(source) if norm is None else _saved(source[0], "input") for source, norm in pairs]
    if any(k is None or not k.is_at_hand or math.prod(k.shape) != tensor.numel() for k in kept):
        return None
    parts = [k if norm is None else Again(norm.compute, k, *norm.tensors) for k, norm in zip(kept, norms, strict=True)]
    again = Again(partial(_added, tensor.shape, tensor.dtype), *parts)
    if not _have_same_bits(again.restore(), tensor.detach()):
        return None
    for norm in norms:
        if norm is not None:
            norm.note_use()
    return again


def _added(shape: tuple[int, ...], dtype: torch.dtype, a: Tensor, b: Tensor) -> Tensor:
    return torch.add(a.reshape(shape), b.reshape(shape)).to(dtype)


def _have_same_bits(found: Tensor, want: Tensor) -> bool:
    integers = _INTEGERS[want.element_size()]
    return found.stride() == want.stride() and torch.equal(found.view(integers), want.view(integers))


def _through_views(node: Any, output: int) -> tuple[Any, int]:
    while node is not None and node.name().startswith(_VIEWS):
        node, output = node.next_functions[0]
    return node, output
