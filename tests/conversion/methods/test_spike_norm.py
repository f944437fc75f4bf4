"""Algorithm 1 against a simulation from the input for every layer, written down plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import convert  # noqa: E402
from snn_ext.conversion import PoissonEncoder  # noqa: E402
from snn_ext.conversion.layerwise import Layerwise  # noqa: E402
from tests.conversion.nets import ResNet, dyadic, images, loop, trained, vgg  # noqa: E402

T = 12


def algorithm_1(weights: list[Tensor], spikes: Tensor, reset: str) -> list[float]:
    """Sengupta et al. 2019, in the paper's own form: binary spikes, weights as they are, thresholds in their units."""
    thresholds = []
    for weight in weights:
        current = spikes @ weight.T
        theta = float(current.max())
        thresholds.append(theta)
        v, out = torch.zeros_like(current[0]), []
        for x in current:
            v = v + x
            s = (v >= theta).float()
            v = v - theta * s if reset == "subtract" else v * (1 - s)
            out.append(s)
        spikes = torch.stack(out)
    return thresholds


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("encoder", ["direct", "poisson"])
def test_relative_thresholds_are_those_of_the_papers_algorithm(encoder: str, reset: str) -> None:
    sizes = (6, 12, 10, 8)
    linear = [nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False)]
    ann = nn.Sequential(*(m for layer in linear for m in (layer, nn.ReLU())), nn.Linear(8, 2))
    x = torch.randint(0, 17, (5, 6)) / 16
    train = torch.stack([x] * T)
    if encoder == "poisson":
        module = PoissonEncoder(4)
        train = torch.stack([module(x) for _ in range(T)])
    with torch.no_grad():
        wanted = algorithm_1([layer.weight for layer in linear], train, reset)
    options: dict[str, Any] = {"seed": 4} if encoder == "poisson" else {}
    snn = convert(ann, x, time_steps=T, method="spike-norm", encoder=encoder, reset=reset, **options)
    scale = 1.0
    for layer, theta in zip(snn.report, wanted, strict=True):
        scale *= theta
        assert layer.threshold == pytest.approx(scale, rel=1e-5)
    assert [layer.relative_threshold for layer in snn.report[1:]] == pytest.approx(wanted[1:], rel=1e-5)


def from_the_input(snn: Any, x: Tensor, layers: list[Any]) -> list[float]:
    """Return the largest current into each layer, with all of the net run step by step."""
    largest = [-float("inf")] * len(layers)
    hooks = []
    for k, layer in enumerate(layers):

        def keep(module: nn.Module, inputs: Any, k: int = k) -> None:
            largest[k] = max(largest[k], float(inputs[0].max()))

        hooks.append(snn.get_submodule(layer.name).register_forward_pre_hook(keep))
    loop(snn, x, T)
    for hook in hooks:
        hook.remove()
    return largest


@pytest.mark.parametrize("memory", [1 << 30, 600, 1], ids=["kept", "some kept", "recomputed"])
@pytest.mark.parametrize("make", [vgg, ResNet, lambda: vgg(pool=lambda: nn.MaxPool2d(2))], ids=["vgg", "resnet", "max"])
def test_thresholds_are_the_largest_currents_of_the_finished_net_in_any_memory(make: Any, memory: int) -> None:
    ann, x = dyadic(make(), 3), images(4)
    snn = convert(
        ann, [x[:3], x[3:]], time_steps=T, method="spike-norm", memory=memory, fold_scales=False, readout="spikes"
    )
    largest = from_the_input(snn, x, snn.report)
    assert [layer.threshold for layer in snn.report] == pytest.approx(largest, rel=1e-5)
    assert {layer.rule for layer in snn.report} == {"Spike-Norm"}


class Concatenated(nn.Module):
    """Two branches of another number of channels, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.join, self.head = nn.Conv2d(9, 6, 3), nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        return self.head(self.join(torch.cat([self.a(h).relu(), self.b(h).relu()], 1)).relu().flatten(1))


def per_channel_algorithm_1(ann: nn.Sequential, batches: list[Tensor]) -> list[Tensor]:
    """One threshold a channel, by hand: largest current over steps, samples and batches, then fire on a share of it."""
    trains, found = [x.expand(T, *x.shape) for x in batches], []
    for layer in [m for m in ann if isinstance(m, nn.Linear)][:-1]:
        currents = [train @ layer.weight.T + layer.bias for train in trains]
        theta = torch.stack([current.amax((0, 1)) for current in currents]).amax(0)
        theta = torch.where(theta > 0, theta, theta.amax())
        trains = []
        for current in currents:
            v, train = torch.zeros_like(current[0]), []
            for i in current:
                v = v + i * theta.double().reciprocal().float()
                spikes = (v >= 1).float()
                v = v - spikes
                train.append(spikes * theta)
            trains.append(torch.stack(train))
        found.append(theta)
    return found


@pytest.mark.parametrize("memory", [1 << 30, 600, 1], ids=["kept", "some kept", "recomputed"])
def test_thresholds_per_channel_are_those_of_the_algorithm_by_hand(memory: int) -> None:
    hidden = [m for a, b in ((6, 8), (8, 7), (7, 5)) for m in (nn.Linear(a, b), nn.ReLU())]
    ann = nn.Sequential(*hidden, nn.Linear(5, 2))
    batches = [torch.randint(0, 17, (n, 6)) / 16 for n in (4, 1, 3)]
    with torch.no_grad():
        wanted = per_channel_algorithm_1(ann, batches)
    snn = convert(ann, batches, channel_wise=True, time_steps=T, method="spike-norm", memory=memory)
    for layer, theta in zip(snn.report, wanted, strict=True):
        assert layer.threshold == pytest.approx(theta.tolist(), rel=1e-4)


@pytest.mark.parametrize("memory", [1 << 30, 3000, 1], ids=["kept", "some kept", "recomputed"])
@pytest.mark.parametrize("make", [vgg, ResNet, Concatenated], ids=["vgg", "resnet", "concatenated"])
def test_thresholds_per_channel_are_the_largest_currents_of_the_finished_net_in_any_memory(
    make: Any, memory: int
) -> None:
    ann, x = dyadic(make(), 3), images(4)
    snn = convert(
        ann, [x[:3], x[3:]], channel_wise=True, time_steps=T, method="spike-norm", memory=memory, fold_scales=False
    )
    largest: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            top = inputs[0].movedim(1, 0).flatten(1).amax(1)
            largest[name] = torch.maximum(largest.get(name, top), top)

        return hook

    for layer in snn.report:
        snn.get_submodule(layer.name).register_forward_pre_hook(keep(layer.name))
    loop(snn, x, T)
    for layer in snn.report:
        top = largest[layer.name]
        assert layer.threshold == pytest.approx(torch.where(top > 0, top, top.amax()).tolist(), rel=1e-5)


def test_spike_input_exceeds_the_analog_maximum() -> None:
    """The paper's example: inputs 0.5 and 1 add up to 1.5, spikes to 2."""
    ann = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(2, 1, bias=False), nn.ReLU())
    nn.init.ones_(ann[2].weight)
    x = torch.tensor([[0.5, 1.0]])
    analog, spiking = (convert(ann, x, method=method, time_steps=50) for method in ("data-norm", "spike-norm"))
    assert analog.report[1].threshold == 1.5 and spiking.report[1].threshold == 2.0


def test_clips_and_quantised_thresholds_are_not_exceeded() -> None:
    ann = trained(vgg(relu=nn.ReLU6))
    with torch.no_grad():
        ann[0].weight *= 40
    snn = convert(ann, images(), time_steps=T, method="spike-norm")
    assert snn.report[0].threshold == 6.0 and all(layer.threshold <= 6.0 for layer in snn.report)


def test_finished_trains_are_dropped_when_no_layer_needs_them() -> None:
    snn, x = convert(trained(ResNet()), images(), method="data-norm"), images()
    layers = Layerwise(snn, [x], T)
    kept = []
    for node in layers.layers():
        for _ in layers.finish(node):
            pass
        kept.append({str(n.target) for n in layers._trains[0]})
    assert kept[0] == {"relu"} and kept[1] == {"relu", "blocks.0.relu"} and kept[-1] == {"blocks.2.relu_2"}


@pytest.mark.parametrize("memory", [1 << 30, 3000, 700, 1])
def test_trains_and_currents_that_are_kept_stay_within_the_memory(memory: int) -> None:
    snn, x = convert(trained(ResNet()), images(), method="data-norm"), images()
    layers, most = Layerwise(snn, [x[:5], x[5:]], T, memory), 0
    for node in layers.layers():
        for batch in (0, 1):
            for _ in layers.current(node, batch):
                pass
            kept = [chunk for chunks in layers._current.values() for chunk in chunks]
            assert sum(chunk.untyped_storage().nbytes() for chunk in kept) <= memory
        for _ in layers.finish(node):
            most = max(most, layers._nbytes())
            assert most <= memory
    assert (most > 0) == (memory > 1)  # it keeps what it can, too


def test_unit_threshold_keeps_spike_norm_for_what_comes_before() -> None:
    snn = convert(trained(ResNet()), images(), time_steps=T, method="spike-norm", residual="unit-threshold")
    assert [layer.rule for layer in snn.report] == ["Spike-Norm"] + ["unit threshold"] * 6
    assert len({layer.threshold for layer in snn.report}) == 1
