"""Nets for keywords: their size, what travels in them, and that they convert."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402

from recipes.models.keyword_nets import RecurrentLIF, separable  # noqa: E402
from recipes.models.resnet import resnet8  # noqa: E402
from snn_ext import convert, evaluate, replace_neurons  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode  # noqa: E402

FEATURES = (1, 48, 10)


@pytest.mark.parametrize(
    ("net", "parameters"),
    [(separable(), 83_363), (resnet8(35, 1), 79_379), (RecurrentLIF(), 22_307)],
    ids=["separable", "resnet8", "recurrent"],
)
def test_size_and_output(net: nn.Module, parameters: int) -> None:
    assert sum(p.numel() for p in net.parameters()) == parameters < 100_000
    for frames in (48, 49):
        assert net(torch.randn(2, 1, frames, 10)).shape == (2, 35)
        functional.reset_net(net)


@pytest.mark.parametrize(("build", "neurons"), [(separable, 9), (resnet8, 10)])
def test_every_layer_after_the_first_is_fed_by_spikes(build: object, neurons: int) -> None:
    net = build(5, 1, width=0.25)  # type: ignore[operator]
    assert replace_neurons(net, lambda relu: ATIFuNode(0.25)) == neurons
    functional.set_step_mode(net, "m")
    net.time_steps = 3
    inputs: dict[str, torch.Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, x, __, name=name: inputs.__setitem__(name, x[0]))
    net(torch.randn(2, *FEATURES))
    assert inputs.pop("stem.0").shape == (2, *FEATURES)
    allowed = torch.tensor([0.0, 1.0, 2.0] if build is resnet8 else [0.0, 1.0])
    assert all(x.shape[:2] == (3, 2) and torch.isin(x, allowed).all() and x.any() for x in inputs.values())


@pytest.mark.parametrize("build", [separable, resnet8])
def test_converted_net_approaches_the_analog_one(build: object) -> None:
    torch.manual_seed(0)
    net = build(5, 1, width=0.125).eval()  # type: ignore[operator]
    x = torch.randn(16, *FEATURES)
    snn = convert(net, [x], method="data-norm", precharge=0.5)
    mse = evaluate(snn, [x], 256, ann=net, progress=False).mse_at()
    assert mse[-1] < 0.05 * mse[0] and mse[-1] < 0.05 * float(net(x).var())


def test_recurrent_layer_sees_the_frames_in_their_order_and_remembers() -> None:
    torch.manual_seed(0)
    net = RecurrentLIF(classes=3, neurons=16, time_steps=12)
    net.input.weight.data *= 5
    x = torch.randn(1, 1, 6, 10)
    trains = net.spikes(x)
    functional.reset_net(net)
    assert trains.shape == (12, 1, 16) and 0 < trains.mean() < 1
    late = x.clone()
    late[:, :, 5] += 3.0  # the last frame: steps 10 and 11
    changed = net.spikes(late)
    functional.reset_net(net)
    assert torch.equal(changed[:10], trains[:10]) and not torch.equal(changed[10:], trains[10:])
    early = x.clone()
    early[:, :, 0] += 3.0
    assert not torch.equal(net.spikes(early)[2:], trains[2:])
