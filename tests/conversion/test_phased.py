"""Exactness on exact arithmetic: the first layer always, whole nets in the phased schedule; and the diagnosis."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from snn_ext import convert  # noqa: E402
from snn_ext.conversion import QuantizedReLU, diagnose  # noqa: E402
from snn_ext.conversion.phased import PhasedDelay  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.simulation.analog import AnalogTwin  # noqa: E402
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
    assert snn.latency == levels * (len(snn.report) + 1)  # in these nets each layer adds one phase
    output = torch.cat(list(Simulation(snn, chunk=5).run(x, snn.latency)))
    assert torch.equal(output, loop(snn, x, snn.latency))
    assert torch.equal(output.mean(0), wanted)
    assert not output[:-levels].any()


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
def test_a_delay_is_silent_outside_its_phase_however_much_has_come(step_mode: str) -> None:
    delay = PhasedDelay(3, source=1, phase=3)
    delay.step_mode = step_mode
    x_seq = torch.full((15, 1), 2.0)  # more than a phase can let out
    out = delay(x_seq) if step_mode == "m" else torch.stack([delay(x) for x in x_seq])
    assert out.flatten().tolist() == [0.0] * 9 + [1.0] * 3 + [0.0] * 3


def test_quantised_twin_is_the_quantised_net() -> None:
    ann, x = dyadic(ResNet(lambda: QuantizedReLU(4, 0.5, "ceil"))), images()
    with torch.no_grad():
        assert torch.equal(AnalogTwin(convert(ann, x, method="data-norm"), 4)(x), ann(x))


def test_relu_nets_convert_to_the_phased_schedule_with_input_neurons_and_counted_output() -> None:
    ann, x = trained(ResNet()), images()
    snn = convert(
        ann, x, method="data-norm", precharge=0.5, schedule="phased", time_steps=64, encoder="if", readout="spikes"
    )
    assert snn.latency == 64 * (len(snn.report) + 1)
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
