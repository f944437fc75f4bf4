"""Trained nets that come along, so that nobody has to train one first.

They are trained on the JPEG copy of CIFAR-10 and named for it. Each is a run of ``recipes.train_analog``, whose options
the file keeps: of ``--model resnet20-bn --epochs 36 --amp`` or ``--model vgg16-bn --width 0.25 --epochs 30``, both with
``--data cifar10-jpeg --inputs channels``. The file is written by

``python -m recipes.makers.shipped_net --run RUN --target recipes/models/NAME.pt``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lib.checkpoints import load_checkpoint, load_weights
from ..lib.files import intact
from . import cifar

__all__ = ["SHIPPED", "ShippedNet", "load_shipped", "rebuilt", "shipped_file", "untrained"]

SHIPPED = {name: Path(__file__).parent / f"{name}.pt" for name in ("resnet20-cifar10-jpeg", "vgg16-cifar10-jpeg")}
"""File of each net, by name."""
_BUILDERS = {"resnet20-bn": cifar.resnet20, "vgg16-bn": cifar.vgg16}


@dataclass
class ShippedNet:
    """A trained net and what its images have to be.

    Attributes
    ----------
    net : nn.Module
        In eval mode, from images ``[N, C, size, size]`` in [0, 1], less ``mean``, to logits ``[N, classes]``.
    name : str
        Of the net and its data.
    mean : Tensor
        Of each channel, ``[C]``.
    classes : tuple of str
        Their names.
    accuracy : float
        Share of the test images that are classified right, with the weights as they are in the file.
    size : int
        Height and width of the images.
    settings : dict
        Options of the training.
    """

    net: nn.Module
    name: str
    mean: Tensor
    classes: tuple[str, ...]
    accuracy: float
    size: int
    settings: Mapping[str, Any]


def load_shipped(name: str, device: torch.device | str = "cpu") -> ShippedNet:
    """Load a trained net that comes along.

    Parameters
    ----------
    name : str
        ``"resnet20-cifar10-jpeg"``: ResNet-20 with batch norm, of 0.27 million parameters;
        ``"vgg16-cifar10-jpeg"``: VGG-16 of a quarter of the width, with batch norm, of 0.92 million.
    device : torch.device or str
        Where the net goes.

    Raises
    ------
    ValueError
        If there is no net of that name.

    Examples
    --------
    >>> from snn_ext.recipes.models.trained import load_shipped
    >>> resnet = load_shipped("resnet20-cifar10-jpeg")
    >>> resnet.net(torch.rand(2, 3, 32, 32) - resnet.mean[:, None, None]).shape
    torch.Size([2, 10])
    """
    if name not in SHIPPED:
        raise ValueError(f"name: got {name!r}, want one of {', '.join(SHIPPED)}")
    return shipped_file(SHIPPED[name], device)


def shipped_file(path: Path, device: torch.device | str = "cpu") -> ShippedNet:
    """Load a file that ``python -m recipes.makers.shipped_net`` has written."""
    content = load_checkpoint("path", path, "recipes.makers.shipped_net")
    with intact(path, "a trained net that comes along", "restore a copy of it"):
        return rebuilt(content, path.stem, device)


def rebuilt(content: Mapping[str, Any], name: str, device: torch.device | str = "cpu") -> ShippedNet:
    """Build the net of which a file has the weights, mean, classes, size, accuracy and settings."""
    settings, mean, classes = content["settings"], content["mean"], tuple(content["classes"])
    net = _built(settings, len(classes), len(mean), content["size"])
    load_weights(net, content["model"])
    net.to(device).eval()
    return ShippedNet(net, name, mean.to(device), classes, content["accuracy"], content["size"], settings)


def untrained(shipped: ShippedNet) -> nn.Sequential:
    """Build a net that comes along with new weights."""
    return _built(shipped.settings, len(shipped.classes), len(shipped.mean), shipped.size)


def _built(settings: Mapping[str, Any], classes: int, channels: int, size: int) -> nn.Sequential:
    return _BUILDERS[settings["model"]](classes, channels, width=settings["width"], size=size)
