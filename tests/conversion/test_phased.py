"""Layers that wait: exact on exact arithmetic if for all inputs, as the first layer always is; and the diagnosis."""

from __future__ import annotations

import copy
import pickle
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

pytest.importorskip("spikingjelly")

from snn_ext import NonUniformQuantizedReLU, QuantizedReLU, convert, load, save  # noqa: E402
from snn_ext.conversion import PhasedATIFnuNode, PhasedIFNode, diagnose  # noqa: E402
from snn_ext.conversion.phased import PhasedDelay  # noqa: E402
from snn_ext.functional import nonuniform_staircase  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.simulation.analog import AnalogTwin  # noqa: E402
from snn_ext.spikingjelly import ATIFnuNode  # noqa: E402
from tests.conversion.nets import ResNet, dyadic, images, loop, spikes_of, trained, vgg  # noqa: E402

MAKES: dict[str, Any] = {
    "vgg": vgg,
    "vgg with maximum pooling": lambda relu: vgg(relu, lambda: nn.MaxPool2d(2)),
    "resnet": ResNet,
}


@pytest.mark.parametrize("rounding", ["floor", "round", "ceil"])
@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("levels", [2, 8])
def test_phased_net_is_the_quantised_net_bit_for_bit(name: str, rounding: str, levels: int) -> None:
    ann, x = dyadic(MAKES[name](lambda: QuantizedReLU(levels, 0.5, rounding))), images()
    with torch.no_grad():
        wanted = ann(x)
    assert len(wanted.unique()) > 5
    snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=levels)
    assert snn.latency == levels + (levels - 1) * len(snn.report)  # these nets have no layers side by side
    output = torch.cat(list(Simulation(snn, chunk=5).run(x, snn.latency)))
    assert torch.equal(output, loop(snn, x, snn.latency))
    assert torch.equal(output.mean(0), wanted)
    assert not output[:-levels].any()


POINTS = [[0.5], [1.0, 0.25], [0.75, 0.5, 0.4375, 0.0625], [1.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.25, 0.125]]


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("points", POINTS, ids=len)
def test_phased_net_is_the_net_of_points_bit_for_bit(name: str, points: list[float], tmp_path: Path) -> None:
    levels = len(points)
    ann, x = dyadic(MAKES[name](lambda: NonUniformQuantizedReLU(levels, torch.tensor(points)))), images()
    with torch.no_grad():
        wanted = ann(x)
    assert len(wanted.unique()) > 5
    snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=levels)
    output = torch.cat(list(Simulation(snn, chunk=5).run(x, snn.latency)))
    assert torch.equal(output.mean(0), wanted)
    save(snn, tmp_path / "snn.pt")
    for twin in (snn, copy.deepcopy(snn), pickle.loads(pickle.dumps(snn)), load(tmp_path / "snn.pt")):
        assert torch.equal(loop(twin, x, snn.latency), output)


@pytest.mark.parametrize("traced", [False, True])
def test_phased_net_has_the_points_in_use_also_of_a_traced_net_and_folded(traced: bool) -> None:
    ann, x = dyadic(ResNet(lambda: NonUniformQuantizedReLU(4))), images()
    for module in ann.modules():
        if isinstance(module, NonUniformQuantizedReLU):
            module.p.data.copy_(torch.tensor([0.75, 0.25, 0.5, 0.125]))  # training has made points cross
    with torch.no_grad():
        wanted = ann(x)
    snn = convert(fx.symbolic_trace(ann) if traced else ann, x, method="data-norm", schedule="phased", time_steps=4)
    assert snn.report[0].threshold == [0.75, 0.5, 0.5, 0.125] and snn.report[0].rule == "quantised, 4 points"
    assert torch.equal(loop(snn, x, snn.latency).mean(0), wanted)


def test_streaming_net_of_points_is_exact_in_its_first_layer_and_has_a_twin_in_the_other_host() -> None:
    ann, x = dyadic(vgg(lambda: NonUniformQuantizedReLU(4, torch.tensor([0.75, 0.5, 0.4375, 0.0625])))), images()
    snn = convert(ann, x, method="data-norm")
    assert snn.time_steps == 4 and snn.schedule == "streaming"
    with torch.no_grad():
        wanted = ann[2](ann[1](ann[0](x)))
    assert torch.equal(spikes_of(snn, x, 4)["2"].mean(0) * 0.75, wanted)
    twin = snn.to_snntorch()
    with torch.no_grad():
        assert torch.equal(torch.stack([twin(x) for _ in range(4)]), loop(snn, x, 4))


@pytest.mark.parametrize("points", [[0.9, 0.5, 0.3, 0.1], [0.5, 0.5, 0.25, 0.125]], ids=["apart", "that meet"])
def test_calibrated_net_has_neurons_of_the_points_where_there_are_as_many_as_steps(
    points: list[float], tmp_path: Path
) -> None:
    ann, x = trained(ResNet(lambda: NonUniformQuantizedReLU(4, torch.tensor(points)))), images(64)
    with torch.no_grad():
        wanted = ann(x)
    snn = convert(ann, x, time_steps=4)
    neurons = [module for module in snn.modules() if isinstance(module, ATIFnuNode)]
    assert len(neurons) == len(snn.report) and all(layer.found_error <= layer.start_error for layer in snn.report)
    for neuron in neurons:
        torch.testing.assert_close(neuron.p.detach(), torch.tensor(points) / points[0])
    output, plain = loop(snn, x, 4), convert(ann, x, method="data-norm")
    assert (output.mean(0) - wanted).norm() < 0.9 * (loop(plain, x, 4).mean(0) - wanted).norm()
    save(snn, tmp_path / "snn.pt")
    assert torch.equal(loop(load(tmp_path / "snn.pt"), x, 4), output)
    twin = snn.to_snntorch()
    with torch.no_grad():
        assert torch.equal(torch.stack([twin(x) for _ in range(4)]), output)
    tuned = convert(ann, x, time_steps=4, tune="channels", epochs=2)
    assert sum(isinstance(module, ATIFnuNode) for module in tuned.modules()) == len(neurons)
    for options in ({"time_steps": 8}, {"time_steps": 4, "wait": 1}):
        other = convert(ann, x, **options)  # type: ignore[arg-type]
        assert not any(isinstance(module, ATIFnuNode) for module in other.modules())


def test_calibrated_streaming_net_approximates_the_net_of_points() -> None:
    ann, x = trained(ResNet(lambda: NonUniformQuantizedReLU(8, torch.linspace(1.0, 0.1, 8)))), images(64)
    with torch.no_grad():
        wanted = ann(x)
    errors = [
        float((loop(convert(ann, x, **options), x, 8).mean(0) - wanted).norm() / wanted.norm())
        for options in ({"time_steps": 8}, {"method": "data-norm"})
    ]
    assert errors[0] < 0.2 and errors[0] < errors[1]


def test_layers_that_wait_for_some_inputs_are_exact_at_points_where_the_input_is_constant() -> None:
    points = torch.tensor([0.75, 0.5, 0.4375, 0.0625])
    node = PhasedATIFnuNode(points, time_steps=4, first=1, wait=1, step_mode="m")
    x = torch.arange(-4, 20) / 16
    wanted = nonuniform_staircase(x, points)
    with torch.no_grad():
        assert torch.equal(node(x.unsqueeze(1).expand(6, -1, 1)).sum(0).flatten(), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_steps": 8}, "time_steps: got 8, want 4, the number of points of 2"),
        ({"precharge": "optimize"}, "precharge: got 'optimize', want 0.0 for a net with quantisation points (2)"),
        ({"reset": "zero"}, "reset: got 'zero'"),
    ],
)
def test_options_that_points_rule_out_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(trained(vgg(lambda: NonUniformQuantizedReLU(4))), images(), method="data-norm", **options)


def test_a_phased_net_in_a_sequence_with_gradients_is_copied() -> None:
    x = images()
    snn = convert(
        trained(ResNet(lambda: QuantizedReLU(2, 0.5))), x, method="data-norm", schedule="phased", time_steps=2
    )
    for _ in range(snn.latency // 2):
        snn(x.clone().requires_grad_())
    twin, pickled = copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))
    want = snn(x)
    assert torch.equal(twin(x), want) and torch.equal(pickled(x), want)


@pytest.mark.parametrize("rounding", ["floor", "round", "ceil"])
def test_first_spiking_layer_is_exact_in_the_streaming_schedule_too(rounding: str) -> None:
    ann, x = dyadic(vgg(lambda: QuantizedReLU(8, 0.5, rounding))), images()
    snn = convert(ann, x, method="data-norm")
    with torch.no_grad():
        wanted = ann[2](ann[1](ann[0](x)))
    assert torch.equal(spikes_of(snn, x, 8)["2"].mean(0) * 0.5, wanted)


@pytest.mark.parametrize("name", MAKES)
def test_every_mismatch_of_the_streaming_schedule_is_explained(name: str) -> None:
    ann, x = dyadic(MAKES[name](lambda: QuantizedReLU(8, 0.5, "round"))), images()
    snn = convert(ann, x, method="data-norm")
    found = diagnose(snn, x, 8)
    assert [layer.name for layer in found] == [layer.name for layer in snn.report]
    assert found[0].mismatches == found[0].against_quantized == 0
    assert sum(layer.mismatches for layer in found) > 20
    for layer in found:
        assert layer.unexplained == 0 and layer.early + layer.late <= layer.neurons
        assert layer.mismatches <= layer.early + layer.late + layer.clipped
    assert found[1].mismatches == found[1].against_quantized  # nothing inherited yet


def test_diagnosis_finds_a_wrong_count_that_it_can_not_explain() -> None:
    """A neuron that drops its last spike, with a potential as if it had fired, is not explained by its residual."""
    from snn_ext.conversion.diagnosis import _compare

    snn, x = convert(nn.Sequential(nn.Identity(), nn.ReLU()), torch.ones(1, 4), method="data-norm"), torch.rand(3, 4)
    node = next(n for n in snn.graph.nodes if n.op == "call_module" and str(n.target) == "1")
    charge = 8 * x.double()
    count = charge.floor()
    broken = count - (count > 2).double()
    layer = _compare(node, snn.get_submodule("1"), charge, broken, (charge - count).float(), (count / 8).float(), 8)
    assert layer.mismatches == layer.unexplained == int((count > 2).sum()) > 0


@pytest.mark.parametrize("tie", [True, False], ids=["at", "above"])
def test_the_edges_of_the_potential_belong_where_the_tie_rule_says(tie: bool) -> None:
    """A wrong count is early below the potentials that a right one leaves, late above them, unexplained within."""
    from snn_ext.conversion.diagnosis import _compare

    snn = convert(nn.Sequential(nn.Identity(), nn.ReLU()), torch.ones(1, 4), method="data-norm")
    node = next(n for n in snn.graph.nodes if n.op == "call_module" and str(n.target) == "1")
    neuron, one = snn.get_submodule("1"), torch.ones(1)
    neuron.fire_at_threshold = tie
    for residual, at, above in (
        (-0.25, "early", "early"),
        (0.0, "unexplained", "early"),
        (0.5, "unexplained", "unexplained"),
        (1.0, "late", "unexplained"),
        (1.25, "late", "late"),
    ):
        layer = _compare(node, neuron, 3.5 * one, 2 * one, residual * one, 0.25 * one, 8)
        assert [kind for kind in ("early", "late", "unexplained") if getattr(layer, kind)] == [at if tie else above]


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_delay_keeps_order_values_and_gradients(step_mode: str) -> None:
    delay = PhasedDelay(3)
    delay.step_mode = step_mode
    x_seq = torch.arange(1.0, 9.0).reshape(8, 1).requires_grad_()
    parts = [delay(x_seq[:2]), delay(x_seq[2:])] if step_mode == "m" else [delay(x).unsqueeze(0) for x in x_seq]
    out = torch.cat(parts)
    assert out.flatten().tolist() == [0.0] * 3 + [1.0, 2.0, 3.0, 4.0, 5.0]
    out.sum().backward()
    assert x_seq.grad is not None and x_seq.grad.flatten().tolist() == [1.0] * 5 + [0.0] * 3


class Reference:
    """A chain of layers that wait, as defined: T inputs from ``wait (l - 1)`` on, T decisions from ``wait l`` on."""

    def __init__(self, snn: Any, x: Tensor, time_steps: int, wait: int) -> None:
        layers = [module for module in snn.modules() if isinstance(module, nn.Linear | PhasedIFNode)]
        train = [x.double()] * time_steps  # what reaches a layer, by the step after its first input
        for layer in layers:
            if isinstance(layer, nn.Linear):
                train = [nn.functional.linear(s, layer.weight.double(), layer.bias.double()) for s in train]
                continue
            v, spikes = layer.v_init.double() * layer.v_threshold.double(), []
            for step in range(time_steps + wait):
                v = v + (train[step] if step < time_steps else 0.0)
                if step >= wait:
                    spikes.append((v >= layer.v_threshold).double())
                    v = v - spikes[-1] * layer.v_threshold
            train = spikes
        self.output = sum(train) / time_steps


@pytest.mark.parametrize("method", ["data-norm", "calibrated"])
@pytest.mark.parametrize("wait", range(4))
def test_each_layer_decides_after_the_inputs_that_it_waits_for(method: Any, wait: int) -> None:
    torch.manual_seed(3)
    sizes = (6, 16, 16, 16, 3)
    ann = nn.Sequential(*(m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())))[:-1]
    x = torch.rand(32, 6)
    snn = convert(ann, x, method=method, time_steps=4, wait=wait)
    assert (snn.latency or 4) == 4 + 3 * wait
    assert snn.schedule == ("streaming", "waiting", "waiting", "phased")[wait]
    output = torch.cat(list(Simulation(snn, chunk=3).run(x, 4 + 3 * wait)))
    torch.testing.assert_close(output, loop(snn, x, 4 + 3 * wait))
    if wait:
        assert not output[: 3 * wait].any()
        wanted = Reference(snn, x, 4, wait).output
        torch.testing.assert_close(output.double().mean(0), wanted, rtol=1e-5, atol=1e-5)


def test_a_shortcut_waits_for_the_layers_that_it_skips() -> None:
    ann, x = trained(ResNet()), images()
    with torch.no_grad():
        wanted = ann(x)
    errors = []
    for wait in (1, 10, 15):
        snn = convert(ann, x, method="data-norm", precharge=0.5, channel_wise=True, time_steps=16, wait=wait)
        output = torch.cat(list(Simulation(snn, chunk=7).run(x, snn.latency)))
        torch.testing.assert_close(output, loop(snn, x, snn.latency))
        assert not output[:-16].any()
        errors.append(float((output.mean(0) - wanted).norm() / wanted.norm()))
    assert errors[2] < 0.1 and errors[1] < errors[0], errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wait": 4}, "wait: got 4, want at most time_steps - 1 = 3"),
        ({"wait": -1}, "wait: got -1, want an int >= 0"),
        ({"wait": 1, "schedule": "phased"}, "wait: got 1, want time_steps - 1 = 3 with schedule='phased'"),
        ({"wait": 1, "precharge": "optimize"}, "precharge: got 'optimize', want a number with wait=1"),
        ({"wait": 1, "encoder": "poisson"}, "encoder: got 'poisson'"),
        ({"wait": 1, "time_steps": None}, "time_steps: got None, want the T of the net, with wait=1"),
    ],
)
def test_options_that_cannot_wait_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(vgg(), images(), method="data-norm", **({"time_steps": 4} | options))


@pytest.mark.parametrize("make", [lambda: QuantizedReLU(4, 0.5, "ceil"), lambda: NonUniformQuantizedReLU(4, 0.5)])
def test_quantised_twin_is_the_quantised_net(make: Any) -> None:
    ann, x = dyadic(ResNet(make)), images()
    with torch.no_grad():
        assert torch.equal(AnalogTwin(convert(ann, x, method="data-norm"), 4)(x), ann(x))


def test_relu_nets_convert_to_the_phased_schedule_with_input_neurons_and_counted_output() -> None:
    ann, x = trained(ResNet()), images()
    snn = convert(
        ann, x, method="data-norm", precharge=0.5, schedule="phased", time_steps=64, encoder="if", readout="spikes"
    )
    assert snn.latency == 64 + 63 * len(snn.report)
    with torch.no_grad():
        wanted = ann(x).relu() / snn.report[-1].scale
    assert (torch.cat(list(Simulation(snn).run(x, snn.latency))).mean(0) - wanted).abs().max() < 0.08
    assert max(layer.rate_error for layer in snn.report) < 0.02


def test_diagnosis_is_for_streaming_nets_with_reset_by_subtraction() -> None:
    ann, x = trained(vgg()), images()
    for options, message in (
        ({"schedule": "phased", "time_steps": 4}, "schedule"),
        ({"reset": "zero"}, "reset to zero"),
    ):
        with pytest.raises(ValueError, match=f"snn: got .*{message}"):
            diagnose(convert(ann, x, method="data-norm", **options), x, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a threshold for each step"):
        diagnose(convert(trained(vgg(lambda: NonUniformQuantizedReLU(4))), x, method="data-norm"), x, 4)
