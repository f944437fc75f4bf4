"""``snn-ext convert`` and ``evaluate``: a stranger's net, weights and images in; net, report and figures out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")
safetensors = pytest.importorskip("safetensors.torch")

import snn_ext  # noqa: E402
from snn_ext.command import main  # noqa: E402
from snn_ext.evaluation import Evaluation  # noqa: E402

SOURCE = """
from torch import nn

def net(width=4, channels=1):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 3)
    )

def twin():
    return 3
"""
FILES = {"net.pt", "report.json", "report.txt", "evaluation.json", "evaluation.csv", "evaluation.png", "settings.json"}


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the plot in one test, for it takes longer than all the rest."""
    if "everything" not in request.node.name:
        monkeypatch.setattr(Evaluation, "plot", lambda self, path: Path(path).touch())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a file with a net, its weights in two formats, and the same images in several forms."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "mine.py").write_text(SOURCE, encoding="utf-8")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(SOURCE, names)
    net = names["net"]()
    torch.save(net.state_dict(), folder / "mine.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, folder / "wrapped.pt"
    )
    safetensors.save_file(net.state_dict(), str(folder / "mine.safetensors"))
    draw = np.random.default_rng(0)
    pictures, labels = draw.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    np.savez(folder / "images.npz", images=pictures, labels=labels)
    np.savez(folder / "channels-last.npz", x=pictures[..., None], y=labels)
    np.savez(folder / "floats.npz", images=pictures[:, None] / np.float32(255), labels=labels)
    np.savez(folder / "two.npz", train_images=pictures[:30], test_images=pictures[30:], test_labels=labels[30:])
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        for part in (f"classes/{'abc'[label]}", f"parts/{'train' if i < 30 else 'val'}/{'abc'[label]}", "flat"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([picture] * 3, -1)).save(folder / part / f"{i:02d}.png")
    return folder


def convert(place: Path, out: Path, data: str = "images.npz", *more: str, net: str = "mine.py:net") -> dict[str, Any]:
    words = [f"{place / net}", str(place / data), "--out", str(out), "--calibration-images", "20", "--time-steps", "4"]
    if "--weights" not in more and "--pretrained" not in more:
        words += ["--weights", str(place / "mine.pt")]
    result: dict[str, Any] = main(["convert", *words, *more])
    return result


def test_everything_is_written_and_the_saved_net_gives_the_same_figures(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = convert(place, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert result["images"] == 40 and result["time_steps"] == 4  # those that have not calibrated
    assert "accuracy" in capsys.readouterr().out
    net = snn_ext.load(tmp_path / "out" / "net.pt")
    assert net.notes["net"] == "mine.py:net" and str(place) not in json.dumps(net.notes)
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))[0]["name"] == net.report[0].name

    whole = main(
        ["evaluate", str(tmp_path / "out" / "net.pt"), str(place / "images.npz"), "--out", str(tmp_path / "e")]
    )
    assert whole["images"] == 60 and whole["time_steps"] == 4
    assert {path.name for path in (tmp_path / "e").iterdir()} == {
        name for name in FILES if name.startswith("evaluation")
    }
    part = main(["evaluate", str(tmp_path / "out" / "net.pt"), str(place / "images.npz"), "--images", "10"])
    assert part["images"] == 10


@pytest.mark.parametrize("weights", ["mine.safetensors", "wrapped.pt"])
def test_weights_of_every_form_give_the_same_net(weights: str, place: Path, tmp_path: Path) -> None:
    one, other = (convert(place, tmp_path / w, "images.npz", "--weights", str(place / w)) for w in ("mine.pt", weights))
    assert {**one, "out": ""} == {**other, "out": ""}


def test_images_of_every_form_give_the_same_figures(place: Path, tmp_path: Path) -> None:
    results = [convert(place, tmp_path / d, d) for d in ("images.npz", "channels-last.npz", "floats.npz")]
    for result in results[1:]:
        assert {k: v for k, v in result.items() if k not in ("data", "out")} == {
            k: v for k, v in results[0].items() if k not in ("data", "out")
        }


def test_parts_and_classes_of_folders(place: Path, tmp_path: Path) -> None:
    colour = ("--net-args", "channels=3", "--weights", str(tmp_path / "colour.pt"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    torch.save(net.state_dict(), tmp_path / "colour.pt")
    classes = convert(place, tmp_path / "a", "classes", *colour)
    parts = convert(place, tmp_path / "b", "parts", *colour)
    flat = convert(place, tmp_path / "c", "flat", *colour)
    two = convert(place, tmp_path / "d", "two.npz")
    assert (classes["images"], parts["images"], flat["images"], two["images"]) == (40, 30, 40, 30)
    assert flat["accuracy"] is None and parts["accuracy"] is not None
    assert snn_ext.load(tmp_path / "b" / "net.pt").notes["classes"] == ["a", "b", "c"]
    with torch.no_grad():  # labels are those of the folders
        pixels = np.stack([np.load(place / "images.npz")["images"][30:]] * 3, 1) / np.float32(255)
        right = (net(torch.from_numpy(pixels)).argmax(1) == torch.arange(30, 60) % 3).float().mean()
    assert parts["analog_accuracy"] == pytest.approx(float(right))


def test_scaling_travels_with_the_net(place: Path, tmp_path: Path) -> None:
    scaled = convert(place, tmp_path / "out", "images.npz", "--mean", "0.5", "--std", "0.25")
    assert scaled != convert(place, tmp_path / "plain")
    again = main(["evaluate", str(tmp_path / "out" / "net.pt"), str(place / "images.npz")])
    other = main(["evaluate", str(tmp_path / "out" / "net.pt"), str(place / "images.npz"), "--mean", "0", "--std", "1"])
    assert again["spikes"] != other["spikes"] and again["spikes"] == pytest.approx(scaled["spikes"], rel=0.1)


def test_settings_of_a_run_are_options_of_the_next(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(place, tmp_path / "a", "images.npz", "--method", "data-norm", "--set", "percentile=99", "precharge=0.5")
    settings = str(tmp_path / "a" / "settings.json")
    main(["convert", "--config", settings, "--out", str(tmp_path / "b")])
    for name in ("evaluation.json", "settings.json", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    capsys.readouterr()
    result = main(["--json", "convert", "--config", settings, "--out", str(tmp_path / "c"), "--time-steps", "2"])
    assert json.loads(capsys.readouterr().out) == result and result["time_steps"] == 2


def test_net_of_torchvision_by_name(place: Path, tmp_path: Path) -> None:
    import torchvision

    net = torchvision.models.squeezenet1_1(num_classes=3)
    torch.save(net.state_dict(), tmp_path / "squeeze.pt")
    more = ("--weights", str(tmp_path / "squeeze.pt"), "--image-size", "32", "--images", "4")
    words = ["squeezenet1_1", str(place / "classes"), "--out", str(tmp_path / "out"), "--calibration-images", "8"]
    result = main(["convert", *words, *more, "--method", "data-norm", "--time-steps", "2"])
    assert result["net"] == "squeezenet1_1 of torchvision" and result["images"] == 4
    scaling = snn_ext.load(tmp_path / "out" / "net.pt").notes["scaling"]
    assert scaling["size"] == 32 and scaling["mean"] == [0.485, 0.456, 0.406]  # what that net wants


@pytest.mark.parametrize(
    ("data", "net", "more", "told"),
    [
        ("nothing", "mine.py:net", (), "data: got .*nothing, want a folder of images, an .npz, or one of"),
        ("images.npz", "none.py:net", (), "net: got .*none.py:net, want a file that exists before the colon"),
        ("images.npz", "mine.py:nett", (), "net: got .*mine.py:nett, want a function of that file: net, twin"),
        ("images.npz", "mine.py:twin", (), "net: got .*mine.py:twin, which returns a int, want an nn.Module"),
        ("images.npz", "mine.py:net", ("--net-args", "widht=3"), "--net-args: .* unexpected keyword argument 'widht'"),
        ("images.npz", "mine.py:net", ("--net-args", "width"), "--net-args: got width, want NAME=VALUE"),
        ("images.npz", "mine.py:net", ("--net-args", "width=8"), "--weights: got .*mine.pt, want .*size mismatch"),
        ("images.npz", "mine.py:net", ("--set", "nothing=1"), "--set: nothing: got 1, want an option of Cal"),
        ("images.npz", "mine.py:net", ("--mean", "1", "2"), r"--mean: got \[1.0, 2.0\], want one number, or"),
        ("images.npz", "mine.py:net", ("--pretrained",), "--pretrained: got it with .*mine.py:net"),
        ("classes", "mine.py:net", (), r"data: got images \[3, 8, 8\], which mine.py:net does not take"),
        ("images.npz", "mine.py:net", ("--calibration-images", "60"), "--calibration-images: got 60, want fewer"),
    ],
)  # fmt: skip
def test_wrong_input_is_named_and_nothing_is_written(
    data: str, net: str, more: tuple[str, ...], told: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=told):
        convert(place, tmp_path / "out", data, *more, net=net)
    assert not [*tmp_path.iterdir()]


def test_name_without_weights_or_of_no_net(place: Path, tmp_path: Path) -> None:
    for words, told in (
        (["resnet18"], "--weights: got neither with --pretrained"),
        (["resnett18", "--pretrained"], "net: got resnett18, want a net of torchvision"),
    ):
        with pytest.raises(SystemExit, match=told):
            main(["convert", *words, str(place / "classes"), "--out", str(tmp_path / "out")])


def test_folder_that_holds_something_is_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="--out: got .*, which holds files, want a new folder"):
        convert(place, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_classes_that_are_not_those_of_the_net(place: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(place / "images.npz"))
    np.savez(tmp_path / "two.npz", **arrays, classes=np.array(["a", "b"]))
    words = [f"{place / 'mine.py'}:net", str(tmp_path / "two.npz"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"data: got 2 classes for a net of \[3\] outputs"):
        main(["convert", *words, "--weights", str(place / "mine.pt"), "--calibration-images", "20"])


def test_damaged_weights_and_images_are_named(place: Path, tmp_path: Path) -> None:
    for name, words in (("mine.pt", ["images.npz"]), ("mine.safetensors", ["images.npz"])):
        (tmp_path / name).write_bytes((place / name).read_bytes()[:-50])
        with pytest.raises(SystemExit, match=f"{name}: damaged or not a file of weights"):
            convert(place, tmp_path / "out", *words, "--weights", str(tmp_path / name))
    (tmp_path / "x.npz").write_bytes((place / "images.npz").read_bytes()[:-50])
    with pytest.raises(SystemExit, match="x.npz: damaged or not an .npz of images"):
        main(["convert", f"{place / 'mine.py'}:net", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")])
    broken = tmp_path / "pictures"
    broken.mkdir()
    for i in range(3):
        (broken / f"{i}.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(SystemExit, match="png: got no image that can be read"):
        main(
            [
                "convert",
                f"{place / 'mine.py'}:net",
                str(broken),
                "--out",
                str(tmp_path / "out"),
                "--calibration-images",
                "1",
            ]
        )
