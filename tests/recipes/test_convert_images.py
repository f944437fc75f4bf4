"""Conversion recipes from end to end on a few images; what is finished is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")
torchvision = pytest.importorskip("torchvision")

from benchmarks.results import conversion as conversion_results  # noqa: E402
from benchmarks.results.pages import latency, mean_and_deviation, reduction, table  # noqa: E402
from recipes import autoencoder, convert_images, precharge, train_analog  # noqa: E402
from recipes.data.images import load_images  # noqa: E402
from recipes.lib.evaluations import Evaluations, set_poisson_seed  # noqa: E402
from snn_ext import evaluate  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [
    "--train-images", "32", "--test-images", "12", "--batch-size", "16", "--epochs", "1", "--width", "0.0625",
    "--device", "cpu",
]  # fmt: skip
SHORT = [
    "--eval-images", "6", "--poisson-images", "6", "--poisson-steps", "6", "--norm-steps", "6", "--time-steps", "8",
    "--poisson-seeds", "0", "1", "--calibration-images", "8",
]  # fmt: skip


def test_vgg_is_trained_converted_and_reported_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = ["RateCoding Max", "data-norm 99.9 %, pre-charge 0.5"]
    command = ["--model", "vgg16", *TINY, *SHORT, "--methods", *ways, "--out", str(tmp_path)]
    report = convert_images.main(command)
    assert "sample of 32 + 12 images" in report and "CIFAR" not in report and "paper:" not in report
    assert all(f"| {way}" in report for way in ways) and "| Spike-Norm, 8 images" in report
    assert {
        "normalisation.png",
        "depth.png",
        "methods.png",
        "report.md",
        "analog",
        "evaluations",
        "lock",
        "recipe.json",
    } == {path.name for path in tmp_path.iterdir()}
    assert not list((tmp_path / "evaluations").glob("*.pt"))
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    assert convert_images.main(command) == report


def test_every_constraint_is_converted_and_the_second_shares_the_net_of_the_first(tmp_path: Path) -> None:
    command = ["--model", "resnet20", *TINY, *SHORT, "--experiments", "constraints", "--out", str(tmp_path)]
    report = convert_images.main([*command, "--poisson-seeds", "0"])
    for name in ("none (basic)", "constraint 1", "constraint 2", "constraint 3"):
        assert f"| {name} " in report
    assert {path.name for path in tmp_path.glob("analog*")} == {
        "analog", "analog-constraint-0", "analog-constraint-1",
    }  # fmt: skip


def test_image_folder_with_weights_of_torchvision_counts_top_1_and_top_5(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for part in ("train", "val"):
        for name in "abcdef":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            image = torch.randint(0, 256, (3, 40, 36), dtype=torch.uint8)
            torchvision.io.write_jpeg(image, str(tmp_path / "data" / part / name / "0.jpg"))
    net = torchvision.models.resnet18(weights=None, num_classes=6)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    report = convert_images.main([
        "--data", "imagenet", "--data-dir", str(tmp_path / "data"), "--model", "resnet18", "--checkpoint",
        str(tmp_path / "net.pt"), "--image-size", "32", "--experiments", "methods", "--calibration-images", "4",
        "--time-steps", "3", "--methods", "data-norm, maximum", "--out", str(tmp_path / "run"), "--device", "cpu",
    ])  # fmt: skip
    assert "image folder, 6 classes, 6 test images" in report and "ImageNet" not in report
    assert "top-5 (%)" in report
    with pytest.raises(SystemExit, match="nowhere/train: not found"):
        convert_images.main(["--data", "imagenet", "--data-dir", "nowhere", "--model", "resnet18", "--checkpoint",
                             str(tmp_path / "net.pt"), "--out", str(tmp_path / "other")])  # fmt: skip


def test_figures_of_the_paper_stand_only_beside_its_data() -> None:
    for data, figures in (("cifar10-jpeg", ["8.3", "8.45"]), ("fashion-mnist-subset", [])):
        args = convert_images.parse_arguments(["--out", "x", "--data", data])
        assert convert_images._paper(args, "Spike-Norm") == figures
    args = convert_images.parse_arguments(["--out", "x", "--data", "imagenet", "--data-dir", "x"])
    assert convert_images._paper(args, "Spike-Norm") == ["30.04", "10.99"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vgg19"], "--model"),
        (["--experiments", "constraints"], "--experiments: got constraints with vgg16"),
        (["--data", "imagenet"], "--data-dir: got none with --data imagenet"),
        (["--time-steps", "0"], "--time-steps: got 0, want an int >= 1"),
        (["--checkpoint", "nowhere.pt"], "--checkpoint: got nowhere.pt, want a file that exists"),
    ],
)
def test_wrong_argument_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert_images.parse_arguments(["--out", "x", *arguments])
    assert message in capsys.readouterr().err


def test_checkpoint_of_another_net_is_refused(tmp_path: Path) -> None:
    train_analog.main(["--model", "net2", *TINY, "--out", str(tmp_path / "net2")])
    checkpoint = ["--checkpoint", str(tmp_path / "net2" / "last.pt")]
    with pytest.raises(SystemExit, match="with width=0.0625, want 0.125"):
        precharge.main(["--model", "net2", *TINY, "--width", "0.125", *checkpoint, "--out", str(tmp_path / "run")])


def test_paper_presets_are_the_papers() -> None:
    args = convert_images.parse_arguments(["--out", "x", "--preset", "paper", "--batch-size", "128"])
    assert (args.epochs, args.opt, args.lr, args.lr_milestones, args.width) == (200, "sgd", 0.05, [81, 122], 1.0)
    assert (args.poisson_steps, args.norm_steps, args.calibration_images) == (2500, 2500, 256)
    assert args.batch_size == 128 and args.inputs == "centred" and len(args.poisson_seeds) == 5
    args = precharge.parse_arguments(["--out", "x", "--preset", "paper", "--model", "resnet20"])
    assert (args.lr, args.lr_milestones, args.inputs, args.constraint) == (0.1, [82, 123, 164], "unit", 1)
    args = precharge.parse_arguments(["--out", "x", "--preset", "paper"])
    assert (args.opt, args.weight_decay, args.lr_milestones, args.search_steps) == ("adam", 1e-4, [60, 120, 180], 255)
    assert autoencoder.parse_arguments(["--out", "x", "--preset", "paper"]).epochs == 400


def test_precharge_recipe_reports_and_draws_every_figure(tmp_path: Path) -> None:
    report = precharge.main([
        "--model", "net2", *TINY, "--eval-images", "6", "--time-steps", "110", "--max-delay", "20", "--delay-step",
        "10", "--search-images", "4", "--search-steps", "8", "--calibration-images", "16", "--out", str(tmp_path),
    ])  # fmt: skip
    for name in ("pre-charge 0.5", "by layer", "threshold x 0.5", "Regimes of the delay", "Error and latency"):
        assert name in report
    assert "paper: best" not in report
    figures = {path.stem for path in tmp_path.glob("*.png")}
    assert figures == {
        "one_neuron", "rates", "accuracy", "latency", "lowered_threshold", "error", "accuracy_by_layer", "delay",
        "operations", "precharge_by_layer", "correlation_pre-charge_0", "correlation_pre-charge_0.3",
    }  # fmt: skip


def test_autoencoder_rebuilds_the_picture_and_an_interrupted_training_ends_in_the_same_net(tmp_path: Path) -> None:
    command = [
        "--train-images", "32", "--test-images", "64", "--batch-size", "16", "--width", "0.0625", "--epochs", "2",
        "--search-images", "4", "--search-steps", "8", "--eval-tiles", "2", "--time-steps", "101", "--device", "cpu",
    ]  # fmt: skip
    args = autoencoder.parse_arguments([*command, "--out", str(tmp_path)])
    images = autoencoder.padded(load_images("fashion-mnist-subset").first(32, 64), "train")
    assert images.shape == (32, 1, 32, 32)
    whole = autoencoder.train_autoencoder(images, args, tmp_path / "whole.pt").state_dict()
    save, calls = torch.save, []

    def interrupted(*arguments: object) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    torch.save = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            autoencoder.main([*command, "--out", str(tmp_path / "run")])
    finally:
        torch.save = save
    report = autoencoder.main([*command, "--out", str(tmp_path / "run")])
    continued = torch.load(tmp_path / "run" / "autoencoder.pt", weights_only=True)["net"]
    assert all(torch.equal(whole[name], value) for name, value in continued.items())
    assert "| by layer " in report and (tmp_path / "run" / "pictures.png").exists()


def test_tiles_and_pictures_are_inverse() -> None:
    image = torch.rand(3, 64, 96)
    assert autoencoder.tiles(image).shape == (6, 3, 32, 32)
    assert torch.equal(autoencoder.untile(autoencoder.tiles(image), 3), image)


@pytest.mark.parametrize("name", convert_images.METHODS)
def test_every_way_to_convert_approaches_the_analog_net(name: str) -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.rand(64, 6)
    state = {key: value.clone() for key, value in ann.state_dict().items()}
    snn = convert_images.METHODS[name](ann, [(x, torch.zeros(64))])
    error = evaluate(snn, [x], 64, progress=False).mse_at(0)
    assert error[-1] < error[0] / 4
    assert all(torch.equal(state[key], value) for key, value in ann.state_dict().items())


def test_kept_evaluation_is_used_only_with_the_same_settings(tmp_path: Path) -> None:
    made = []

    def make() -> nn.Module:
        made.append(1)
        return nn.Sequential(nn.Linear(2, 3), PCMPIFNode(), nn.Linear(3, 2))

    kept, data = Evaluations(tmp_path), [(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))]
    for settings, count in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2), ({"a": 2}, 2)):
        kept.get("A net, 1 %", settings, make, data, 4, progress=False)
        assert len(made) == count
    assert [path.name for path in tmp_path.iterdir()] == ["a-net-1.json"]
    with pytest.raises(ValueError, match="without a Poisson encoder"):
        set_poisson_seed(make(), 1)


def test_page_holds_the_sections_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"one": (lambda argv: f"### One {' '.join(argv)}\n", "folder", ["--model", "a"])}
    monkeypatch.setattr(conversion_results, "RUNS", runs)
    page = tmp_path / "page.md"
    conversion_results.main(["--out", "runs/x", "--markdown", str(page)])
    assert "## One --model a --seed 0 --out runs/x/folder" in page.read_text()


def test_pictures_name_their_columns_and_rows() -> None:
    from benchmarks.results.conversion_plots import images

    figure = images({"a": [torch.rand(1, 4, 4)] * 2, "b": [torch.rand(3, 4, 4)] * 2}, ["step 1", "analog"], "title")
    assert [axes.get_title() for axes in figure.axes] == ["step 1", "analog", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["a", "", "b", ""]


def test_cells_of_the_tables() -> None:
    assert (latency(None), latency(5, 5), latency(5, 9), latency(5)) == ("-", "5", "5 (9)", "5 (-)")
    assert (reduction(50, 100), reduction(None, 1), reduction(1, None)) == ("50 %", "-", "-")
    assert mean_and_deviation([1.0, 3.0]) == "2.00 ± 1.41" and mean_and_deviation([1.0]) == "1.00"
    assert "| -" in table([[None, 1]], ["a", "b"])
    json.dumps(table([["x"]], ["a"]))
