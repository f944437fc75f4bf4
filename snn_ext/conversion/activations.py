"""Activations in all their spellings: modules, functions and methods that become layers of neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..neurons.aan import AAN
from ..neurons.base import non_increasing, positive
from ..neurons.quantized import (
    NonUniformQuantizedReLU,
    QuantizedActivation,
    QuantizedReLU,
    nonuniform_quantized_relu,
    quantized_relu,
)
from .graph_tools import Operation

__all__ = ["ACTIVATIONS", "Activation"]


@dataclass(frozen=True)
class Activation:
    """The function that one layer of neurons stands for: a rectifier, perhaps clipped or quantised.

    Attributes
    ----------
    clip : float or None
        Largest value, of a ReLU6 or a clamp.
    quantized : QuantizedActivation or None
        The module, where the activation is quantised: its threshold and rounding, or its points, are the neuron's.
    points : tuple of float or None
        Quantisation points in units of the first, of neurons that are calibrated with a threshold for each step.
    adaptive : AAN or None
        The module, where the activation is that of adaptive spiking neurons: its constants are the neuron's.
    """

    clip: float | None = None
    quantized: QuantizedActivation | None = None
    points: tuple[float, ...] | None = None
    adaptive: AAN | None = None

    def module(self) -> nn.Module:
        """Return the activation as a module."""
        own = self.quantized or self.adaptive
        if own is not None:
            return own
        return nn.ReLU() if self.clip is None else nn.Hardtanh(0.0, self.clip)

    @property
    def kind(self) -> str:
        """The name of the activation in error messages."""
        if self.quantized is not None:
            return type(self.quantized).__name__
        if self.adaptive is not None:
            return "AAN"
        return "ReLU" if self.clip is None else f"ReLU with a clip at {self.clip:g},"


def _clipped(operation: Operation, low: Any, high: Any) -> Activation:
    if not all(bound is None or isinstance(bound, int | float) for bound in (low, high)):
        operation.refuse(" with bounds that are computed", "numbers")
    if low is None or float(low) != 0.0:
        operation.refuse(f" with a lower bound of {low}", "0, for a firing rate is not negative")
    if high is not None and not float(high) > 0:
        operation.refuse(f" with an upper bound of {high}", "a positive one")
    return Activation(clip=None if high is None or float(high) == float("inf") else float(high))


def _clamp(operation: Operation) -> Activation:
    return _clipped(operation, operation.argument(1, "min"), operation.argument(2, "max"))


def _hardtanh(operation: Operation) -> Activation:
    return _clipped(operation, operation.argument(1, "min_val", -1.0), operation.argument(2, "max_val", 1.0))


def _quantized(operation: Operation) -> Activation:
    levels, rounding = operation.argument(2, "levels"), operation.argument(3, "rounding")
    return Activation(quantized=QuantizedReLU(levels, float(_parameter(operation, "threshold")), rounding))


def _nonuniform(operation: Operation) -> Activation:
    p = _parameter(operation, "p").detach()
    return Activation(quantized=NonUniformQuantizedReLU(len(p), non_increasing(positive(p))))


def _parameter(operation: Operation, name: str) -> Any:
    found: Any = operation.graph
    for part in str(operation.argument(1, name).target).split("."):
        found = getattr(found, part)
    return found


ACTIVATIONS: dict[Any, Callable[[Operation], Activation]] = {
    nn.ReLU: lambda operation: Activation(),
    nn.Hardtanh: lambda o: _clipped(o, o.module.min_val, o.module.max_val),  # ReLU6 is one
    **dict.fromkeys((QuantizedReLU, NonUniformQuantizedReLU), lambda o: Activation(quantized=o.module)),
    AAN: lambda operation: Activation(adaptive=operation.module),
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"), lambda operation: Activation()),
    F.relu6: lambda operation: Activation(clip=6.0),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hardtanh),
    **dict.fromkeys((torch.clamp, torch.clip, torch.clamp_, "clamp", "clip", "clamp_", "clip_"), _clamp),
    **dict.fromkeys((torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"), _clamp),
    quantized_relu: _quantized,
    nonuniform_quantized_relu: _nonuniform,
}
"""From the class of a module, a function, or the name of a tensor method to the activation that a call of it is."""
