"""Trainers: the host's three on our neurons, and ``bptt`` over whole sequences against the host's, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import backprop
from snntorch.functional.reg import l1_rate_sparsity
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn

from snn_ext.snntorch import PCMPIF, ATIFnu, ATIFu, bptt, detach, reset
from tests.reference import FrozenNorm, assert_unchanged, snapshot

LOSSES = [
    SF.ce_rate_loss(),
    SF.ce_count_loss(),
    SF.ce_max_membrane_loss(),
    SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2),
    SF.mse_membrane_loss(),
    SF.ce_temporal_loss(),
    SF.mse_temporal_loss(),
]
each_loss = pytest.mark.parametrize("criterion", LOSSES, ids=lambda c: c.__name__)
STEPS = 4


def make_net(hidden: Any = ATIFu, **settings: Any) -> nn.Sequential:
    settings = {"T": STEPS, **settings} if hidden is ATIFnu else settings
    net = nn.Sequential(
        nn.Linear(6, 8), FrozenNorm(8), hidden(0.5, init_hidden=True, **settings), nn.Linear(8, 3),
        ATIFu(0.25, init_hidden=True, output=True),
    )  # fmt: skip
    with torch.no_grad():
        net[1].running_mean.copy_(torch.linspace(-0.2, 0.2, 8))
        net[1].running_var.fill_(0.5)
    return net


def batches(number: int = 2, varying: bool = False, time_first: bool = True) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shape = (5, 6) if not varying else (STEPS, 5, 6) if time_first else (5, STEPS, 6)
    return [
        (torch.rand(shape, generator=generator), torch.randint(3, (5,), generator=generator)) for _ in range(number)
    ]


def train(trainer: Any, net: nn.Module, data: Any, criterion: Any, epochs: int = 1, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    return [float(trainer(net, data, optimizer, criterion, **settings)) for _ in range(epochs)]


def spikes_of(net: nn.Module) -> Tensor:
    reset(net)
    with torch.no_grad():
        return torch.stack([net(batches()[0][0])[0] for _ in range(STEPS)])


# -- the host's trainers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [ATIFu, ATIFnu, PCMPIF])
@pytest.mark.parametrize(
    ("trainer", "settings"),
    [(backprop.BPTT, {}), (backprop.TBPTT, {"K": 2}), (backprop.RTRL, {})],
    ids=["BPTT", "TBPTT", "RTRL"],
)
def test_trainers_of_the_host_learn(hidden: Any, trainer: Any, settings: dict[str, Any]) -> None:
    net = make_net(hidden)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    losses = train(trainer, net, batches(), SF.ce_count_loss(), epochs=3, num_steps=STEPS, time_var=False, **settings)
    assert torch.tensor(losses).isfinite().all()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {"0.weight", "3.weight", "4.threshold"} <= moved


@each_loss
def test_bptt_of_the_host_knows_every_loss(criterion: Any) -> None:
    losses = train(backprop.BPTT, make_net(), batches(), criterion, num_steps=STEPS, time_var=False)
    assert torch.tensor(losses).isfinite().all()


# -- our trainer against the host's -----------------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("hidden", [ATIFu, ATIFnu, PCMPIF])
def test_bptt_gives_the_hosts_loss_and_spikes_after_several_optimizer_steps(criterion: Any, hidden: Any) -> None:
    # Flattened time runs the linear layers on other shapes, which may round otherwise: losses to 1e-6, spikes exactly.
    ours, theirs = make_net(hidden), make_net(hidden)
    theirs.load_state_dict(ours.state_dict())
    settings: dict[str, Any] = {"epochs": 3, "num_steps": STEPS, "time_var": False}
    got = train(bptt, ours, batches(), criterion, **settings)
    want = train(backprop.BPTT, theirs, batches(), criterion, **settings)
    assert got == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert torch.equal(spikes_of(ours), spikes_of(theirs))
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("time_first", [True, False])
def test_bptt_on_data_that_vary(time_first: bool) -> None:
    ours, theirs = make_net(), make_net()
    theirs.load_state_dict(ours.state_dict())
    data = batches(varying=True, time_first=time_first)
    settings: dict[str, Any] = {"epochs": 3, "time_var": True, "time_first": time_first}
    got = train(bptt, ours, data, SF.ce_count_loss(), **settings)
    assert got == pytest.approx(train(backprop.BPTT, theirs, data, SF.ce_count_loss(), **settings), rel=1e-5)
    assert torch.equal(spikes_of(ours), spikes_of(theirs))


def test_bptt_with_a_regularization() -> None:
    ours, theirs = make_net(), make_net()
    theirs.load_state_dict(ours.state_dict())
    settings: dict[str, Any] = {"num_steps": STEPS, "time_var": False, "regularization": l1_rate_sparsity(0.1)}
    got = train(bptt, ours, batches(), SF.ce_count_loss(), **settings)
    assert got == pytest.approx(train(backprop.BPTT, theirs, batches(), SF.ce_count_loss(), **settings), rel=1e-5)


def test_bptt_takes_nested_nets_and_a_criterion_of_ones_own() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), ATIFu(0.5, init_hidden=True))
            self.head = nn.Sequential(nn.Linear(8, 3), ATIFu(0.25, init_hidden=True, output=True))

        def forward(self, x: Tensor) -> Any:
            return self.head(self.body(x))

    seen = []

    def criterion(spikes: Tensor, targets: Tensor) -> Tensor:
        seen.append(spikes.shape)
        return nn.functional.cross_entropy(spikes.mean(0), targets)

    losses = train(bptt, Net(), batches(), criterion, epochs=8, num_steps=STEPS, time_var=False)
    assert seen[0] == (STEPS, 5, 3) and losses[-1] < losses[0]


def test_bptt_leaves_the_neurons_usable_step_by_step() -> None:
    net = make_net(ATIFnu)
    train(bptt, net, batches(), SF.ce_count_loss(), num_steps=STEPS, time_var=False)
    assert all(m._time_in_batch is None for m in net.modules() if isinstance(m, ATIFu | ATIFnu))
    assert not any(m.mem.requires_grad for m in net.modules() if isinstance(m, snn.SpikingNeuron))
    assert spikes_of(net).shape == (STEPS, 5, 3)


def test_bptt_that_fails_half_way_leaves_the_step_mode_alone() -> None:
    net = make_net(ATIFnu)
    with pytest.raises(ValueError, match="T=4"):
        train(bptt, net, batches(), SF.ce_count_loss(), num_steps=STEPS + 1, time_var=False)
    assert all(m._time_in_batch is None for m in net.modules() if isinstance(m, ATIFu | ATIFnu))
    assert spikes_of(net).shape == (STEPS, 5, 3)


class MyLeaky(snn.Leaky):
    """A neuron of the host by inheritance: its module name does not say so."""


@pytest.mark.parametrize(
    "host",
    [
        lambda: snn.Leaky(0.9, init_hidden=True),
        lambda: snn.Synaptic(0.9, 0.8, init_hidden=True),
        lambda: MyLeaky(0.9, init_hidden=True),
        lambda: snn.RLeaky(0.9, linear_features=8, init_hidden=True),
    ],
)
def test_bptt_runs_neurons_of_the_host_step_by_step(host: Any) -> None:
    ours = nn.Sequential(nn.Linear(6, 8), host(), nn.Linear(8, 3), ATIFu(init_hidden=True, output=True))
    with torch.no_grad():
        ours[0].weight.mul_(4), ours[2].weight.mul_(4)
    theirs = copy.deepcopy(ours)
    settings: dict[str, Any] = {"epochs": 3, "num_steps": STEPS, "time_var": False}
    snn.SpikingNeuron.instances.extend(m for m in theirs.modules() if isinstance(m, snn.SpikingNeuron))
    got = train(bptt, ours, batches(), SF.ce_count_loss(), **settings)
    assert got == pytest.approx(train(backprop.BPTT, theirs, batches(), SF.ce_count_loss(), **settings), rel=1e-5)
    assert torch.equal(spikes_of(ours), spikes_of(theirs)) and "forward" not in ours[1].__dict__


def test_bptt_refuses_neurons_that_would_take_time_for_a_batch() -> None:
    net = nn.Sequential(nn.Linear(6, 8), sj_neuron.IFNode(), nn.Linear(8, 3), ATIFu(init_hidden=True, output=True))
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"net \(1\): got 'IFNode', want neurons of snnTorch or snn_ext.snntorch"):
        train(bptt, net, batches(), SF.ce_count_loss(), num_steps=STEPS, time_var=False)
    assert_unchanged(net, before)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_steps": 4, "time_var": True}, ValueError, "num_steps: got 4, want False with time_var=True"),
        ({"time_var": False}, (ValueError, TypeError), "num_steps: got False.*want an int >= 1"),
        ({"num_steps": 0, "time_var": False}, ValueError, "num_steps: got 0, want an int >= 1"),
        ({"num_steps": 2.5, "time_var": False}, TypeError, "num_steps: got 2.5"),
        ({"time_var": 1}, TypeError, "time_var: got 1"),
        ({"time_first": "yes"}, TypeError, "time_first: got 'yes'"),
    ],
)
def test_bptt_names_its_wrong_argument_before_the_first_step(settings: Any, error: Any, message: str) -> None:
    net = make_net()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        train(bptt, net, batches(), SF.ce_count_loss(), **settings)
    assert_unchanged(net, before)


def test_bptt_names_a_net_it_can_not_train() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    arguments: Any = (batches(), optimizer, SF.ce_count_loss(), STEPS, False)
    with pytest.raises(TypeError, match="net: got 'x'"):
        bptt("x", *arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="net: got 'Linear', want a net with at least one neuron"):
        bptt(nn.Linear(6, 3), *arguments)
    with pytest.raises(ValueError, match=r"net \(1\): got 'init_hidden=False'"):
        bptt(nn.Sequential(nn.Linear(6, 3), ATIFu()), *arguments)
    with pytest.raises(TypeError, match=r"net: got .*want a net that returns \(spk, mem\)"):
        bptt(nn.Sequential(nn.Linear(6, 3), ATIFu(init_hidden=True)), *arguments)
    with pytest.raises(TypeError, match="criterion: got 3"):
        bptt(make_net(), batches(), optimizer, 3, STEPS, False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dataloader: got 'no batch'"):
        bptt(make_net(), [], optimizer, SF.ce_count_loss(), STEPS, False)


@pytest.mark.parametrize("function", [reset, detach])
def test_reset_and_detach_want_a_module(function: Any) -> None:
    with pytest.raises(TypeError, match="net: got 3"):
        function(3)


def test_deep_copied_net_trains_like_the_original() -> None:
    # The host never resets a copy: it is not in its list of instances.
    net = make_net(ATIFnu)
    twin = copy.deepcopy(net)
    settings: dict[str, Any] = {"epochs": 2, "num_steps": STEPS, "time_var": False}
    assert train(bptt, net, batches(), SF.ce_count_loss(), **settings) == train(
        bptt, twin, batches(), SF.ce_count_loss(), **settings
    )


def test_lsq_gradient_scale_knows_the_number_of_steps_inside_bptt() -> None:
    thresholds = []
    for grad_scale in (None, "lsq"):
        torch.manual_seed(0)
        net = make_net(grad_scale=grad_scale)
        train(bptt, net, batches(1), SF.ce_rate_loss(), num_steps=STEPS, time_var=False)
        thresholds.append(float(net[2].threshold.detach()) - 0.5)
    assert thresholds[1] == pytest.approx(thresholds[0] / (8 * STEPS) ** 0.5, rel=1e-3)
