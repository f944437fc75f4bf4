"""Figures over time against a plain loop; delays, interruptions, files."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402

from snn_ext import evaluate, evaluation  # noqa: E402
from snn_ext.evaluation import (  # noqa: E402
    ENERGY_45NM,
    EnergyModel,
    Evaluation,
    best_delay,
    delay_regimes,
    first_crossing,
    last_crossing,
)
from snn_ext.evaluation.fingerprint import fingerprint  # noqa: E402
from snn_ext.evaluation.metrics import LayerSums, ReadoutSums, rank_of_label  # noqa: E402
from snn_ext.hosts import LeafTracer  # noqa: E402
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode  # noqa: E402

T = 12


def small_net(precharge: float = 0.25, readout: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(1, 4, 3), PCMPIFNode(0.5, precharge=precharge), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8),
        PCMPIFNode(0.25, precharge=precharge), nn.Linear(8, 5),
    ]  # fmt: skip
    net = nn.Sequential(*layers, *[PCMPIFNode(0.125, precharge=precharge)] * readout)
    with torch.no_grad():  # a grid, where ties are frequent
        for parameter in net.parameters():
            parameter.copy_((4 * parameter).mul(16).round() / 16)
    return net


def batches(sizes: tuple[int, ...] = (6, 4)) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(4)
    return [(torch.randint(0, 17, (n, 1, 8, 8)) / 16, torch.randint(5, (n,))) for n in sizes]


def plain_loop(net: nn.Module, x: Tensor, time_steps: int = T) -> Tensor:
    functional.reset_net(net)
    with torch.no_grad():
        output = torch.stack([net(x) for _ in range(time_steps)])
    functional.reset_net(net)
    return output.double()


@pytest.mark.parametrize("readout", [False, True])
def test_every_delay_and_stopping_time_is_that_of_a_loop_of_its_own(readout: bool) -> None:
    net, delays = small_net(readout=readout), (0, 1, 5, 11)
    found = evaluate(net, batches(), T, delay=delays, top=(1, 2), progress=False)
    output = [plain_loop(net, x) for x, _ in batches()]
    for delay in delays:
        for t in range(1, T + 1):
            if t <= delay:
                assert found.accuracy_at(delay)[t - 1].isnan()
                continue
            counts = torch.cat([y[delay:t].sum(0) for y in output])
            labels = torch.cat([y for _, y in batches()])
            assert float(found.accuracy_at(delay)[t - 1]) == pytest.approx(
                float((counts.argmax(1) == labels).double().mean())
            )
            top = (counts.topk(2, 1).indices == labels[:, None]).any(1).double().mean()
            if not readout:  # counts tie, and topk may take any of equal ones
                assert float(found.accuracy_at(delay, 2)[t - 1]) == pytest.approx(float(top))


def test_error_of_the_output_is_constant_while_nothing_is_counted() -> None:
    net, x = small_net(), batches((6,))[0][0]
    found = evaluate(net, [x], T, delay=(0, 3), progress=False)
    assert found.correct is None
    with pytest.raises(ValueError, match="loader: got 'data without labels'"):
        found.latency  # noqa: B018
    with torch.no_grad():
        h = net[0](x).relu() / 0.5
        target = net[6](net[4](net[3](net[2](h))).relu() / 0.25)
    output = plain_loop(net, x)
    expected = [float((output[3:t].mean(0) - target).square().mean()) for t in range(4, T + 1)]
    assert found.mse_at(3)[:3].tolist() == pytest.approx([float(target.square().mean())] * 3)
    assert found.mse_at(3)[3:].tolist() == pytest.approx(expected)
    assert found.steps_to_mse(2 * float(found.mse_at(0)[-1]), 0) <= T
    found.mse = found.mse * 1e-12  # in the units of another output
    errors = found.mse_at(0)
    assert found.steps_to_mse(float(errors.min()), 0) == int(errors.argmin()) + 1
    assert found.steps_to_mse(0.5 * float(errors.min()), 0) is None


def test_rates_and_correlation_compare_with_the_analog_net_in_units_of_the_threshold() -> None:
    net, data = small_net(), batches()
    found = evaluate(net, data, T, correlation_steps=(T, 4), progress=False)
    x = torch.cat([x for x, _ in data])
    with torch.no_grad():
        activation = net[0](x).relu() / 0.5
        functional.reset_net(net)
        spikes = torch.stack([net[1](net[0](x)) for _ in range(T)])
        functional.reset_net(net)
    first = found.layers[0]
    assert first.mean_activation == pytest.approx(float(activation.mean()))
    for t in (1, 4, T):
        rate = spikes[:t].mean(0)
        assert float(first.normalised_rate[t - 1]) == pytest.approx(float(rate.mean() / activation.mean()))
    for t in (4, T):
        pair = torch.stack([spikes[:t].mean(0).flatten(), activation.flatten()])
        assert first.correlation[t] == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-5)
        assert first.scatter[t].shape[0] == 2
    assert first.spikes_per_neuron == pytest.approx(float(spikes.sum(0).mean()))
    # accumulates over multiply-accumulates, by hand
    ratio = (found.layers[0].spikes_per_neuron * 8 * 36 + found.layers[1].spikes_per_neuron * 40) / found.macs
    assert found.macs == 4 * 36 * 9 + 36 * 8 + 40 and found.input_macs == 4 * 36 * 9
    assert float(found.ac_mac_ratio[-1]) == pytest.approx(ratio)
    assert float(found.energy()[-1]) == pytest.approx(0.9 * float(found.synops[-1]) + 4.6 * 4 * 36 * 9)
    assert found.analog_energy() == ENERGY_45NM.analog(found.macs)


def test_input_neurons_count_as_spikes_and_not_in_the_ratio() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(PCMPIFNode(1.0, precharge=0.0), nn.Linear(6, 4), PCMPIFNode(1.0), nn.Linear(4, 2))
    found = evaluate(net, [torch.ones(3, 6)], T, progress=False)
    assert [layer.kind for layer in found.layers] == ["input", "neuron"]
    assert found.layers[0].spikes[-1] == 6 * T and found.layers[0].synops[-1] == 6 * T * 4
    assert found.input_macs == 0
    assert float(found.ac_mac_ratio[-1]) == pytest.approx(found.layers[1].spikes_per_neuron * 8 / 32)


@pytest.mark.parametrize("kind", [ATIFuNode, lambda t, **k: ATIFnuNode(t, T=T, **k), neuron.IFNode])
def test_any_neuron_of_the_host_is_measured_also_with_a_scaled_output(kind: object) -> None:
    scaled = {} if kind is neuron.IFNode else {"scale_output": True}
    options = {"v_reset": None} if kind is neuron.IFNode else {}
    net = nn.Sequential(nn.Linear(4, 6), kind(0.5, **options, **scaled), nn.Linear(6, 3))  # type: ignore[operator]
    found = evaluate(net, [(torch.rand(5, 4), torch.arange(5) % 3)], T, progress=False)
    assert found.layers[0].spikes[-1] <= 6 * T
    torch.testing.assert_close(found.synops, 3 * found.spikes)
    assert found.mse_at(0)[-1] < found.mse_at(0)[0] or found.mse_at(0)[-1] < 0.05


def test_net_is_left_as_it_was() -> None:
    net = small_net().train()
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, batches(), 3, progress=False)
    assert net.training and not net[2].training and net[1].v == 0.0
    assert not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


# -- latency and delay ------------------------------------------------------------------------------------------------


def test_crossings_first_and_last_and_none() -> None:
    curve = torch.tensor([torch.nan, 0.5, 0.9, 0.7, 0.9, 0.9])
    assert (first_crossing(curve, 0.9), last_crossing(curve, 0.9)) == (3, 5)
    assert (first_crossing(curve, 0.5), last_crossing(curve, 0.5)) == (2, 2)
    assert (first_crossing(curve, 0.95), last_crossing(curve, 0.95)) == (None, None)
    assert (first_crossing(torch.ones(3), 1.0), last_crossing(torch.ones(3), 1.0)) == (1, 1)
    assert last_crossing(torch.tensor([1.0, 0.0]), 0.5) is None


def test_of_equal_scores_the_first_class_decides() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])
    for label in range(3):
        rank = rank_of_label(scores, torch.full((2,), label))
        assert (rank == 0).tolist() == (scores.argmax(1) == label).tolist()


def with_latencies(latencies: dict[int, int | None], time_steps: int = 50) -> Evaluation:
    accuracy = torch.full((1, len(latencies), time_steps), 0.5)
    for row, (delay, latency) in enumerate(latencies.items()):
        accuracy[0, row, :delay] = torch.nan
        if latency is not None:
            accuracy[0, row, latency - 1 :] = 1.0
    return Evaluation(
        time_steps, 10, tuple(latencies), (1,), accuracy, (1.0,), torch.zeros(len(latencies), 50), [], 1, 0
    )


def test_best_delay_is_the_shortest_of_those_that_reach_the_level_first() -> None:
    assert best_delay(with_latencies({0: 30, 5: 20, 10: 20, 15: 25})) == 5
    with pytest.raises(ValueError, match="never reaches 99.0 % of the analog accuracy in 50 steps"):
        best_delay(with_latencies({0: None, 5: None}))


@pytest.mark.parametrize(
    ("latencies", "regimes"),
    [
        (
            {0: 30, 4: 30, 8: 20, 12: 15, 16: 15, 20: 22},
            [("no spike", 0, 4), ("error removal", 8, 16), ("excessive delay", 20, 20)],
        ),
        ({0: 10, 4: 10, 8: 12, 12: 16}, [("no spike", 0, 4), ("excessive delay", 8, 12)]),
        ({0: 30, 4: 20, 8: 10}, [("no spike", 0, 0), ("error removal", 4, 8)]),
        ({0: 30, 4: 30}, [("no spike", 0, 4)]),
        ({0: None, 4: 20, 8: None}, [("no spike", 0, 0), ("error removal", 4, 4), ("excessive delay", 8, 8)]),
    ],
)  # fmt: skip
def test_regimes_of_a_delay(latencies: dict[int, int | None], regimes: list[tuple[str, int, int]]) -> None:
    assert [(r.name, r.first, r.last) for r in delay_regimes(with_latencies(latencies))] == regimes


def test_readout_does_not_depend_on_the_size_of_the_chunks() -> None:
    output, target, labels = torch.randn(T, 4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    sums = []
    for chunks in ((T,), (1,) * T, (5, 7), (4, 1, 7)):
        readout = ReadoutSums(T, (0, 4, 5), (1,))
        readout.begin(target, labels)
        for part in output.split(chunks):
            readout.add(part)
        sums.append(readout)
    for other in sums[1:]:
        assert torch.equal(sums[0].correct, other.correct)
        torch.testing.assert_close(sums[0].squared_error, other.squared_error, rtol=1e-12, atol=0.0)


# -- interruption and files -------------------------------------------------------------------------------------------


class Interrupted(list):  # type: ignore[type-arg]
    """Batches of which the third never comes."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(super().__iter__()):
            if index == 2:
                raise KeyboardInterrupt
            yield batch


def test_interrupted_evaluation_continues_and_gives_the_same_figures(tmp_path: Path) -> None:
    data, file = batches((4, 4, 4, 2)), tmp_path / "state.pt"
    options = {"delay": (0, 2), "correlation_steps": (4,), "progress": False}
    whole = evaluate(small_net(), data, T, **options)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_net(), Interrupted(data), T, resume=file, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    with pytest.raises(ValueError, match="with another net, want the one that was interrupted"):
        evaluate(small_net(precharge=0.5), data, T, resume=file, **options)
    with pytest.raises(ValueError, match="with time_steps=12, want the one.*remove the file"):
        evaluate(small_net(), data, T + 1, resume=file, **options)
    with pytest.raises(ValueError, match="of other data: its 2 batches are not the first 2"):
        evaluate(small_net(), data[::-1], T, resume=file, **options)
    seen: list[int] = []
    net = small_net()
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    continued = evaluate(net, data, T, resume=file, **options)
    assert continued.to_json() == whole.to_json() and not file.exists()
    assert seen[-1] == 2 and seen.count(4) <= 3  # the third batch and the last


def test_evaluation_that_was_interrupted_after_its_last_batch_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, file = batches(), tmp_path / "state.pt"
    whole = evaluate(small_net(), data, T, correlation_steps=(4,), progress=False)

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("snn_ext.evaluation.evaluate._State.remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(small_net(), data, T, correlation_steps=(4,), resume=file, progress=False)
    found = evaluate(small_net(), data, T, correlation_steps=(4,), resume=file, progress=False)
    assert found.to_json() == whole.to_json()


def stopped_after(done: int, data: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    yield from data[:done]
    raise KeyboardInterrupt


def relabelled(data: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x, (y + 1) % 5) for x, y in data]


OTHER_DATA = {
    "none": lambda data: [],
    "fewer": lambda data: data[:2],
    "others": lambda data: [(1 - x, y) for x, y in data],
    "other labels": relabelled,
    "no labels": lambda data: [x for x, _ in data],
    "another order": lambda data: data[::-1],
    "another order of samples": lambda data: [(x.flip(0), y.flip(0)) for x, y in data],
    "other batches": lambda data: [(x[i : i + 2], y[i : i + 2]) for x, y in data for i in (0, 2)],
    "doubles": lambda data: [(x.double(), y) for x, y in data],
    "labels of another dtype": lambda data: [(x, y.int()) for x, y in data],
    "other shape": lambda data: [(x.reshape(-1, 1, 4, 16), y) for x, y in data],
}


@pytest.mark.parametrize("kind", OTHER_DATA)
def test_an_interrupted_evaluation_never_goes_on_with_other_data(tmp_path: Path, kind: str) -> None:
    data, file = batches((4, 4, 4, 4)), tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_net(), stopped_after(3, data), T, resume=file, progress=False)
    kept = file.read_bytes()
    with pytest.raises(ValueError, match="of other data.*remove the file|with and without labels"):
        evaluate(small_net(), OTHER_DATA[kind](data), T, resume=file, progress=False)
    assert file.read_bytes() == kept
    whole = evaluate(small_net(), data, T, progress=False)
    assert evaluate(small_net(), iter(data), T, resume=file, progress=False).to_json() == whole.to_json()


class Scaled(nn.Module):
    """A net with a setting that is no parameter, and code of its own."""

    def __init__(self, scale: float = 2.0, function: object = None) -> None:
        super().__init__()
        self.layer, self.scale, self.function = nn.Linear(64, 5), scale, function or _same

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.function(self.layer(x.flatten(1)))


class Negated(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return -self.scale * self.function(self.layer(x.flatten(1)))


def _same(x: Tensor) -> Tensor:
    return x


def _squared(x: Tensor) -> Tensor:
    return x * x


def changed(name: str) -> tuple[nn.Module, nn.Module, dict[str, object]]:
    """Return nets and settings of an evaluation that differs from "nothing" in one thing."""
    net = small_net()
    torch.manual_seed(5)
    ann: nn.Module = Negated() if name == "code" else Scaled(3.0 if name == "scale" else 2.0)
    torch.manual_seed(5)
    ann.layer.reset_parameters()
    if name == "function":
        ann.function = _squared
    if name == "ann_weight":
        ann.layer.weight.data[0, 0] += 1
    if name == "weight":
        net[0].weight.data[0, 0, 0, 0] += 0.5
    if name == "precharge":
        net[1].v_init = torch.tensor([0.75])
    if name == "tie":
        net[1].fire_at_threshold = False
    if name == "start":
        net[1].set_reset_value("v", 0.25)
    if name == "stride":
        net[2].ceil_mode = True
    if name == "kind":
        net[1] = ATIFuNode(0.5, v_init=0.25)
    options: dict[str, object] = {"delay": 1} if name == "delay" else {"top": (2,)} if name == "top" else {}
    return net, ann, options


@pytest.mark.parametrize(
    "name",
    "code scale function ann_weight weight precharge tie start stride kind delay top".split(),
)
def test_an_interrupted_evaluation_never_goes_on_with_another_net_or_setting(tmp_path: Path, name: str) -> None:
    data, file = batches((4, 4)), tmp_path / "state.pt"
    net, ann, options = changed("nothing")
    evaluate(net, data, 3, progress=False)  # a net that has run is the same net
    with pytest.raises(KeyboardInterrupt):
        evaluate(net, stopped_after(1, data), T, ann=ann, resume=file, progress=False, **options)
    other, other_ann, other_options = changed(name)
    with pytest.raises(ValueError, match="state of an evaluation with .*remove the file to begin anew"):
        evaluate(other, data, T, ann=other_ann, resume=file, progress=False, **other_options)
    with pytest.raises(ValueError, match="with another ann"):
        evaluate(net, data, T, resume=file, progress=False)
    net, ann, options = changed("nothing")
    evaluate(net, data, T, ann=ann, resume=file, progress=False, **options)
    assert not file.exists()


def test_the_hash_of_a_net_is_that_of_its_content_in_any_process() -> None:
    code = (
        "from tests.evaluation.test_evaluate import small_net; from snn_ext.evaluation.fingerprint import fingerprint\n"
        "print(fingerprint(small_net()))"
    )
    options: dict[str, Any] = {"check": True, "capture_output": True, "text": True}
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, **options)
    assert done.stdout.strip() == fingerprint(small_net())


# -- what is no number -------------------------------------------------------------------------------------------------


def test_what_is_no_number_is_never_a_right_decision() -> None:
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([[nan, nan, nan], [nan, 1.0, 0.0], [0.0, 1.0, nan], [inf, 0.0, 0.0], [0.0, inf, 1.0],
                           [-inf, -inf, -inf], [-inf, 0.0, -inf], [1.0, 1.0, 0.0]])  # fmt: skip
    for label, right in enumerate([[7], [6], []]):
        rank = rank_of_label(scores, torch.full((len(scores),), label))
        assert (rank == 0).nonzero().flatten().tolist() == right
    assert bool((rank_of_label(scores[:1], torch.tensor([0])) == 3).all())  # nor is it among the best few


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("layer", [0, 4, 6])
def test_a_net_with_weights_that_are_no_numbers_is_refused(value: float, layer: int) -> None:
    """Its neurons are silent, so that the output of the spiking net may be finite."""
    net = small_net()
    net[layer].weight.data.flatten()[3] = value
    with pytest.raises(ValueError, match=f"snn: got 'NaN or infinite values in the parameter {layer}.weight'"):
        evaluate(net, batches(), T, progress=False)
    with pytest.raises(ValueError, match="ann: got 'NaN or infinite values in the parameter"):
        evaluate(small_net(), batches(), T, ann=net, progress=False)


def test_numbers_that_overflow_are_named_with_layer_and_batch() -> None:
    data = batches((2, 2))
    data[1] = data[1][0] * 1e38, data[1][1]
    with pytest.raises(ValueError, match="snn: got 'NaN or infinite activations of 5 in batch 2'"):
        evaluate(small_net(), data, T, progress=False)
    data[1] = data[1][0] * torch.nan, data[1][1]
    with pytest.raises(ValueError, match="loader: got 'NaN or infinite values in the inputs of batch 2'"):
        evaluate(small_net(), data, T, progress=False)
    ann = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Threshold(-torch.inf, 0.0))
    ann[2].forward = lambda x: x / 0  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="ann: got 'NaN or infinite values in an output in batch 1'"):
        evaluate(small_net(), batches(), T, ann=ann, progress=False)


def test_neurons_that_emit_nan_are_named_with_steps_and_batch() -> None:
    class Breaks(PCMPIFNode):
        """Emits NaN from the third step on; the potential counts the steps."""

        def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
            t = states[0].flatten()[0] + 1 + torch.arange(len(inputs[0]))
            nan = torch.where(t >= 3, torch.nan, 0.0).reshape(-1, *[1] * (inputs[0].ndim - 1))
            return (torch.zeros_like(inputs[0]) + nan,), (states[0] + len(inputs[0]) + torch.zeros_like(inputs[0][0]),)

    net = nn.Sequential(nn.Linear(4, 4), Breaks(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="snn: got 'NaN or infinite values in an output in steps 3 to 4 in batch 1'"):
        evaluate(net, [torch.rand(2, 4)], T, chunk=2, progress=False)


# -- data and nets of all kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([(torch.rand(2, 1, 8, 8), torch.tensor([0, 5]))], "got 'labels from 0 to 5', want class numbers from 0 to 4"),
        ([(torch.rand(2, 1, 8, 8), torch.tensor([-1, 0]))], "loader: got 'labels from -1 to 0'"),
        ([(torch.rand(2, 1, 8, 8), torch.tensor([True, False]))], "loader: got a torch.bool tensor"),
        ([(torch.rand(2, 1, 8, 8), torch.zeros(2, 1).long())], r"loader: got a torch.int64 tensor of shape \[2, 1\]"),
        ([(torch.rand(2, 1, 8, 8), torch.zeros(3).long())], r"loader: got a torch.int64 tensor of shape \[3\]"),
        ([(torch.rand(0, 1, 8, 8), torch.zeros(0).long())], "at least one sample in batch 1"),
        ([torch.rand(2, 1, 8, 8), torch.rand(2, 1, 9, 9)], r"samples of one shape, \[1, 8, 8\] as in batch 1"),
        (torch.rand(2, 1, 8, 8), "loader: got a torch.float32 tensor"),
        ((torch.rand(2, 1, 8, 8), torch.zeros(2).long()), "loader: got a torch.int64 tensor of shape"),
        (3, "loader: got 3 of type int"),
        ([{"x": torch.rand(2, 1, 8, 8)}], "loader: got {.*of type dict, want batches"),
    ],
)
def test_a_bad_batch_is_named_and_changes_nothing(loader: object, message: str) -> None:
    net = small_net().train()
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(net, loader, T, progress=False)  # type: ignore[arg-type]
    assert all(m.training for m in net.modules()) and net[1].v == 0.0


def test_any_integer_labels_and_loaders_without_a_length_will_do() -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in batches():
                yield from zip(x, y.to(torch.uint8), strict=True)

    expected = evaluate(small_net(), [tuple(map(torch.cat, zip(*batches(), strict=True)))], T, progress=False)
    for size in (1, 7):
        found = evaluate(small_net(), torch.utils.data.DataLoader(Stream(), batch_size=size), T)
        assert torch.equal(found.accuracy, expected.accuracy) and found.samples == 10
        torch.testing.assert_close(found.synops, expected.synops)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_spikes_of_nets_of_other_dtypes_are_counted_to_the_last(dtype: torch.dtype) -> None:
    """A sum of 300 spikes of 16 bits has to be taken in more."""
    net = nn.Sequential(nn.Linear(3, 4), PCMPIFNode(1.0, precharge=0.0), nn.Linear(4, 2))
    net[0].weight.data.zero_()
    net[0].bias.data.fill_(1.0)
    found = evaluate(net.to(dtype), [torch.rand(301, 3).to(dtype)], 300, correlation_steps=(300,), progress=False)
    assert found.layers[0].spikes.tolist() == [4.0 * t for t in range(1, 301)]
    assert found.layers[0].scatter[300][0].eq(1).all() and found.synops[-1] == 2400


@pytest.mark.parametrize("how", ["float64 by default", "meta by default", "inference", "grad"])
def test_modes_of_torch_around_an_evaluation_change_no_figure(how: str, tmp_path: Path) -> None:
    net, data = small_net(), batches()
    before, options = torch.get_default_dtype(), {"delay": (0, 2), "correlation_steps": (4,), "progress": False}
    expected = evaluate(net, data, T, **options)
    inside: dict[str, Any] = {"inference": torch.inference_mode, "grad": torch.enable_grad}
    inside["meta by default"] = lambda: torch.device("meta")
    try:
        with inside.get(how, contextlib.nullcontext)():
            torch.set_default_dtype(torch.float64 if how.startswith("float64") else before)
            found = evaluate(net, data, T, resume=tmp_path / "a.pt", **options)
            found.to_csv(tmp_path / "a.csv")
            text = Evaluation.from_json(found.to_json()).to_json()
    finally:
        torch.set_default_dtype(before)
    assert text == expected.to_json()
    assert evaluate(net, data, T, **options).to_json() == text


@pytest.mark.parametrize("graph", [False, True])
def test_an_interruption_at_any_point_leaves_the_net_as_it_was(graph: bool) -> None:
    """Control-C at every n-th line of the evaluation, with a training net in step mode "m" and a hook of the user."""
    net = nn.Sequential(layer.Conv2d(1, 2, 3), PCMPIFNode(0.5), nn.MaxPool2d(2), layer.Flatten(), layer.Linear(18, 5))
    net = fx.GraphModule(net, LeafTracer().trace(net)) if graph else net
    functional.set_step_mode(net, "m")
    parts = [net.get_submodule(str(i)) for i in range(5)]
    net.train()
    parts[2].eval()
    parts[0].register_forward_hook(lambda module, inputs, output: None)

    def state() -> list[object]:
        return [
            (m.training, getattr(m, "step_mode", None), len(m._forward_hooks), len(m._forward_pre_hooks))
            for m in net.modules()
        ]

    before, ours = state(), str(Path(evaluation.__file__).parent)
    for stop in (*range(1, 400, 29), *range(400, 2600, 157)):
        seen = 0

        def trace(frame: Any, event: str, argument: object, stop: int = stop) -> object:
            nonlocal seen
            if not frame.f_code.co_filename.startswith(ours):
                return None
            seen += event == "line"
            if seen == stop:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        with contextlib.suppress(KeyboardInterrupt):
            sys.settrace(trace)
            try:
                evaluate(net, [(torch.rand(2, 1, 8, 8), torch.tensor([0, 4]))], 3, progress=False)
            finally:
                sys.settrace(None)
        assert state() == before, stop
        assert parts[1].v == 0.0, stop


def test_neurons_with_values_and_signs_count_an_event_as_one() -> None:
    class Signed(neuron.IFNode):
        """Fires with the sign of its input, every step."""

        def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
            return (3 * inputs[0].sign(),), states

        multi_step_functional_forward = single_step_functional_forward

    net = nn.Sequential(nn.Linear(4, 6), Signed(), nn.Linear(6, 2))
    found = evaluate(net, [torch.rand(5, 4)], 4, progress=False)
    assert found.spikes.tolist() == [6.0, 12.0, 18.0, 24.0] and found.synops[-1] == 48


def test_a_graph_that_calls_a_neuron_twice_is_refused_too() -> None:
    net = nn.Sequential(nn.Linear(2, 2), PCMPIFNode(), nn.Linear(2, 2))
    net.append(net[1])
    with pytest.raises(ValueError, match="one neuron for two calls of a step"):
        evaluate(fx.GraphModule(net, LeafTracer().trace(net)), [torch.rand(2, 2)], 3, progress=False)


# -- figures at their ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_steps", [1, 5])
def test_a_silent_net_has_figures_files_and_plots(tmp_path: Path, time_steps: int) -> None:
    pytest.importorskip("matplotlib")
    from snn_ext.evaluation import plots

    net = nn.Sequential(nn.Linear(4, 6), PCMPIFNode(1.0, precharge=0.0), nn.Linear(6, 3))
    net[0].weight.data.zero_()
    net[0].bias.data.fill_(-1.0)
    net[2].bias.data.copy_(torch.tensor([0.5, 0.5, 0.25]))
    data = [(torch.rand(4, 4), torch.tensor([0, 1, 2, 0]))]
    found = evaluate(net, data, time_steps, correlation_steps=(1,), progress=False)
    assert found.accuracy.tolist() == [0.5] * time_steps and found.analog_accuracy == 0.5  # the first of equal ones
    assert set(found.latency.values()) == {1} and best_delay(found) == 0
    assert found.spikes[-1] == found.synops[-1] == found.ac_mac_ratio[-1] == 0
    assert float(found.energy()[-1]) == pytest.approx(4.6 * 24) and found.analog_energy() == pytest.approx(4.6 * 42)
    assert found.layers[0].normalised_rate.isnan().all()
    assert torch.tensor(found.layers[0].correlation[1]).isnan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.plot(tmp_path / "a.png")
        plots.correlations(found).savefig(tmp_path / "b.png")
        plots.delays({"net": found}).savefig(tmp_path / "c.png")
    found.to_csv(tmp_path / "a.csv")
    assert Evaluation.from_json(found.to_json()).to_json() == found.to_json()


def test_a_net_of_one_encoder_has_all_figures_by_hand(tmp_path: Path) -> None:
    net = nn.Sequential(PCMPIFNode(1.0, precharge=0.0), nn.Linear(4, 3))
    found = evaluate(net, [torch.full((2, 4), 0.5)], 4, progress=False)
    assert found.spikes.tolist() == [0.0, 4.0, 4.0, 8.0] and found.synops.tolist() == [0.0, 12.0, 12.0, 24.0]
    assert found.ac_mac_ratio.tolist() == [0.0] * 4 and found.energy()[-1] == pytest.approx(0.9 * 24)
    found.to_csv(tmp_path / "a.csv")


def test_operations_that_are_not_known_are_left_out_of_every_figure(tmp_path: Path) -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin()

    net = nn.Sequential(nn.Linear(3, 4), PCMPIFNode(), Sine(), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="synaptic operations are left out"):
        found = evaluate(net, [torch.rand(2, 3)], 4, progress=False)
    assert found.macs is found.input_macs is None
    for values in (found.synops, found.energy(), found.ac_mac_ratio, torch.tensor(found.analog_energy())):
        assert values.isnan().all()
    found.to_csv(tmp_path / "a.csv")
    assert Evaluation.from_json(found.to_json()).to_json() == found.to_json()
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "a.png")


def test_correlation_of_what_does_not_vary_is_no_number() -> None:
    """0.1 and 0.3 have sums whose difference is a rounding, of any sign."""
    for value in (0.1, 0.3, 1 / 3):
        sums = LayerSums(1, (1,))
        for n in (7, 1000, 13):
            sums.begin(1.0, torch.full((n, 3), value))
            sums.add((torch.rand(1, n, 3) > 0.5).float())
            sums.end()
        assert sums.correlation().isnan().all(), value
    sums = LayerSums(1, (1,))
    spikes = (torch.rand(1, 50, 3) > 0.5).float()
    sums.begin(1.0, spikes[0])
    sums.add(spikes)
    assert 1 - 1e-9 <= float(sums.correlation()) <= 1


@pytest.mark.parametrize("cost", [-1.0, torch.nan, torch.inf])
def test_a_cost_that_is_none_is_named(cost: float) -> None:
    with pytest.raises(ValueError, match="accumulate: got .*want an energy in picojoule"):
        EnergyModel("mine", cost, 1.0)


def test_step_mode_of_a_net_does_not_matter_and_is_restored() -> None:
    net = nn.Sequential(layer.Conv2d(1, 4, 3), PCMPIFNode(0.5), layer.Flatten(), layer.Linear(144, 5))
    single = evaluate(net, batches(), T, progress=False)
    functional.set_step_mode(net, "m")
    assert evaluate(net, batches(), T, progress=False).to_json() == single.to_json()
    assert all(m.step_mode == "m" for m in net)


def test_json_holds_everything_and_csv_a_line_a_step(tmp_path: Path) -> None:
    found = evaluate(small_net(), batches(), T, delay=(0, 3), correlation_steps=(4,), top=(1, 2), progress=False)
    again = Evaluation.from_json(found.to_json(tmp_path / "evaluation.json"))
    assert again.to_json() == found.to_json() == (tmp_path / "evaluation.json").read_text().strip()
    assert again.latency == found.latency and again.layers[0].correlation == found.layers[0].correlation
    json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found.to_csv(tmp_path / "evaluation.csv")
    with open(tmp_path / "evaluation.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == T and float(rows[-1]["top1_delay0"]) == float(found.accuracy[-1])
    assert float(rows[-1]["synops"]) == float(found.synops[-1])


def test_figures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from snn_ext.evaluation import plots

    found = evaluate(small_net(), batches(), T, delay=(0, 3), correlation_steps=(4, 8), progress=False)
    found.plot(tmp_path / "overview.png")
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
    plots.delays({"net": found}).savefig(tmp_path / "delays.png")
    plots.correlations(found).savefig(tmp_path / "correlations.png")
    with pytest.raises(ValueError, match="want evaluate"):
        plots.correlations(evaluate(small_net(), batches(), 2, progress=False))
    unlabelled = evaluate(small_net(), [batches()[0][0]], T, progress=False)
    unlabelled.plot()
    figure = plots.accuracy_latency_synops({"one": found, "other": found}, "both", level=1.0)
    assert [axes.get_xlabel().split()[0] for axes in figure.axes] == ["time", "operations"]
    spent = figure.axes[1].lines[0].get_xdata()
    torch.testing.assert_close(torch.as_tensor(spent), (found.synops + found.input_macs) / found.macs)
    assert len(figure.axes[0].lines) == 2 * 2 + 1  # a curve and a dot each, and the analog accuracy
    figure.savefig(tmp_path / "methods.png")
    for bad, message in (({}, "want at least one"), ({"a": unlabelled}, "loader: got 'data without labels'")):
        with pytest.raises(ValueError, match=message):
            plots.accuracy_latency_synops(bad)
    found.macs = None
    with pytest.raises(ValueError, match="evaluations: got 'unknown synapses of a'"):
        plots.accuracy_latency_synops({"a": found})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time_steps": 0}, "time_steps: got 0, want an int >= 1"),
        ({"delay": 12}, r"delay: got \(12,\), want ints in \[0, 12\)"),
        ({"delay": (1, 1)}, "delay: got .*, want different ones"),
        ({"top": (0,)}, "top: got"),
        ({"correlation_steps": (13,)}, "correlation_steps: got"),
        ({"loader": []}, "loader: got 'no batch'"),
        ({"loader": [(torch.rand(2, 1, 8, 8), torch.rand(2))]}, "loader: got a torch.float32 tensor"),
        ({"loader": [torch.rand(2, 1, 8, 8), batches()[0]]}, "with and without labels"),
        ({"snn": nn.Sequential(nn.Linear(2, 2))}, "snn: got 'Sequential'"),
    ],
)
def test_wrong_argument_is_named(arguments: dict[str, object], message: str) -> None:
    values = {"snn": small_net(), "loader": batches(), "time_steps": T, "progress": False} | arguments
    with pytest.raises(ValueError, match=message):
        evaluate(**values)  # type: ignore[arg-type]


def test_public_names_are_documented() -> None:
    for name in evaluation.__all__:
        assert getattr(evaluation, name).__doc__ or name.isupper(), name


def test_state_that_is_damaged_or_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    data, file, draw = batches((4, 4, 4, 2)), tmp_path / "state.pt", random.Random(0)
    options = {"correlation_steps": (4,), "progress": False}
    whole = evaluate(small_net(), data, T, **options).to_json()
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_net(), Interrupted(data), T, resume=file, **options)
    content = file.read_bytes()
    state = torch.load(file, weights_only=True)
    others: list[Any] = [b"", b"hello" * 99, content[:2000], {}, [], {"settings": {}, "run": {}}]
    others += [small_net().state_dict()]
    others += [{**state, "run": {**state["run"], **part}} for part in ({"layers": {}}, {"readout": {"samples": 8}})]
    sums = state["run"]["readout"]
    others += [{**state, "run": {**state["run"], "readout": {**sums, "correct": sums["correct"][..., 1:]}}}]
    for _ in range(25):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        others.append(bytes(flipped))
    refused = 0
    for other in others:
        file.write_bytes(other) if isinstance(other, bytes) else torch.save(other, file)
        before = file.read_bytes()
        try:
            assert evaluate(small_net(), data, T, resume=file, **options).to_json() == whole
        except ValueError as error:
            assert f"{file}: damaged or not a state of snn_ext.evaluate; remove it to start afresh" == str(error)
            assert file.read_bytes() == before
            refused += 1
    assert refused > 20


def test_changed_digit_of_a_result_is_noticed() -> None:
    text = evaluate(small_net(), batches(), T, progress=False).to_json()
    digits = [place for place, sign in enumerate(text[: text.index("sha256")]) if sign in "1234"]
    for place in digits[:: max(1, len(digits) // 100)]:
        with pytest.raises(ValueError, match=r"text: damaged or not what Evaluation\.to_json wrote; evaluate again"):
            Evaluation.from_json(f"{text[:place]}{int(text[place]) + 1}{text[place + 1 :]}")
    for other in ("", "{}", "[]", "null", text[:-1], text.replace("sha256", "sha255"), "[" * 10_000):
        with pytest.raises(ValueError, match="evaluate again"):
            Evaluation.from_json(other)
