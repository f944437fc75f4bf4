"""Multiplying the weights of a layer, per outgoing or per incoming channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..simulation.layers import rule_of

__all__ = ["affine_of", "fold_scale", "multiply", "per_channel", "scale_columns", "scale_rows", "shift_rows"]


def scale_rows(layer: Any, factor: Tensor) -> None:
    """Multiply the output of a layer: its weights and bias, by one number or one per outgoing channel."""
    factor = factor.double()
    weight = factor
    if len(factor) > 1 and rule_of(layer).transposed:  # [in, out / groups, ...]
        weight = _over(layer.weight, factor.reshape(layer.groups, 1, -1))
    elif len(factor) > 1:
        weight = factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    multiply(layer, "weight", weight)
    if layer.bias is not None:
        multiply(layer, "bias", factor)


def shift_rows(layer: Any, offset: Tensor) -> None:
    """Add one number per outgoing channel to the output of a layer: to its bias."""
    bias = offset.double() if layer.bias is None else layer.bias.detach().double() + offset
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


def scale_columns(layer: Any, factor: Tensor) -> None:
    """Multiply the input of a layer: its weights, by one number or one per incoming channel."""
    if len(factor) > 1 and rule_of(layer).transposed:
        factor = factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    elif len(factor) > 1:  # [out, in / groups, ...]
        factor = _over(layer.weight, factor.reshape(getattr(layer, "groups", 1), 1, -1))
    multiply(layer, "weight", factor)


def _over(weight: Tensor, rows: Tensor) -> Tensor:
    """Return factors ``[groups, 1, channels / groups]`` of dimension 1 for each element of dimension 0."""
    rows = rows.expand(-1, len(weight) // len(rows), -1)
    return rows.reshape(len(weight), -1, *[1] * (weight.ndim - 2))


def fold_scale(layer: Any, weight: Tensor, bias: Tensor | None, outputs: int) -> None:
    """Fold ``weight * x + bias`` behind a layer into it, in place."""
    scale_rows(layer, weight)
    if bias is not None:
        shift_rows(layer, bias.expand(outputs))


def per_channel(field: Tensor) -> Tensor | None:
    """Return the number ``[1]``, or those per channel ``[C]``, that a tensor repeats; ``None`` for any other."""
    if not bool((field != field.flatten()[0]).any()):
        return field.flatten()[:1]
    channels = field.transpose(0, 1).flatten(1) if field.ndim > 1 else field[:0].reshape(0, 1)
    return channels[:, 0] if len(channels) and bool((channels == channels[:, :1]).all()) else None


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """Return factor and offset per channel, float64, of a batch norm in evaluation."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    weight = deviation.reciprocal() if norm.weight is None else norm.weight.detach().double() / deviation
    offset = -norm.running_mean.double() * weight
    return weight, offset if norm.bias is None else offset + norm.bias.detach().double()


def multiply(module: Any, name: str, factor: Tensor) -> None:
    """Multiply a parameter or buffer in float64 and round once.

    The module gets a new one: the old one may belong to another module too, as tied weights do.
    """
    old: Tensor = getattr(module, name)
    new = (old.detach().double() * factor.to(old.device)).to(old.dtype)
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
