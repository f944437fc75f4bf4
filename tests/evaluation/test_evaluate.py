"""Figures over time against a plain loop; nets, data and modes of all kinds."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import encoding, functional, layer, neuron  # noqa: E402

from snn_ext import evaluate, evaluation  # noqa: E402
from snn_ext.evaluation import (  # noqa: E402
    ENERGY_45NM,
    Evaluation,
    best_delay,
)
from snn_ext.hosts import LeafTracer  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode  # noqa: E402
from tests.evaluation.nets import T, batches, plain_loop, small_net  # noqa: E402


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


@pytest.mark.parametrize("metric", ["class", "multilabel"])
def test_without_the_analog_net_all_other_figures_are_the_same(metric: str, tmp_path: Path) -> None:
    net, data = small_net(), batches((6, 3))
    if metric == "multilabel":
        data = [(x, nn.functional.one_hot(y, 5)) for x, y in data]
    whole, alone = (evaluate(net, data, T, metric=metric, compare=compare, progress=False) for compare in (True, False))
    assert whole.correct is not None and alone.correct is not None
    assert torch.equal(whole.correct, alone.correct) and torch.equal(whole.synops, alone.synops)
    assert torch.equal(whole.spikes, alone.spikes) and torch.equal(whole.energy(), alone.energy())
    assert whole.macs == alone.macs and alone.mse.isnan().all() and not whole.mse.isnan().any()
    assert all(layer.mean_activation is None for layer in alone.layers) and "analog" not in repr(alone)
    assert repr(Evaluation.from_json(alone.to_json())) == repr(alone)
    alone.plot(tmp_path / "alone.png"), alone.to_csv(tmp_path / "alone.csv")
    for ask in (lambda: alone.analog_accuracy, lambda: alone.latency):
        with pytest.raises(ValueError, match="compare: got False, want True for the accuracy of the analog net"):
            ask()
    for wrong in ({"ann": nn.Linear(2, 5)}, {"correlation_steps": (2,)}):
        with pytest.raises(ValueError, match="compare: got False, want True with"):
            evaluate(net, data, T, compare=False, **wrong)  # type: ignore[arg-type]


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
    with pytest.raises(ValueError, match="1, whose output of one call is input of another"):
        evaluate(fx.GraphModule(net, LeafTracer().trace(net)), [torch.rand(2, 2)], 3, progress=False)


@pytest.mark.parametrize("time_steps", [1, 5])
def test_a_silent_net_has_figures_files_and_plots(tmp_path: Path, time_steps: int) -> None:
    pytest.importorskip("matplotlib")
    from snn_ext import plots

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


def test_step_mode_of_a_net_does_not_matter_and_is_restored() -> None:
    net = nn.Sequential(layer.Conv2d(1, 4, 3), PCMPIFNode(0.5), layer.Flatten(), layer.Linear(144, 5))
    single = evaluate(net, batches(), T, progress=False)
    functional.set_step_mode(net, "m")
    assert evaluate(net, batches(), T, progress=False).to_json() == single.to_json()
    assert all(m.step_mode == "m" for m in net)


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


def test_encoders_of_the_host_emit_spikes_of_the_image() -> None:
    """Random ones are other spikes at every step."""
    x, head = torch.full((8, 50), 0.25), nn.Linear(50, 3)
    random, latency = encoding.PoissonEncoder(), encoding.LatencyEncoder(T)
    found = [evaluate(nn.Sequential(e, head, neuron.IFNode()), [x], T, progress=False) for e in (random, latency)]
    for measured in found:
        assert measured.layers[0].kind == "input" and measured.input_macs == measured.step_macs == 0
        torch.testing.assert_close(measured.layers[0].synops, 3 * measured.layers[0].spikes)
    assert float(found[0].layers[0].spikes[-1]) == pytest.approx(50 * 0.25 * T, rel=0.1)
    assert len(found[0].layers[0].spikes.diff().unique()) > 1
    assert found[1].layers[0].spikes[-1] == 50  # one of each


def test_a_neuron_whose_spikes_go_nowhere_is_left_out() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.node, self.head, self.probe = nn.Linear(4, 6), PCMPIFNode(), nn.Linear(6, 3), PCMPIFNode()

        def forward(self, x: Tensor) -> Tensor:
            current = self.first(x)
            self.probe(current)
            return self.head(self.node(current))

    found = evaluate(Unused(), [torch.rand(3, 4)], T, progress=False)
    assert [layer.name for layer in found.layers] == ["node"]


def test_a_net_for_batches_of_one_size_is_named() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node, self.head = PCMPIFNode(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.node(x).view(5, -1))

    with pytest.raises(ValueError, match="snn: got a forward pass for batches of one size .*want one for any number"):
        evaluate(Fixed(), [torch.rand(5, 2, 4)], T, progress=False)


def test_an_operation_in_place_changes_no_batch() -> None:
    net = nn.Sequential(nn.ReLU6(inplace=True), nn.Linear(4, 3), PCMPIFNode())
    x, ann = torch.randn(5, 4), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    before = x.clone()
    evaluate(net, [(x, torch.zeros(5).long())], 4, ann=ann, progress=False)
    assert torch.equal(x, before)


class Squeezed(nn.Module):
    """A net that takes out dimensions of one by ``x.squeeze()``, or by their number."""

    def __init__(self, where: str, squeeze: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.node, self.pool = nn.Conv2d(1, 4, 3), PCMPIFNode(), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 1 if where == "end" else 3)
        self.where, self.squeeze = where, squeeze

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.node(self.conv(x)))
        x = self.head(x.flatten(1) if self.where == "end" else self.squeeze(x))
        return self.squeeze(x) if self.where == "end" else x


@pytest.mark.parametrize("where", ["middle", "end"])
@pytest.mark.parametrize("squeeze", [lambda x: x.squeeze(), torch.squeeze], ids=["method", "function"])
def test_a_batch_of_any_size_stays_a_batch_behind_squeeze(where: str, squeeze: Any) -> None:
    torch.manual_seed(1)
    loader = [(torch.rand(n, 1, 8, 8), torch.randint(2, (n,))) for n in (6, 1)]  # the last batch is often a small one
    options: Any = {"metric": "sign" if where == "end" else "class", "progress": False}
    found = evaluate(Squeezed(where, squeeze), loader, 33, **options)  # 33 steps: a chunk of one
    plain = Squeezed(where, lambda x: x.flatten(1) if where == "middle" else x.squeeze(1))
    want = evaluate(plain, loader, 33, **options)
    assert found.to_json() == want.to_json()
    x = loader[0][0]
    assert torch.cat(list(Simulation(Squeezed(where, squeeze)).run(x[:1], 3))).shape[:2] == (3, 1)


def test_an_output_without_samples_is_named() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node = PCMPIFNode()

        def forward(self, x: Tensor) -> Tensor:
            return self.node(x).mean(0)

    with pytest.raises(ValueError, match=r"snn: got 'an output of shape \[4\] for 6 samples', want one tensor"):
        evaluate(Mean(), [torch.rand(6, 4)], 3, progress=False)
