"""Nets with batch norm for small colour images, as people train them: ResNet-20 of He et al. 2016 and VGG-16.

Each takes ``(classes, in_channels, width=..., size=...)``, as the nets of :mod:`recipes.models.convertible` do.
"""

from __future__ import annotations

from torch import Tensor, nn

from .classifier import scaled
from .convertible import VGG

__all__ = ["resnet20", "small_cnn", "vgg16"]


def resnet20(classes: int = 10, in_channels: int = 3, *, width: float = 1.0, size: int = 32) -> nn.Sequential:
    """Build ResNet-20 for images of 32x32: stages of 16, 32 and 64 channels, three residual units each.

    Parameters
    ----------
    classes, in_channels : int
        Outputs, and channels of the images.
    width : float
        Factor on all widths; 1 has 0.27 million parameters.
    size : int
        Not needed; every net that is trained to be converted takes it.

    Notes
    -----
    Source: He et al. 2016, section 4.2. A shortcut that changes the shape is a convolution of one pixel with a batch
    norm (their option B), because the converter of SpikingJelly knows it.

    Examples
    --------
    >>> import torch
    >>> resnet20(width=0.25)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    channels = scaled(16, width)
    layers: list[nn.Module] = [*_conv_norm(in_channels, channels), nn.ReLU()]
    for stage, outputs in enumerate((16, 32, 64)):
        for unit in range(3):
            layers.append(ResidualUnit(channels, scaled(outputs, width), 2 if stage > 0 and unit == 0 else 1))
            channels = scaled(outputs, width)
    return _initialised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)))


class ResidualUnit(nn.Module):
    """``relu(norm(W_b relu(norm(W_a x))) + shortcut(x))``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = _conv_norm(inputs, outputs, stride=stride), _conv_norm(outputs, outputs)
        self.branch = nn.Sequential(*first, nn.ReLU(), *second)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def vgg16(classes: int = 10, in_channels: int = 3, *, width: float = 1.0, size: int = 32) -> nn.Sequential:
    """Build VGG-16 with batch norm, average pooling and one linear layer behind its 13 convolutions.

    Parameters
    ----------
    classes, in_channels : int
        Outputs, and channels of the images.
    width : float
        Factor on all widths; 0.25 has 0.92 million parameters.
    size : int
        Height and width of the images, at least 16.

    Notes
    -----
    Source: Simonyan and Zisserman 2015, configuration D, with the batch norm and the single classifier that are common
    for images of 32x32. The last of five poolings takes the mean of what is left of the map.

    Examples
    --------
    >>> import torch
    >>> vgg16(width=0.125)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for entry in VGG:
        if entry == "P":
            layers.append(nn.AvgPool2d(2))
        else:
            layers += [*_conv_norm(channels, scaled(int(entry), width)), nn.ReLU()]
            channels = scaled(int(entry), width)
    return _initialised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)))


def small_cnn(classes: int = 10, in_channels: int = 3, *, width: float = 1.0, size: int = 32) -> nn.Sequential:
    """Build the net of the quickstart: three convolutions of 8, 32 and 64 channels, each before average pooling.

    Examples
    --------
    >>> import torch
    >>> small_cnn(in_channels=1, size=28)(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for outputs in (8, 32, 64):
        layers += [*_conv_norm(channels, scaled(outputs, width)), nn.ReLU(), nn.AvgPool2d(2)]
        channels = scaled(outputs, width)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (size // 8) ** 2, classes))


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


def _initialised(net: nn.Sequential) -> nn.Sequential:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
