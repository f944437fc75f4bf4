"""Accuracy, spikes and SQNR of nets as they were trained."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402

from snn_ext import ConstantInputNet, evaluate  # noqa: E402
from snn_ext.evaluation import measure_activity  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode  # noqa: E402


def test_spikes_are_counted_per_neuron_and_sample_and_sqnr_leaves_negative_inputs_out() -> None:
    """Four steps of constant currents 0.5, 2 and -1 at threshold 1: 2, 4 and 0 spikes, decoded 0.5, 1 and 0."""
    currents = torch.tensor([[0.5, 2.0, -1.0]]).expand(6, 3)
    batches = list(zip(currents.split(4), torch.ones(6, dtype=torch.int64).split(4), strict=True))
    for scaled in (True, False):
        net = ConstantInputNet(nn.Sequential(ATIFuNode(1.0, step_mode="m", scale_output=scaled)), time_steps=4)
        result = measure_activity(net, batches)
        (found,) = result.layers
        assert result.accuracy == 1.0 and (found.name, found.neurons) == ("body.0", 3)
        assert result.spikes_per_neuron == pytest.approx(2.0)
        assert found.sqnr_db == pytest.approx(10 * math.log10((0.25 + 4.0) / 1.0), abs=1e-4)
        assert found.inputs.tolist() == currents.flatten().tolist()
        alone = measure_activity(net, [(x, y) for x, y in zip(currents.split(1), torch.ones(6, 1).long(), strict=True)])
        assert (alone.layers[0].neurons, alone.spikes_per_neuron) == (3, result.spikes_per_neuron)


def test_a_neuron_stands_for_its_own_threshold() -> None:
    """A current of 0.75 gives one spike in two steps: a rate of 0.5 at the threshold that is decoded."""
    for node in (
        neuron.IFNode(1.0, v_reset=None, step_mode="m"),
        PCMPIFNode(1.0, precharge=0.0, step_mode="m"),
        ATIFnuNode(1.0, T=2, step_mode="m"),
    ):
        node = copy.deepcopy(node)
        net = ConstantInputNet(nn.Sequential(node, layer.Linear(3, 2, step_mode="m")), time_steps=2)
        (found,) = measure_activity(net, [(torch.full((4, 3), 0.75), torch.zeros(4, dtype=torch.int64))]).layers
        threshold = float(node.p[0].detach()) if isinstance(node, ATIFnuNode) else 1.0
        noise = 0.75 - found.spikes_per_neuron / 2 * threshold
        assert found.sqnr_db == pytest.approx(20 * math.log10(0.75 / abs(noise)), abs=1e-3)
    adaptive = nn.Sequential(ASNNode(step_mode="m"))
    (found,) = measure_activity(
        ConstantInputNet(adaptive, 4), [(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))]
    ).layers
    assert math.isnan(found.sqnr_db)


def multi_step_net(kind: Any = ATIFuNode, **options: Any) -> ConstantInputNet:
    torch.manual_seed(1)
    layers = [kind(0.5, **options), layer.Conv2d(4, 6, 3), kind(0.5, **options), layer.Flatten(), layer.Linear(96, 3)]
    net = ConstantInputNet(nn.Sequential(*layers), time_steps=5, stem=nn.Conv2d(1, 4, 3))
    functional.set_step_mode(net, "m")
    return net


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    return [(torch.rand(n, 1, 8, 8), torch.randint(3, (n,))) for n in (5, 3)]


def test_the_net_is_reset_between_batches_and_left_as_it_was() -> None:
    net = multi_step_net(ATIFnuNode, T=5).train()  # which raises on a sixth step
    net.body[1].eval()
    x, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    one, several = (measure_activity(net, data) for data in ([(x, labels)], batches()))
    assert one.accuracy == several.accuracy and one.spikes_per_neuron == several.spikes_per_neuron
    assert net.training and not net.body[1].training and not any(m._forward_hooks for m in net.modules())
    assert all(m.v == 0.0 and m.t == 0 for m in net.modules() if isinstance(m, ATIFnuNode))


def test_an_analog_net_has_an_accuracy_alone_and_outputs_that_are_no_numbers_are_never_right() -> None:
    net, labels = nn.Linear(2, 3), torch.zeros(5, dtype=torch.int64)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    result = measure_activity(net, [(torch.ones(5, 2), labels)])
    assert (result.accuracy, result.layers, result.spikes_per_neuron) == (1.0, [], None)
    nn.init.constant_(net.weight, torch.nan)
    assert measure_activity(net, [(torch.ones(5, 2), labels)]).accuracy == 0.0


def test_what_cannot_be_measured_is_refused() -> None:
    net, single, unused, (x, labels) = multi_step_net(), multi_step_net(), multi_step_net(), batches()[0]
    functional.set_step_mode(single, "s")
    unused.spare = PCMPIFNode(step_mode="m")
    for message, call in {
        "net: got 3": lambda: measure_activity(3, [(x, labels)]),  # type: ignore[arg-type]
        "limit: got 0": lambda: measure_activity(net, [(x, labels)], limit=0),
        "loader: got 'no batch'": lambda: measure_activity(net, []),
        "loader: got .*want batches": lambda: measure_activity(net, [x]),
        "loader: got a torch.float32 tensor": lambda: measure_activity(net, [(x, labels.float())]),
        "net: got .body.0 in step mode .*want spiking layers in step mode 'm'": lambda: measure_activity(
            single, [(x, labels)]
        ),
        "net: got 'a forward pass that does not reach spare'": lambda: measure_activity(unused, [(x, labels)]),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_trained_net_is_evaluated_as_it_is(scaled: bool) -> None:
    net, data = multi_step_net(scale_output=scaled).train(), batches()
    measured = measure_activity(net, data)
    found = evaluate(net, data, net.time_steps, progress=False)
    assert float(found.accuracy[-1]) == pytest.approx(measured.accuracy)
    assert [(e.name, e.neurons) for e in found.layers] == [(a.name, a.neurons) for a in measured.layers]
    for evaluated, activity in zip(found.layers, measured.layers, strict=True):
        assert evaluated.spikes_per_neuron == pytest.approx(activity.spikes_per_neuron)
    assert found.input_macs == 4 * 36 * 9 and found.layers[1].fan_out == 3.0
    assert net.training and all(getattr(m, "step_mode", "m") == "m" for m in net.body)
    with torch.no_grad():
        output = torch.cat(list(Simulation(net.eval()).run(data[0][0], 5))).mean(0)
        torch.testing.assert_close(output, net(data[0][0]))
    functional.reset_net(net)
