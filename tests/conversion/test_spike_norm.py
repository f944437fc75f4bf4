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
from tests.conversion.nets import ResNet, dyadic, images, trained, vgg  # noqa: E402

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
    snn = convert(ann, x, time_steps=T, encoder=encoder, reset=reset, **options)
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
    from tests.conversion.nets import loop

    loop(snn, x, T)
    for hook in hooks:
        hook.remove()
    return largest


@pytest.mark.parametrize("memory", [1 << 30, 600, 1], ids=["kept", "some kept", "recomputed"])
@pytest.mark.parametrize("make", [vgg, ResNet, lambda: vgg(pool=lambda: nn.MaxPool2d(2))], ids=["vgg", "resnet", "max"])
def test_thresholds_are_the_largest_currents_of_the_finished_net_in_any_memory(make: Any, memory: int) -> None:
    ann, x = dyadic(make(), 3), images(4)
    snn = convert(ann, [x[:3], x[3:]], time_steps=T, memory=memory, fold_scales=False, readout="spikes")
    largest = from_the_input(snn, x, snn.report)
    assert [layer.threshold for layer in snn.report] == pytest.approx(largest, rel=1e-5)
    assert {layer.rule for layer in snn.report} == {"Spike-Norm"}


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
    snn = convert(ann, images(), time_steps=T)
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


def test_unit_threshold_keeps_spike_norm_for_what_comes_before() -> None:
    snn = convert(trained(ResNet()), images(), time_steps=T, residual="unit-threshold")
    assert [layer.rule for layer in snn.report] == ["Spike-Norm"] + ["unit threshold"] * 6
    assert len({layer.threshold for layer in snn.report}) == 1
