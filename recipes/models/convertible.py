"""Nets that are trained to be converted: plain torch layers, average pooling, no batch norm; by default no bias.

Each takes ``(classes, in_channels, width=..., size=...)``; ``size`` is the height and width of the images. They return
logits, and the autoencoder images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from .classifier import scaled

__all__ = ["autoencoder", "net1", "net2", "resnet", "resnet18", "resnet20", "resnet34", "vgg16", "with_projections"]

VGG = (64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512)
RESNETS = {
    18: ((64, 128, 256, 512), (2, 2, 2, 2)),
    20: ((16, 32, 64), (3, 3, 3)),
    34: ((64, 128, 256, 512), (3, 4, 6, 3)),
}


def vgg16(
    classes: int = 10,
    in_channels: int = 3,
    *,
    width: float = 1.0,
    size: int = 32,
    dropout: tuple[float, float] = (0.2, 0.5),
) -> nn.Sequential:
    """Build VGG-16 under the constraints of conversion: 13 convolutions, four average poolings, three linear layers.

    Parameters
    ----------
    classes, in_channels : int
        Outputs, and channels of the images.
    width : float
        Factor on all widths; 0.125 is a narrow net for a CPU.
    size : int
        Height and width of the images, at least 16.
    dropout : tuple of float
        Rates behind convolutions and behind linear layers; there is none before a pooling.

    Notes
    -----
    Source: Sengupta et al. 2019, section on constraints; the classifier and the rates are those of the group's later
    code.

    Examples
    --------
    >>> import torch
    >>> vgg16(width=0.125)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for i, entry in enumerate(VGG):
        if entry == "P":
            layers.append(nn.AvgPool2d(2))
            continue
        outputs = scaled(int(entry), width)
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.ReLU()]
        layers += [nn.Dropout(dropout[0])] * (VGG[i + 1 : i + 2] != ("P",))
        channels = outputs
    hidden = scaled(4096, width)
    layers += [
        nn.Flatten(), nn.Linear(channels * (size // 16) ** 2, hidden, bias=False), nn.ReLU(), nn.Dropout(dropout[1]),
        nn.Linear(hidden, hidden, bias=False), nn.ReLU(), nn.Dropout(dropout[1]),
        nn.Linear(hidden, classes, bias=False),
    ]  # fmt: skip
    return _initialised(nn.Sequential(*layers))


class ResidualUnit(nn.Module):
    """Two convolutions beside a shortcut without weights: strided subsampling and channels of zeros.

    With ``junction`` a ReLU follows the addition, ``relu(W_b relu(W_a x) + x)``; without, the second convolution has
    its own, and what travels on is a sum.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, junction: bool, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.relu1, self.dropout = nn.ReLU(), nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu2 = nn.Identity() if junction else nn.ReLU()
        self.stride, self.extra = stride, outputs - inputs
        self.projection: nn.Conv2d | None = None
        self.junction = nn.ReLU() if junction else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu2(self.conv2(self.dropout(self.relu1(self.conv1(x)))))
        return self.junction(branch + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the input in the shape of the output."""
        if self.projection is not None:
            return self.projection(x)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, 0, self.extra)) if self.extra else x


def with_projections(net: nn.Module) -> nn.Module:
    """Return a copy whose shortcuts that change the shape are fixed convolutions of one pixel, equal in value.

    SpikingJelly's converter knows them, and no padding with channels of zeros.

    Examples
    --------
    >>> import torch
    >>> net, x = resnet(20, width=0.25).eval(), torch.rand(2, 3, 32, 32)
    >>> torch.allclose(with_projections(net)(x), net(x))
    True
    """
    net = copy.deepcopy(net)
    for unit in net.modules():
        if isinstance(unit, ResidualUnit) and (unit.stride > 1 or unit.extra):
            weight = unit.conv1.weight
            conv = nn.Conv2d(weight.shape[1], unit.conv2.out_channels, 1, unit.stride, bias=False)
            nn.init.eye_(conv.weight.data[:, :, 0, 0])
            unit.projection = conv.to(weight.device).requires_grad_(False)
    return net


def resnet(
    depth: int, classes: int = 10, in_channels: int = 3, *, width: float = 1.0, size: int = 32, constraint: int = 3,
    dropout: float = 0.2,
) -> nn.Sequential:  # fmt: skip
    """Build a residual net in CIFAR shape under one of the constraints of Sengupta et al. 2019.

    Parameters
    ----------
    depth : {18, 20, 34}
        Stages 16-32-64 (20), or 64-128-256-512.
    classes, in_channels : int
        Outputs, and channels of the images.
    width : float
        Factor on all widths.
    size : int
        Not needed; every net of this module takes it.
    constraint : {0, 1, 2, 3}
        0: no ReLU at the junctions; 1: a ReLU at every junction; 2: the same net, its thresholds inside residual units
        are to be 1 (an option of the conversion); 3: as 2, and two plain convolutions in front.
    dropout : float
        Rate behind the ReLU inside the residual branch.

    Examples
    --------
    >>> import torch
    >>> resnet(20, width=0.25)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    widths, units = RESNETS[depth]
    channels = scaled(widths[0], width)
    layers: list[nn.Module] = []
    for inputs in (in_channels, *[channels] * (2 if constraint == 3 else 0)):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.ReLU()]
    for stage, (outputs, count) in enumerate(zip(widths, units, strict=True)):
        for unit in range(count):
            stride = 2 if stage > 0 and unit == 0 else 1
            layers.append(ResidualUnit(channels, scaled(outputs, width), stride, constraint > 0, dropout))
            channels = scaled(outputs, width)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes, bias=False)]
    return _initialised(nn.Sequential(*layers))


def _resnet(depth: int) -> Callable[..., nn.Sequential]:
    def build(*args: int, **options: float) -> nn.Sequential:
        return resnet(depth, *args, **options)  # type: ignore[arg-type]

    build.__doc__ = f"Build :func:`resnet` of depth {depth}."
    return build


resnet18, resnet20, resnet34 = _resnet(18), _resnet(20), _resnet(34)


def net1(classes: int = 10, in_channels: int = 1, *, width: float = 1.0, size: int = 28) -> nn.Sequential:
    """Build Net 1 of Hwang et al. 2021: 3C20-5C50-FC50-FC10, stride 1, no padding, no pooling, dropout 0.5.

    Examples
    --------
    >>> import torch
    >>> net1(width=0.25)(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    first, second, hidden = scaled(20, width), scaled(50, width), scaled(50, width)
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 3), nn.ReLU(), nn.Conv2d(first, second, 5), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(second * (size - 6) ** 2, hidden), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(hidden, classes),
    )  # fmt: skip


def net2(classes: int = 10, in_channels: int = 3, *, width: float = 1.0, size: int = 32) -> nn.Sequential:
    """Build Net 2 of Hwang et al. 2021: 3C96-3C96(2)-3C192-3C192-3C192(2)-3C192-1C192-1C10-GAP.

    The ReLU stands on the ten maps, before the pooling. Which layers have the dropout of 0.5 is not known; here those
    behind the two convolutions of stride 2.

    Examples
    --------
    >>> import torch
    >>> net2(width=0.125)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    narrow, wide = scaled(96, width), scaled(192, width)
    layout = (
        (narrow, 3, 1),
        (narrow, 3, 2),
        (wide, 3, 1),
        (wide, 3, 1),
        (wide, 3, 2),
        (wide, 3, 1),
        (wide, 1, 1),
        (classes, 1, 1),
    )
    layers: list[nn.Module] = []
    channels = in_channels
    for outputs, kernel, stride in layout:
        layers += [nn.Conv2d(channels, outputs, kernel, stride, padding=kernel // 2), nn.ReLU()]
        layers += [nn.Dropout(0.5)] * (stride == 2)
        channels = outputs
    return _initialised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def autoencoder(in_channels: int = 3, *, width: float = 1.0) -> nn.Sequential:
    """Build Net 3 of Hwang et al. 2021: 3C96-3C96(2)-3C32(2)-3C16(2)-3CT32(2)-3CT96(2)-3CT96(2)-3CT3.

    ``[N, C, H, W]`` to the same shape; height and width have to be multiples of 8. All outputs are ReLUs.

    Examples
    --------
    >>> import torch
    >>> autoencoder(width=0.25)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 3, 32, 32])
    """
    c96, c32, c16 = scaled(96, width), scaled(32, width), scaled(16, width)
    layers: list[nn.Module] = []
    channels = in_channels
    for outputs, stride in ((c96, 1), (c96, 2), (c32, 2), (c16, 2)):
        layers += [nn.Conv2d(channels, outputs, 3, stride, padding=1), nn.ReLU()]
        channels = outputs
    for outputs, stride in ((c32, 2), (c96, 2), (c96, 2), (in_channels, 1)):
        layers += [nn.ConvTranspose2d(channels, outputs, 3, stride, padding=1, output_padding=stride - 1), nn.ReLU()]
        channels = outputs
    return _initialised(nn.Sequential(*layers))


def _initialised(net: nn.Sequential) -> nn.Sequential:
    """Initialise as Sengupta et al. 2019: N(0, sqrt(2 / (k^2 n))), inside residual units N(0, sqrt(2) / (k^2 n)).

    n is the number of outputs. Linear layers, of which nothing is said, get He et al.'s; the last one torch's default.
    """
    inside = {id(module) for unit in net.modules() if isinstance(unit, ResidualUnit) for module in unit.modules()}
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            connections = module.out_channels * module.kernel_size[0] ** 2
            nn.init.normal_(module.weight, 0.0, 2**0.5 / (connections if id(module) in inside else connections**0.5))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif module in linear[:-1]:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net
