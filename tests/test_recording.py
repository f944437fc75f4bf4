"""What is recorded is what arrived, and recording leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snn_ext import record_inputs
from snn_ext.snntorch import ATIFu
from snn_ext.spikingjelly import ATIFnuNode


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU(inplace=True))


def test_inputs_are_those_of_the_eval_mode_even_before_an_in_place_relu() -> None:
    net, x = make_net(), torch.randn(5, 4)
    records = record_inputs(net, [x])
    net.eval()
    assert torch.equal(records[net[2]], net[:2](x).flatten().detach())
    assert torch.equal(records[net[4]], net[:4](x).flatten().detach())
    assert (records[net[4]] < 0).any()


def test_recording_leaves_no_trace() -> None:
    net = make_net()
    net[1].eval()  # frozen by its owner
    before = {name: value.clone() for name, value in net.state_dict().items()}
    record_inputs(net, [torch.randn(5, 4)])
    assert net.training and not net[1].training and not net[2]._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_hooks_are_removed_after_a_failure() -> None:
    net = make_net()
    with pytest.raises(RuntimeError):
        record_inputs(net, [torch.randn(5, 3)])
    assert net.training and not net[2]._forward_pre_hooks


def test_a_loader_with_labels_and_several_batches_works() -> None:
    net = make_net()
    records = record_inputs(net, [(torch.randn(5, 4), torch.zeros(5))] * 2)
    assert [len(r) for r in records.values()] == [60, 30]
    assert list(records) == [net[2], net[4]]


def test_the_sample_is_limited_and_spread_over_the_input() -> None:
    net = nn.Sequential(nn.ReLU())
    (record,) = record_inputs(net, [torch.arange(1000.0)], limit=100).values()
    assert len(record) == 100 and record[0] == 0 and record[-1] >= 990


def test_spiking_nets_start_every_batch_afresh_and_are_left_reset() -> None:
    net = nn.Sequential(nn.Linear(4, 3), ATIFnuNode(0.5, T=1), nn.Linear(3, 3), ATIFu(0.5, init_hidden=True))
    x = torch.rand(5, 4)
    records = record_inputs(net, [x, x])
    assert torch.equal(*records[net[3]].chunk(2))
    assert net[1].t == 0 and net[1].v == 0.0 and not net[3].mem.any()


@pytest.mark.parametrize(
    ("net", "batches", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), [], "net: got 'Sequential'"),
        (make_net(), [], "batches: got"),
        ("net", [], "net: got 'net'"),
    ],
)
def test_wrong_arguments_are_named(net: nn.Module, batches: list[torch.Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        record_inputs(net, batches)
    assert message in str(caught.value) and "want" in str(caught.value)


def test_inputs_by_keyword_are_recorded_and_what_is_no_number_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(input=x)

    net, x = Net(), torch.rand(3, 4)
    assert torch.equal(record_inputs(net, [x, x[:0]])[net.relu], x.flatten())
    with pytest.raises(ValueError, match="batches: got 'NaN or infinite values that reach relu', want finite numbers"):
        record_inputs(net, [x, x / 0])
    assert net.training and not net.relu._forward_pre_hooks
