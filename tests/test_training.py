"""Thresholds have optimizer groups of their own, and a net sees a constant input for T steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from snn_ext import ConstantInputNet, parameter_groups, replace_neurons
from snn_ext.hosts import reset_neurons
from tests.hosts import NEURONS, NODES

ALL = NODES | NEURONS


# -- parameter_groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_parameters_of_neurons_have_their_own_rate_and_no_weight_decay(kind: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(ALL[kind](), nn.Linear(3, 3)))
    own = list(net[1][0].parameters())
    groups = parameter_groups(net, lr=1.0, threshold_lr=0.5, weight_decay=0.1)
    assert groups[0]["params"] == [p for p in net.parameters() if all(p is not q for q in own)]
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (1.0, 0.1)
    assert groups[1:] == ([{"params": own, "lr": 0.5, "weight_decay": 0.0}] if own else [])


def test_no_parameter_is_lost_or_doubled_and_a_shared_neuron_counts_once() -> None:
    shared = NODES["ATIFuNode"]()
    net = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared, snn.Leaky(0.9, learn_beta=True))
    torch.nn.utils.parametrize.register_parametrization(net[1], "v_threshold", nn.Identity())
    weights, thresholds = parameter_groups(net, 0.1)
    assert len(weights["params"]) == 4 and len(thresholds["params"]) == 2
    assert {*weights["params"], *thresholds["params"]} == {*net.parameters()}
    assert thresholds["lr"] == 0.1 and weights["weight_decay"] == 0.0
    torch.optim.AdamW([weights, thresholds]).step()


def test_weights_inside_a_recurrent_neuron_of_the_host_are_weights() -> None:
    net = snn.RLeaky(0.9, linear_features=3, learn_beta=True, learn_threshold=True)
    weights, thresholds = parameter_groups(net, 0.1, weight_decay=0.1)
    assert {*weights["params"]} == {*net.recurrent.parameters()}
    assert {*thresholds["params"]} == {net.beta, net.threshold}


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": 1.0, "threshold_lr": "x"}, {"lr": 1, "weight_decay": None}])
def test_wrong_rates_are_named(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{list(options)[-1]}: got .* want a finite number >= 0"):
        parameter_groups(nn.Linear(2, 2), **options)


# -- ConstantInputNet -------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A stem that counts its calls."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.conv(x)


def analog() -> ConstantInputNet:
    body = [nn.ReLU(), layer.Conv2d(2, 3, 3), nn.ReLU(), layer.Flatten(), layer.Linear(12, 2)]
    return ConstantInputNet(nn.Sequential(*body), stem=Counting())


def test_without_steps_it_is_the_analog_net() -> None:
    net, x = analog(), torch.rand(4, 1, 6, 6)
    assert torch.equal(net(x), net.body(net.stem(x)))


@pytest.mark.parametrize("kind", ALL)
def test_mean_of_a_loop_over_steps_and_the_stem_runs_once(kind: str) -> None:
    net, x = analog(), torch.rand(4, 1, 6, 6)
    replace_neurons(net, lambda relu: ALL[kind]())
    loop = copy.deepcopy(net)
    want = torch.stack([loop(x) for _ in range(4)]).mean(0)
    found = []
    net.time_steps = 4
    for step_mode in ("s", "m"):
        for module in net.modules():
            if hasattr(module, "step_mode"):
                module.step_mode = step_mode
        net.stem.calls = 0
        reset_neurons(net)
        found.append(net(x))
        assert net.stem.calls == 1
    for out in found:
        torch.testing.assert_close(out, want)
        out.sum().backward()


def test_hosts_own_neurons_run_in_it_too() -> None:
    for make in (lambda: neuron.IFNode(v_reset=None), lambda: snn.Leaky(1.0, init_hidden=True)):
        net = ConstantInputNet(nn.Sequential(make(), nn.Linear(3, 2)), 5)
        out = net(torch.full((2, 3), 0.5))
        assert out.shape == (2, 2)
    node = neuron.IFNode(step_mode="m", v_reset=None)
    net = ConstantInputNet(nn.Sequential(node), 5)
    assert torch.equal(net(torch.full((2, 3), 0.5)), torch.full((2, 3), 0.4))
    functional.reset_net(net)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((None,), "body: got None"), ((nn.ReLU(), 0), "time_steps: got 0"), ((nn.ReLU(), 2.0), "time_steps: got 2.0")],
)
def test_wrong_arguments_of_the_net_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ConstantInputNet(*arguments)
