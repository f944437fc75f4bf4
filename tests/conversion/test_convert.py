"""convert() as its user meets it: the output in the units of the analog net, the report, pickles, the other host."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, neuron  # noqa: E402
from spikingjelly.activation_based.ann2snn import Converter  # noqa: E402

import snn_ext  # noqa: E402
from snn_ext import AAN, BNAAN, convert  # noqa: E402
from snn_ext.conversion import ConvertedNet, DataNormRecipe, LayerReport, Report, SpikeNormRecipe  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402
from tests.conversion.nets import ResNet, images, loop, trained, vgg  # noqa: E402
from tests.reference import assert_unchanged, snapshot  # noqa: E402


def mean_output(snn: nn.Module, x: Tensor, time_steps: int) -> Tensor:
    return torch.cat(list(Simulation(snn).run(x, time_steps))).mean(0)


OPTIONS: dict[str, dict[str, Any]] = {
    "data-norm": {"method": "data-norm"},
    "percentile": {"method": "data-norm", "percentile": 99.5},
    "per channel": {"method": "data-norm", "channel_wise": True},
    "unfolded": {"method": "data-norm", "fold_scales": False},
    "unfolded per channel": {"method": "data-norm", "fold_scales": False, "channel_wise": True},
    "spike-norm": {"method": "spike-norm", "time_steps": 48},
    "spike-norm per channel": {"method": "spike-norm", "time_steps": 48, "channel_wise": True},
    "optimised": {"method": "data-norm", "precharge": "optimize", "time_steps": 40},
    "input neurons": {"method": "data-norm", "encoder": "if"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("make", [lambda: vgg(pool=lambda: nn.MaxPool2d(2)), ResNet], ids=["vgg", "resnet"])
def test_mean_output_is_that_of_the_analog_net_in_its_units(make: Any, name: str) -> None:
    ann, x = trained(make()), images()
    before = snapshot(ann)
    snn = convert(ann, x, **{"precharge": 0.5} | OPTIONS[name])
    assert_unchanged(ann, before)
    with torch.no_grad():
        wanted = ann(x)
    error = (mean_output(snn, x, 240) - wanted).abs().max() / wanted.abs().max()
    assert error < (0.15 if name == "percentile" else 0.05)
    assert all(layer.rate_error < 0.15 for layer in snn.report)


def test_nothing_but_spikes_travels_between_folded_layers() -> None:
    snn, x = convert(trained(ResNet()), images(), method="data-norm", channel_wise=True), images()
    for module in snn.modules():
        if isinstance(module, neuron.BaseNode):
            module.register_forward_hook(
                lambda m, i, o: pytest.fail("not 0/1") if not ((o == 0) | (o == 1)).all() else None
            )
    loop(snn, x, 5)


def test_no_activation_is_left_analog() -> None:
    snn = convert(trained(vgg(pool=lambda: nn.MaxPool2d(2))), images(), method="data-norm")
    kinds = {type(m).__name__ for m in snn.modules()}
    assert not kinds & {"ReLU", "Hardtanh", "ReLU6", "MaxPool2d", "BatchNorm2d", "BatchNorm1d", "Dropout"}
    assert len(snn.report) == 4 and all(isinstance(snn.get_submodule(layer.name), PCMPIFNode) for layer in snn.report)


@pytest.mark.parametrize("schedule", ["streaming", "phased"])
def test_pickle_deepcopy_and_state_dict_keep_spikes_and_report(schedule: str) -> None:
    ann, x = trained(ResNet()), images()
    snn = convert(ann, x, method="data-norm", precharge=0.25, schedule=schedule, time_steps=4)
    steps = snn.latency
    time_steps = steps or 20
    wanted = loop(snn, x, time_steps)
    for twin in (pickle.loads(pickle.dumps(snn)), copy.deepcopy(snn)):
        assert isinstance(twin, ConvertedNet) and twin.report == snn.report and twin.latency == steps
        assert torch.equal(loop(twin, x, time_steps), wanted)
        functional.set_step_mode(twin, "m")
        assert twin.step_mode == "m"
        with torch.no_grad():
            torch.testing.assert_close(twin(x.expand(time_steps, *x.shape)), wanted)
    torch.manual_seed(1)
    other = convert(trained(ResNet()), images(), method="data-norm", schedule=schedule, time_steps=4)
    assert not torch.equal(loop(other, x, time_steps), wanted)
    other.load_state_dict(snn.state_dict())
    assert torch.equal(loop(other, x, time_steps), wanted) and other.report == snn.report


def test_sequence_in_chunks_carries_the_state() -> None:
    snn, x = convert(trained(vgg()), images(), method="data-norm"), images()
    wanted = loop(snn, x, 9)
    snn.step_mode = "m"
    with torch.no_grad():
        parts = [snn(x.expand(steps, *x.shape)) for steps in (4, 5)]
    torch.testing.assert_close(torch.cat(parts), wanted)
    functional.reset_net(snn)
    with torch.no_grad():
        torch.testing.assert_close(snn(x.expand(4, *x.shape)), wanted[:4])


def test_report_says_what_was_done_and_survives_json() -> None:
    ann, x = trained(vgg(relu=nn.ReLU6)), images()
    ann[0].bias.data[0] = 50.0
    snn = convert(ann, x, method="data-norm", precharge=0.25, encoder="if", readout="spikes")
    assert [layer.name for layer in snn.report] == ["input_spikes", "2", "5", "9", "14", "output_spikes"]
    first = snn.report["2"]
    assert first.threshold == first.scale == 6.0 and first.rule == "maximum, clip" and first.precharge == 0.25
    assert first.relative_threshold == 6.0 and snn.report["input_spikes"].rule == "input"
    assert Report.from_json(snn.report.to_json()) == snn.report
    assert {"name", "threshold", "precharge", "scale", "rate_error", "rule"} <= json.loads(snn.report.to_json())[
        0
    ].keys()
    assert "maximum" in str(snn.report)


def test_report_names_its_layers_for_one_that_is_not_there() -> None:
    report = Report([LayerReport(name, 1.0, 0.0, 1.0, None, "maximum") for name in ("2", "relu")])
    assert [report["2"], report["relu"]] == report[:] == [report[0], report[-1]]
    with pytest.raises(KeyError, match="output: want one of 2, relu"):
        report["output"]


@pytest.mark.parametrize("channel_wise", [False, True], ids=["layer", "channel"])
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
def test_spike_readout_counts_normalised_activations(fold: bool, channel_wise: bool) -> None:
    ann, x = trained(vgg()), images(16)
    options = {"fold_scales": fold, "channel_wise": channel_wise}
    snn = convert(ann, x, method="data-norm", precharge=0.5, readout="spikes", **options)
    with torch.no_grad():
        wanted = ann(x).relu() / torch.tensor(snn.report[-1].scale)
    output = torch.cat(list(Simulation(snn).run(x, 300)))
    assert ((output == 0) | (output == 1)).all()
    assert (output.mean(0) - wanted).abs().max() < 0.03


def test_a_net_that_ends_in_an_activation_keeps_its_units() -> None:
    ann, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3), nn.ReLU()), images()
    with torch.no_grad():
        wanted = ann(x)
    snn = convert(ann, x, method="data-norm", precharge=0.5)
    assert (mean_output(snn, x, 300) - wanted).abs().max() < 0.02 * wanted.max()
    counted = mean_output(convert(ann, x, method="data-norm", precharge=0.5, readout="spikes"), x, 300)
    assert (counted - wanted / snn.report[-1].scale).abs().max() < 0.02


@pytest.mark.parametrize("kind", ["tensor", "loader", "callable", "generator"])
def test_calibration_is_a_tensor_a_loader_or_a_callable(kind: str) -> None:
    ann, x = trained(vgg()), images(12)
    batches = [(x[:5], torch.zeros(5)), (x[5:], torch.zeros(7))]
    calibration = {"tensor": x, "loader": batches, "callable": lambda: iter(batches), "generator": iter(batches)}[kind]
    for method in ("data-norm", "spike-norm"):
        found = convert(ann, copy.copy(calibration) if kind == "loader" else calibration, method=method, time_steps=8)
        assert found.report[0].threshold == pytest.approx(
            convert(ann, x, method=method, time_steps=8).report[0].threshold
        )
        if kind == "generator":
            break


@pytest.mark.parametrize("method", ["data-norm", "spike-norm", "adsnn"])
def test_tied_weights_convert_to_layers_of_their_own(method: str) -> None:
    activation = AAN if method == "adsnn" else nn.ReLU
    first = BNAAN(6, dims=0) if method == "adsnn" else nn.Identity()
    layers = [nn.Linear(6, 6), nn.BatchNorm1d(6), activation(), nn.Linear(6, 6), activation(), nn.Linear(6, 6)]
    ann, x = trained(nn.Sequential(first, *layers)), torch.rand(16, 6)
    ann[4].weight, ann[6].weight, ann[6].bias = ann[1].weight, nn.Parameter(ann[1].weight.detach().T), ann[4].bias
    untied = copy.deepcopy(ann)
    for k in (1, 4, 6):
        untied[k].weight, untied[k].bias = (nn.Parameter(p.detach().clone()) for p in (ann[k].weight, ann[k].bias))
    before = snapshot(ann)
    options: dict[str, Any] = {"method": method} | ({} if method == "adsnn" else {"time_steps": 16})
    snn, wanted = convert(ann, x, **options), convert(untied, x, **options)
    assert_unchanged(ann, before)
    assert torch.equal(loop(snn, x, 16), loop(wanted, x, 16)) and snn.report == wanted.report


@pytest.mark.parametrize("second", [nn.ReLU(), nn.Hardtanh(0.0, 0.5)], ids=["ReLU", "clip"])
@pytest.mark.parametrize("between", [[], [nn.AvgPool1d(2)]], ids=["", "pooling"])
def test_folding_leaves_the_record_of_a_threshold_alone(between: list[nn.Module], second: nn.Module) -> None:
    """Neurons that spikes reach without weights get another threshold, the value of their spikes stays."""
    layers = [nn.Conv1d(2, 4, 1), nn.ReLU(), *between, second, nn.Conv1d(4, 2, 1)]
    ann, x = trained(nn.Sequential(*layers)), torch.rand(5, 2, 4) * 3
    with torch.no_grad():
        largest = float(ann[:-1](x).max())
    folded, plain = (convert(ann, x, method="data-norm", fold_scales=fold, precharge=0.5) for fold in (True, False))
    assert [layer.scale for layer in folded.report] == [layer.scale for layer in plain.report]
    assert folded.report[-1].scale == pytest.approx(largest)
    with torch.no_grad():
        assert (mean_output(folded, x, 200) - ann(x)).abs().max() < 0.05


def test_mobilenet_v1_converts_with_its_clips() -> None:
    def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        return [depthwise, nn.BatchNorm2d(inputs), nn.ReLU6(), pointwise, nn.BatchNorm2d(outputs), nn.ReLU6()]

    body = [*separable(2, 6, 1), *separable(6, 8, 2), *separable(8, 8, 1)]
    ann, x = trained(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))), images()
    with torch.no_grad():
        wanted = ann(x)
    for channel_wise in (False, True):
        snn = convert(ann, x, method="data-norm", precharge=0.5, channel_wise=channel_wise)
        assert len(snn.report) == 6 and (mean_output(snn, x, 300) - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_double_precision_converts_in_double_precision() -> None:
    ann, x = trained(vgg()).double(), images().double()
    snn = convert(ann, x, method="data-norm", precharge=0.5, channel_wise=True)
    output = mean_output(snn, x, 200)
    assert output.dtype == torch.float64 and (output - ann(x)).abs().max() < 0.03


def test_recipes_run_in_the_hosts_converter() -> None:
    ann, x = trained(vgg()), images()
    for recipe in (DataNormRecipe(x, percentile=99.0), SpikeNormRecipe([x], time_steps=16)):
        snn = Converter(recipe).convert(ann)
        assert isinstance(snn, ConvertedNet) and isinstance(snn.get_submodule("2"), PCMPIFNode)


def test_reset_to_zero_is_a_choice() -> None:
    snn = convert(trained(vgg()), images(), method="spike-norm", time_steps=16, encoder="poisson", reset="zero", seed=5)
    assert snn.get_submodule("2").v_reset == 0.0 and snn.get_submodule("input_spikes").seed == 5


BAD: dict[str, dict[str, Any]] = {
    "precharge: got 0.5, want an option of CalibratedRecipe": {"method": "calibrated", "precharge": 0.5},
    "samples: got 0": {"method": "calibrated", "samples": 0},
    "method: got 'x'": {"method": "x"},
    "percentile: got 99.0, want an option of SpikeNormRecipe": {"percentile": 99.0},
    "percentile: got 0": {"method": "data-norm", "percentile": 0},
    "time_steps: got 0": {"time_steps": 0},
    "time_steps: got None": {"schedule": "phased"},
    "encoder: got 'rate'": {"encoder": "rate"},
    "encoder: got 'poisson'": {"encoder": "poisson", "schedule": "phased", "time_steps": 4},
    "seed: got 3, want 0 without": {"seed": 3},
    "precharge: got 1.5": {"precharge": 1.5},
    "precharge: got 'best'": {"precharge": "best"},
    "precharge: got 'optimize', want a number": {"precharge": "optimize", "schedule": "phased", "time_steps": 4},
    "reset: got 'soft'": {"reset": "soft"},
    "reset: got 'zero'": {"reset": "zero", "schedule": "phased", "time_steps": 4},
    "readout: got 'max'": {"readout": "max"},
    "schedule: got 'x'": {"schedule": "x"},
    "fold_scales: got 1": {"fold_scales": 1},
    "fold_scales: got False": {"fold_scales": False, "schedule": "phased", "time_steps": 4},
    "residual: got 'unit-threshold', want 'junction'": {"residual": "unit-threshold"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        convert(vgg(), images(), **{"method": "spike-norm"} | BAD[message])


def test_bad_calibration_is_named() -> None:
    for data, message in {
        0: "calibration: got 0",
        "empty": "calibration: got 'no batch'",
        "integers": "calibration: got a torch.int64",
    }.items():
        given = {"empty": [], "integers": [torch.zeros(2, 3, dtype=torch.int64)]}.get(str(data), data)
        with pytest.raises((TypeError, ValueError), match=message):
            convert(vgg(), given)
    with pytest.raises(ValueError, match=r"calibration: got 'inputs in \[-1, 1\]'"):
        convert(vgg(), 2 * images() - 1, encoder="if")
    with pytest.warns(UserWarning, match="saturates"):
        convert(trained(vgg()), 3 * images(), encoder="poisson", time_steps=4)


@pytest.mark.parametrize(
    ("inputs", "encoder", "share"),
    [
        ([-1.0, 0.0, 0.5, 1.0], "poisson", None),
        ([-1.5, -1.0, 0.0, 0.5], "poisson", "25.00%"),
        ([-1.0, 0.5, 1.0, 1.5], "poisson", "25.00%"),
        ([-3.0, 0.0, 1.0, 3.0], "direct", None),
    ],
)
def test_inputs_saturate_beyond_one_on_either_side_and_as_poisson_trains_only(
    inputs: list[float], encoder: str, share: str | None
) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        convert(net, torch.tensor([inputs]), method="data-norm", time_steps=2, encoder=encoder)
    said = [str(warning.message) for warning in seen if "saturates" in str(warning.message)]
    assert len(said) == (share is not None) and all(f" {share} of the inputs" in text for text in said)


def test_a_converted_net_goes_to_snntorch() -> None:
    pytest.importorskip("snntorch")
    from snn_ext.snntorch import PCMPIF, reset

    snn, x = convert(trained(vgg(pool=lambda: nn.MaxPool2d(2))), images(), method="data-norm", precharge=0.25), images()
    wanted = loop(snn, x, 8)
    theirs = snn.to_snntorch()
    assert sum(isinstance(m, PCMPIF) for m in theirs.modules()) == len(snn.report)
    for _ in range(2):
        reset(theirs)
        with torch.no_grad():
            assert torch.equal(torch.stack([theirs(x) for _ in range(8)]), wanted)


@pytest.mark.parametrize("encoder", ["direct", "poisson"])
def test_the_reset_of_snntorch_resets_a_converted_net_wholly(encoder: str, tmp_path: Path) -> None:
    utils = pytest.importorskip("snntorch.utils")
    block = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())  # nothing at the top level
    net, x = nn.Sequential(block, nn.Linear(36, 3)), images()[:, :1]
    snn = convert(net, x, method="data-norm", precharge=0.5, encoder=encoder)
    wanted = loop(snn, x, 6)
    twin = snn.to_snntorch()
    assert [layer.name for layer in twin.report] == ["0_1"] and hasattr(twin, "0_1")
    snn_ext.save(twin, tmp_path / "twin.pt")
    for theirs in (twin, copy.deepcopy(twin), pickle.loads(pickle.dumps(twin)), snn_ext.load(tmp_path / "twin.pt")):
        for _ in range(2):
            with torch.no_grad():
                assert torch.equal(torch.stack([theirs(x) for _ in range(6)]), wanted)
            utils.reset(theirs)


def test_a_net_in_a_sequence_with_gradients_is_copied_and_goes_to_snntorch() -> None:
    x = images()
    snn = convert(trained(vgg(pool=lambda: nn.MaxPool2d(2))), x, method="data-norm")
    first = snn(x.clone().requires_grad_())
    twin, theirs = copy.deepcopy(snn), snn.to_snntorch()
    assert torch.equal(theirs(x), first), "from the start"
    assert torch.equal(twin(x), snn(x)), "from the state of the original"


def test_the_front_door_is_lazy() -> None:
    assert snn_ext.convert is convert and "convert" in snn_ext.__all__
    with pytest.raises(AttributeError, match="no_such_name"):
        snn_ext.no_such_name  # noqa: B018


@pytest.mark.parametrize("options", [{}, {"channel_wise": True}, {"readout": "spikes"}], ids=str)
def test_a_wrong_fold_is_noticed(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the result is there for defects of this package: one is planted."""
    from snn_ext.conversion import scales

    def wrong(layer: Any, factor: Tensor) -> None:
        scale_columns(layer, factor * 1.1)

    scale_columns = scales.scale_columns
    monkeypatch.setattr(scales, "scale_columns", wrong)
    with pytest.raises(RuntimeError, match="another analog net, .* this is a defect of snn_ext"):
        convert(trained(vgg()), images(), method="data-norm", **options)


def test_a_wrong_height_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from snn_ext.conversion import asn_net

    fold_height = asn_net.fold_height
    monkeypatch.setattr(asn_net, "fold_height", lambda layer, h: fold_height(layer, h * 1.1))
    ann = nn.Sequential(BNAAN(2), *list(vgg(AAN)))
    with pytest.raises(RuntimeError, match="another analog net, .* this is a defect of snn_ext"):
        convert(trained(ann), images(), method="adsnn")


SLOW: dict[str, Any] = {
    "calibrated": ({"time_steps": 4, "tune": "channels", "epochs": 2}, ("calibrate", "tune", "measure rates")),
    "data-norm": ({"precharge": "optimize", "time_steps": 4}, ("see activations", "find pre-charges", "measure rates")),
    "spike-norm": ({"time_steps": 4}, ("simulate", "measure rates")),
    "adsnn": ({"spike_height": "adaptive"}, ("see activations", "measure rates")),
}


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("method", SLOW)
def test_every_long_part_has_a_progress_bar_on_a_terminal(
    method: Any, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, bars = SLOW[method]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    ann, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(8, 4)
    convert(ann, x, method=method, **options)
    shown = capsys.readouterr().err
    assert all(bar in shown for bar in bars) if terminal else not shown
    convert(ann, x, method=method, progress=False, **options)
    assert not capsys.readouterr().err
