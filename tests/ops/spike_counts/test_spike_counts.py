"""Counts of spikes and of the synapses that they meet: those of plain sums, in any layout, with any threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snn_ext.ops import implementation, use_implementation
from snn_ext.ops.spike_counts import spike_counts

IMPLEMENTATIONS = [
    name for name in ("cpu", "torch") if name not in implementation("spike_counts", "cpu", torch.float32).unavailable
]


def plain(spikes: Tensor, fan_out: Tensor) -> Tensor:
    fires = (spikes != 0).double()
    return torch.stack([fires.flatten(1).sum(1), (fires * fan_out).flatten(1).sum(1)])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 1, 1), (4, 9, 513), (2, 3, 7, 5, 3), (5, 1, 16, 4, 4), (3, 2, 0)])
def test_counts_are_those_of_plain_sums(shape: tuple[int, ...], name: str) -> None:
    spikes = (torch.rand(shape) < 0.3) * torch.randint(-2, 3, shape).float()  # signed events count as those of one sign
    fan_out = torch.randint(1 << 30, (shape[2:])).double()
    layouts = [spikes, torch.stack([spikes, spikes], -1)[..., 0]]
    if len(shape) == 5:
        layouts.append(spikes.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2]))
        layouts.append(spikes.transpose(1, 2).contiguous().transpose(1, 2))  # a sample is not in one piece
    with use_implementation(name):
        for x in layouts:
            assert torch.equal(spike_counts(x, fan_out), plain(spikes, fan_out))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_counted_too(dtype: torch.dtype) -> None:
    spikes, fan_out = (torch.rand(3, 300, 2) < 0.9).to(dtype), torch.tensor([2.0, 3.0]).double()
    assert torch.equal(spike_counts(spikes, fan_out), plain(spikes, fan_out))  # 300 is no number of 8 bits


def test_counts_do_not_depend_on_the_threads() -> None:
    spikes, fan_out = (torch.rand(8, 4, 3000) < 0.2).float(), torch.randint(600, (3000,)).double()
    threads, whole = torch.get_num_threads(), spike_counts(spikes, fan_out)
    torch.set_num_threads(3)
    try:
        assert torch.equal(spike_counts(spikes, fan_out), whole)
    finally:
        torch.set_num_threads(threads)
