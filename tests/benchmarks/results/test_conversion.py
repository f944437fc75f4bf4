"""The studies of conversion from end to end on a few images, and their page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")
pytest.importorskip("torchvision")

import snn_ext  # noqa: E402
from benchmarks.results import autoencoder, calibrated, conversion, methods, normalisation, precharge, rivals  # noqa: E402
from benchmarks.results.conversion_plots import images  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402

TINY = [
    "--train-images", "32", "--test-images", "12", "--batch-size", "16", "--epochs", "1", "--width", "0.0625",
    "--device", "cpu", "--calibration-images", "8", "--eval-images", "6", "--time-steps", "8",
]  # fmt: skip
POISSON = ["--poisson-images", "6", "--poisson-steps", "6", "--norm-steps", "6", "--poisson-seeds", "0"]


def test_methods_and_normalisation_share_a_net_and_compute_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = ["RateCoding Max", "data-norm 99.9 %, pre-charge 0.5"]
    command = ["--model", "vgg16", *TINY, "--out", str(tmp_path)]
    commands = [(methods.main, [*command, "--methods", *ways]), (normalisation.main, [*command, *POISSON, "1"])]
    reports = [main(arguments) for main, arguments in commands]
    assert all(f"| {way}" in reports[0] for way in ways) and "| Spike-Norm, 8 images" in reports[1]
    for report in reports:
        assert "sample of 32 + 12 images" in report and "CIFAR" not in report and "paper:" not in report
    assert {path.name for path in tmp_path.iterdir()} == {
        "normalisation.png", "depth.png", "methods.png", "report.md", "analog", "evaluations", "lock", "recipe.json",
    }  # fmt: skip
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    assert [main(arguments) for main, arguments in commands] == reports


def test_every_constraint_is_converted_and_the_second_shares_the_net_of_the_first(tmp_path: Path) -> None:
    command = ["--experiment", "constraints", "--model", "resnet20", *TINY, *POISSON, "--out", str(tmp_path)]
    report = normalisation.main(command)
    for name in ("none (basic)", "constraint 1", "constraint 2", "constraint 3"):
        assert f"| {name} " in report
    assert {path.name for path in tmp_path.glob("analog*")} == {
        "analog", "analog-constraint-0", "analog-constraint-1",
    }  # fmt: skip


def test_constraints_want_a_residual_net(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        normalisation.main(["--experiment", "constraints", "--out", "x"])
    assert "--experiment: got constraints with vgg16" in capsys.readouterr().err


def test_figures_of_the_paper_stand_only_beside_its_data() -> None:
    for data, figures in (("cifar10-jpeg", ["8.3", "8.45"]), ("fashion-mnist-subset", [])):
        options = parse(normalisation.Options, ["--out", "x", "--data", data])
        assert normalisation._paper(options, "Spike-Norm") == figures
    options = parse(normalisation.Options, ["--out", "x", "--data", "imagenet", "--data-dir", "x"])
    assert normalisation._paper(options, "Spike-Norm") == ["30.04", "10.99"]
    options = parse(normalisation.Options, ["--out", "x", "--preset", "paper"])
    assert (options.poisson_steps, options.norm_steps, len(options.poisson_seeds)) == (2500, 2500, 5)


def test_a_net_without_a_poisson_encoder_has_no_seed() -> None:
    with pytest.raises(ValueError, match="without a Poisson encoder"):
        normalisation.set_poisson_seed(nn.Sequential(nn.Linear(2, 3), PCMPIFNode()), 1)


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_every_rival_approaches_the_analog_net(name: str) -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.rand(64, 6)
    state = {key: value.clone() for key, value in ann.state_dict().items()}
    snn = rivals.convert(ann, [(x, torch.zeros(64))], **rivals.RIVALS[name])
    error = snn_ext.evaluate(snn, [x], 64, progress=False).mse_at(0)
    assert error[-1] < error[0] / 4
    assert all(torch.equal(state[key], value) for key, value in ann.state_dict().items())


def test_precharge_reports_and_draws_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(precharge.SNAPSHOTS, "net2", (4, 8))
    monkeypatch.setattr(precharge, "one_neuron", partial(precharge.one_neuron, time_steps=16, activations=32))
    report = precharge.main([
        "--model", "net2", *TINY, "--time-steps", "12", "--max-delay", "4", "--delay-step", "2", "--search-images",
        "4", "--search-steps", "4", "--out", str(tmp_path),
    ])  # fmt: skip
    for name in ("pre-charge 0.5", "by layer", "threshold x 0.5", "Regimes of the delay", "Error and latency"):
        assert name in report
    assert "paper: best" not in report
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        "one_neuron", "rates", "accuracy", "latency", "lowered_threshold", "error", "accuracy_by_layer", "delay",
        "operations", "precharge_by_layer", "correlation_pre-charge_0", "correlation_pre-charge_0.3",
    }  # fmt: skip


def test_autoencoder_reports_and_draws_the_pictures(tmp_path: Path) -> None:
    report = autoencoder.main([
        "--train-images", "32", "--test-images", "64", "--batch-size", "16", "--width", "0.0625", "--epochs", "1",
        "--search-images", "4", "--search-steps", "8", "--eval-tiles", "2", "--time-steps", "101", "--device", "cpu",
        "--out", str(tmp_path),
    ])  # fmt: skip
    assert "| by layer " in report
    assert {path.stem for path in tmp_path.glob("*.png")} == {"pictures", "error", "delay"}


def test_rates_are_counted_from_the_delay_on() -> None:
    torch.manual_seed(0)
    snn = nn.Sequential(nn.Linear(3, 3), PCMPIFNode())
    x = torch.rand(4, 3)
    with torch.no_grad():
        spikes = torch.stack([snn(x) for _ in range(9)])
    snn[1].reset()
    found = autoencoder.rates(snn, x, [2, 4, 9], delay=4, batch=3)
    assert torch.equal(torch.stack(found), torch.stack([torch.zeros(4, 3)] * 2 + [spikes[4:].mean(0)]))


def test_page_holds_the_sections_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"one": (lambda argv: f"### One {' '.join(argv)}\n", "folder", ["--model", "a"])}
    monkeypatch.setattr(conversion, "RUNS", runs)
    page = tmp_path / "page.md"
    conversion.main(["--out", str(tmp_path / "x"), "--markdown", str(page)])
    assert f"## One --model a --seed 0 --out {tmp_path}/x/folder" in page.read_text()


def test_pictures_name_their_columns_and_rows() -> None:
    figure = images({"a": [torch.rand(1, 4, 4)] * 2, "b": [torch.rand(3, 4, 4)] * 2}, ["step 1", "analog"], "title")
    assert [axes.get_title() for axes in figure.axes] == ["step 1", "analog", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["a", "", "b", ""]


def test_calibrated_reports_every_way_and_number_of_steps_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = TINY[: TINY.index("--time-steps")]
    ways = ["calibrated", "data-norm 99 % per channel, pre-charge 0.5", "RateCoding Max"]
    command = ["--model", "small-cnn", *tiny, "--seeds", "0", "1", "--steps", "2", "4", "--out", str(tmp_path)]
    report = calibrated.main([*command, "--ways", *ways])
    assert all(f"| {way}" in report for way in ways) and "| T = 2" in report and "Seed 0 1" in report
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    assert calibrated.main([*command, "--ways", *ways]) == report
