"""Nets of snnTorch that loop over the steps, as nets of one step: the same spikes, parameters and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn import functional as F

import snn_ext
from snn_ext.snntorch import bptt, reset, run_steps

STEPS = 12


class Net(nn.Module):
    """The net of the host's tutorials: the loop is in its forward pass."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 20), snn.Leaky(0.9, **options)
        self.fc2, self.lif2 = nn.Linear(20, 3), snn.Leaky(0.8)
        with torch.no_grad():
            self.fc1.weight.mul_(3), self.fc2.weight.mul_(3)

    def step(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> Any:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2

    def forward(self, x: Tensor) -> Any:
        mem1, mem2, spikes, mems = self.lif1.init_leaky(), self.lif2.init_leaky(), [], []
        for _ in range(STEPS):
            spk2, mem1, mem2 = self.step(x, mem1, mem2)
            spikes.append(spk2)
            mems.append(mem2)
        return torch.stack(spikes, dim=0), torch.stack(mems, dim=0)


class OfFrames(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2, spikes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(x.size(0)):
            spk2, mem1, mem2 = self.step(x[t], mem1, mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


class BatchFirst(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2, spikes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(x.size(1)):
            spk2, mem1, mem2 = self.step(x[:, t], mem1, mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


def test_a_loop_in_the_forward_pass_gives_the_same_folded() -> None:
    net, x = Net(learn_beta=True, learn_threshold=True), torch.rand(4, 6)
    step = snn_ext.one_step(net, x)
    done = snn_ext.accelerate(step)
    assert done.swapped == {"lif1": "Leaky"} and done.left.keys() == {"lif2"} and type(net.lif1) is snn.Leaky
    (spk, mem), (want, want_mem) = run_steps(step, x, STEPS), net(x)
    assert torch.equal(spk, want) and 0 < spk.mean() < 1
    torch.testing.assert_close(mem, want_mem)
    found = [torch.autograd.grad(out.mul(torch.arange(3.0)).sum(), [*net.parameters()]) for out in (spk, want)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_it_has_the_parameters_of_the_net_under_their_names() -> None:
    net = Net(learn_beta=True)
    step = snn_ext.one_step(net, torch.rand(4, 6))
    assert {name: id(p) for name, p in step.named_parameters()} == {name: id(p) for name, p in net.named_parameters()}
    assert step.state_dict().keys() == net.state_dict().keys()
    state = copy.deepcopy(net.state_dict())
    state["lif1.threshold"].fill_(0.25)
    net.load_state_dict(state)
    assert step.lif1.threshold == 0.25


@pytest.mark.parametrize(("kind", "frames"), [(OfFrames, "TN"), (BatchFirst, "NT")])
def test_frames_of_the_input(kind: Any, frames: str) -> None:
    net, x = kind(), torch.rand(7, 5, 6)
    step = snn_ext.one_step(net, x, frames=frames)
    snn_ext.accelerate(step)
    assert torch.equal(run_steps(step, x if frames == "TN" else x.transpose(0, 1)), net(x))


def test_bptt_trains_the_net_that_was_looped() -> None:
    net, x = Net(), torch.rand(4, 6)
    step = snn_ext.one_step(net, x)
    snn_ext.accelerate(step)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    data = [(x, torch.tensor([0, 1, 2, 0]))]
    losses = [float(bptt(step, data, optimizer, SF.ce_rate_loss(), num_steps=STEPS, time_var=False)) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert torch.equal(net(x)[0], (reset(step), run_steps(step, x, STEPS))[1][0])


class ConvNet(nn.Module):
    """The net of the host's tutorial on convolutions, written with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3), snn.Leaky(0.5, spike_grad=surrogate.fast_sigmoid(slope=25))
        self.conv2, self.lif2 = nn.Conv2d(4, 6, 3), snn.Synaptic(0.9, 0.5)
        self.fc1, self.lif3 = nn.Linear(24, 3), snn.Leaky(0.5)
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(2) if p.ndim > 1 else None

    def forward(self, x: Tensor) -> Any:
        mem1, (syn2, mem2), mem3 = self.lif1.init_leaky(), self.lif2.init_synaptic(), self.lif3.init_leaky()
        spk3_rec, mem3_rec = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv1(x), 2), mem1)
            spk2, syn2, mem2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2), syn2, mem2)
            spk3, mem3 = self.lif3(self.fc1(spk2.view(spk2.size(0), -1)), mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)
        return torch.stack(spk3_rec), torch.stack(mem3_rec)


def test_a_convolutional_loop_with_neurons_that_are_left() -> None:
    net, x = ConvNet(), torch.rand(4, 1, 14, 14)
    step = snn_ext.one_step(net, x)
    assert snn_ext.accelerate(step).left.keys() == {"lif2", "lif3"}
    (spk, mem), (want, want_mem) = run_steps(step, x, STEPS), net(x)
    assert torch.equal(spk, want) and spk.any()
    torch.testing.assert_close(mem, want_mem)
    assert not net.lif2.init_hidden and torch.equal(net(x)[0], want)


class Growing(Net):
    def forward(self, x: Tensor) -> Any:
        mem1, mem2, spikes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(STEPS):
            spk2, mem1, mem2 = self.step(x * t, mem1, mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


class Potentials(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[::-1]


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Growing, {}, "net: got .*want equal steps"),
        (Potentials, {}, "net: got 'a loop that returns potentials first'"),
        (lambda: nn.Sequential(nn.Linear(6, 3), snn.Leaky(0.5, init_hidden=True)), {}, "no loop over the steps"),
        (Net, {"frames": "TN"}, "net: got .*want one with frames='TN'"),
        (Net, {"frames": "T"}, "frames: got 'T'"),
    ],
)
def test_what_is_no_loop_of_equal_steps_is_refused(net: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        snn_ext.one_step(net(), torch.rand(4, 6), **options)
