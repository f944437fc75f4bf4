"""The nets that are to be converted: the papers' layouts and constraints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from recipes.models import cifar, convertible  # noqa: E402
from recipes.models.convertible import autoencoder, net1, net2, resnet, vgg16  # noqa: E402

SHAPES = [(1, 28), (3, 32)]


@pytest.mark.parametrize(("channels", "size"), SHAPES)
@pytest.mark.parametrize(
    "build",
    [vgg16, convertible.resnet18, convertible.resnet20, convertible.resnet34, net1, net2, cifar.resnet20, cifar.vgg16],
)
def test_output_has_one_value_a_class(build: object, channels: int, size: int) -> None:
    net = build(7, channels, width=0.0625, size=size).eval()  # type: ignore[operator]
    assert net(torch.rand(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("build", [vgg16, convertible.resnet18, convertible.resnet20, convertible.resnet34])
def test_nets_of_spike_norm_have_no_bias_no_batch_norm_and_no_maximum(build: object) -> None:
    net = build(width=0.0625)  # type: ignore[operator]
    for module in net.modules():
        assert not isinstance(module, nn.BatchNorm2d | nn.MaxPool2d)
        assert getattr(module, "bias", None) is None


def test_sizes_are_those_of_the_papers() -> None:
    def layers(net: nn.Module) -> list[nn.Module]:
        return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)]

    assert len(layers(vgg16(width=0.0625))) == 16
    assert len(layers(cifar.vgg16(width=0.0625))) == 14
    assert len(layers(cifar.resnet20(width=0.0625))) == 20 + 2  # two shortcuts change the shape
    assert len(layers(resnet(20, constraint=1))) == 20 and len(layers(resnet(20, constraint=3))) == 22
    assert len(layers(resnet(34, width=0.0625, constraint=1))) == 34
    latent = nn.Sequential(*autoencoder()[:8])(torch.zeros(1, 3, 32, 32))
    assert latent.shape == (1, 16, 4, 4)
    assert net1()(torch.zeros(1, 1, 28, 28)).shape == (1, 10) and net1()[6].in_features == 24_200


@pytest.mark.parametrize(("constraint", "negative"), [(0, False), (1, False), (3, False)])
def test_shortcut_of_a_residual_net_has_no_weights(constraint: int, negative: bool) -> None:
    unit = convertible.ResidualUnit(4, 8, 2, constraint > 0, 0.0).eval()
    nn.init.zeros_(unit.conv1.weight)
    x = torch.rand(1, 4, 6, 6)
    y = unit(x)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2]) and not y[:, 4:].any()
    junctions = [m for m in resnet(20, width=0.25, constraint=constraint).modules() if isinstance(m, nn.ReLU)]
    assert len(junctions) == (3 if constraint == 3 else 1) + 18  # in the stem, and two a unit


def test_what_travels_without_a_junction_is_a_sum() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 4, 6, 6)
    without, with_ = (convertible.ResidualUnit(4, 4, 1, junction, 0.0).eval() for junction in (False, True))
    assert (without(x) >= x).all()
    nn.init.constant_(with_.conv2.weight, -1.0)
    nn.init.constant_(with_.conv1.weight, 1.0)
    assert (with_(x) == 0).any()
