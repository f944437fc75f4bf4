"""Nets of AANs, to be converted to adaptive spiking neurons: layouts in the notation of Zambrano et al. 2017.

Every net begins with a BN-AAN layer on the raw input, which turns pixels into spikes, and returns logits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from snn_ext import AAN, BNAAN

from .classifier import scaled

__all__ = ["check_layout", "layout_net", "preact_resnet18"]

Activation = Callable[[], nn.Module]


def layout_net(
    layout: str, inputs: tuple[int, ...], classes: int, *, dropout: float = 0.0, activation: Activation = AAN
) -> nn.Sequential:
    """Build a net from a layout such as ``"2x64c3-m2-d256"``.

    Parameters
    ----------
    layout : str
        ``64c3`` a convolution of 64 channels and kernel 3, ``m2`` and ``a2`` a maximum and an average pooling, ``d256``
        a linear layer; ``2x`` repeats. A read-out follows. Pooling stands between batch norm and activation, where it
        is merged into the neurons.
    inputs : tuple of int
        Shape of a sample, ``(C, H, W)`` or ``(F,)``.
    classes : int
        Outputs.
    dropout : float
        Behind activations without a pooling.
    activation : callable
        Makes one; ``nn.ReLU`` for the net that adaptive spike heights are shown on.

    Examples
    --------
    >>> import torch
    >>> layout_net("8c3-m2-d16", (1, 28, 28), 10)(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    entries = list(_entries(layout))
    first = BNAAN(inputs[0], dims=0 if len(inputs) == 1 else 2)
    layers: list[nn.Module] = [first[0], activation()]
    channels, size = inputs[0], inputs[1:]
    for i, (kind, number, kernel) in enumerate(entries):
        if kind == "c":
            layers += [nn.Conv2d(channels, number, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(number)]
            channels = number
        elif kind == "d":
            flat = channels * math.prod(size)
            layers += [nn.Flatten()] * bool(size) + [nn.Linear(flat, number, bias=False), nn.BatchNorm1d(number)]
            channels, size = number, ()
        else:
            layers.append((nn.MaxPool2d if kind == "m" else nn.AvgPool2d)(number))
            size = tuple(n // number for n in size)
        pooled = entries[i + 1 : i + 2] and entries[i + 1][0] in "ma"
        if not pooled:
            layers += [activation()] + [nn.Dropout(dropout)] * (kind in "cd" and dropout > 0)
    layers += [nn.Flatten()] * bool(size) + [nn.Linear(channels * math.prod(size), classes)]
    return nn.Sequential(*layers)


def check_layout(layout: str) -> None:
    """Raise ``ValueError`` if a layout has a part that is none."""
    list(_entries(layout))


def _entries(layout: str) -> Iterator[tuple[str, int, int]]:
    for part in layout.split("-"):
        found = re.fullmatch(r"(?:([1-9]\d*)x)?(?:([1-9]\d*)c([1-9]\d*)|([mad])([1-9]\d*))", part)
        if not found:
            raise ValueError(f"layout: got {part!r} in {layout!r}, want parts such as 64c3, 2x64c3, m2, a2, d256")
        times, channels, kernel, kind, number = found.groups()
        for _ in range(int(times or 1)):
            yield ("c", int(channels), int(kernel)) if channels else (kind, int(number), 0)


class PreactivationUnit(nn.Module):
    """Batch norm and activation before each convolution, and a shortcut that nothing but a sum touches."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), activation())
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), activation(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )  # fmt: skip
        projected = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.branch(y) + (x if self.shortcut is None else self.shortcut(y))


def preact_resnet18(
    classes: int = 1000, in_channels: int = 3, *, width: float = 1.0, size: int = 224, activation: Activation = AAN
) -> nn.Sequential:
    """Build ResNet-18 with identity mappings, BN-AAN in front; for small images without the stride of its stem.

    The sums of a junction are currents, which go on until an activation.

    Examples
    --------
    >>> import torch
    >>> preact_resnet18(10, 3, width=0.125, size=32)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    channels = scaled(64, width)
    large = size > 64
    stem = nn.Conv2d(in_channels, channels, 7 if large else 3, 2 if large else 1, padding=3 if large else 1, bias=False)
    layers: list[nn.Module] = [BNAAN(in_channels)[0], activation(), stem]
    if large:
        layers += [nn.BatchNorm2d(channels), nn.MaxPool2d(3, 2, padding=1), activation()]
    for stage, (wide, units) in enumerate(zip((64, 128, 256, 512), (2, 2, 2, 2), strict=True)):
        for unit in range(units):
            stride = 2 if stage and unit == 0 else 1
            layers.append(PreactivationUnit(channels, scaled(wide, width), stride, activation))
            channels = scaled(wide, width)
    layers += [
        nn.BatchNorm2d(channels),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    ]
    return nn.Sequential(*layers)
