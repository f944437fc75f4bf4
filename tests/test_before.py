"""A bias or a correction of weights goes into layers that one rectifier reads, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_ext import ConstantInputNet
from snn_ext._before import find_before


def relus(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.ReLU)]


@torch.no_grad()
@pytest.mark.parametrize("norm", [True, False])
def test_a_correction_adds_what_it_says_to_the_sum(norm: bool) -> None:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(3)] if norm else []
    net = nn.Sequential(nn.Linear(4, 3), *norms, nn.ReLU()).double()
    net(torch.rand(64, 4).double() * 3)
    net.eval()
    for layer in norms:
        nn.init.uniform_(layer.weight, -2.0, 2.0)
        layer.weight[1] = 0.0  # of this channel only the bias counts
    x, slope, offset = torch.rand(5, 4).double(), torch.rand(3, 4).double(), torch.rand(3).double()
    wanted = net[:-1](x) + x @ slope.T + offset
    if norm:
        wanted[:, 1] -= x @ slope[1]
    find_before(net, relus(net))[net[-1]].correct(slope, offset)
    torch.testing.assert_close(net[:-1](x), wanted)


def test_of_a_sum_one_part_is_found_and_of_the_net_its_read_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x + self.norm(self.conv(x)))

    net = nn.Sequential(Block(), nn.Flatten(), nn.Linear(8, 2))
    found = find_before(net, relus(net))
    assert found[net[0].relu].biased is net[0].norm and found[net[0].relu].layer is net[0].conv  # type: ignore[union-attr]
    assert found[net].biased is found[net].layer is net[2]
    wrapped = ConstantInputNet(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), stem=nn.Linear(2, 3))
    assert find_before(wrapped, relus(wrapped))[wrapped].layer is wrapped.body[1]  # type: ignore[index]


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(2, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.relu(y) + y


class CalledTwice(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(self.conv(x)))


class Branches(ReadTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("kind", [ReadTwice, CalledTwice, Branches])
def test_a_layer_that_something_else_needs_takes_up_nothing(kind: Any) -> None:
    net = kind()
    assert net.relu not in find_before(net, [net.relu])


class Standardised(nn.Conv2d):
    """Computes something else from its weights than its class says."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(Standardised(1, 1, 3), nn.ReLU()),
        nn.Sequential(nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        tied(),
    ],
    ids=["subclass", "circular padding", "tied weights"],
)
def test_weights_with_another_meaning_are_left_and_biases_taken(net: nn.Module) -> None:
    found = find_before(net, relus(net))
    assert len(found) >= len(relus(net)) and all(before.layer is None for before in found.values())


def test_a_layer_whose_weights_are_computed_takes_up_nothing() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.ReLU())
    assert not find_before(net, relus(net))
