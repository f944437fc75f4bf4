"""Thresholds per channel: each channel is a neuron with its threshold, in whatever way a net gets or keeps them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext.conversion import diagnose, fold_scales, optimize_precharge
from snn_ext.snntorch import PCMPIF, ATIFu
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode
from snn_ext.testing import check_neuron
from tests.hosts import grid, reset, steps

THRESHOLDS = [0.5, 0.75, 1.25]
INIT = torch.tensor([0.5, 0.25, 0.0])
SJ: dict[str, Any] = {"step_mode": "m"}
ST: dict[str, Any] = {"step_mode": "m", "init_hidden": True}
KINDS: dict[str, Any] = {
    "atif-u": lambda theta, **k: ATIFuNode(theta, **SJ | k),
    "atif-u reset to zero": lambda theta, **k: ATIFuNode(theta, 0.0, **SJ | k),
    "atif-u scaled, with a leak": lambda theta, **k: ATIFuNode(theta, scale_output=True, tau=3.0, **SJ | k),
    "pcmp": lambda theta, **k: PCMPIFNode(theta, precharge=0.25, scale_output=True, **SJ | k),
    "snntorch atif-u": lambda theta, **k: ATIFu(theta, **ST | k),
    "snntorch atif-u with a leak": lambda theta, **k: ATIFu(theta, beta=0.9, scale_output=True, **ST | k),
    "snntorch pcmp reset to zero": lambda theta, **k: PCMPIF(
        theta, reset_mechanism="zero", learn_threshold=True, **ST | k
    ),
}


def per_channel() -> Tensor:
    return torch.tensor(THRESHOLDS, device="cpu")


def conv_net(relu: Any = nn.ReLU) -> nn.Sequential:
    """Return a net whose channels have very different activations; everything in it is dyadic."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, bias=False), relu(), nn.Conv2d(4, 4, 3), relu(), nn.Flatten(), nn.Linear(16, 3)
    net = nn.Sequential(*layers).eval()
    for parameter in net.parameters():
        parameter.data = torch.randint(-4, 9, parameter.shape, generator=generator) / 16
    net[0].weight.data *= torch.tensor([0.125, 0.5, 1.0, 2.0]).reshape(4, 1, 1, 1)
    return net


def images(count: int = 32) -> Tensor:
    return torch.randint(0, 17, (count, 1, 6, 6), generator=torch.Generator().manual_seed(1)) / 16


@pytest.mark.parametrize("name", KINDS)
def test_each_channel_is_a_neuron_with_its_threshold(name: str) -> None:
    x_seq, found = grid(6, (2, 3, 4, 4)), {}
    for kind in (torch.float32, torch.float64):
        leaf = x_seq.to(kind, copy=True).requires_grad_()
        node = KINDS[name](per_channel()).to(kind)
        spikes = node(leaf)
        spikes.square().sum().backward()
        threshold = next(iter(node.parameters()), None)
        for channel, theta in enumerate(THRESHOLDS):
            alone, own = KINDS[name](theta).to(kind), x_seq[:, :, [channel]].to(kind).requires_grad_()
            want = alone(own)
            assert torch.equal(spikes[:, :, channel : channel + 1], want)
            want.square().sum().backward()
            torch.testing.assert_close(leaf.grad[:, :, channel], own.grad[:, :, 0], rtol=1e-5, atol=1e-6)
            if threshold is not None:
                (single,) = alone.parameters()
                torch.testing.assert_close(threshold.grad[channel], single.grad[0], rtol=1e-5, atol=1e-5)
        found[kind] = spikes
    assert torch.equal(*(spikes.double() for spikes in found.values())) and found[torch.float32].any()


@pytest.mark.parametrize("name", KINDS)
def test_steps_mem_and_counts_are_those_of_the_sequence(name: str) -> None:
    x_seq = grid(6, (2, 3, 4, 4))
    node, stepping = KINDS[name](per_channel()), KINDS[name](per_channel(), step_mode="s")
    want = node(x_seq)
    assert torch.equal(steps(stepping, x_seq), want)
    if "leak" not in name and "zero" not in name:
        constant = x_seq[:1].expand(6, *x_seq.shape[1:])
        reset(node)
        spikes = node(constant) != 0
        assert torch.equal(node.counts(constant.sum(0), 6), spikes.sum(0).float())
    if name.startswith("snntorch"):
        spiking, mem = KINDS[name](per_channel(), output=True)(x_seq)
        over = mem > per_channel().reshape(3, 1, 1)
        assert torch.equal(spiking, want) and torch.equal(over, want != 0)


@pytest.mark.parametrize("name", [*KINDS][2:6])
def test_the_conformance_suite_passes(name: str) -> None:
    host, habit, skip = "spikingjelly", {}, ()
    if name.startswith("snntorch"):
        host, habit = "snntorch", {"init_hidden": False}
        skip = "trainers_run", "spikes_suit_losses_and_accuracies"  # on inputs of other channels
    if KINDS[name](1.0).scale_output:
        skip = *skip, "spikes_have_one_value"  # one in each channel
    check_neuron(
        lambda **options: KINDS[name](per_channel(), **{"step_mode": "s"} | habit | options),
        host, shape=(3, 3, 5, 5), skip=skip,
    )  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_copies_checkpoints_files_and_meta_keep_them(name: str, tmp_path: Path) -> None:
    x_seq = grid(6, (2, 3, 4, 4))
    node, twin = KINDS[name](per_channel()), KINDS[name](per_channel() + 1.0)
    twin.load_state_dict(node.state_dict())
    snn_ext.save(node, tmp_path / "net.pt")
    with torch.device("meta"):
        hollow = KINDS[name](per_channel())
    hollow.to_empty(device="cpu").reset_parameters()
    want = node(x_seq)
    reset(node)
    for other in (twin, snn_ext.load(tmp_path / "net.pt"), hollow, copy.deepcopy(node)):
        assert torch.equal(other(x_seq), want)
    fixed = KINDS[name](1.0)
    if any("threshold" in key for key, _ in fixed.named_parameters()):
        with pytest.raises(RuntimeError, match="size mismatch"):
            fixed.load_state_dict(node.state_dict())
    else:  # a buffer takes the shape of the checkpoint's
        fixed.load_state_dict(node.state_dict())
        assert torch.equal(fixed(x_seq), want)


def test_as_many_steps_as_channels_are_told_apart() -> None:
    """A vector of a neuron is one for each channel, never one for each step, whatever the sizes."""
    x_seq = grid(3, (3, 3, 3))
    node = ATIFuNode(per_channel(), step_mode="m")
    want = torch.cat([ATIFuNode(t, step_mode="m")(x_seq[:, :, [c]]) for c, t in enumerate(THRESHOLDS)], 2)
    assert torch.equal(node(x_seq), want)


def test_an_assignment_acts_or_raises() -> None:
    node, fixed = ATIFuNode(per_channel()), PCMPIFNode(1.0)
    node.v_threshold = 0.5
    assert node.v_threshold.tolist() == [0.5] * 3 and isinstance(node.v_threshold, nn.Parameter)
    node.v_threshold = per_channel()
    fixed.v_threshold = per_channel()
    assert node.v_threshold.tolist() == fixed.v_threshold.tolist() == THRESHOLDS
    node.v_threshold = nn.Parameter(torch.ones(5))
    for owner, value in ((node, torch.ones(3)), (node, nn.Parameter(torch.ones(2, 2))), (fixed, torch.ones(2, 2))):
        with pytest.raises(ValueError, match=r"^v_threshold: got .*want"):
            owner.v_threshold = value
    assert len(node.v_threshold) == 5 and fixed.v_threshold.tolist() == THRESHOLDS


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ATIFuNode(torch.tensor([1.0, 0.0])), "v_threshold"),
        (lambda: ATIFuNode(torch.tensor([1.0, torch.nan])), "v_threshold"),
        (lambda: ATIFuNode(torch.ones(2, 2)), "v_threshold"),
        (lambda: PCMPIFNode(torch.tensor([1, 2])), "v_threshold"),
        (lambda: ATIFu(torch.tensor([1.0, -1.0])), "threshold"),
        (lambda: ASNNode(torch.ones(3)), "v_threshold"),
        (lambda: ATIFuNode(torch.ones(2), step_mode="m")(torch.zeros(4, 2, 3)), "v_threshold"),
        (lambda: ATIFu(torch.ones(2), init_hidden=True)(torch.zeros(2)), "threshold"),
        (lambda: ATIFuNode(torch.ones(2)).get_reset_value("v"), "v_threshold"),
    ],
)
def test_wrong_thresholds_are_named(make: Any, named: str) -> None:
    before = len(snn.SpikingNeuron.instances)
    with pytest.raises((TypeError, ValueError), match=f"^{named}: got .*want"):
        made = make()
        snn.SpikingNeuron.instances.remove(made)
    assert len(snn.SpikingNeuron.instances) <= before + (named == "threshold")


# -- nets that keep them and get them ----------------------------------------------------------------------------------


def test_replaced_neurons_keep_them() -> None:
    x_seq = grid(6, (2, 3, 4, 4))
    leaky = snn.Leaky(1.0, per_channel().reshape(3, 1, 1), init_hidden=True)
    for old, factory in (
        (ATIFuNode(per_channel(), step_mode="m"), lambda old: PCMPIFNode(precharge=0.0)),
        (PCMPIFNode(per_channel(), precharge=0.0, step_mode="m"), lambda old: ATIFuNode()),
        (leaky, lambda old: ATIFu(step_mode="m")),
    ):
        net = nn.Sequential(old)
        want = torch.stack([net(x) for x in x_seq]) if old is leaky else net(x_seq)
        snn_ext.replace_neurons(net, factory)
        assert net[0]._raw_threshold().tolist() == THRESHOLDS and torch.equal(net(x_seq), want)
    for factory in (lambda old: ATIFnuNode(T=6), lambda old: ASNNode()):
        net = nn.Sequential(ATIFuNode(per_channel()))
        with pytest.raises(ValueError, match="want one number per neuron layer"):
            snn_ext.replace_neurons(net, factory, drop=("dynamics",))
        assert isinstance(net[0], ATIFuNode)


def test_calibration_per_channel_is_nearer_to_the_analog_net() -> None:
    errors = []
    for channel_wise in (False, True):
        net, x = conv_net(), images()
        want = net(x)
        neurons = snn_ext.calibrate(
            net, [x], lambda relu: ATIFuNode(scale_output=True), 4,
            channel_wise=channel_wise, correct_weights=False, progress=False,
        )  # fmt: skip
        assert [len(neuron.v_threshold) for neuron in neurons] == [4 if channel_wise else 1] * 2
        assert all(isinstance(neuron.v_threshold, nn.Parameter) for neuron in neurons)
        errors.append((torch.stack([net(x) for _ in range(4)]).mean(0) - want).square().mean())
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match=r"^channel_wise: got True, want False with method='inputs'"):
        snn_ext.calibrate(conv_net(), [images()], lambda relu: ATIFuNode(), 4, method="inputs", channel_wise=True)


@pytest.mark.parametrize("method", ["data-norm", "spike-norm"])
def test_a_converted_net_may_have_them_and_leave_its_weights(method: str) -> None:
    ann, x = conv_net(), images(8)
    options: dict[str, Any] = {"channel_wise": True, "precharge": 0.25, "time_steps": 16, "progress": False}
    own = snn_ext.convert(ann, x, method=method, fold_scales=False, **options)
    folded = snn_ext.convert(ann, x, method=method, **options)
    assert torch.equal(own.get_submodule("2").weight, ann[2].weight)
    assert not torch.equal(folded.get_submodule("2").weight, ann[2].weight)
    for layer in own.report:
        threshold = own.get_submodule(layer.name).v_threshold
        assert len(threshold) == 4 and threshold.tolist() == pytest.approx(layer.threshold)
    labels = [(x, ann(x).argmax(1))]
    for net in (own, folded, fold_scales(own)):
        result = snn_ext.evaluate(net, labels, 16, ann=ann)
        assert result.accuracy[-1] >= 0.75
    assert all(layer.unexplained == 0 for layer in diagnose(own, x, 16))


def test_pre_charges_of_neurons_with_their_own_thresholds_are_those_of_folded_ones() -> None:
    ann, x = conv_net(), images(8)
    found = []
    for fold in (True, False):
        net = snn_ext.convert(ann, x, method="data-norm", channel_wise=True, fold_scales=fold, progress=False)
        found.append(optimize_precharge(net, ann, x, time_steps=8))
    assert found[0] == pytest.approx(found[1], abs=0.05)
