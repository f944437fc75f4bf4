"""Conversion of one net by every method, on a few images; finished evaluations are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")
torchvision = pytest.importorskip("torchvision")

import snn_ext  # noqa: E402
from recipes import convert  # noqa: E402
from recipes.convert import METHODS, MethodOptions  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402

TINY = [
    "--train-images", "32", "--test-images", "12", "--batch-size", "16", "--epochs", "1", "--width", "0.0625",
    "--device", "cpu", "--eval-images", "6", "--time-steps", "8", "--calibration-images", "8",
]  # fmt: skip


def test_vgg_is_trained_and_converted_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = ["data-norm, maximum", "data-norm 99.9 %, pre-charge 0.5"]
    command = ["--model", "vgg16", *TINY, "--methods", *ways, "--out", str(tmp_path)]
    found = convert.main(command)
    assert list(found) == ways and all(e.samples == 6 and e.time_steps == 8 for e in found.values())
    printed = capsys.readouterr().out
    assert "sample of 32 + 12 images" in printed and all(f"\n{way} " in printed for way in ways)
    names = {"methods.png", "analog", "evaluations", "lock", "recipe.json"}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert not list((tmp_path / "evaluations").glob("*.pt"))
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    assert [e.to_json() for e in convert.main(command).values()] == [e.to_json() for e in found.values()]


def test_image_folder_with_weights_of_torchvision_counts_top_1_and_top_5(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for part in ("train", "val"):
        for name in "abcdef":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            image = torch.randint(0, 256, (3, 40, 36), dtype=torch.uint8)
            torchvision.io.write_jpeg(image, str(tmp_path / "data" / part / name / "0.jpg"))
    net = torchvision.models.resnet18(weights=None, num_classes=6)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    command = ["--data", "imagenet", "--model", "resnet18", "--checkpoint", str(tmp_path / "net.pt")]
    (evaluation,) = convert.main([
        *command, "--data-dir", str(tmp_path / "data"), "--image-size", "32", "--calibration-images", "4",
        "--time-steps", "3", "--methods", "data-norm, maximum", "--out", str(tmp_path / "run"), "--device", "cpu",
    ]).values()  # fmt: skip
    assert evaluation.top == (1, 5) and evaluation.samples == 6
    with pytest.raises(SystemExit, match="nowhere/train: not found"):
        convert.main([*command, "--data-dir", "nowhere", "--out", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vgg19"], "--model"),
        (["--data", "imagenet"], "--data-dir: got none with --data imagenet"),
        (["--time-steps", "0"], "--time-steps: got 0, want an int >= 1"),
        (["--checkpoint", "nowhere.pt"], "--checkpoint: got nowhere.pt, want a file that exists"),
        (["--methods", "magic"], "--methods"),
    ],
)
def test_wrong_argument_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert.main(["--out", "x", *arguments])
    assert message in capsys.readouterr().err


def test_paper_preset_is_the_paper() -> None:
    options = parse(MethodOptions, ["--out", "x", "--preset", "paper", "--batch-size", "128"])
    assert (options.epochs, options.opt, options.lr, options.lr_milestones) == (200, "sgd", 0.05, [81, 122])
    assert (options.batch_size, options.inputs, options.width) == (128, "centred", 1.0)
    assert (options.calibration_images, options.eval_images) == (256, None)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_approaches_the_analog_net(name: str) -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.rand(64, 6)
    state = {key: value.clone() for key, value in ann.state_dict().items()}
    snn = snn_ext.convert(ann, [(x, torch.zeros(64))], **METHODS[name])
    error = snn_ext.evaluate(snn, [x], 64, progress=False).mse_at(0)
    assert error[-1] < error[0] / 4
    assert all(torch.equal(state[key], value) for key, value in ann.state_dict().items())
