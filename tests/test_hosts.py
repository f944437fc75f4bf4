"""Which modules are neurons, and of which host."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import layer, neuron
from torch import fx, nn

from snn_ext.hosts import host_of, is_neuron, reset_neurons
from snn_ext.snntorch import ATIFu
from snn_ext.spikingjelly import ATIFuNode
from tests.hosts import NEURONS, NODES


class Mine(ATIFuNode):
    pass


NOBODYS = [nn.ReLU(), nn.Linear(2, 2), nn.Sequential(ATIFuNode()), layer.Linear(2, 2), layer.Dropout()]


@pytest.mark.parametrize(
    ("host", "modules"),
    [
        ("spikingjelly", [neuron.IFNode(), neuron.ParametricLIFNode(), Mine(), *(make() for make in NODES.values())]),
        ("snntorch", [snn.Leaky(0.9), snn.RLeaky(0.9, all_to_all=False), *(make() for make in NEURONS.values())]),
        (None, NOBODYS),
    ],
)
def test_neurons_of_either_host_and_their_subclasses_are_recognised(host: str | None, modules: list[nn.Module]) -> None:
    for module in modules:
        assert host_of(module) == host
        assert is_neuron(module) == (host is not None or isinstance(module, nn.ReLU))


def test_a_class_is_looked_at_once_and_classes_made_on_the_fly_are_forgotten() -> None:
    from snn_ext.hosts import _host_of

    _host_of.cache_clear()
    for _ in range(3):
        host_of(ATIFuNode())
    assert _host_of.cache_info().misses == 1
    for _ in range(300):  # each has a class of its own
        host_of(fx.GraphModule(nn.Module(), fx.Graph()))
    assert _host_of.cache_info().currsize <= 256


def test_neurons_of_both_hosts_are_reset_in_one_net() -> None:
    net = nn.Sequential(ATIFuNode(), nn.Sequential(ATIFu(0.5, init_hidden=True)), nn.ReLU())
    x = torch.full((2, 3), 0.75)
    first = net(x)
    second = net(x)
    reset_neurons(net)
    assert torch.equal(net(x), first) and not torch.equal(second, first)
