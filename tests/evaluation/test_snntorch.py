"""Nets of snnTorch neurons are measured by the ruler of the others: equal spikes, operations and decisions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")
snn = pytest.importorskip("snntorch")

from spikingjelly.activation_based import neuron  # noqa: E402

from snn_ext import convert, evaluate  # noqa: E402
from snn_ext.evaluation import Arousal  # noqa: E402
from snn_ext.evaluation.fingerprint import fingerprint  # noqa: E402
from snn_ext.snntorch import ATIFu, reset  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode  # noqa: E402

T = 12


def data(shape: tuple[int, ...] = (6,)) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(8)
    return [(torch.randint(17, (n, *shape)) / 16, torch.randint(3, (n,))) for n in (7, 4)]


def layers() -> tuple[nn.Module, nn.Module]:
    """Two layers on a grid, where sums are exact, and potentials that never meet a threshold."""
    torch.manual_seed(9)
    first, second = nn.Linear(6, 16), nn.Linear(16, 3)
    with torch.no_grad():
        for parameter in (*first.parameters(), *second.parameters()):
            parameter.copy_((48 * parameter).round() / 16)
        first.bias.add_(1 / 8192)
        second.bias.add_(1 / 8192)
    return first, second


def same(one: Any, other: Any) -> None:
    assert torch.equal(one.correct.nan_to_num(2.0), other.correct.nan_to_num(2.0))
    assert one.analog_correct == other.analog_correct
    assert torch.equal(one.spikes, other.spikes) and torch.equal(one.synops, other.synops)
    assert (one.macs, one.input_macs, one.step_macs) == (other.macs, other.input_macs, other.step_macs)
    torch.testing.assert_close(one.mse, other.mse)


def test_a_converted_net_and_its_twin_are_equal() -> None:
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU())
    ann.append(nn.Linear(8, 3)).eval()
    loader = data((1, 8, 8))
    converted = convert(ann, loader, method="data-norm", precharge=0.5)
    twin = converted.to_snntorch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [evaluate(net, loader, T, correlation_steps=(4,), progress=False) for net in (converted, twin)]
    same(*found)
    assert found[0].layers[0].correlation == found[1].layers[0].correlation


@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero"])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_a_hand_written_net_is_measured_as_that_of_the_other_host(reset_mechanism: str, chunk: int | None) -> None:
    first, second = layers()
    hard = 0.0 if reset_mechanism == "zero" else None
    ours = nn.Sequential(first, neuron.IFNode(v_reset=hard), second, neuron.IFNode(v_reset=hard))
    options = {"beta": 1.0, "reset_mechanism": reset_mechanism}
    theirs = nn.Sequential(
        first, snn.Leaky(init_hidden=True, **options), second, snn.Leaky(init_hidden=True, output=True, **options)
    )
    same(*(evaluate(net, data(), T, delay=(0, 3), chunk=chunk, progress=False) for net in (ours, theirs)))


@pytest.mark.parametrize("neuron_of", [
    lambda: snn.Leaky(beta=0.9, init_hidden=True),
    lambda: snn.Leaky(beta=torch.linspace(0.5, 0.9, 16), threshold=torch.full((16,), 0.7), init_hidden=True),
    lambda: snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="none", graded_spikes_factor=0.5),
    lambda: snn.Leaky(beta=0.9, init_hidden=True, output=True, learn_beta=True, learn_threshold=True),
    lambda: snn.Leaky(beta=0.9),
    lambda: snn.Lapicque(beta=0.8, init_hidden=True),
    lambda: snn.Synaptic(alpha=0.6, beta=0.8, init_hidden=True),
    lambda: snn.Alpha(alpha=0.8, beta=0.6, init_hidden=True),
    lambda: snn.RLeaky(beta=0.9, linear_features=16, init_hidden=True),
    lambda: ATIFu(0.5, init_hidden=True),
    lambda: ATIFu(0.5, beta=0.9, init_hidden=False),
])  # fmt: skip
def test_every_neuron_of_the_host_runs_as_in_a_loop(neuron_of: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layers()
            self.lif = neuron_of()

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.lif(self.first(x))
            return self.second(spikes if self.lif.init_hidden and not self.lif.output else spikes[0])

    net = Net().eval()
    with torch.no_grad():
        net.lif(torch.rand(3, 16))  # a state that is left over
    state = fingerprint(net), net.lif.mem.clone()
    seen: list[Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent weights are not counted
        found = evaluate(net, data(), T, chunk=5, progress=False)
    assert fingerprint(net) == state[0] and not net.lif.mem.any() and "reset_mem" not in vars(net.lif)
    hook = net.lif.register_forward_hook(lambda m, i, y: seen.append(y[0] if isinstance(y, tuple) else y))
    outputs, spikes = [], []
    for x, _ in data():
        reset(net)
        seen.clear()
        with torch.no_grad():
            outputs.append(torch.stack([net(x) for _ in range(T)]))
        spikes.append((torch.stack(seen) != 0).flatten(2).sum(2).double())
    hook.remove()
    labels = torch.cat([y for _, y in data()])
    right = torch.cat(outputs, 1).double().cumsum(0).argmax(2) == labels
    assert found.accuracy.tolist() == right.double().mean(1).tolist()
    torch.testing.assert_close(found.spikes, torch.cat(spikes, 1).mean(1).cumsum(0))
    assert found.spikes[-1] > 0
    if isinstance(net.lif, snn.RLeaky):
        assert found.synops.isnan().all()
    else:
        torch.testing.assert_close(found.synops, 3 * found.spikes)


def test_a_net_in_training_with_a_graph_in_its_state_is_left_alone() -> None:
    first, second = layers()
    net = nn.Sequential(first, snn.Leaky(beta=0.9, init_hidden=True), second)
    net(torch.rand(4, 6)).sum().backward(retain_graph=True)
    assert net[1].mem.requires_grad
    assert evaluate(net, data(), T, progress=False).spikes[-1] > 0 and net.training


def test_frames_of_events_go_through_neurons_of_either_host() -> None:
    first, second = layers()
    frames = [(torch.rand(T, n, 6).round(), torch.randint(3, (n,))) for n in (5, 6)]
    ours = nn.Sequential(first, neuron.IFNode(v_reset=None), second)
    theirs = nn.Sequential(first, snn.Leaky(beta=1.0, init_hidden=True), second)
    same(*(evaluate(net, frames, frames="TN", progress=False) for net in (ours, theirs)))


def test_an_evaluation_of_a_net_of_the_host_is_continued(tmp_path: Path) -> None:
    class Interrupted(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            yield next(super().__iter__())
            raise KeyboardInterrupt

    first, second = layers()
    for node in (snn.Leaky(beta=0.9, init_hidden=True), ATIFu(0.5, init_hidden=True)):
        net, file = nn.Sequential(first, node, second), tmp_path / "a"
        whole = evaluate(net, data(), T, progress=False)
        with pytest.raises(KeyboardInterrupt):
            evaluate(net, Interrupted(data()), T, resume=file, progress=False)
        assert evaluate(net, data(), T, resume=file, progress=False).to_json() == whole.to_json()


def test_what_the_ruler_does_not_take_is_named() -> None:
    first, second = layers()
    sequences = nn.Sequential(first, snn.LeakyParallel(16, 16), second)
    with pytest.raises(ValueError, match="snn: got '1, a LeakyParallel', want neurons .* that run step by step"):
        evaluate(sequences, data(), T, progress=False)
    net = nn.Sequential(first, snn.Leaky(beta=0.9, init_hidden=True), second)
    with pytest.raises(ValueError, match="snn: got 'neurons of snnTorch', want those of SpikingJelly with an arousal"):
        evaluate(net, data(), T, arousal=Arousal(0.3, 0.1, 2.0, 1.0, 0.1), progress=False)


def test_two_twins_of_adaptive_neurons_are_equal() -> None:
    from snn_ext import BNAAN

    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 8), BNAAN(8, dims=0), nn.Linear(8, 3)).eval()
    converted = convert(ann, data(), method="adsnn")
    same(*(evaluate(net, data(), 60, progress=False) for net in (converted, converted.to_snntorch())))


def test_both_hosts_of_one_neuron_are_equal_where_no_potential_meets_the_threshold() -> None:
    first, second = layers()
    nets = [nn.Sequential(first, node, second) for node in (ATIFuNode(0.5), ATIFu(0.5, init_hidden=True))]
    same(*(evaluate(net, data(), T, progress=False) for net in nets))
