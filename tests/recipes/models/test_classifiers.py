"""VGG-16 and ResNet-18: shape, size, and what travels between their layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402

from recipes.models.resnet import Block, resnet18  # noqa: E402
from recipes.models.vgg import vgg16  # noqa: E402
from snn_ext import replace_neurons  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode  # noqa: E402


def test_resnet_has_the_size_that_the_paper_quotes() -> None:
    # 44.743 MB of float32 for one channel and 35 classes
    assert sum(p.numel() for p in resnet18(classes=35, in_channels=1).parameters()) == 11_185_635


@pytest.mark.parametrize("build", [vgg16, resnet18])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("norm", [True, False])
def test_output_has_one_value_a_class(build: object, shape: tuple[int, ...], norm: bool) -> None:
    net = build(7, shape[0], width=0.0625, norm=norm)  # type: ignore[operator]
    assert net(torch.rand(2, *shape)).shape == (2, 7)
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == norm


@pytest.mark.parametrize(("build", "neurons"), [(vgg16, 15), (resnet18, 25)])
def test_every_layer_after_the_first_is_fed_by_spikes(build: object, neurons: int) -> None:
    net = build(10, 1, width=0.0625)  # type: ignore[operator]
    assert replace_neurons(net, lambda relu: ATIFuNode(0.5)) == neurons
    functional.set_step_mode(net, "m")
    net.time_steps = 3
    inputs: dict[str, torch.Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, x, __, name=name: inputs.__setitem__(name, x[0]))
    net(torch.rand(2, 1, 28, 28))
    assert inputs.pop("stem.0").shape == (2, 1, 28, 28)  # once, not at every step
    allowed = torch.tensor([0.0, 1.0, 2.0] if build is resnet18 else [0.0, 1.0])
    assert all(x.shape[:2] == (3, 2) and torch.isin(x, allowed).all() for x in inputs.values())


def test_activation_at_an_identity_shortcut_does_nothing_in_the_analog_net() -> None:
    block, x = Block(4, 4, 1, norm=True), torch.rand(2, 4, 8, 8)
    assert torch.equal(block.shortcut(x), x)
