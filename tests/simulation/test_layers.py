"""The table of layer types: an entry is all that a new type needs; a type without one is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("spikingjelly")

from snn_ext import evaluate  # noqa: E402
from snn_ext.evaluation import count_synapses  # noqa: E402
from snn_ext.simulation import RULES, Rule, Simulation, rule_of  # noqa: E402
from snn_ext.simulation.graph import as_graph  # noqa: E402
from snn_ext.simulation.layers import UNKNOWN  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402
from tests.conversion.nets import dyadic, loop  # noqa: E402


class Locally(nn.Module):
    """A matrix of weights in a class that torch does not have, whose forward pass cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(3, 8)), None
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) < 0:
            raise ValueError
        return F.linear(self.inner(x), self.weight)


def test_one_entry_makes_a_layer_type_countable_and_simulable(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dyadic(nn.Sequential(nn.Linear(4, 8), PCMPIFNode(0.5), Locally(), PCMPIFNode(0.25), nn.Linear(3, 2)))
    x = torch.randint(0, 17, (5, 4)) / 16
    with pytest.raises(ValueError, match=r"net: got Sequential, which can ?not be traced"):
        Simulation(net)
    monkeypatch.setitem(RULES, Locally, Rule(apply=lambda layer, x, weight: F.linear(x, weight)))
    assert torch.equal(torch.cat(list(Simulation(net, chunk=3).run(x, 9))), loop(net, x, 9))
    found = count_synapses(as_graph(net), x)
    assert found.fan_out["1"].unique().tolist() == [3.0] and found.fed_macs == {"1": 24, "3": 6}
    assert (found.macs, found.input_macs) == (32 + 24 + 6, 32)
    assert evaluate(net, [x], 9, progress=False).synops[-1] > 0


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def test_a_layer_with_weights_and_without_an_entry_is_refused_and_not_guessed() -> None:
    """Its synapses could be found by running it, its multiply-accumulates could not."""
    graph = as_graph(nn.Sequential(nn.Linear(4, 8), PCMPIFNode(0.5), Rows(), PCMPIFNode(0.25), nn.Linear(3, 2)))
    with pytest.raises(
        ValueError, match=r"snn: got '2 with weights, a Rows', want its type .* snn_ext\.simulation\.RULES"
    ):
        count_synapses(graph, torch.rand(1, 4))


def test_an_entry_holds_for_the_classes_that_inherit_from_it() -> None:
    class Mine(nn.Conv2d):
        pass

    assert rule_of(Mine(1, 1, 1)) is rule_of(nn.Conv2d(1, 1, 1)) and rule_of(nn.ReLU()) is UNKNOWN is rule_of(None)


LAYERS: list[Any] = [
    nn.Linear(6, 4),
    nn.Conv1d(4, 6, 3, 2, "valid", groups=2),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
    nn.Conv3d(4, 2, 2, padding=1, dilation=2),
    nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2),
    nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, dilation=2),
    nn.ConvTranspose3d(4, 2, 2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_weighted_layer_is_what_its_entry_computes_with_other_weights(layer: Any) -> None:
    rule, weight = rule_of(layer), torch.rand_like(layer.weight)
    x = torch.rand(2, 6) if isinstance(layer, nn.Linear) else torch.rand(2, 4, *[6] * (layer.weight.ndim - 2))
    assert rule.weighted and rule.apply is not None
    found = rule.apply(layer, x, weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
        torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize(
    ("pool", "bits"),
    [
        (nn.AvgPool2d(2), 2),
        (nn.AvgPool2d((1, 2)), 1),
        (nn.AvgPool2d(4), 4),
        (nn.AvgPool2d(3), None),
        (nn.AvgPool2d(2, ceil_mode=True), None),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), None),
        (nn.AvgPool2d(2, divisor_override=3), None),
        (nn.AdaptiveAvgPool2d(2), 4),
        (nn.AdaptiveAvgPool2d(3), None),
        (nn.MaxPool2d(2), 0),
        (nn.Upsample(scale_factor=2.0, mode="bilinear"), None),
        (nn.Flatten(), 0),
        (nn.Softplus(), None),
    ],
    ids=repr,
)
def test_bits_are_enough_for_every_sum_of_spikes(pool: nn.Module, bits: int | None) -> None:
    x = (torch.rand(50, 3, 8, 8, dtype=torch.float64) > 0.5).double()
    y = pool(x)
    assert rule_of(pool).bits_behind(pool, x.shape, y.shape) == bits
    if bits is not None:
        assert torch.equal(y * 2**bits, (y * 2**bits).round())
