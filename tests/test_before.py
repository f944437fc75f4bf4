"""A bias or a correction of weights goes into layers that one rectifier reads, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_ext import ConstantInputNet
from snn_ext._arriving import analog_samples
from snn_ext._before import Before, find_before


def relus(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.ReLU)]


def found_in(net: nn.Module, *shape: int) -> dict[nn.Module, Before]:
    samples = analog_samples(net, relus(net), [torch.rand(2, *shape)])
    return find_before(net, {module: s.shape for module, s in samples.items()})


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
    sums = {net[-1]: torch.Size([5, 3])}
    find_before(net, sums)[net[-1]].correct(slope, offset)  # type: ignore[arg-type]
    torch.testing.assert_close(net[:-1](x), wanted)


def test_of_a_sum_one_part_is_found_and_of_the_net_its_read_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x + self.norm(self.conv(x)))

    net = nn.Sequential(Block(), nn.Flatten(), nn.Linear(8, 2))
    found = found_in(net, 2, 2, 2)
    assert found[net[0].relu].biased is net[0].norm and found[net[0].relu].layer is net[0].conv  # type: ignore[union-attr]
    assert found[net].biased is found[net].layer is net[2]
    wrapped = ConstantInputNet(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), stem=nn.Linear(2, 3))
    assert found_in(wrapped, 2)[wrapped].layer is wrapped.body[1]  # type: ignore[index]


class Sum(nn.Module):
    """Several ways in which a convolution is a part of a sum."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.conv, self.small, self.relu = way, nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        ways = {
            "in a branch": lambda: self.small(x) + y, "with a factor": lambda: torch.add(x, y, alpha=0.5),
            "twice": lambda: y + y, "in one channel": lambda: x + y[:, :1],
        }  # fmt: skip
        return self.relu(ways[self.way]())


@pytest.mark.parametrize("way", ["in a branch", "with a factor", "twice", "in one channel"])
def test_what_is_added_to_a_part_of_a_sum_has_to_arrive_as_it_is(way: str) -> None:
    net = Sum(way)
    taken = found_in(net, 2, 4, 4).get(net.relu)
    assert getattr(taken, "layer", None) is (net.conv if way == "in a branch" else None)


def test_a_linear_layer_of_tokens_has_its_features_in_another_dimension_than_the_neurons() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert not found_in(net, 4, 4) and found_in(net, 4)[net[1]].layer is net[0]


def test_the_net_of_the_evaluation_counts_and_the_mode_stays() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Any:
            y = self.first(x)
            return (self.relu(y), y) if self.training else self.relu(y)

    net = Auxiliary()
    assert found_in(net, 4)[net.relu].layer is net.first and net.training


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
    assert net.relu not in found_in(net, 2, 2, 2)


class Standardised(nn.Conv2d):
    """Computes something else from its weights than its class says."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(Standardised(1, 1, 3), nn.ReLU()), (1, 3, 3)),
        (nn.Sequential(nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), nn.ReLU()), (1, 4)),
        (tied(), (3,)),
    ],
    ids=["subclass", "circular padding", "tied weights"],
)
def test_weights_with_another_meaning_are_left_and_biases_taken(net: nn.Module, shape: tuple[int, ...]) -> None:
    found = found_in(net, *shape)
    assert len(found) >= len(relus(net)) and all(before.layer is None for before in found.values())


def test_a_layer_whose_weights_are_computed_takes_up_nothing() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.ReLU())
    assert not found_in(net, 3)
