"""A small convolutional net for 28x28 grey images."""

from __future__ import annotations

import copy

from spikingjelly.activation_based import layer
from torch import nn

from snn_ext import ConstantInputNet

__all__ = ["plain", "small_cnn"]


def small_cnn(channels: tuple[int, int, int] = (8, 32, 64), classes: int = 10) -> ConstantInputNet:
    """Build three convolutions of 3x3, each with batch norm, an activation and average pooling; then a read-out.

    Parameters
    ----------
    channels : tuple of int
        Channels of the three convolutions.
    classes : int
        Number of outputs.

    Returns
    -------
    ConstantInputNet
        ``[N, 1, 28, 28]`` to ``[N, classes]``; analog as built.

    Examples
    --------
    >>> import torch
    >>> small_cnn()(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    first, second, third = channels
    stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first))
    body = nn.Sequential(
        nn.ReLU(),
        layer.AvgPool2d(2),
        layer.Conv2d(first, second, 3, padding=1, bias=False),
        layer.BatchNorm2d(second),
        nn.ReLU(),
        layer.AvgPool2d(2),
        layer.Conv2d(second, third, 3, padding=1, bias=False),
        layer.BatchNorm2d(third),
        nn.ReLU(),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(9 * third, classes),
    )
    return ConstantInputNet(body, stem=stem)


def plain(net: ConstantInputNet) -> nn.Sequential:
    """Return an analog net as a copy of ``torch.nn`` layers alone, which every converter reads."""
    layers = copy.deepcopy([*net.stem, *net.body])
    for module in layers:
        module.__class__ = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn"))
    return nn.Sequential(*layers).eval()
