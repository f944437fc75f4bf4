"""The engine against the plain loop: same spikes, whatever the chunk; bounded memory; nothing touched."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402
from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe  # noqa: E402

from snn_ext import convert  # noqa: E402
from snn_ext.ops import implementation, use_implementation  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.simulation.plan import _max_of_tiles, _tiles  # noqa: E402
from snn_ext.simulation.spike_train import SpikeTrain  # noqa: E402
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode  # noqa: E402
from tests.conversion.nets import ResNet, dyadic, images, loop, spikes_of, vgg  # noqa: E402

T = 11


def simulate(net: nn.Module, x: Tensor, time_steps: int = T, **options: int) -> Tensor:
    return torch.cat(list(Simulation(net, **options).run(x, time_steps)))


def powers_of_two(recipe_net: nn.Module) -> nn.Module:
    """Thresholds and scales that are powers of two keep a dyadic net dyadic."""
    for module in recipe_net.modules():
        if isinstance(module, PCMPIFNode):
            module.v_threshold = module.v_threshold.log2().round().exp2()
    return recipe_net


@pytest.mark.parametrize("chunk", [1, 4, 50])
@pytest.mark.parametrize("make", [vgg, lambda: vgg(pool=lambda: nn.MaxPool2d(2)), ResNet], ids=["vgg", "max", "resnet"])
def test_spikes_are_those_of_the_plain_loop_in_any_chunk(make: object, chunk: int) -> None:
    ann, x = dyadic(make()), images()  # type: ignore[operator]
    snn = powers_of_two(convert(ann, x, method="data-norm", precharge=0.5, fold_scales=False))
    seen: dict[str, list[Tensor]] = {}
    output = torch.cat(
        list(Simulation(snn, chunk=chunk).run(x, T, lambda name, m, s: seen.setdefault(name, []).append(s)))
    )
    assert torch.equal(output, loop(snn, x, T))
    for name, train in spikes_of(snn, x, T).items():
        assert torch.equal(torch.cat(seen[name]), (train != 0).float()), name
        assert all(len(s) <= chunk for s in seen[name])


def wide_net() -> nn.Module:
    """Layers with enough weights to add up spikes one by one."""
    layers = [nn.Conv2d(2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 40, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(640, 24), nn.ReLU(), nn.Linear(24, 5))


def test_layers_that_add_up_single_spikes_give_the_same_ones_and_notice_new_weights() -> None:
    ann, x = dyadic(wide_net()), images()
    snn = powers_of_two(convert(ann, x, method="data-norm", precharge=0.5, fold_scales=False))
    simulation, wanted = Simulation(snn, chunk=4), loop(snn, x, T)
    assert torch.equal(torch.cat(list(simulation.run(x, T))), wanted)
    if "cpu" not in implementation("spike_convolution", "cpu").unavailable:
        prepared = [type(kept.run).__name__ for kept in simulation._prepared.values()]
        assert prepared == ["_PackedLayer", "_PackedLayer", "Linear"]
    with torch.no_grad():
        snn.get_submodule("2").weight.mul_(0.5)
    assert torch.equal(torch.cat(list(simulation.run(x, T))), loop(snn, x, T))
    with use_implementation("torch"):
        assert torch.equal(torch.cat(list(Simulation(snn).run(x, T))), loop(snn, x, T))


def sparse_net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = dyadic(nn.Sequential(nn.Linear(64, 128), PCMPIFNode(4.0), nn.Linear(128, 64)).eval())
    return net, torch.randint(0, 17, (3, 64)) / 16


def _scale_data(layer: nn.Linear) -> None:
    layer.weight.data.mul_(2.0)  # no new version


def _scale_bias_data(layer: nn.Linear) -> None:
    layer.bias.data.add_(1.0)


def _swap_one_weight(layer: nn.Linear) -> None:
    layer.weight.data[0, 0] += 0.5


def _same_address(layer: nn.Linear) -> None:
    """Another tensor at the same address and of the same version, as freed memory comes back."""
    storage, version = layer.weight.data, layer.weight._version
    storage.neg_()
    layer.weight = nn.Parameter(storage)
    assert layer.weight._version <= version


def _other_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * -0.5)


def _hook(layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)


@pytest.mark.parametrize(
    "change", [_scale_data, _scale_bias_data, _swap_one_weight, _same_address, _other_parameter, _hook]
)
def test_a_simulation_that_lives_on_never_runs_with_the_weights_of_before(change: object) -> None:
    net, x = sparse_net()
    simulation, seen = Simulation(net, chunk=4), list[Tensor]()
    before = torch.cat(list(simulation.run(x, T, lambda name, module, spikes: seen.append(spikes))))
    assert 0.02 < torch.cat(seen).mean() < 0.3  # few enough for packed weights to be used
    change(net[2])  # type: ignore[operator]
    after = torch.cat(list(simulation.run(x, T)))
    assert torch.equal(after, simulate(net, x)) and not torch.equal(after, before)
    if change is not _hook:
        assert torch.equal(after, loop(net, x, T))


def test_weights_are_compared_once_a_run_and_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = sparse_net()
    compared: list[int] = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(1) or equal(a, b))
    simulation = Simulation(net, chunk=2)
    list(simulation.run(x, 12))
    kept = dict(simulation._prepared)
    assert not compared
    list(simulation.run(x, 12))
    assert len(compared) <= 2 and simulation._prepared == kept  # weight and bias, not chunk after chunk


def test_autocast_reaches_the_layers_behind_spikes() -> None:
    net, x = sparse_net()
    with torch.autocast("cpu", torch.bfloat16):
        found = simulate(net, x)
        assert torch.equal(found, loop(net, x, T)) and found.dtype == torch.bfloat16


@pytest.mark.parametrize("encoder", ["if", "poisson"])
def test_trains_of_an_encoder_do_not_depend_on_chunk_batch_or_step_mode(encoder: str) -> None:
    ann, x = dyadic(vgg()), images()
    options = {"seed": 3} if encoder == "poisson" else {}
    snn = powers_of_two(convert(ann, x, method="data-norm", encoder=encoder, fold_scales=False, **options))
    whole = simulate(snn, x, chunk=T)
    assert torch.equal(whole, simulate(snn, x, chunk=3))
    assert torch.equal(whole[:, 5:], simulate(snn, x[5:], chunk=4))
    assert torch.equal(whole, loop(snn, x, T))
    functional.set_step_mode(snn, "m")
    with torch.no_grad():
        assert torch.equal(whole, snn(x.expand(T, *x.shape)))


def test_any_traceable_net_of_the_hosts_neurons_runs() -> None:
    ann, x = dyadic(vgg()), images()
    host = Converter(RateCodingRecipe([x])).convert(ann)
    torch.testing.assert_close(simulate(host, x, chunk=4), loop(host, x, T))
    body = nn.Sequential(layer.Conv2d(2, 3, 3), ATIFuNode(0.5), nn.Flatten(), nn.Linear(108, 8), neuron.LIFNode(2.0))
    net = nn.Sequential(body, nn.Linear(8, 4), ATIFnuNode(T=T, scale_output=True))
    torch.testing.assert_close(simulate(net, x, chunk=4), loop(net, x, T).detach())


def test_a_size_of_the_input_is_not_taken_for_that_of_a_chunk() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.node, self.head = nn.Conv2d(2, 3, 3), PCMPIFNode(0.25), nn.Linear(108, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.node(self.conv(x))
            return self.head(h.view(x.size(0), -1)) + self.conv(x).mean([1, 2, 3]).unsqueeze(1)

    net, x = dyadic(Net()), images()[:5]  # as many samples as columns would hide a mistaken dimension
    torch.testing.assert_close(simulate(net, x, chunk=4), loop(net, x, T))


def test_the_net_is_left_as_it_was() -> None:
    snn, x = convert(vgg().eval(), images(), method="data-norm"), images()
    functional.set_step_mode(snn, "m")
    snn.train()
    running = Simulation(snn, chunk=2).run(x, 6)
    next(running)
    node = next(m for m in snn.modules() if isinstance(m, PCMPIFNode))
    assert node.v == 0.0
    running.close()
    assert snn.training and snn.step_mode == "m" and node.step_mode == "m"
    two = Simulation(snn, chunk=2)
    interleaved = [torch.cat(both) for both in zip(two.run(x, 6), two.run(x, 6), strict=True)]
    assert all(torch.equal(a[:2], a[2:]) for a in interleaved)


def test_dropout_of_a_net_in_training_mode_is_left_out() -> None:
    net = nn.Sequential(nn.Linear(6, 40), PCMPIFNode(), nn.Dropout(0.9), nn.Linear(40, 3)).train()
    x = torch.randn(5, 6)
    found = simulate(net, x)
    assert net.training and net[2].training
    torch.testing.assert_close(found, loop(net.eval(), x, T))


def test_what_comes_before_the_first_neuron_runs_once() -> None:
    snn, x = convert(vgg().eval(), images(), method="data-norm"), images()
    calls: list[int] = []
    first, second = (m for m in snn.modules() if isinstance(m, nn.Conv2d) and m.in_channels in (2, 6))
    first.register_forward_hook(lambda m, i, o: calls.append(1))
    second.register_forward_hook(lambda m, i, o: calls.append(2))
    simulation = Simulation(snn, chunk=5)
    simulation.random(x)  # one pass, once for all batches
    calls.clear()
    list(simulation.run(x, 15))
    assert calls.count(1) == 1 and calls.count(2) == 3


def test_bad_input_is_named() -> None:
    net = nn.Sequential(nn.Linear(2, 2), PCMPIFNode())
    for message, call in {
        "net: got 3": lambda: Simulation(3),  # type: ignore[arg-type]
        "chunk: got 0": lambda: Simulation(net, chunk=0),
        "x: got": lambda: list(Simulation(net).run(torch.rand(2), 3)),
        "time_steps: got 0": lambda: list(Simulation(net).run(torch.rand(2, 2), 0)),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_a_neuron_that_is_called_twice_a_step_is_refused_by_name() -> None:
    """Its calls share one potential step by step; layer by layer they cannot."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.node = nn.Linear(2, 2), nn.Linear(2, 2), PCMPIFNode()

        def forward(self, x: Tensor) -> Tensor:
            return self.node(self.two(self.node(self.one(x))))

    with pytest.raises(ValueError, match="net: got 'node, one neuron for two calls of a step'"):
        Simulation(Twice())


@pytest.mark.parametrize("kind", ["parameter", "one row", "vector"])
def test_a_constant_behind_neurons_is_the_same_for_all_samples_and_steps(kind: str) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.neuron, self.head = nn.Linear(4, 4), ATIFuNode(), nn.Linear(4, 3)
            self.gain = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.neuron(self.first(x))
            constant = {"parameter": self.gain, "one row": torch.full((1, 4), 0.5), "vector": torch.full((4,), 0.5)}[
                kind
            ]
            return self.head(y + constant)

    net, x = Shifted(), torch.rand(8, 4)
    with torch.no_grad():
        wanted = torch.stack([net(x) for _ in range(5)])
    functional.reset_net(net)
    torch.testing.assert_close(torch.cat(list(Simulation(net, chunk=2).run(x, 5))), wanted)


def test_chunks_are_freed_without_the_garbage_collector() -> None:
    """In a cycle they would stay until it comes, gibibytes in large nets."""
    simulation = Simulation(convert(vgg().eval(), images(), method="data-norm"), chunk=2)
    neurons = list(simulation.events.sources)
    seen: list[weakref.ref[Tensor]] = []
    gc.collect()
    gc.disable()
    try:
        for values in simulation.stream(images(), 24, neurons):
            assert sum(reference() is not None for reference in seen) == 0
            seen += [weakref.ref(value._base) for value in values.values()]
            del values
    finally:
        gc.enable()
    assert len(seen) > 12


def test_memory_is_respected() -> None:
    net = convert(vgg().eval(), images(2), method="data-norm")
    x, sizes = images(2), []
    for memory in (1, 1 << 30):
        sizes.append(len(next(Simulation(net, memory=memory).run(x, 40))))
    assert sizes[0] == 1 and sizes[1] > 8


LONG_RUN = """
import torch
from torch import nn
from snn_ext.simulation import Simulation
from snn_ext.spikingjelly import PCMPIFNode
layers, channels = [], 3
for entry in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
    layers += [nn.Conv2d(channels, entry, 3, padding=1), PCMPIFNode()] if entry else [nn.AvgPool2d(2)]
    channels = entry or channels
net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
x = torch.rand(16, 3, 32, 32)

def peak():  # ru_maxrss would have that of the process of the tests too
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before = peak()
running = Simulation(net).run(x, 2500)
for _ in range(2):      # what a chunk needs does not grow with their number
    next(running)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read as Linux writes it")
def test_vgg16_for_2500_steps_stays_within_a_gibibyte() -> None:
    done = subprocess.run([sys.executable, "-c", LONG_RUN], check=True, capture_output=True, text=True)
    assert 1 << 20 < int(done.stdout) < 1 << 30


@pytest.mark.parametrize("shape", [(7, 3, 5, 4, 4), (3, 2, 11), (20, 1, 1)])
def test_packed_trains_come_back_in_value_and_layout(shape: tuple[int, ...]) -> None:
    spikes = (torch.rand(shape) > 0.5).float()
    if len(shape) == 5:
        spikes = spikes.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
    train = SpikeTrain(0.3)
    train.append(0.3 * spikes[:2])
    train.append(0.3 * spikes[2:])
    found = train.read(1, shape[0])
    assert torch.equal(found, 0.3 * spikes[1:]) and found.stride()[1:] == spikes.stride()[1:]
    assert len(train) == shape[0] and train.nbytes == shape[0] * -(-spikes[0].numel() // 8)


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_spikes_do_not_depend_on_which_way_is_taken_for_faster(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, x = convert(wide_net().eval(), images(), method="data-norm"), images()  # weights whose sums are rounded
    wanted = simulate(snn, x)
    monkeypatch.setattr("snn_ext.ops.spike_convolution._PackedLayer.best_density", lambda layer, size: share)
    assert torch.equal(simulate(snn, x), wanted)
    assert torch.equal(simulate(snn, x, chunk=3), wanted)


def test_weights_are_compared_once_while_nobody_changes_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = sparse_net()
    simulation = Simulation(net, chunk=4)
    wanted = torch.cat(list(simulation.run(x, T)))
    compared, equal = list[int](), torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(1) or equal(a, b))
    with simulation.unchanged():
        first, *others = [torch.cat(list(simulation.run(x, T))) for _ in range(3)]
        one, two = zip(*zip(simulation.run(x, T), simulation.run(2 * x, T), strict=True), strict=True)  # side by side
    assert len(compared) <= 6  # weight and bias: of the first run, and of two that run at the same time
    monkeypatch.undo()
    assert all(torch.equal(found, wanted) for found in (first, *others, torch.cat(one)))
    assert torch.equal(torch.cat(two), simulate(net, 2 * x))
    net[2].weight.data.mul_(2.0)
    assert torch.equal(torch.cat(list(simulation.run(x, T))), simulate(net, x))


@pytest.mark.parametrize("shape", [(3, 5, 9, 7), (2, 4, 2, 2), (1, 3, 8, 8)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_maxima_of_tiles_are_those_of_the_pooling(shape: tuple[int, ...], size: int) -> None:
    pool, x = nn.MaxPool2d(size), torch.randint(-8, 8, shape) / 8
    assert _tiles(pool) and not _tiles(nn.MaxPool2d(3, 2)) and not _tiles(nn.MaxPool2d(2, ceil_mode=True))
    if min(shape[2:]) >= size:
        assert torch.equal(_max_of_tiles(pool, x), pool(x))
    else:
        with pytest.raises(RuntimeError):
            _max_of_tiles(pool, x)
