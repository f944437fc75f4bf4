"""VGG-16 in CIFAR shape."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import nn

from .classifier import Classifier, conv_norm, scaled, stem_conv_norm

__all__ = ["POOLING", "vgg16"]

LAYOUT = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


POOLING = {"max": layer.MaxPool2d, "avg": layer.AvgPool2d}


def vgg16(
    classes: int = 10, in_channels: int = 3, *, width: float = 1.0, norm: bool = True, pool: str = "max"
) -> Classifier:
    """Build VGG-16: 13 convolutions of 3x3 and three linear layers, with 15 activations.

    Parameters
    ----------
    classes : int
        Number of outputs.
    in_channels : int
        Channels of the images, which are 28x28 or 32x32.
    width : float
        Factor on all widths; 0.125 is a narrow net for a CPU.
    norm : bool
        Batch norm after each convolution.
    pool : {"max", "avg"}
        The layout says "max". On spikes that is the maximum at each step, whose mean over time is not the maximum of
        the means: a net that is to be trained as an analog one and then given neurons does better with "avg".

    Returns
    -------
    Classifier

    Notes
    -----
    Source: Castagnetti et al. 2023; the layout is that of the authors' later code. Each activation has its own module.

    Examples
    --------
    >>> import torch
    >>> vgg16(width=0.125)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    channels = scaled(LAYOUT[0], width)
    stem = stem_conv_norm(in_channels, channels, norm)
    body: list[nn.Module] = [nn.ReLU()]
    for entry in LAYOUT[1:]:
        if entry == "M":
            body.append(POOLING[pool](2, ceil_mode=True))  # ceil: 28 goes 14, 7, 4, 2, 1, and 32 as ever
        else:
            body += [*conv_norm(channels, scaled(entry, width), norm), nn.ReLU()]
            channels = scaled(entry, width)
    body += [layer.Flatten(), layer.Linear(channels, channels), nn.ReLU(), layer.Linear(channels, channels), nn.ReLU()]
    body.append(layer.Linear(channels, classes))
    return Classifier(stem, nn.Sequential(*body))
