"""A program of torch.export computes what the loop over the net computes, and leaves the net alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

import snntorch  # noqa: E402
from spikingjelly.activation_based import functional, neuron  # noqa: E402

import snn_ext  # noqa: E402
from snn_ext import convert, export_program  # noqa: E402
from snn_ext.deployment.function import function_of  # noqa: E402
from snn_ext.hosts import Host  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode  # noqa: E402
from tests.conversion.nets import ResNet, images, trained  # noqa: E402
from tests.deployment.nets import T, all_neurons, inputs, loop, on_grid  # noqa: E402


def streamed(step: Any, x_seq: Tensor, states: dict[str, Tensor], starts: tuple[int, ...] = (0,)) -> Tensor:
    outputs = []
    with torch.no_grad():
        for t, x in enumerate(x_seq):
            y, states = step(x, torch.tensor(t in starts), states)
            outputs.append(y)
    return torch.stack(outputs)


def some_states(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return states that nobody would start from."""
    function: Any = function_of(net, x, None, True, False)
    return {name: torch.full_like(state, 3) for name, state in function.initial_states(x).items()}


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_all_steps_are_those_of_the_loop_for_every_neuron_and_any_number_of_samples(host: Host) -> None:
    net, x_seq = on_grid(all_neurons(host)), inputs(T, 7)
    program = export_program(net, inputs(T, 1)).module()
    assert torch.equal(program(x_seq), loop(net, x_seq))
    assert torch.equal(program(x_seq), loop(net, x_seq)), "the second call starts afresh too"


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_steps_carry_their_states_and_start_afresh_when_told(host: Host) -> None:
    net, x_seq = on_grid(all_neurons(host)), inputs(T, 3)
    x_seq = torch.cat((x_seq[:3], x_seq))
    step = export_program(net, x_seq[0], streaming=True).module()
    want = torch.cat((loop(net, x_seq[:3]), loop(net, x_seq[3:])))
    assert torch.equal(streamed(step, x_seq, some_states(net, x_seq[0]), starts=(0, 3)), want)


def test_the_hosts_own_neurons_are_carried_too() -> None:
    x_seq = inputs(4, 3)
    for layers in (
        (neuron.IFNode(v_reset=None), neuron.LIFNode(2.0)),
        (snntorch.Leaky(0.5, init_hidden=True), snntorch.Synaptic(0.5, 0.5, init_hidden=True)),
    ):
        net = on_grid(nn.Sequential(nn.Linear(5, 6), layers[0], nn.Linear(6, 5), layers[1]))
        want = loop(net, x_seq)
        assert torch.equal(export_program(net, x_seq).module()(x_seq), want)
        step = export_program(net, x_seq[0], streaming=True).module()
        assert torch.equal(streamed(step, x_seq, some_states(net, x_seq[0])), want)


def test_a_converted_net_keeps_mode_state_and_step_mode_and_its_layers_before_neurons_run_once() -> None:
    snn = on_grid(convert(trained(ResNet()), images(), method="data-norm", precharge=0.5), 8)
    x = images(3)
    want = loop(snn, x.expand(T, *x.shape))
    functional.set_step_mode(snn, "m")
    snn.train()
    half = snn(x.expand(4, *x.shape))
    program = export_program(snn, x, time_steps=T)
    assert snn.training and snn.step_mode == "m"
    assert torch.equal(program.module()(x), want)
    assert torch.equal(torch.cat((half, snn(x.expand(4, *x.shape)))), want), "it goes on where it was"
    assert torch.equal(export_program(snn, x, time_steps=T, mean=True).module()(x), want.mean(0))
    convolved = [node for node in program.graph.nodes if node.target == torch.ops.aten.conv2d.default]
    samples = [node.meta["val"].shape[0] for node in convolved]
    assert "*" not in str(samples[0]), "the image, once"
    assert all(str(size).startswith(f"{T}*") for size in samples[1:])


def test_a_net_whose_layers_wait_is_exported_whole() -> None:
    ann = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x = inputs(1, 4)[0]
    snn = on_grid(convert(ann, x, method="data-norm", schedule="phased", time_steps=3), 8)
    want = loop(snn, x.expand(snn.latency, *x.shape))
    assert torch.equal(export_program(snn, x, time_steps=snn.latency).module()(x), want)
    with pytest.raises(ValueError, match="streaming: got .*Phased.*want streaming=False"):
        export_program(snn, x, streaming=True)


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 3), snntorch.Leaky(0.5)

    def forward(self, x: Tensor) -> Tensor:
        mem, spikes = self.lif.init_leaky(), []
        for _ in range(T):
            spk, mem = self.lif(self.fc(x), mem)
            spikes.append(spk)
        return torch.stack(spikes)


def test_a_loop_in_a_forward_pass_is_exported_by_its_body() -> None:
    net, x = on_grid(Looping()), inputs(1, 3)[0]
    with pytest.raises(ValueError, match=r"net: got .*loops over the steps.*snn_ext.one_step\(net, x\)"):
        export_program(net, x, time_steps=T)
    program = export_program(snn_ext.one_step(net, x), x, time_steps=T)
    assert torch.equal(program.module()(x), net(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": 3}, "net: got 3"),
        ({"x": torch.ones(2, 5, dtype=torch.int64)}, "x: got a torch.int64"),
        ({"x": torch.ones(5)}, r"x: got a torch.float32 tensor of shape \[5\]"),
        ({"x": torch.ones(0, 5)}, "no size of 0"),
        ({"time_steps": 0}, "time_steps: got 0"),
        ({"time_steps": None}, r"sequence \[T, N, ...\]"),
        ({"streaming": True}, "time_steps: got 8, want None"),
        ({"time_steps": None, "streaming": True, "mean": True}, "mean: got True, want False"),
        ({"mean": 1}, "mean: got 1"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"net": nn.Sequential(nn.Linear(5, 3), ATIFuNode()), "x": torch.ones(2, 5), "time_steps": T}
    given |= change
    with pytest.raises((TypeError, ValueError), match=message):
        export_program(given.pop("net"), given.pop("x"), **given)


def test_a_layer_that_cannot_be_exported_is_named() -> None:
    ann = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = inputs(1, 4)[0].clamp(0, 1)
    snn = convert(ann, x, method="data-norm", encoder="poisson")
    with pytest.raises(ValueError, match="net: got 'input_spikes, a PoissonEncoder', want encoder='direct' or 'if'"):
        export_program(snn, x, time_steps=T)
