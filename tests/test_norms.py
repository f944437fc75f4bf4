"""Norms computed again in the backward pass: the same bits in all, and nothing computed again that has changed."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

import snn_ext
from snn_ext import _repeats, accelerate, memory, pack_spikes, recompute_norms
from snn_ext.ops import use_implementation
from snn_ext.snntorch import ATIFu, reset, run_steps
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode

N, C, SIZE = 3, 8, 6

NODES: dict[str, Callable[[], Any]] = {
    "ATIF-u": lambda: ATIFuNode(0.75),
    "ATIF-u, all trained": lambda: ATIFuNode(
        torch.linspace(0.5, 1, C), tau=2.0, learn_tau=True, scale_output=False, v_init=nn.Parameter(torch.ones(1) / 4)
    ),
    "ATIF-u, scaled": lambda: ATIFuNode(0.75, scale_output=True, grad_scale="lsq"),
    "ATIF-nu": lambda: ATIFnuNode(1.0, T=4),
    "PCMP IF": lambda: PCMPIFNode(0.75),
    "ASN": ASNNode,
    "IFNode": lambda: neuron.IFNode(0.75),
    "IFNode, soft reset": lambda: neuron.IFNode(0.75, v_reset=None),
    "LIFNode": lambda: neuron.LIFNode(2.0),
    "ParametricLIFNode": lambda: neuron.ParametricLIFNode(2.0),
}


def grid(*shape: int) -> Tensor:
    """Return input on a 1/16 grid."""
    return torch.randint(-8, 24, shape) / 16


def images_net(make: Callable[[], Any], **options: Any) -> nn.Sequential:
    net = nn.Sequential(
        layer.Conv2d(2, C, 3, padding=1), layer.BatchNorm2d(C, **options), make(),
        layer.Conv2d(C, C, 3, padding=1, bias=False), layer.BatchNorm2d(C, **options), make(),
        layer.Flatten(), layer.Linear(C * SIZE * SIZE, 5),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    accelerate(net)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.copy_(torch.linspace(-1, 2, C))
                module.bias.copy_(torch.linspace(0, 1, C))
    return net


def results(net: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor] | None = None) -> list[Tensor]:
    """Return output, all gradients and all buffers."""
    functional.reset_net(net)
    net.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = net(x) if run is None else run(net, x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out))
    grads = [t.grad for t in (x, *net.parameters()) if t.grad is not None]
    return [out.detach(), *grads, *(buffer.clone() for buffer in net.buffers())]


def twin_of(net: nn.Module) -> tuple[Any, snn_ext.RecomputedNorms]:
    twin = copy.deepcopy(net)
    return twin, recompute_norms(twin)


def assert_same(found: list[Tensor], want: list[Tensor]) -> None:
    assert len(found) == len(want) and all(map(torch.equal, found, want))


# -- the same bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_steps", [1, 4])
@pytest.mark.parametrize("name", NODES)
def test_outputs_gradients_and_statistics_have_the_same_bits(name: str, time_steps: int) -> None:
    net = images_net(NODES[name])
    twin, done = twin_of(net)
    for training in (True, True, False):
        for each in (net, twin):
            each.train(training)
        x = grid(time_steps, N, 2, SIZE, SIZE)
        assert_same(results(twin, x), results(net, x))
        assert done.recomputed == ["1", "4"] and not done.left


@pytest.mark.parametrize("implementation", ["torch", None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.5}],
    ids=lambda options: next(iter(options)),
)
def test_the_options_of_a_norm_are_its_own(options: dict[str, Any], training: bool, implementation: str | None) -> None:
    net = images_net(ATIFuNode, **options).train(training)
    twin, done = twin_of(net)
    with nullcontext() if implementation is None else use_implementation(implementation):
        for _ in range(2):
            x = grid(4, N, 2, SIZE, SIZE)
            assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["1", "4"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_have_the_same_bits(dtype: torch.dtype, training: bool) -> None:
    net = images_net(ATIFuNode).to(dtype).train(training)
    twin, done = twin_of(net)
    x = grid(4, N, 2, SIZE, SIZE).to(dtype)
    assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["1", "4"]


@pytest.mark.parametrize("training", [True, False])
def test_under_autocast(training: bool) -> None:
    net = images_net(ATIFuNode).train(training)
    twin, done = twin_of(net)
    x = grid(4, N, 2, SIZE, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["1", "4"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("time_first", [True, False])
def test_channels_last_and_gaps_in_memory(training: bool, time_first: bool) -> None:
    net = images_net(ATIFuNode)[1:3].train(training)
    twin, _ = twin_of(net)
    x = torch.randn(4 * N, C, SIZE, SIZE).to(memory_format=torch.channels_last).unflatten(0, (4, N))
    for each in (x, x[..., 1:], x.transpose(0, 1)):
        assert_same(results(twin, each), results(net, each))


@pytest.mark.parametrize("shape", [(C,), (C, 5), (C, 3, 4, 2)], ids=["no axis", "1d", "3d"])
def test_norms_of_other_dimensions(shape: tuple[int, ...]) -> None:
    kind = layer.BatchNorm3d if len(shape) == 4 else layer.BatchNorm1d
    net = nn.Sequential(kind(C), ATIFuNode(0.75))
    functional.set_step_mode(net, "m")
    twin, done = twin_of(net)
    x = torch.randn(4, N, *shape)
    assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["0"]


def test_norms_of_torch_in_a_container_that_folds_time() -> None:
    folded = layer.SeqToANNContainer(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C))
    net = nn.Sequential(folded, ATIFuNode(0.75, step_mode="m"))
    twin, done = twin_of(net)
    x = torch.randn(4, N, 2, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["0.1"]


def test_steps_one_by_one() -> None:
    net = images_net(ATIFuNode)
    functional.set_step_mode(net, "s")
    twin, done = twin_of(net)
    x = grid(4, N, 2, SIZE, SIZE)
    run = lambda each, x: torch.stack([each(x_t) for x_t in x])  # noqa: E731
    assert_same(results(twin, x, run), results(net, x, run))
    assert done.recomputed == ["1", "4"]


@pytest.mark.parametrize("implementation", ["torch", None])
def test_sequences_with_checkpoints_of_states(implementation: str | None) -> None:
    net = images_net(lambda: ATIFuNode(0.75, tau=2.0, learn_tau=True))
    twin, done = twin_of(net)
    x = grid(20, 1, 2, SIZE, SIZE)
    with nullcontext() if implementation is None else use_implementation(implementation):
        assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["1", "4"]


def test_a_folded_net_of_snntorch() -> None:
    net = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), ATIFu(0.75, init_hidden=True), nn.Flatten())
    twin, done = twin_of(net)
    for each in (net, twin):
        reset(each)
    x = torch.randn(4, N, 2, SIZE, SIZE)
    assert_same(results(twin, x, run_steps), results(net, x, run_steps))
    assert done.recomputed == ["1"]


@pytest.mark.parametrize("convolutions", [None, True])
@pytest.mark.parametrize(("make", "count"), [(sew_resnet.sew_resnet18, 20), (spiking_resnet.spiking_resnet18, 9)])
def test_residual_nets_of_the_host(make: Any, count: int, convolutions: bool | None) -> None:
    options = {"cnf": "ADD"} if make is sew_resnet.sew_resnet18 else {}
    net = make(spiking_neuron=neuron.IFNode, num_classes=10, **options)
    functional.set_step_mode(net, "m")
    accelerate(net)
    twin, done = twin_of(net) if convolutions is None else treated(net, convolutions)[:2]
    x = torch.randn(4, 2, 3, 32, 32)
    assert_same(results(twin, x), results(net, x))
    assert len(done.recomputed) == (count if convolutions is None else 20)


@pytest.mark.parametrize("convolutions", [False, True])
def test_a_hundred_steps_of_training_are_the_same_bits(convolutions: bool) -> None:
    net = images_net(lambda: neuron.LIFNode(2.0))
    twin, _, _ = treated(net, convolutions)
    batches = [(grid(4, N, 2, SIZE, SIZE), torch.randint(5, (N,))) for _ in range(4)]
    losses: list[list[float]] = [[], []]
    for each, record in zip((net, twin), losses, strict=True):
        optimizer = torch.optim.SGD(each.parameters(), 0.05, momentum=0.9)
        for step in range(100):
            functional.reset_net(each)
            x, labels = batches[step % len(batches)]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(each(x).mean(0), labels)
            loss.backward()
            optimizer.step()
            record.append(loss.item())
    assert losses[0] == losses[1] and sum(losses[0][-10:]) < sum(losses[0][:10])


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_the_output_of_a_norm_is_not_kept() -> None:
    net = images_net(ATIFuNode)
    twin, _ = twin_of(net)
    x = grid(4, N, 2, SIZE, SIZE)
    output = 4 * 4 * N * C * SIZE * SIZE
    before, after = memory(net, x).by_kind, memory(twin, x).by_kind
    assert before["norm inputs"].before == after["norm inputs"].before
    saved = before["currents, potentials"].before - after["currents, potentials"].before
    assert 2 * output - 1000 < saved <= 2 * output  # two norms; their statistics may be counted here


@pytest.mark.parametrize("pack_first", [True, False])
def test_beside_packed_spikes(pack_first: bool) -> None:
    net = images_net(ATIFuNode)
    twin = copy.deepcopy(net)
    if pack_first:
        pack_spikes(twin)
    done = recompute_norms(twin)
    packed = pack_spikes(twin)
    x = grid(4, N, 2, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["1", "4"] and packed.packed["1 bit"].tensors == 2
    assert packed.left["more than 16 values"].tensors == 2  # the inputs of the norms


def test_hooks_around_get_what_is_kept() -> None:
    net = images_net(ATIFuNode)
    twin, done = twin_of(net)
    x = grid(4, N, 2, SIZE, SIZE)
    want = results(net, x)
    with save_on_cpu():
        assert_same(results(twin, x), want)
    assert done.recomputed == ["1", "4"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_a_checkpoint(reentrant: bool) -> None:
    def run(each: nn.Module, x: Tensor) -> Tensor:
        def body(x: Tensor) -> Tensor:
            functional.reset_net(each)
            out: Tensor = each(x)
            return out

        out: Tensor = checkpoint(body, x, use_reentrant=reentrant)
        return out

    net = images_net(ATIFuNode)
    twin, done = twin_of(net)
    x = grid(4, N, 2, SIZE, SIZE)
    assert_same(results(twin, x, run), results(net, x, run))
    assert done.recomputed == ["1", "4"]


# -- behind a sum ------------------------------------------------------------------------------------------------------

SUMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "in place": lambda y, x: y.__iadd__(x),
    "out of place": lambda y, x: y + x,
    "the other way round": lambda y, x: x + y,
}
OTHERS: dict[str, Callable[[Tensor, Tensor], Any]] = {  # in graphs that look like sums, or have another value
    "a difference": lambda y, x: y.sub_(x),
    "a product": lambda y, x: y.mul_(x),
    "a factor": lambda y, x: y.add_(x, alpha=0.5),
    "a sum of three": lambda y, x: y + x + x,
    "a sum that is changed": lambda y, x: (y + x).mul_(2.0),
    "a sum that is changed unseen": lambda y, x: unseen(y + x),
    "a norm that is changed unseen": lambda y, x: unseen(y) + x,
    "something that nobody keeps": lambda y, x: y + 0.25 * y.detach(),
    "broadcast": lambda y, x: y + x[:1],
    "a part": lambda y, x: (y + x)[:, :, 1:],
}


def unseen(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.mul_(2.0)


class Block(nn.Module):
    """A block of a residual net; ``down`` has a norm in the other branch too."""

    def __init__(self, add: Callable[[Tensor, Tensor], Any], down: bool = False) -> None:
        super().__init__()
        self.add, self.first, self.last = add, ATIFuNode(0.75), ATIFuNode(0.75)
        self.convs = nn.ModuleList(layer.Conv2d(c, C, 3, padding=1, bias=c == 2) for c in (2, C, C))
        self.norms = nn.ModuleList(layer.BatchNorm2d(C) for _ in self.convs)
        self.down = down
        functional.set_step_mode(self, "m")

    def branch(self, i: int, x: Tensor) -> Tensor:
        out: Tensor = self.norms[i](self.convs[i](x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.branch(0, x))
        y = self.branch(1, x)
        z = self.branch(2, x) if self.down else x
        out: Tensor = self.last(self.add(y, z))
        return out


def treated(net: nn.Module, convolutions: bool) -> tuple[Any, snn_ext.RecomputedNorms, snn_ext.PackedSpikes]:
    twin = copy.deepcopy(net)
    return twin, recompute_norms(twin, convolutions=convolutions), pack_spikes(twin)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_of_a_norm_and_what_is_kept_is_computed_again(
    name: str, down: bool, convolutions: bool, training: bool
) -> None:
    net = Block(SUMS[name], down).train(training)
    twin, done, packed = treated(net, convolutions)
    for _ in range(2):
        x = torch.randn(4, N, 2, SIZE, SIZE)
        assert_same(results(twin, x), results(net, x))
    norms = 2 + down
    assert len(done.recomputed) == norms
    assert packed.packed["computed again"].tensors == 1 + convolutions * norms
    assert ("more than 16 values" in packed.left) != convolutions


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_such_sum_is_kept(name: str, convolutions: bool) -> None:
    net = Block(OTHERS[name], down=name == "a product")
    twin, done, _ = treated(net, convolutions)
    x = torch.randn(4, N, 2, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["norms.0"]


def test_sums_under_autocast() -> None:
    net = Block(SUMS["in place"])
    twin, done, packed = treated(net, True)
    x = torch.randn(4, N, 2, SIZE, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        want = results(net, x)
        assert_same(results(twin, x), want)
    with torch.autocast("cpu", torch.bfloat16):
        functional.reset_net(twin)
        out = twin(x)
    twin.zero_grad()
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out))  # outside of autocast
    grads = [p.grad for p in twin.parameters() if p.grad is not None]
    assert_same(grads, want[2 : 2 + len(grads)])
    assert len(done.recomputed) == 2 and "more than 16 values" not in packed.left


# -- convolutions, repeated --------------------------------------------------------------------------------------------


def deep_net(conv: Callable[[], nn.Module]) -> nn.Sequential:
    net = nn.Sequential(ATIFuNode(0.75), conv(), layer.BatchNorm2d(C), ATIFuNode(0.75))
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize(
    "conv",
    [
        lambda: layer.Conv2d(C, C, 3, padding=1),
        lambda: layer.Conv2d(C, C, 3, stride=2, padding=4, dilation=2, groups=2, bias=False),
        lambda: layer.Conv2d(C, C, 3, padding=1, padding_mode="circular"),
        lambda: layer.ConvTranspose2d(C, C, 3, stride=2, output_padding=1),
        lambda: nn.Sequential(layer.Conv2d(C, C, 3, groups=C), layer.Conv2d(C, C, 1)),
    ],
    ids=["bias", "stride, dilation, groups", "circular", "transposed", "separable"],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["", "channels last"])
def test_repeated_convolutions_have_the_same_bits(conv: Callable[[], nn.Module], memory_format: Any) -> None:
    net = deep_net(conv).to(memory_format=memory_format)
    functional.set_step_mode(net, "m")
    twin, done, packed = treated(net, True)
    x = torch.randn(4 * N, C, SIZE, SIZE).to(memory_format=memory_format).unflatten(0, (4, N))
    assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["2"] and "computed again" in packed.packed
    assert packed.left["more than 16 values"].tensors == 1  # the input


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_a_frozen_convolution_does_not_keep_is_not_needed(frozen: str) -> None:
    net = deep_net(lambda: layer.Conv2d(C, C, 3, padding=1))
    getattr(net[1], frozen).requires_grad_(False)
    twin, _, packed = treated(net, True)
    x = grid(4, N, C, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))
    assert ("computed again" in packed.packed) == (frozen == "weight")


@pytest.mark.parametrize(
    "change",
    [unseen, lambda y: y.as_strided((4, N, C, SIZE, SIZE // 2), y.stride(), 3), lambda y: y[..., 1:]],
    ids=["unseen", "a part as strided", "a part"],
)
def test_a_convolution_whose_output_is_changed_is_kept(change: Callable[[Tensor], Tensor]) -> None:
    net = deep_net(lambda: layer.Conv2d(C, C, 3, padding=1))
    net[1].register_forward_hook(lambda conv, args, y: change(y))
    twin, _, packed = treated(net, True)
    x = grid(4, N, C, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))
    assert "computed again" not in packed.packed


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_convolution_that_is_changed_before_the_backward_pass_raises(name: str) -> None:
    net = deep_net(lambda: layer.Conv2d(C, C, 3, padding=1))
    treated_net, _, _ = treated(net, True)
    out = treated_net(grid(4, N, C, SIZE, SIZE))
    with torch.no_grad():
        getattr(treated_net[1], name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_each_convolution_is_repeated_once_and_its_output_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []

    def noting(*arguments: Any) -> Tensor:
        made.append(weakref.ref(y := convolved(*arguments)))
        return y

    convolved = _repeats._convolved
    monkeypatch.setattr(_repeats, "_convolved", noting)
    net, _, _ = treated(Block(SUMS["in place"], down=True), True)
    x = torch.randn(4, N, 2, SIZE, SIZE, requires_grad=True)
    out = net(x)
    assert not made
    for times in (1, 2):  # a graph that is gone through again
        gradients = torch.autograd.grad(out.sum(), [x, *net.convs.parameters()], retain_graph=True)
        assert len(made) == 3 * times and not any(y() is not None for y in made)
        del gradients


def test_convolutions_with_dropout_and_other_draws() -> None:
    net = nn.Sequential(*deep_net(lambda: layer.Conv2d(C, C, 3, padding=1)), layer.Dropout(0.5), *deep_net(
        lambda: layer.Conv2d(C, C, 3, padding=1)))  # fmt: skip
    functional.set_step_mode(net, "m")
    twin, _, _ = treated(net, True)
    x, found = grid(4, N, C, SIZE, SIZE), []
    for each in (twin, net):
        torch.manual_seed(3)
        found.append([*results(each, x), torch.rand(3)])
    assert_same(*found)


def test_convolutions_take_the_net_and_give_it_back() -> None:
    net = images_net(ATIFuNode)
    kind, x = type(net), grid(4, N, 2, SIZE, SIZE)
    done = recompute_norms(net, convolutions=True)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert memory(twin, x).total.after < 0.15 * memory(images_net(ATIFuNode), x).total.before
    recompute_norms(twin)  # without, from now on, but packed
    assert memory(twin, x).by_kind["norm inputs"].after > 4 * 4 * N * C * SIZE * SIZE
    done.undo()
    assert type(net) is kind and not any(module._forward_hooks for module in net.modules())
    packed = pack_spikes(net)
    recompute_norms(net, convolutions=True).undo()
    assert packed.packed == {}  # stays packed
    with pytest.raises(TypeError, match="^convolutions: got"):
        recompute_norms(net, convolutions=1)  # type: ignore[arg-type]


def test_under_other_hooks_nothing_but_norms_is_computed_again() -> None:
    net = Block(SUMS["in place"])
    twin, done, _ = treated(net, True)
    x = torch.randn(4, N, 2, SIZE, SIZE)
    want = results(net, x)
    with save_on_cpu():
        assert_same(results(twin, x), want)
    assert done.recomputed == ["norms.0"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_inside_a_net_that_repeats(reentrant: bool) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = images_net(ATIFuNode)[:3], deep_net(lambda: layer.Conv2d(C, C, 3))

        def forward(self, x: Tensor) -> Tensor:
            def body(x: Tensor) -> Tensor:
                functional.reset_net(self.inner)
                out: Tensor = self.inner(x)
                return out

            out: Tensor = self.outer(checkpoint(body, x, use_reentrant=reentrant))
            return out

    net = Inside()
    twin, _, _ = treated(net, True)
    x = grid(4, N, 2, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))


# -- what is left ------------------------------------------------------------------------------------------------------

UNCHANGED = "no neuron of the fused operators got its output, unchanged and with gradients"


class Between(nn.Module):
    """A norm, something, and a neuron."""

    def __init__(self, operation: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.norm, self.node, self.operation = layer.BatchNorm2d(C), ATIFuNode(0.75), operation
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(1.0 * x)
        y = self.operation(y)
        out: Tensor = self.node(y)
        return out


@pytest.mark.parametrize(
    "operation",
    [lambda y: y + 0.25, lambda y: y.add_(0.25), lambda y: y.mul(2), lambda y: y.flip(0), lambda y: y.relu_()],
)
def test_what_is_changed_before_the_neuron_is_kept(operation: Callable[[Tensor], Tensor]) -> None:
    net = Between(operation)
    twin, done = twin_of(net)
    x = torch.randn(4, N, C, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))
    assert done.left == {"norm": UNCHANGED}


@pytest.mark.parametrize("operation", [lambda y: y[1:], lambda y: y.transpose(0, 1), lambda y: y[:, :, ::2, 1:]])
def test_views_are_computed_again_too(operation: Callable[[Tensor], Tensor]) -> None:
    net = Between(operation)
    twin, _ = twin_of(net)
    x = torch.randn(4, N, C, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_hook_that_changes_the_output(in_place: bool) -> None:
    net = images_net(ATIFuNode)
    twin, done = twin_of(net)
    for each in (net, twin):
        each[1].register_forward_hook(lambda norm, args, y: y.mul_(2.0) if in_place else 2.0 * y, prepend=True)
    x = grid(4, N, 2, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))
    assert done.recomputed == ["4"] and done.left == {"1": UNCHANGED}


def test_others_that_read_the_output_get_it() -> None:
    net = images_net(ATIFuNode)
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda norm, args, y: seen.append(y))
    done = recompute_norms(net)
    net(grid(4, N, 2, SIZE, SIZE))
    assert seen[0].shape == (4, N, C, SIZE, SIZE) and done.recomputed == ["1", "4"]
    torch.save(seen[0], file := io.BytesIO())
    assert file.tell() < 1.5 * seen[0].nbytes + 2000  # without what it is computed from


def test_running_statistics_that_training_changes_before_the_backward_pass() -> None:
    """torch does not notice that. The norm's own gradient is another then; the neuron's spikes are those of before."""
    net = nn.Sequential(layer.BatchNorm2d(C, affine=False), ATIFuNode(0.75))
    functional.set_step_mode(net, "m")
    twin, _ = twin_of(net)
    x, other = torch.randn(4, N, C, SIZE, SIZE), 5 + torch.randn(4, N, C, SIZE, SIZE)
    gradients = []
    for each in (net, twin):
        loss = each.eval()(x).sum()
        with torch.no_grad():
            each.train()[0](other)
        loss.backward()
        gradients.append(each[1].v_threshold.grad)
    assert torch.equal(*gradients)


def test_a_weight_that_is_changed_before_the_backward_pass_raises() -> None:
    net = images_net(ATIFuNode)
    recompute_norms(net)
    out = net(grid(4, N, 2, SIZE, SIZE))
    with torch.no_grad():
        net[4].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_reasons() -> None:
    class Own(nn.BatchNorm2d):
        pass

    node = neuron.IFNode(step_mode="m")
    net = nn.Sequential(layer.BatchNorm2d(C, step_mode="m"), node, nn.SyncBatchNorm(C), Own(C), nn.LazyBatchNorm2d())
    net.append(layer.ThresholdDependentBatchNorm2d(1.0, 1.0, C))
    done = recompute_norms(net)
    assert {name: reason.split(":")[0] for name, reason in done.left.items()} == {
        "0": "not called yet",
        "2": "SyncBatchNorm", "3": "Own", "4": "LazyBatchNorm2d", "5": "ThresholdDependentBatchNorm2d",
    }  # fmt: skip
    assert "all processes" in done.left["2"] and "not initialised" in done.left["4"]
    net[:2](torch.randn(4, N, C, SIZE, SIZE))
    assert done.left["0"] == UNCHANGED  # the host's own code keeps what it computes
    assert "left: 5" in str(done) and "SyncBatchNorm" in str(done)


@pytest.mark.parametrize(("net", "error"), [("net", TypeError), (nn.Linear(2, 2), ValueError)])
def test_bad_input(net: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="^net: got"):
        recompute_norms(net)


# -- the net stays what it is ------------------------------------------------------------------------------------------


def test_undo_takes_everything_away() -> None:
    net = images_net(ATIFuNode)
    state, x = copy.deepcopy(net.state_dict()), grid(4, N, 2, SIZE, SIZE)
    done = recompute_norms(net)
    assert list(net.state_dict()) == list(state)
    out = net(x)
    done.undo()
    out.sum().backward()  # of an earlier call
    assert not any(module._forward_hooks for module in net.modules())
    assert done.left == {"1": "undone", "4": "undone"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_compute_again_too_and_are_their_own(copied: Callable[[nn.Module], Any]) -> None:
    net = images_net(ATIFuNode)
    first = recompute_norms(net)
    twin = copied(net)
    x = grid(4, N, 2, SIZE, SIZE)
    assert_same(results(twin, x), results(net, x))
    second = recompute_norms(twin)  # is on it already
    assert [len(module._forward_hooks) for module in twin] == [0, 1, 0, 0, 1, 0, 0, 0]
    assert second.recomputed == ["1", "4"]
    second.undo()
    assert first.recomputed == ["1", "4"]


def test_convert_and_save_see_the_net_without(tmp_path: Any) -> None:
    ann = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Flatten(), nn.Linear(C * 16, 5))
    recompute_norms(ann)
    snn_ext.convert(ann, [torch.rand(8, 2, SIZE, SIZE)], time_steps=4)
    net = images_net(ATIFuNode)
    recompute_norms(net)
    snn_ext.save(net, tmp_path / "net.zip")
    x = grid(4, N, 2, SIZE, SIZE)
    functional.reset_net(net)
    assert torch.equal(snn_ext.load(tmp_path / "net.zip").eval()(x), net.eval()(x))


def test_tools_that_trace_see_the_net_without() -> None:
    net = images_net(ATIFuNode)
    twin, done = twin_of(net)
    x = grid(4, N, 2, SIZE, SIZE)
    want = results(net, x)
    functional.reset_net(twin)
    assert_same(results(torch.compile(twin, backend="aot_eager"), x), want)
    assert done.left == {"1": "not called yet", "4": "not called yet"}
    functional.reset_net(twin.eval())
    functional.reset_net(net.eval())
    assert torch.equal(torch.export.export(twin, (x,)).module()(x), net(x))


def test_nothing_is_left_with_outputs_without_gradients() -> None:
    net = images_net(ATIFuNode)
    done = recompute_norms(net)
    with torch.no_grad():
        net(grid(4, N, 2, SIZE, SIZE))
    assert done.left == {"1": UNCHANGED, "4": UNCHANGED}


def test_under_functional_transforms() -> None:
    net = nn.Sequential(nn.BatchNorm1d(C, track_running_stats=False), nn.Unflatten(0, (4, N)), ATIFuNode(step_mode="m"))
    twin, _ = twin_of(net)
    x = torch.randn(4 * N, C)

    def gradient(each: nn.Module) -> Tensor:
        functional.reset_net(each)
        found: Tensor = torch.func.grad(lambda x: each(x).sum())(x)
        functional.reset_net(each)
        return found

    assert torch.equal(gradient(twin), gradient(net))
