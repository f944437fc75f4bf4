"""True maxima and percentiles over all batches, where the host's are moving averages."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from snn_ext import convert  # noqa: E402
from snn_ext.conversion import QuantizedReLU  # noqa: E402
from snn_ext.conversion.thresholds import LargestActivations, _rank, order_statistic  # noqa: E402
from tests.conversion.nets import Block, ResNet, images, trained, vgg  # noqa: E402


def test_maximum_is_the_true_one_over_batches() -> None:
    ann = nn.Sequential(nn.Identity(), nn.ReLU())
    batches = [torch.tensor([[m, 0.5]]) for m in (1.0, 10.0, 2.0)]  # a moving average gives 1.9
    assert convert(ann, batches, method="data-norm").report[0].threshold == 10.0
    assert convert(ann, batches, method="data-norm", channel_wise=True).report[0].threshold == [10.0, 0.5]


def test_a_layer_of_one_channel_reports_its_threshold_per_channel_too() -> None:
    """Its neuron has the threshold 1 between two scales, as every neuron with thresholds per channel."""
    ann = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 1))
    nn.init.constant_(ann[0].weight, 0.5)
    nn.init.constant_(ann[0].bias, 0.25)
    report = convert(ann, torch.ones(1, 1, 2, 2), method="data-norm", channel_wise=True).report
    assert report[0].threshold == report[0].scale == 0.75


@pytest.mark.parametrize("percentile", [100.0, 99.0, 90.0, 33.3])
@pytest.mark.parametrize("channel_wise", [False, True], ids=["layer", "channel"])
def test_percentile_is_an_order_statistic_of_all_values(percentile: float, channel_wise: bool) -> None:
    ann = nn.Sequential(nn.ReLU())
    batches = [torch.randn(n, 3, 4, 4) * scale for n, scale in ((5, 1.0), (9, 3.0), (1, 0.1))]
    found = LargestActivations(ann, ["0"], batches, channel_wise=channel_wise).thresholds(percentile)["0"]
    values = torch.cat(batches).relu()
    rows = values.movedim(1, 0).flatten(1) if channel_wise else values.reshape(1, -1)
    for row, got in zip(rows, found, strict=True):
        wanted = order_statistic(row, percentile)
        wanted = row.max() if wanted == 0 else wanted  # half of the values are 0
        assert got == wanted
        if wanted != row.max():
            assert (row <= got).double().mean() >= percentile / 100 > (row < got).double().mean()


@pytest.mark.parametrize("percentile", [0.1, 1.0, 33.3, 50.0, 99.0, 99.9, 99.99, 100.0])
def test_rank_is_the_smallest_with_that_share_at_any_count(percentile: float) -> None:
    """99.9 % of 1000 is 999 and not 999.0000000000001; of 10^8 + 7 values no tolerance may swallow a rank."""
    for count in (*range(1, 60), 1000, 10**4 + 1, 10**8 + 7, 10**9 + 1, 3 * 10**10 + 11):
        rank, share = _rank(percentile, count), Decimal(str(percentile)) * count
        assert 1 <= rank <= count and 100 * rank >= share
        assert rank == 1 or 100 * (rank - 1) < share


def test_a_dead_channel_gets_the_threshold_of_its_layer_a_dead_layer_one_with_a_warning() -> None:
    ann = nn.Sequential(nn.ReLU())
    x = torch.tensor([[0.5, -1.0], [2.0, -3.0]])
    found = LargestActivations(ann, ["0"], [x], channel_wise=True).thresholds()["0"]
    assert found.tolist() == [2.0, 2.0]
    with pytest.warns(UserWarning, match="0 was never active"):
        assert LargestActivations(ann, ["0"], [-x.abs()]).thresholds()["0"].tolist() == [1.0]


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="output of ann is not finite"):
        convert(nn.Sequential(nn.ReLU()), torch.tensor([[torch.inf, 1.0]]), method="data-norm")


def test_branches_and_junction_of_a_block_share_the_scale_of_the_junction() -> None:
    """Hu et al. 2018: in units of thresholds, conv2 is scaled by mid/out, an identity by in/out."""
    ann, x = trained(ResNet()), images()
    snn = convert(ann, x, method="data-norm")
    stem, mid, out = (snn.report[name].threshold for name in ("relu", "blocks.0.relu", "blocks.0.relu_2"))
    norm, conv = ann.blocks[0].norm2, ann.blocks[0].conv2
    folded = conv.weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
    torch.testing.assert_close(snn.get_submodule("blocks.0.conv2").weight / out, folded * mid / out)
    torch.testing.assert_close(snn.get_submodule("pool_scale").weight / out, torch.tensor([stem / out]))
    assert snn.report["blocks.0.relu_2"].relative_threshold is None  # spikes of two values arrive
    assert snn.report["blocks.0.relu"].relative_threshold == pytest.approx(mid / stem)


def test_unit_threshold_gives_all_neurons_inside_residual_units_that_of_what_enters() -> None:
    snn = convert(trained(ResNet()), images(), method="data-norm", residual="unit-threshold")
    assert [layer.rule for layer in snn.report] == ["maximum"] + ["unit threshold"] * 6
    assert len({layer.threshold for layer in snn.report}) == 1
    assert {layer.relative_threshold for layer in snn.report[1:]} == {1.0}


@pytest.mark.parametrize("method", ["data-norm", "spike-norm"])
def test_the_threshold_of_a_unit_is_that_of_the_neurons_that_feed_it_though_it_is_quantised(method: str) -> None:
    """Its largest activation is another number: at most 9 / 10 of the threshold here."""
    block = Block(2, 2, 1, nn.ReLU)
    ann = trained(nn.Sequential(QuantizedReLU(10, 1.25), block, nn.Flatten(), nn.Linear(128, 2)))
    snn = convert(ann, images() * 0.9, method=method, time_steps=8, residual="unit-threshold")
    assert [layer.threshold for layer in snn.report] == [1.25] * 3


def test_plain_nets_have_no_residual_units() -> None:
    with pytest.raises(ValueError, match="residual: got 'unit-threshold'"):
        convert(trained(vgg()), images(), method="data-norm", residual="unit-threshold")
