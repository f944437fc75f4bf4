"""Frames of event data are shown one a step, in any order of the dimensions, and counted as in a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402

from snn_ext import ConstantInputNet, convert, evaluate  # noqa: E402
from snn_ext.evaluation import Arousal  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode, PCMPIFNode  # noqa: E402

STEPS = 7


def event_net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(v_threshold=0.5), layer.MaxPool2d(2),
        layer.Conv2d(4, 6, 3), PCMPIFNode(0.5, precharge=0.25), layer.Flatten(), layer.Linear(24, 3),
    ).eval()  # fmt: skip


def events(sizes: tuple[int, ...] = (5, 3)) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(6)
    return [(torch.rand(STEPS, n, 2, 8, 8).round() * 2, torch.randint(3, (n,))) for n in sizes]


def shown(net: nn.Module, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return outputs and spikes of each neuron, step by step."""
    spikes: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, y, name=name: spikes.setdefault(name, []).append(y.flatten(1).sum(1)))
        for name, module in net.named_modules()
        if isinstance(module, neuron.BaseNode)
    ]
    functional.reset_net(net)
    with torch.no_grad():
        output = torch.stack([net(frame) for frame in frames])
    functional.reset_net(net)
    for hook in hooks:
        hook.remove()
    return output, {name: torch.stack(each) for name, each in spikes.items()}


@pytest.mark.parametrize("order", ["TN", "NT"])
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_frame_t_is_the_input_of_step_t(order: str, mode: str, chunk: int | None) -> None:
    net, data = event_net(), events()
    functional.set_step_mode(net, mode)
    loader = data if order == "TN" else [(x.transpose(0, 1).contiguous(), labels) for x, labels in data]
    before = [x.clone() for x, _ in loader]
    found = evaluate(net, loader, frames=order, chunk=chunk, delay=(0, 2), progress=False)  # type: ignore[arg-type]
    assert all(map(torch.equal, before, (x for x, _ in loader))) and net[2].step_mode == mode
    functional.set_step_mode(net, "s")
    runs = [shown(net, x) for x, _ in data]
    labels = torch.cat([labels for _, labels in data])
    outputs = torch.cat([output for output, _ in runs], 1).double()
    assert found.time_steps == STEPS and found.samples == 8
    assert found.accuracy.tolist() == (outputs.cumsum(0).argmax(2) == labels).double().mean(1).tolist()
    late = outputs[2:].cumsum(0).argmax(2) == labels
    assert found.accuracy_at(2)[2:].tolist() == late.double().mean(1).tolist()
    for measured in found.layers:
        if measured.kind == "neuron":
            want = torch.cat([spikes[measured.name] for _, spikes in runs], 1).double().mean(1).cumsum(0)
            torch.testing.assert_close(measured.spikes, want)


def test_a_converted_net_and_a_constant_one_show_frames_too() -> None:
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    snn = convert(ann, torch.rand(8, 2, 8, 8), method="data-norm")
    (x, labels), *_ = events((5,))
    found = evaluate(snn, [(x, labels)], STEPS, frames="TN", ann=ann, progress=False)
    output, _ = shown(snn, x)
    assert found.accuracy.tolist() == (output.cumsum(0).argmax(2) == labels).double().mean(1).tolist()
    analog = ann(x.mean(0))  # the analog net of frames gets their mean
    assert found.analog_accuracy == pytest.approx(float((analog.argmax(1) == labels).double().mean()))
    functional.set_step_mode(snn, "m")
    assert evaluate(snn, [(x, labels)], frames="TN", ann=ann, progress=False).to_json() == found.to_json()
    body = nn.Sequential(ATIFuNode(0.5), nn.Flatten(), nn.Linear(144, 3))
    constant = ConstantInputNet(body, 4, stem=nn.Conv2d(2, 4, 3))
    again = evaluate(constant, [(x, labels)], frames="TN", progress=False)
    output, _ = shown(constant.one_step(), x)
    assert again.accuracy.tolist() == (output.cumsum(0).argmax(2) == labels).double().mean(1).tolist()


def test_equal_frames_are_a_constant_input_but_for_its_multiply_accumulates() -> None:
    net, x, labels = event_net(), torch.rand(4, 2, 8, 8), torch.randint(3, (4,))
    one = evaluate(net, [(x, labels)], STEPS, progress=False)
    frames = evaluate(net, [(x.expand(STEPS, 4, 2, 8, 8), labels)], frames="TN", progress=False)
    assert torch.equal(one.accuracy, frames.accuracy) and torch.equal(one.synops, frames.synops)
    first = 4 * 64 * 18
    assert (one.input_macs, one.step_macs) == (first, 0) and (frames.input_macs, frames.step_macs) == (0, first)
    steps = torch.arange(1, STEPS + 1, dtype=torch.float64)
    torch.testing.assert_close(frames.energy(), 0.9 * frames.synops + 4.6 * first * steps)
    assert "MACs a step" in repr(frames) and "MACs a step" not in repr(one)


def test_events_are_spikes_behind_a_neuron_that_lets_them_pass() -> None:
    net, (x, labels) = event_net(), events((5,))[0]
    x = x / 2
    assert set(x.unique().tolist()) == {0.0, 1.0}
    behind = nn.Sequential(PCMPIFNode(1.0, precharge=0.0), *net)
    plain, found = (evaluate(n, [(x, labels)], frames="TN", progress=False) for n in (net, behind))
    assert torch.equal(plain.accuracy, found.accuracy) and found.layers[0].kind == "input"
    torch.testing.assert_close(found.layers[0].spikes, x.flatten(2).sum((1, 2)).double().cumsum(0) / 5)
    assert found.step_macs == found.input_macs == 0 and found.synops[-1] > plain.synops[-1]


def test_the_number_of_steps_is_that_of_the_frames() -> None:
    net, data = event_net(), events()
    found = evaluate(net, data, frames="TN", progress=False)
    assert evaluate(net, data, STEPS, frames="TN", progress=False).to_json() == found.to_json()
    with pytest.raises(ValueError, match="time_steps: got 5, want None, or 7, the number of frames"):
        evaluate(net, data, 5, frames="TN", progress=False)
    with pytest.raises(ValueError, match="time_steps: got None, want an int >= 1: snn has no number of steps"):
        evaluate(net, [x[0] for x, _ in data], progress=False)
    data[1] = data[1][0][:6], data[1][1]
    with pytest.raises(ValueError, match=r"samples of one shape, \[7, 2, 8, 8\] as in batch 1, also in batch 2"):
        evaluate(net, data, frames="TN", progress=False)


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        (events(), {"frames": "nt"}, "frames: got 'nt', want one of None, 'TN', 'NT'"),
        ([torch.rand(4, 5)], {}, r"loader: got .*, want frames \[T, N, \.\.\.\] of floating point in batch 1"),
        ([torch.zeros(4, 5, 2, 8, 8, dtype=torch.uint8)], {}, "frames .* of floating point"),
        ([torch.rand(0, 5, 2, 8, 8)], {}, "want frames"),
        ([], {}, "loader: got 'no batch'"),
        ([(events((5,))[0][0].transpose(0, 1), torch.zeros(5).long())], {}, "loader: got a torch.int64 tensor"),
        (events(), {"arousal": Arousal(0.3, 0.1, 2.0, 1.0, 0.1)}, "frames: got 'TN', want None with an arousal"),
    ],
)
def test_what_are_no_frames_is_named(loader: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(event_net(), loader, progress=False, **({"frames": "TN"} | options))


def test_frames_without_the_argument_are_never_shown_as_one_input() -> None:
    flat = nn.Sequential(nn.Linear(6, 8), PCMPIFNode(), nn.Linear(8, 3))  # takes inputs of any number of dimensions
    with pytest.raises(ValueError, match="loader: got .*, want one integer label for each of the outputs"):
        evaluate(flat, [(torch.rand(5, 4, 6), torch.zeros(4).long())], 5, progress=False)
    with pytest.raises(ValueError, match="frames='TN' or 'NT' for sequences of frames"):
        evaluate(event_net(), events(), STEPS, progress=False)


def test_a_phased_net_shows_one_input() -> None:
    ann, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(16, 4)
    snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=4)
    with pytest.raises(ValueError, match="frames: got 'TN', want None: snn shows one input at all of its steps"):
        evaluate(snn, [x.expand(snn.latency, 16, 4)], frames="TN", progress=False)
    assert evaluate(snn, [x], progress=False).time_steps == snn.latency  # its own number of steps


def test_an_evaluation_of_frames_is_continued(tmp_path: Path) -> None:
    class Interrupted(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            yield next(super().__iter__())
            raise KeyboardInterrupt

    net, data, file = event_net(), events(), tmp_path / "a"
    whole = evaluate(net, data, frames="TN", progress=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, Interrupted(data), frames="TN", resume=file, progress=False)
    assert evaluate(net, data, frames="TN", resume=file, progress=False).to_json() == whole.to_json()


def test_an_operation_in_place_changes_no_frame() -> None:
    net, frames = nn.Sequential(nn.ReLU6(inplace=True), nn.Linear(4, 3), PCMPIFNode()), torch.randn(5, 2, 4)
    before = frames.clone()
    list(Simulation(net).run_frames(frames))
    assert torch.equal(frames, before)
    with pytest.raises(ValueError, match=r"frames: got .*, want a tensor \[T, N, \.\.\.\]"):
        list(Simulation(net).run_frames(frames[0]))
