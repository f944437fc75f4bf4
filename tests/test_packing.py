"""Spikes kept as bits: gradients to the last bit, nothing else packed, and no trace behind a call or ``undo``."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import snntorch as snn
import torch
import torch._dynamo.testing
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spikformer
from torch import Tensor, fx, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import snn_ext
from snn_ext import accelerate, pack_spikes
from snn_ext.ops import use_implementation
from snn_ext.packing import Pass
from snn_ext.snntorch import reset, run_steps
from tests.hosts import COMPILER

from .hosts import NEURONS, NODES

T, N, C, SIZE = 4, 3, 16, 8
SPIKES = T * N * C * SIZE * SIZE  # behind a neuron of the nets here

HOST_NODES: dict[str, Callable[[], Any]] = {
    "IFNode": lambda: neuron.IFNode(0.75),
    "IFNode, soft reset": lambda: neuron.IFNode(0.75, v_reset=None),
    "LIFNode": lambda: neuron.LIFNode(2.0),
    "ParametricLIFNode": lambda: neuron.ParametricLIFNode(2.0),
    "QIFNode": lambda: neuron.QIFNode(),
    "GatedLIFNode": lambda: neuron.GatedLIFNode(T=T),
}
HOST_NEURONS: dict[str, Callable[[], Any]] = {
    "Leaky": lambda: snn.Leaky(0.75, init_hidden=True),
    "Leaky, graded": lambda: snn.Leaky(0.75, threshold=0.75, graded_spikes_factor=0.3, init_hidden=True),
    "Synaptic": lambda: snn.Synaptic(0.75, 0.5, init_hidden=True),
    "Lapicque": lambda: snn.Lapicque(0.75, init_hidden=True),
}


def grid(*shape: int) -> Tensor:
    """Return input on a 1/16 grid, where charges meet thresholds exactly."""
    return torch.randint(-8, 24, shape) / 16


def on_the_grid(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.copy_((8 * parameter).round() / 8)
    return net


def images_net(node: Callable[[], Any]) -> nn.Module:
    """Return convolutions, norms, neurons, poolings and dropout of SpikingJelly."""
    net = nn.Sequential(
        layer.Conv2d(2, C, 3, padding=1), node(), layer.Conv2d(C, C, 3, padding=1, bias=False), layer.BatchNorm2d(C),
        node(), layer.MaxPool2d(2), layer.Dropout(0.25), layer.Flatten(), layer.Linear(C * SIZE * SIZE // 4, 64),
        node(), layer.Linear(64, 5),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return on_the_grid(net)


def steps_net(make: Callable[[], Any]) -> nn.Module:
    """Return a net of one step, of snnTorch."""
    net = nn.Sequential(
        nn.Conv2d(2, C, 3, padding=1), make(), nn.Conv2d(C, C, 3, padding=1), nn.AvgPool2d(2), make(), nn.Flatten(),
        nn.Dropout(0.25), nn.Linear(C * SIZE * SIZE // 4, 5), make(),
    )  # fmt: skip
    return on_the_grid(net)


def in_sequence(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    out: Tensor = net(x)
    return out


def in_a_loop(net: nn.Module, x: Tensor) -> Tensor:
    reset(net)
    return torch.stack([net(x_t) for x_t in x])


def once(net: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = net(x)
    return out


def results(net: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor] = in_sequence) -> list[Tensor]:
    """Return the output and all gradients, of the same random numbers each time."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    net.zero_grad()
    out = run(net, x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out))
    return [out.detach(), *(t.grad for t in (x, *net.parameters()) if t.grad is not None)]


def packed_copy(net: nn.Module) -> tuple[nn.Module, snn_ext.PackedSpikes]:
    twin = copy.deepcopy(net)
    return twin, pack_spikes(twin)


def assert_same(found: list[Tensor], want: list[Tensor]) -> None:
    assert len(found) == len(want) and all(map(torch.equal, found, want))


def hooks_of_the_thread() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    yield
    assert hooks_of_the_thread() is None


@pytest.fixture
def kept() -> Iterator[list[Tensor]]:
    """Collect what autograd keeps, seen from outside."""
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True], ids=["", "accelerated"])
@pytest.mark.parametrize("name", [*HOST_NODES, *NODES])
def test_gradients_are_the_same_bits_with_every_neuron_of_spikingjelly(name: str, fused: bool) -> None:
    net = images_net((HOST_NODES | NODES)[name])
    if fused:
        accelerate(net)
    twin, done = packed_copy(net)
    for _ in range(2):
        x = grid(T, N, 2, SIZE, SIZE)
        assert_same(results(twin, x), results(net, x))
    assert done.packed["1 bit"].before >= 2 * 4 * SPIKES  # behind both convolutions at least


@pytest.mark.parametrize("run", [in_a_loop, run_steps])
@pytest.mark.parametrize("name", [*HOST_NEURONS, *NEURONS])
def test_gradients_are_the_same_bits_with_every_neuron_of_snntorch(name: str, run: Any) -> None:
    net = steps_net((HOST_NEURONS | NEURONS)[name])
    twin, done = packed_copy(net)
    for each in (net, twin):
        reset(each)
    x = grid(T, N, 2, SIZE, SIZE)
    found, want = results(twin, x, run), results(net, x, run)
    assert_same(found, want)
    assert done.packed["1 bit"].before >= 4 * SPIKES / (T if run is in_a_loop else 1)


@pytest.mark.parametrize("implementation", ["torch", None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_gradients_are_the_same_bits_in_other_dtypes(dtype: torch.dtype, implementation: str | None) -> None:
    net = images_net(lambda: neuron.LIFNode(2.0)).to(dtype)
    twin, done = packed_copy(net)
    x = grid(T, N, 2, SIZE, SIZE).to(dtype)
    want = results(net, x)
    with nullcontext() if implementation is None else use_implementation(implementation):
        assert_same(results(twin, x), want)
    assert "1 bit" in done.packed


def sew() -> nn.Module:
    return sew_resnet.sew_resnet18(spiking_neuron=neuron.IFNode, cnf="ADD", num_classes=10)


def transformer() -> nn.Module:
    return spikformer.Spikformer(
        T=4, img_size_h=32, img_size_w=32, patch_size=4, embed_dims=64, num_heads=4, num_classes=10, depths=1
    )


@pytest.mark.parametrize("make", [sew, transformer])
def test_sums_and_products_of_spikes_in_nets_of_the_host_give_the_same_bits(make: Callable[[], nn.Module]) -> None:
    net = make()
    functional.set_step_mode(net, "m")
    twin, done = packed_copy(net)
    x = torch.randn(4, 2, 3, 32, 32)
    assert_same(results(twin, x), results(net, x))
    assert done.packed["1 bit"].tensors >= 10 and "2 bits" in done.packed


def test_a_hundred_steps_of_training_are_the_same_bits() -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    twin, _ = packed_copy(net)
    batches = [(grid(T, N, 2, SIZE, SIZE), torch.randint(5, (N,))) for _ in range(4)]
    losses = []
    for each in (net, twin):
        torch.manual_seed(3)
        optimizer = torch.optim.SGD(each.parameters(), 0.05, momentum=0.9)
        losses.append([])
        for step in range(100):
            x, labels = batches[step % len(batches)]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(in_sequence(each, x).mean(0), labels)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == losses[1] and sum(losses[0][-20:]) < sum(losses[0][:20])


# -- what is packed ----------------------------------------------------------------------------------------------------


class Through(nn.Module):
    """A linear layer behind some operation on spikes."""

    def __init__(self, operation: Callable[[Tensor], Tensor], width: int = 512) -> None:
        super().__init__()
        self.operation, self.layer = operation, nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.operation((x > 0.5).to(x.dtype)))
        return out


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "spikes": (lambda s: s, "1 bit"),
    "spikes of a height": (lambda s: 0.7 * s, "1 bit"),
    "no spikes": (lambda s: 0 * s, "1 bit"),
    "a sum of two": (lambda s: s + s.roll(1, 0), "2 bits"),
    "two signs": (lambda s: s - s.roll(1, 0), "2 bits"),
    "a sum of five": (lambda s: sum(s.roll(k, 0) for k in range(5)), "4 bits"),
    "an average of four": (lambda s: nn.functional.avg_pool1d(s.repeat(1, 4), 4), "4 bits"),
    "a negative zero": (lambda s: -s, "1 bit"),
    "a transposed copy": (lambda s: s.T.contiguous().T, "1 bit"),
    "another dtype and back": (lambda s: s.half().float(), "1 bit"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_spikes_are_found_behind_what_leaves_few_values(name: str) -> None:
    operation, bits = OPERATIONS[name]
    net = Through(operation)
    twin, done = packed_copy(net)
    x = torch.rand(64, 512)
    assert_same(results(twin, x, once), results(net, x, once))
    assert [*done.packed] == [bits] and done.packed[bits].tensors == 1
    assert done.packed[bits].after == 64 * 512 * int(bits[0]) // 8 + 4 * 16


def test_all_that_autograd_keeps_of_spikes_is_bits(kept: list[Tensor]) -> None:
    net = Through(lambda s: s)
    pack_spikes(net)
    net(torch.rand(64, 512)).sum().backward()
    parameters = {p.data_ptr() for p in net.parameters()}
    found = [t for t in kept if t.data_ptr() not in parameters]
    assert [(t.dtype, t.numel()) for t in found] == [(torch.uint8, 64 * 512 // 8)]


@pytest.mark.parametrize(
    ("pool", "shape", "bits"),
    [
        (nn.MaxPool2d(2), (6, 16, 32, 32), 2),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (6, 16, 21, 33), 4),
        (nn.MaxPool2d(2, dilation=3), (6, 16, 32, 32), 2),
        (nn.MaxPool2d(2), (96, 32, 32), 2),
        (nn.MaxPool1d(3), (8, 16, 99), 2),
        (nn.MaxPool3d(2), (2, 16, 8, 8, 8), 4),
        (nn.AdaptiveMaxPool2d(5), (64, 32, 10, 10), 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_places_of_maxima_are_bits(pool: nn.Module, shape: tuple[int, ...], bits: int, channels_last: bool) -> None:
    x = (torch.rand(shape) < 0.3).float()
    x[x == 0] = torch.where(torch.rand(int((x == 0).sum())) < 0.9, 0.0, -torch.inf)
    if channels_last and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    net = nn.Sequential(nn.Identity(), pool)
    twin, done = packed_copy(net)
    assert_same(results(twin, x, once), results(net, x, once))
    assert f"{bits} bit{'s' * (bits > 1)}" in done.packed
    assert not [why for why in done.left if why != "less than 4096 bytes"]


def test_integers_of_many_values_stay_whole() -> None:
    class Gather(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.gather(2, places)

    places, net = torch.randint(64, (8, 16, 64)), Gather()
    twin, done = packed_copy(net)
    x = torch.randn(8, 16, 64)
    assert_same(results(twin, x, once), results(net, x, once))
    assert done.left["more than 16 values"].before == places.nbytes + x.nbytes


def test_weights_that_autocast_made_narrow_are_made_narrow_again() -> None:
    net = images_net(HOST_NODES["IFNode"])
    twin, done = packed_copy(net)
    x = grid(T, N, 2, SIZE, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(results(twin, x), results(net, x))
    weights = [p for p in net.parameters() if 2 * p.numel() >= 4096 and p.ndim > 1]
    assert done.packed["computed again"] == snn_ext.packing.Bytes(len(weights), sum(2 * w.numel() for w in weights), 0)


def test_a_narrow_weight_whose_original_was_changed_is_an_error() -> None:
    net = images_net(HOST_NODES["IFNode"])
    pack_spikes(net)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(grid(T, N, 2, SIZE, SIZE))
    with torch.no_grad():
        net[8].weight.mul_(2)  # type: ignore[index]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_currents_and_small_tensors_stay_whole_and_the_reason_is_told() -> None:
    net = Through(lambda s: s + 0.001 * torch.rand_like(s))
    done = pack_spikes(net)
    net(torch.rand(64, 512))
    assert not done.packed and done.left["more than 16 values"].before == 4 * 64 * 512
    net(torch.rand(1, 512))
    assert not done.packed and done.left["less than 4096 bytes"].tensors == 1
    assert "less than 4096 bytes: 1 tensors" in str(done)


def test_one_tensor_that_several_layers_keep_is_packed_once() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.whole = nn.Linear(512, 8), nn.Linear(512, 8), nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            s = (x > 0.5).float()
            return self.left(s) + self.right(s) + self.whole(s.unsqueeze(1)).squeeze(1)[:, :8]

    net = Fork()
    twin, done = packed_copy(net)
    x = torch.rand(64, 512)
    assert_same(results(twin, x, once), results(net, x, once))
    assert done.packed["1 bit"].tensors == 1


def test_memory_that_is_used_again_for_other_spikes_is_not_taken_for_the_first() -> None:
    place = bytearray(4 * 64 * 4096)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.again = nn.ModuleList(nn.Linear(4096, 8) for _ in range(12)), False

        def forward(self, x: Tensor) -> Tensor:
            total = x.new_zeros(())
            for k, each in enumerate(self.layers):
                s = (x > k / 12).float()
                if self.again:  # as if it were freed, for its bits are kept, and the next one came to lie there
                    s = torch.frombuffer(place, dtype=torch.float32).view(64, 4096).copy_(s)
                total = total + each(s).mul(1 + k).sum()
                del s
            return total

    net = Loop()
    x = torch.rand(64, 4096)
    want = results(net, x, once)
    pack_spikes(net)
    net.again = True
    assert_same(results(net, x, once), want)


def test_two_views_that_begin_at_one_place_are_two_tensors() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(512, 8)

        def forward(self, x: Tensor) -> Tensor:
            s = (x > 0.5).float()
            halves = (s[:, ::2], s[:32].view(64, 256), s[:32].view(256, 64).T, s[:, :256])
            return torch.stack([half @ self.layer.weight[:, :256].T for half in halves])

    net = Views()
    twin, done = packed_copy(net)
    x = torch.rand(64, 512)
    assert_same(results(twin, x, once), results(net, x, once))
    assert "1 bit" in done.packed and "gaps in memory" in done.left


def test_spikes_changed_in_place_between_two_layers_are_packed_as_each_saw_them() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(512, 8, bias=False), nn.Linear(512, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            s = (x > 0.5).float()
            first: Tensor = self.first(s)
            s.mul_(-1).add_(1)
            return first + self.second(s)

    net, x = Changed(), torch.rand(64, 512)
    pack_spikes(net)
    net(x).sum().backward()
    for parameter, spikes in ((net.first.weight, x > 0.5), (net.second.weight, x <= 0.5)):
        assert torch.equal(parameter.grad, spikes.float().sum(0).expand(8, -1))  # type: ignore[arg-type]


def test_what_stayed_whole_and_was_changed_in_place_is_an_error_as_without() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(512, 512)

        def forward(self, x: Tensor) -> Tensor:
            current = self.layer(x)
            return current * self.layer(current) + current.add_(1)

    net = Changed()
    for change in (lambda net: None, pack_spikes):
        change(net)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            net(torch.rand(64, 512)).sum().backward()


# -- torch's own tools -------------------------------------------------------------------------------------------------


def test_under_autocast_the_16_bit_copies_are_packed() -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    twin, done = packed_copy(net)

    def run(net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return in_sequence(net, x)

    x = grid(T, N, 2, SIZE, SIZE)
    assert_same(results(twin, x, run), results(net, x, run))
    assert done.packed["1 bit"].before / done.packed["1 bit"].after > 12


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_net_keeps_nothing_and_gives_the_same_bits(reentrant: bool) -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    twin, _ = packed_copy(net)

    def run(net: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(in_sequence, net, x, use_reentrant=reentrant)
        return out

    x = grid(T, N, 2, SIZE, SIZE)
    assert_same(results(twin, x, run), results(net, x, run))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside_the_net_give_the_same_bits(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Linear(512, 512), Through(lambda s: s + s.roll(1, 0))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.rest, torch.sigmoid(self.first(x)), use_reentrant=reentrant)
            return out

    net = Checkpointed()
    twin, _ = packed_copy(net)
    x = torch.rand(64, 512)
    assert_same(results(twin, x, once), results(net, x, once))


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """Collect what is packed, without keeping it alive."""
    found: list[weakref.ref[Tensor]] = []

    class Noting(Pass):
        def _found(self, tensor: Tensor) -> Any:
            coded = super()._found(tensor)
            if coded is not None:
                found.append(weakref.ref(coded.codes.codes))
            return coded

    monkeypatch.setattr("snn_ext.packing.Pass", Noting)
    return found


def test_a_checkpoint_around_drops_the_bits_too(bits: list[weakref.ref[Tensor]]) -> None:
    net = Through(lambda s: s)
    pack_spikes(net)
    out = checkpoint(net, torch.rand(64, 512, requires_grad=True), use_reentrant=False)
    assert len(bits) == 1 and bits[0]() is None
    out.sum().backward()
    assert len(bits) == 2 and bits[1]() is None


def test_bits_are_freed_with_the_graph(bits: list[weakref.ref[Tensor]]) -> None:
    net = Through(lambda s: s)
    pack_spikes(net)
    out = net(torch.rand(64, 512))
    assert bits[0]() is not None
    out.sum().backward()
    assert bits[0]() is None
    out = net(torch.rand(64, 512))
    assert bits[1]() is not None
    del out
    assert bits[1]() is None


def test_hooks_around_get_the_bits_and_the_rest() -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    twin, _ = packed_copy(net)

    def run(net: nn.Module, x: Tensor) -> Tensor:
        with save_on_cpu():
            return in_sequence(net, x)

    x = grid(T, N, 2, SIZE, SIZE)
    assert_same(results(twin, x, run), results(net, x, run))


def test_a_graph_may_be_kept_and_gone_through_again() -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    pack_spikes(net)
    out = in_sequence(net, grid(T, N, 2, SIZE, SIZE)).sum()
    first = torch.autograd.grad(out, [*net.parameters()], retain_graph=True)
    assert_same([*torch.autograd.grad(out, [*net.parameters()])], [*first])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(out, [*net.parameters()])


def test_second_derivatives_go_through_packed_spikes() -> None:
    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(512, 512), nn.Linear(512, 8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(surrogate.ATan()(self.first(x)))
            return out.tanh()

    def penalty(net: nn.Module, x: Tensor) -> list[Tensor]:
        net.zero_grad()
        (slope,) = torch.autograd.grad(net(x).sum(), net.second.weight, create_graph=True)  # type: ignore[arg-type]
        slope.square().sum().backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    net = Smooth()
    twin, done = packed_copy(net)
    x = torch.randn(64, 512)
    assert_same(penalty(twin, x), penalty(net, x))
    assert "1 bit" in done.packed


def test_several_graphs_may_wait_for_one_backward_pass() -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    twin, _ = packed_copy(net)
    batches = [grid(T, N, 2, SIZE, SIZE) for _ in range(3)]

    def run(net: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([in_sequence(net, batch) for batch in batches])

    for each in (net, twin):
        torch.manual_seed(1)
        each.zero_grad()
        run(each, batches[0]).sum().backward()
    assert_same([p.grad for p in twin.parameters()], [p.grad for p in net.parameters()])


@pytest.fixture
def dynamo() -> Iterator[Any]:
    torch._dynamo.reset()
    yield torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def test_a_compiled_net_is_packed_without_a_break(dynamo: Any) -> None:
    net, x = Through(lambda s: s + s.roll(1, 0)), torch.rand(64, 512)
    want = results(net, x, once)
    compiled: Any = torch.compile(net, backend=dynamo, fullgraph=True)
    done = pack_spikes(compiled)
    for _ in range(2):
        assert_same(results(net, x, lambda _, x: compiled(x)), want)
    assert dynamo.frame_count == 1 and done.packed["2 bits"].before == 4 * 64 * 512
    done.undo()
    assert_same(results(net, x, lambda _, x: compiled(x)), want)


def test_a_packed_net_is_compiled_inside_or_told_to_be_compiled_first(dynamo: Any) -> None:
    net, x = nn.Sequential(nn.Linear(64, 512), Through(lambda s: s)), grid(64, 64)
    want = results(net, x, once)
    done = pack_spikes(net)
    compiled: Any = torch.compile(net, backend=dynamo)
    assert_same(results(net, x, lambda _, x: compiled(x)), want)
    assert dynamo.frame_count >= 1
    if COMPILER < (2, 14):
        pytest.skip("torch 2.11 compiles the inside without the hooks around it")
    assert "1 bit" in done.packed
    whole: Any = torch.compile(net, backend=dynamo, fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"pack_spikes\(torch.compile\(net\)\)"):
        whole(x)
    done.undo()
    assert_same(results(net, x, lambda _, x: compiled(x)), want)


def test_a_packed_net_is_exported_as_it_is() -> None:
    net, x = Through(lambda s: s), torch.rand(64, 512)
    want = net(x)
    pack_spikes(net)
    for strict in (False, True):
        program = torch.export.export(net, (x,), strict=strict).module()
        torch.testing.assert_close(program(x), want)


def test_torch_func_sees_the_net_as_it_is() -> None:
    net = Through(lambda s: s)
    x = torch.rand(64, 512)
    want = results(net, x, once)[1:]
    pack_spikes(net)
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(net, parameters, (x,))
        return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum()

    assert_same([*torch.func.grad(loss)(parameters).values()], want)


def test_data_parallel_training_gives_the_same_bits(tmp_path: Any) -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    twin, done = packed_copy(net)
    x = grid(T, N, 2, SIZE, SIZE)
    want = results(net, x)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = results(nn.parallel.DistributedDataParallel(twin), x)
    finally:
        torch.distributed.destroy_process_group()
    assert_same(found, want)
    assert "1 bit" in done.packed


def test_threads_pack_what_is_their_own() -> None:
    nets = [images_net(lambda: neuron.LIFNode(2.0)) for _ in range(3)]
    inputs = [grid(T, N, 2, SIZE, SIZE) for _ in nets]
    for net in nets:
        net[6] = nn.Identity()  # type: ignore[operator] # threads share the random numbers of dropout
    want = [results(net, x)[2:] for net, x in zip(nets, inputs, strict=True)]
    found: list[Any] = [None] * len(nets)

    def work(k: int) -> None:
        for _ in range(5):
            found[k] = results(nets[k], inputs[k])[2:]

    for net in nets:
        pack_spikes(net)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(nets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, wanted in zip(found, want, strict=True):
        assert_same(got, wanted)


# -- the net itself ----------------------------------------------------------------------------------------------------


def test_nothing_but_the_class_changes_and_undo_brings_it_back() -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    before, attributes, state = repr(net), dict(vars(net)), net.state_dict()
    done = pack_spikes(net)
    assert repr(net) == before and isinstance(net, nn.Sequential) and dict(vars(net)) == attributes
    assert [*net.state_dict()] == [*state] and pack_spikes(net).packed == done.packed
    done.undo()
    assert type(net) is nn.Sequential and dict(vars(net)) == attributes
    with pytest.raises(ValueError, match=r"net: got 'Sequential that is packed no more', want .*undo"):
        done.undo()


def test_a_graph_from_before_undo_is_still_good() -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    want = results(net, x := grid(T, N, 2, SIZE, SIZE))
    done = pack_spikes(net)
    torch.manual_seed(1)
    net.zero_grad()
    out = in_sequence(net, x)
    done.undo()
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)))
    assert_same([p.grad for p in net.parameters()], want[2:])  # type: ignore[misc]


def test_copies_and_pickles_are_packed_and_undone_alone() -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    pack_spikes(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
        done = pack_spikes(twin)
        in_sequence(twin, grid(T, N, 2, SIZE, SIZE))
        assert "1 bit" in done.packed and not pack_spikes(net).packed
        done.undo()
        assert type(twin) is nn.Sequential
    in_sequence(net, grid(T, N, 2, SIZE, SIZE))
    assert "1 bit" in pack_spikes(net).packed


def test_a_traced_graph_is_packed_copied_changed_and_undone() -> None:
    net, x = nn.Sequential(nn.Linear(64, 512), Through(lambda s: s)), grid(64, 64)
    graph = fx.symbolic_trace(net)
    want = results(graph, x, once)
    done = pack_spikes(graph)
    for twin in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert_same(results(twin, x, once), want)
        assert "1 bit" in pack_spikes(twin).packed
    graph.recompile()
    assert_same(results(graph, x, once), want)
    done.undo()
    assert_same(results(graph, x, once), want)


def test_a_packed_net_is_accelerated_saved_and_evaluated_as_any_other(tmp_path: Any) -> None:
    net = images_net(lambda: neuron.IFNode(0.75))
    pack_spikes(net)
    assert len(accelerate(net).swapped) == 3
    functional.reset_net(net)
    snn_ext.save(net, tmp_path / "net.pt")
    loaded = snn_ext.load(tmp_path / "net.pt")
    x = grid(T, N, 2, SIZE, SIZE)
    assert torch.equal(in_sequence(loaded.eval(), x), in_sequence(net.eval(), x))


def test_without_gradients_nothing_is_kept_and_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Through(lambda s: s)
    done = pack_spikes(net)
    monkeypatch.setattr("snn_ext.packing.encode", None)
    with torch.no_grad():
        net(torch.rand(64, 512))
    with torch.inference_mode():
        net(torch.rand(64, 512))
    assert str(done) == "nothing kept yet: call the net with gradients"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_call_that_fails_or_is_interrupted_leaves_no_hooks(error: type[BaseException]) -> None:
    def fail(spikes: Tensor) -> Tensor:
        raise error

    net = Through(fail)
    pack_spikes(net)
    with pytest.raises(error):
        net(torch.rand(64, 512))
    assert hooks_of_the_thread() is None
    net.operation = lambda s: s
    net(torch.rand(64, 512)).sum().backward()


def test_a_packed_net_inside_a_packed_net_packs_once() -> None:
    inner = Through(lambda s: s)
    net = nn.Sequential(nn.Linear(64, 512), inner)
    want = results(net, x := grid(64, 64), once)
    pack_spikes(inner)
    done = pack_spikes(net)
    assert_same(results(net, x, once), want)
    assert done.packed["1 bit"].tensors == 1


def test_what_is_no_plain_memory_stays_whole() -> None:
    x = torch.randint(2, (64, 512)).float()
    negative = torch.complex(x, x).conj().imag  # the sign is a mark on it, not in its memory
    assert negative.is_neg() and (negative <= 0).all()
    for tensor in (negative, torch.complex(x, x).conj(), x.to_sparse(), x.to("meta"), nn.Parameter(x)):
        assert Pass(nn.Identity()).pack(tensor).restore() is tensor


def test_a_lazy_net_is_packed_before_its_first_call() -> None:
    net = nn.Sequential(nn.LazyLinear(512), Through(lambda s: s))
    done = pack_spikes(net)
    net(torch.rand(64, 512)).sum().backward()
    assert "1 bit" in done.packed


def test_wrong_nets_are_refused_and_unchanged() -> None:
    with pytest.raises(TypeError, match="net: got 3 of type int, want an nn.Module"):
        pack_spikes(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="net: got .* want the nn.Module that was scripted"):
        pack_spikes(torch.jit.script(nn.Linear(2, 2)))
    node = neuron.IFNode()
    with pytest.raises(ValueError, match="net: got 'IFNode', want a net"):
        pack_spikes(node)
    assert type(node) is neuron.IFNode
