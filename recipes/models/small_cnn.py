"""A small convolutional net for 28x28 grey images; any net of plain layers over time, and back."""

from __future__ import annotations

import copy

from spikingjelly.activation_based import layer
from torch import nn

from snn_ext import ConstantInputNet

__all__ = ["over_time", "plain", "small_cnn"]


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


def over_time(ann: nn.Sequential) -> ConstantInputNet:
    """Return a copy of an analog net whose convolution, norm and pooling layers take steps: the way back of `plain`.

    The first convolution and its norm become the stem, which sees the constant input once.

    Examples
    --------
    >>> import torch
    >>> from recipes.models.cifar import resnet20
    >>> ann, x = resnet20(width=0.25).eval(), torch.rand(2, 3, 32, 32)
    >>> bool((over_time(ann)(x) == ann(x)).all())
    True
    """
    layers = copy.deepcopy(list(ann))
    stem, body = nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:])
    for module in body.modules():
        kind = getattr(layer, type(module).__name__, None)
        if kind is not None and issubclass(kind, type(module)):
            module.__class__ = kind
            module.step_mode = "s"
    return ConstantInputNet(body, stem=stem).train(ann.training)
