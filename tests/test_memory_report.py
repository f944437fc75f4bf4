"""The bytes that a net keeps: those that autograd was seen to keep, by layer and kind, and the net as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import snn_ext
from snn_ext import accelerate, pack_spikes
from snn_ext.snntorch import run_steps
from snn_ext.spikingjelly import ATIFuNode

C, SIZE = 16, 8
LAYER = 4 * 3 * C * SIZE * SIZE  # elements behind a convolution


def net_of(node: Any = ATIFuNode) -> nn.Module:
    net = nn.Sequential(
        layer.Conv2d(2, C, 3, padding=1), layer.BatchNorm2d(C), node(), layer.Conv2d(C, C, 3, padding=1),
        layer.BatchNorm2d(C), node(), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(C * SIZE * SIZE // 4, 64),
        node(), layer.Dropout(0.5), layer.Linear(64, 5),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return net


def images() -> Tensor:
    return torch.randn(4, 3, 2, SIZE, SIZE) + 0.5


def seen(net: nn.Module, x: Tensor) -> int:
    """Return the bytes that a forward pass keeps, each memory once, as hooks outside see them."""
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x)
        del out
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("node", [ATIFuNode, neuron.LIFNode])
def test_both_sums_are_what_autograd_keeps(node: Any, fused: bool) -> None:
    net, x = net_of(node), images()
    if fused:
        accelerate(net)
    found = snn_ext.memory(net, x)
    want = seen(copy.deepcopy(net), x)
    assert found.total.before == pytest.approx(want, rel=0.02)  # a neuron of the host keeps slices of sequences
    packed = copy.deepcopy(net)
    pack_spikes(packed)
    tables = found.total.after - seen(packed, x)
    assert 0 <= tables < 0.02 * found.total.after
    assert snn_ext.memory(net, x) == found == snn_ext.memory(packed, x)


def test_each_layer_keeps_what_its_backward_pass_needs() -> None:
    found = snn_ext.memory(net_of(), images())
    assert found.by_layer["3"].before == 4 * LAYER and found.rows["3", "spikes"].after < 4 * LAYER / 30
    for norm in "14":
        assert found.rows[norm, "norm inputs"].before == 4 * LAYER + 8 * C  # and the statistics of the batch
    for node in "25":
        assert found.rows[node, "currents, potentials"].before == found.rows[node, "currents, potentials"].after
        assert found.rows[node, "currents, potentials"].before >= 4 * LAYER
    assert found.rows["6", "other"].before == 8 * LAYER // 4  # the places of maxima
    assert [*found.by_layer][:3] == ["0", "1", "2"]
    parts = [sum(b.before for b in way.values()) for way in (found.by_kind, found.by_layer, found.rows)]
    assert set(parts) == {found.total.before}


def test_what_a_neuron_is_made_of_counts_as_the_neuron() -> None:
    found = snn_ext.memory(net_of(lambda: neuron.IFNode(0.75)), images())
    assert not [name for name in found.by_layer if "surrogate" in name]


def test_the_net_its_states_and_the_random_numbers_stay_as_they_are() -> None:
    net, x = net_of(lambda: neuron.LIFNode(2.0)), images()
    loss = net(x).sum()  # states with a graph
    state = {key: value.clone() for key, value in net.state_dict().items()}
    potential, hooks, random = net[2].v, [len(m._forward_hooks) for m in net.modules()], torch.get_rng_state()
    snn_ext.memory(net, x)
    assert net[2].v is potential and torch.equal(torch.get_rng_state(), random)
    assert [len(m._forward_hooks) for m in net.modules()] == hooks
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    loss.backward()


def test_a_failed_count_leaves_no_hooks() -> None:
    net = net_of()
    with pytest.raises(RuntimeError):
        snn_ext.memory(net, torch.rand(4, 3, 7, SIZE, SIZE))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    with pytest.raises(TypeError, match="net: got None of type NoneType, want an nn.Module"):
        snn_ext.memory(None, images())  # type: ignore[arg-type]


def test_a_net_of_snntorch_over_its_steps() -> None:
    leaky = [snn.Leaky(0.9, init_hidden=True) for _ in range(2)]
    net = nn.Sequential(nn.Linear(64, 512), leaky[0], nn.Linear(512, 10), leaky[1])
    accelerate(net)
    x = torch.rand(3, 64)
    found = snn_ext.memory(net, x, forward=lambda net, x: run_steps(net, x, 25))
    assert found.rows["2", "spikes"].before == 25 * 3 * 512 * 4
    assert found.rows["2", "spikes"].after == 25 * 3 * 512 // 8 + 64


def test_a_net_inside_wrappers_is_counted_as_without() -> None:
    net, x = net_of(), images()
    want = snn_ext.memory(net, x)
    for wrapped in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        assert snn_ext.memory(wrapped, x) == want  # type: ignore[arg-type]


def test_the_table_is_narrow_and_has_every_row() -> None:
    net = nn.Sequential()
    net.add_module("a_very_long_name_of_a_layer_that_no_table_has_room_for", net_of())
    found = snn_ext.memory(net, images())
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 1 + len(found.rows) + sum(b.tensors > 0 for b in found.by_kind.values()) + 1
    assert lines[-1].split()[0] == "all" and f"{found.total.before / 1e3:,.1f}" in lines[-1]
