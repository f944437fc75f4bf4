"""Batch norm and neuron as one operator: the net as it was in spikes and gradients, and in what others read."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from torch import Tensor, nn

import snn_ext
from snn_ext import accelerate, fuse_norms, memory, pack_spikes, recompute_norms
from snn_ext.functional import multiply_add
from snn_ext.ops import implementation, use_implementation
from snn_ext.ops.deferred import Deferred
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode
from tests.test_norms import NODES, SIZE, C, N, grid, images_net, results

pytestmark = pytest.mark.skipif(
    implementation("integrate_and_fire", "cpu").name == "torch", reason="no compiled operator: every norm is left"
)
FUSED = {name: make for name, make in NODES.items() if name != "ASN"}


def rounds_as_torch() -> bool:
    x, (gain, shift, mean) = torch.randn(50, 3), torch.rand(3, 3)
    y = nn.functional.batch_norm(x, mean, torch.ones(3), gain, shift, False, 0.0, 1e-30)
    return torch.equal(y, multiply_add(x, gain, multiply_add(-mean, gain, shift)))


SAME_BITS = rounds_as_torch()
"""True where torch uses FMA; elsewhere the last bit of a norm may differ, and a spike in a million."""


def twin_of(net: nn.Module, x: Tensor) -> tuple[Any, snn_ext.FusedNorms]:
    twin = copy.deepcopy(net)
    return twin, fuse_norms(twin, x)


def assert_close(found: list[Tensor], want: list[Tensor], rough: float = 2e-5) -> None:
    """Outputs are the same; gradients and statistics but for the order of sums."""
    assert len(found) == len(want)
    assert torch.equal(found[0], want[0]) if SAME_BITS else (found[0] != want[0]).double().mean() < 0.02
    for a, b in zip(found[1:] if SAME_BITS else (), want[1:], strict=SAME_BITS):
        torch.testing.assert_close(a, b, rtol=rough, atol=rough * (1e-3 + float(b.abs().max())))


# -- the net as it was -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_steps", [1, 4, 20])
@pytest.mark.parametrize("name", FUSED)
def test_spikes_gradients_and_statistics_are_those_of_the_net(name: str, time_steps: int) -> None:
    if name == "ATIF-nu" and time_steps > 4:
        pytest.skip("T thresholds")
    net, x = unbiased(images_net(FUSED[name])), grid(time_steps, N, 2, SIZE, SIZE)
    twin, done = twin_of(net, x)
    assert done.fused == {"1": "2", "4": "5"} and not done.left
    for training in (True, True, False):
        for each in (net, twin):
            each.train(training)
        assert_close(results(twin, x), results(net, x))


def unbiased(net: nn.Sequential) -> nn.Sequential:
    net[0].bias = None  # its gradient in front of a norm is 0, and what is found are roundings
    return net


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.9}, {"eps": 0.5}],
    ids=lambda options: next(iter(options)),
)
def test_the_options_of_a_norm_are_its_own(options: dict[str, Any], training: bool) -> None:
    net, x = unbiased(images_net(ATIFuNode, **options)).train(training), grid(4, N, 2, SIZE, SIZE)
    twin, done = twin_of(net, x)
    for _ in range(3):
        x = grid(4, N, 2, SIZE, SIZE)
        assert_close(results(twin, x), results(net, x))
    assert len(done.fused) == 2
    for a, b in zip(twin.buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(C,), (C, 5), (C, 7, 3), (C, 33, 33), (C, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_dimensions_layouts_and_gaps(shape: tuple[int, ...], last: bool, training: bool) -> None:
    kind = {1: layer.BatchNorm1d, 2: layer.BatchNorm1d, 3: layer.BatchNorm2d, 4: layer.BatchNorm3d}[len(shape)]
    net = nn.Sequential(kind(C), ATIFuNode(0.75)).train(training)
    functional.set_step_mode(net, "m")
    x = torch.randn(4, N, *shape) + 2
    if last:
        x = x.transpose(2, -1).contiguous().transpose(2, -1)
    twin, done = twin_of(net, x)
    assert done.fused == {"0": "1"}
    for each in (x, x[:, 1:], x.transpose(0, 1)):
        assert_close(results(twin, each), results(net, each))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_gradients_are_those_of_the_norm_in_float64(mean: float, training: bool) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(layer.BatchNorm2d(C), neuron.LIFNode(v_reset=None)).double().train(training)
    functional.set_step_mode(wide, "m")
    wide[0].running_mean.fill_(mean)
    x = (torch.randn(4, N, C, 9, 9) + mean).float()
    net = copy.deepcopy(wide).float()
    accelerate(net)
    plain = copy.deepcopy(wide).float()
    fuse_norms(net, x)
    found, want, as_it_was = results(net, x), results(wide, x.double()), results(plain, x)
    assert torch.equal(found[0].double(), want[0]) and torch.equal(as_it_was[0], found[0])
    for a, b, c in zip(found[1:], want[1:], as_it_was[1:], strict=True):
        assert (a - b).abs().max() <= max(1e-5 * b.abs().max(), 2 * (c - b).abs().max())


def test_frozen_parts_have_no_gradient_and_change_no_other() -> None:
    for frozen in ("0.weight", "0.bias", "x"):
        net = nn.Sequential(layer.BatchNorm2d(C), ATIFuNode(0.75))
        functional.set_step_mode(net, "m")
        x = torch.randn(4, N, C, 5, 5)
        twin, _ = twin_of(net, x)
        gradients = []
        for each in (net, twin):
            leaves = {"x": x.clone().requires_grad_(), **dict(each.named_parameters())}
            leaves.pop(frozen).requires_grad_(False)
            out = each(leaves.get("x", x))
            gradients.append(torch.autograd.grad(out.square().sum() + each[1].v.sum(), list(leaves.values())))
        assert_close([gradients[1][0] * 0, *gradients[1]], [gradients[0][0] * 0, *gradients[0]])


@pytest.mark.parametrize(("make", "count"), [(sew_resnet.sew_resnet18, 17), (spiking_resnet.spiking_resnet18, 9)])
def test_residual_nets_of_the_host(make: Any, count: int) -> None:
    torch.manual_seed(0)
    options = {"cnf": "ADD"} if make is sew_resnet.sew_resnet18 else {}
    net = make(spiking_neuron=neuron.IFNode, v_threshold=0.5, num_classes=4, **options)
    functional.set_step_mode(net, "m")
    accelerate(net)
    x = torch.rand(2, 2, 3, 32, 32)
    twin, done = twin_of(net, x)
    assert len(done.fused) >= count, str(done)
    assert all("reads its output" in reason for reason in done.left.values()), str(done)
    found, want = results(twin, x), results(net, x)
    assert_close(found[:1], want[:1])


def test_twenty_steps_of_training_have_the_same_losses() -> None:
    net, x = images_net(lambda: neuron.LIFNode()), grid(4, N, 2, SIZE, SIZE)
    twin, _ = twin_of(net, x)
    losses = []
    for each in (net, twin):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(each.parameters(), 0.05)
        for _ in range(20):
            functional.reset_net(each)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(each(grid(4, N, 2, SIZE, SIZE)).mean(0), torch.arange(N))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    torch.testing.assert_close(losses[:20], losses[20:], rtol=1e-3, atol=1e-3)


# -- who reads the output ----------------------------------------------------------------------------------------------


def test_others_get_the_output_of_the_norm() -> None:
    net, x = images_net(ATIFuNode), grid(4, N, 2, SIZE, SIZE)
    twin, _ = twin_of(net, x)
    seen: list[list[Tensor]] = [[], []]
    for each, found in zip((net, twin), seen, strict=True):
        each[1].register_forward_hook(lambda norm, args, y, found=found: found.append(y.detach() + 0))
        each[4].register_forward_hook(lambda norm, args, y: 2 * y)
    found, want = results(twin, x), results(net, x)
    assert torch.equal(found[0], want[0]) and torch.equal(*(each[0] for each in seen))
    assert type(seen[1][0]) is Tensor


def test_a_net_that_changes_its_mind_is_right_with_gradients() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.neuron, self.adds = layer.BatchNorm2d(C, step_mode="m"), ATIFuNode(0.75, step_mode="m"), 0

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.neuron(y + x) + y if self.adds else self.neuron(y)

    net, x = Changing(), torch.randn(4, N, C, 5, 5)
    twin, done = twin_of(net, x)
    assert done.fused == {"norm": "neuron"}
    net.adds = twin.adds = 1
    for a, b in zip(results(twin, x), results(net, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_reading_without_gradients_leaves_those_of_the_call() -> None:
    norm = layer.BatchNorm2d(C, step_mode="m")
    net, x = nn.Sequential(norm, ATIFuNode(0.75, step_mode="m")), torch.randn(4, N, C, 5, 5)
    fuse_norms(net, x)
    y = norm(x)
    assert type(y) is Deferred and y.shape == x.shape and y.dtype == x.dtype and not y.readers
    with torch.no_grad():
        print(y.mean())
    assert y.requires_grad and "Deferred" not in repr(y + 1)
    (y * x).sum().backward()
    assert norm.weight.grad is not None


def test_other_calls_run_the_norm_by_itself() -> None:
    net, x = images_net(ATIFuNode), grid(4, N, 2, SIZE, SIZE)
    twin, _ = twin_of(net, x)
    for change in (lambda net, x: (net.double(), x.double()), lambda net, x: (net.bfloat16(), x.bfloat16())):
        pairs = [change(copy.deepcopy(each), x) for each in (net, twin)]
        assert all(map(torch.equal, *(results(*pair) for pair in pairs)))
    for each in (net, twin):
        functional.set_step_mode(each, "s")
        functional.reset_net(each)
    assert torch.equal(net(x[0]), twin(x[0]))
    functional.set_step_mode(twin, "m")
    with use_implementation("torch"):
        functional.set_step_mode(net, "m")
        assert all(map(torch.equal, results(net, x), results(twin, x)))


# -- reasons -----------------------------------------------------------------------------------------------------------


class OwnNorm(layer.BatchNorm2d):
    pass


REASONS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "host's neuron": (lambda: nn.Sequential(layer.BatchNorm2d(C), neuron.IFNode()), "neuron 1 does not run"),
    "adaptive neuron": (lambda: nn.Sequential(layer.BatchNorm2d(C), ASNNode()), "neuron 1 does not run"),
    "pooling": (lambda: nn.Sequential(layer.BatchNorm2d(C), layer.AvgPool2d(2), ATIFuNode()), "not a neuron"),
    "own class": (lambda: nn.Sequential(OwnNorm(C), ATIFuNode()), "a class of its own"),
    "torch's norm": (
        lambda: nn.Sequential(layer.SeqToANNContainer(nn.BatchNorm2d(C)), ATIFuNode()), "which a container folds time"
    ),
    "of all processes": (
        lambda: nn.Sequential(layer.SeqToANNContainer(nn.SyncBatchNorm(C).eval()), ATIFuNode()), "of all processes"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name: str) -> None:
    make, reason = REASONS[name]
    net = make()
    functional.set_step_mode(net, "m")
    x = torch.randn(4, N, C, 4, 4)
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    done = fuse_norms(net.eval(), x)
    assert not done.fused and len(done.left) == 1 and reason in next(iter(done.left.values())), str(done)
    assert all("forward" not in vars(module) for module in net.modules()) and before.keys()


def test_more_reasons_of_a_call() -> None:
    x = torch.randn(4, N, C, 4, 4)
    hooked = nn.Sequential(layer.BatchNorm2d(C, step_mode="m"), ATIFuNode(step_mode="m"))
    hooked[0].register_forward_hook(lambda norm, args, y: None)
    assert "hooks of others" in fuse_norms(hooked, x).left["0"]
    single = nn.Sequential(layer.BatchNorm2d(C), ATIFuNode())
    assert "step mode 's'" in fuse_norms(single, x[0]).left["0"]
    wide = nn.Sequential(layer.BatchNorm2d(C, step_mode="m"), ATIFuNode(step_mode="m")).double()
    assert "another dtype" in fuse_norms(wide, x.double()).left["0"]
    with use_implementation("torch"):
        assert "no compiled operator" in fuse_norms(wide.float(), x).left["0"]


@pytest.mark.parametrize(
    ("net", "x", "error"),
    [
        ("net", torch.ones(1), TypeError),
        (nn.BatchNorm1d(2), [1.0], TypeError),
        (nn.Linear(1, 1), torch.ones(1), ValueError),
    ],
)
def test_bad_input(net: Any, x: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="^(net|x): got .*, want "):
        fuse_norms(net, x)


def test_a_failed_call_changes_nothing() -> None:
    net, x = images_net(ATIFuNode), grid(4, N, 2, SIZE, SIZE)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError):
        fuse_norms(net, torch.rand(4, N, 7, SIZE, SIZE))
    state = torch.random.get_rng_state()
    fuse_norms(net, x).undo()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert all("forward" not in vars(module) for module in net.modules())


# -- everything else sees the net as it was ----------------------------------------------------------------------------


def test_undo_takes_everything_away() -> None:
    net, x = images_net(ATIFuNode), grid(4, N, 2, SIZE, SIZE)
    twin, done = twin_of(net, x)
    again = fuse_norms(twin, x)
    assert again.fused == done.fused
    done.undo()
    again.undo()
    assert all(map(torch.equal, results(twin, x), results(net, x)))
    assert [vars(a).keys() for a in twin.modules()] == [vars(b).keys() for b in net.modules()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_fused_and_their_own(copied: Callable[[nn.Module], Any]) -> None:
    net, x = images_net(ATIFuNode), grid(4, N, 2, SIZE, SIZE)
    _, done = net, fuse_norms(net, x)
    twin = copied(net)
    results(twin, x)
    assert int(twin[1].num_batches_tracked) == 1 and int(net[1].num_batches_tracked) == 0
    assert type(twin[1](torch.rand(4, N, C, SIZE, SIZE))) is Deferred
    done.undo()
    assert type(net[1](torch.rand(4, N, C, SIZE, SIZE))) is Tensor
    assert net.state_dict().keys() == twin.state_dict().keys()


def test_checkpoints_and_classes_are_those_of_the_net() -> None:
    net, x = images_net(ATIFuNode), grid(4, N, 2, SIZE, SIZE)
    twin, _ = twin_of(net, x)
    torch.save(twin.state_dict(), file := io.BytesIO())
    file.seek(0)
    net.load_state_dict(torch.load(file))
    assert [type(a) for a in net.modules()] == [type(b) for b in twin.modules()]


def test_save_writes_the_net(tmp_path: Any) -> None:
    net, x = images_net(ATIFuNode).eval(), grid(4, N, 2, SIZE, SIZE)
    fuse_norms(net, x)
    snn_ext.save(net, tmp_path / "net.pt")
    loaded = snn_ext.load(tmp_path / "net.pt")
    for each in (net, loaded):
        functional.reset_net(each)
    assert torch.equal(net(x), loaded(x)) and all("forward" not in vars(module) for module in loaded.modules())


def test_the_output_of_a_norm_is_not_kept_and_spikes_are_packed() -> None:
    net, x = images_net(lambda: neuron.IFNode()), torch.rand(4, N, 2, SIZE, SIZE)
    twin, _ = twin_of(net, x)
    outputs = 2 * 4 * (4 * N * C * SIZE * SIZE)
    assert memory(net, x).total.before - memory(twin, x).total.before > 0.95 * outputs
    packed = pack_spikes(twin)
    found, want = results(twin, x), results(net, x)
    assert packed.packed["1 bit"].tensors >= 1
    assert_close(found[:1], want[:1])


def test_norms_that_are_left_can_be_computed_again() -> None:
    torch.manual_seed(0)
    net = spiking_resnet.spiking_resnet18(spiking_neuron=neuron.IFNode, v_threshold=0.5, num_classes=4)
    functional.set_step_mode(net, "m")
    accelerate(net)
    x = torch.rand(2, 2, 3, 32, 32)
    want = results(net, x)
    for buffer in net.modules():
        if isinstance(buffer, nn.BatchNorm2d):
            buffer.reset_running_stats()
    fused, again = fuse_norms(net, x), recompute_norms(net)
    found = results(net, x)
    assert_close(found[:1], want[:1])
    assert fused.fused and not set(again.recomputed) & set(fused.fused)


def test_compiled_nets_run_the_norm_by_itself() -> None:
    net = nn.Sequential(layer.BatchNorm2d(C, step_mode="m"), ATIFuNode(0.75, step_mode="m")).eval()
    x = grid(4, N, C, 3, 3)
    fuse_norms(net, x)
    want = net(x)
    functional.reset_net(net)
    torch._dynamo.reset()
    compiled = torch.compile(net[0], backend="eager", fullgraph=True)
    assert type(compiled(x)) is Tensor and torch.equal(net[1](compiled(x)), want)
    torch._dynamo.reset()


def test_the_neurons_of_the_list_are_all_tested() -> None:
    assert {ATIFuNode, ATIFnuNode, PCMPIFNode} <= {type(make()) for make in FUSED.values()}
