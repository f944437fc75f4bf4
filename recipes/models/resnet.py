"""ResNet-18 and ResNet-8 in CIFAR shape, with an activation at the end of each branch."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from .classifier import Classifier, conv_norm, scaled, stem_conv_norm

__all__ = ["resnet8", "resnet18"]


class Block(nn.Module):
    """Two convolutions beside a shortcut; each branch ends in its own activation, then the two are added.

    So what travels on is the sum of two spikes, 0, 1 or 2 (times their thresholds), and every convolution is fed by
    spikes. In the analog net the activation of an identity shortcut does nothing, as its input is not negative.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_norm(inputs, outputs, norm, stride=stride),
            nn.ReLU(),
            *conv_norm(outputs, outputs, norm),
            nn.ReLU(),
        )
        identity = stride == 1 and inputs == outputs
        projection = [] if identity else conv_norm(inputs, outputs, norm, kernel=1, stride=stride)
        self.shortcut = nn.Sequential(*projection, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(x)


def resnet18(classes: int = 10, in_channels: int = 3, *, width: float = 1.0, norm: bool = True) -> Classifier:
    """Build ResNet-18: a 3x3 stem, then 64-128-256-512 channels with two basic blocks each; 25 activations.

    Parameters
    ----------
    classes : int
        Number of outputs.
    in_channels : int
        Channels of the images, of any size from 8x8.
    width : float
        Factor on all widths; 0.125 is a narrow net for a CPU.
    norm : bool
        Batch norm after each convolution.

    Returns
    -------
    Classifier

    Notes
    -----
    Source: Castagnetti et al. 2023 for the layout; the addition of spikes, one neuron a branch, is that of the
    authors' later code, and whether the paper had it is not known. Down-sampling is a convolution of stride 2.

    Examples
    --------
    >>> import torch
    >>> resnet18(classes=35, in_channels=1, width=0.125)(torch.rand(2, 1, 48, 10)).shape
    torch.Size([2, 35])
    """
    return _resnet((64, 128, 256, 512), 2, classes, in_channels, width, norm)


def resnet8(classes: int = 10, in_channels: int = 3, *, width: float = 1.0, norm: bool = True) -> Classifier:
    """Build ResNet-8: a 3x3 stem, then 16-32-64 channels with one basic block each; 10 activations.

    Parameters
    ----------
    classes, in_channels, width, norm
        As of :func:`resnet18`.

    Returns
    -------
    Classifier

    Notes
    -----
    The layout is He et al.'s for small images with one block a stage.

    Examples
    --------
    >>> import torch
    >>> resnet8(classes=35, in_channels=1)(torch.rand(2, 1, 48, 10)).shape
    torch.Size([2, 35])
    """
    return _resnet((16, 32, 64), 1, classes, in_channels, width, norm)


def _resnet(
    widths: tuple[int, ...], blocks: int, classes: int, in_channels: int, width: float, norm: bool
) -> Classifier:
    channels = scaled(widths[0], width)
    stem = stem_conv_norm(in_channels, channels, norm)
    body: list[nn.Module] = [nn.ReLU()]
    for stage, outputs in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            inputs, channels = channels, scaled(outputs, width)
            body.append(Block(inputs, channels, stride, norm))
    body += [layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, classes)]
    return Classifier(stem, nn.Sequential(*body))
