"""Trained nets that come along: written from a run, loaded by name, and taken by the recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("spikingjelly")

from recipes import convert, train_analog  # noqa: E402
from recipes.data.images import load_images  # noqa: E402
from recipes.makers import shipped_net  # noqa: E402
from recipes.models import trained  # noqa: E402
from recipes.models.trained import SHIPPED, load_shipped, shipped_file  # noqa: E402

TINY = [
    "--train-images", "64", "--test-images", "12", "--batch-size", "16", "--epochs", "1", "--width", "0.125",
    "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_analog.main(["--model", "resnet20-bn", "--inputs", "channels", *TINY, "--out", str(folder / "run")])
    return folder / "run"


def test_file_states_the_accuracy_of_the_weights_that_it_has(run: Path, tmp_path: Path) -> None:
    accuracy = shipped_net.pack(run, tmp_path / "net.pt")
    found = shipped_file(tmp_path / "net.pt")
    images, labels = load_images("fashion-mnist-subset").test
    with torch.no_grad():
        logits = found.net(images.float() / 255 - found.mean[:, None, None])
    assert found.accuracy == accuracy == int((logits.argmax(1) == labels).sum()) / 2000
    assert (found.name, found.size, found.classes[0]) == ("net", 28, "T-shirt/top") and not found.net.training
    weights = [value for value in torch.load(tmp_path / "net.pt")["model"].values() if value.is_floating_point()]
    assert all(value.dtype == torch.float16 for value in weights)


def test_recipe_takes_a_net_by_its_name_and_needs_no_other_option(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = shipped_net.pack(run, tmp_path / "tiny.pt")
    monkeypatch.setitem(SHIPPED, "tiny", tmp_path / "tiny.pt")
    (evaluation,) = convert.main([
        "--checkpoint", "tiny", "--methods", "calibrated for T = 4", "--time-steps", "4", "--calibration-images", "8",
        "--eval-images", "2000", "--out", str(tmp_path / "out"), "--device", "cpu",
    ]).values()  # fmt: skip
    assert evaluation.analog_accuracy == pytest.approx(accuracy, abs=2e-3)  # another order of additions


def test_what_cannot_be_shipped_or_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name: got 'lenet', want one of resnet20-cifar10-jpeg"):
        load_shipped("lenet")
    train_analog.main(["--model", "resnet20-bn", *TINY, "--out", str(tmp_path / "centred")])
    with pytest.raises(ValueError, match="run: got one with --inputs centred, want --inputs channels"):
        shipped_net.pack(tmp_path / "centred", tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()
    (tmp_path / "net.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"net\.pt"):
        shipped_file(tmp_path / "net.pt")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_net_is_small_and_states_what_it_was_trained_on(name: str) -> None:
    found = trained.load_shipped(name)
    assert sum(path.stat().st_size for path in SHIPPED.values()) < 2.6e6
    assert found.settings["data"] == "cifar10-jpeg" and found.accuracy > 0.85 and len(found.classes) == 10
    with torch.no_grad():
        assert found.net(torch.rand(2, 3, 32, 32) - found.mean[:, None, None]).shape == (2, 10)
