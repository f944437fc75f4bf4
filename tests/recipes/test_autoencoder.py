"""The autoencoder from end to end on a few images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("spikingjelly")

from recipes import autoencoder  # noqa: E402
from recipes.autoencoder import Options  # noqa: E402
from recipes.data.images import load_images  # noqa: E402
from recipes.data.pictures import padded, tiles, untile  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402
from recipes.lib.reconstruction import train_autoencoder  # noqa: E402

TINY = [
    "--train-images", "32", "--test-images", "64", "--batch-size", "16", "--width", "0.0625", "--epochs", "2",
    "--search-images", "4", "--search-steps", "8", "--eval-tiles", "2", "--time-steps", "101", "--device", "cpu",
]  # fmt: skip


def test_an_interrupted_training_ends_in_the_same_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse(Options, [*TINY, "--out", str(tmp_path)])
    images = padded(load_images("fashion-mnist-subset").first(32, 64), "train")
    assert images.shape == (32, 1, 32, 32)
    whole = train_autoencoder(images, options, tmp_path / "whole.pt").state_dict()
    save, calls = torch.save, []

    def interrupted(*arguments: object) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", interrupted)
        autoencoder.main([*TINY, "--out", str(tmp_path / "run")])
    found = autoencoder.main([*TINY, "--out", str(tmp_path / "run")])
    continued = torch.load(tmp_path / "run" / "autoencoder.pt", weights_only=True)["net"]
    assert all(torch.equal(whole[name], value) for name, value in continued.items())
    assert set(found) == {"no pre-charge", "pre-charge 0.3", "by layer"} and (tmp_path / "run" / "error.png").exists()
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    again = autoencoder.main([*TINY, "--out", str(tmp_path / "run")])
    assert [e.to_json() for e in again.values()] == [e.to_json() for e in found.values()]


def test_tiles_and_pictures_are_inverse() -> None:
    image = torch.rand(3, 64, 96)
    cut = tiles(image)
    assert cut.shape == (6, 3, 32, 32) and torch.equal(cut[1], image[:, :32, 32:64])
    assert torch.equal(untile(cut, 3), image)


def test_paper_preset_is_the_paper() -> None:
    options = parse(Options, ["--out", "x", "--preset", "paper"])
    assert (options.epochs, options.lr, options.milestones) == (400, 1e-3, [120, 240, 360])
