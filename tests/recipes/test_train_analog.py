"""Analog nets: trainings that start from a trained net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.train_analog import main

TINY = "--model vgg16-bn --width 0.0625 --inputs channels --train-images 64 --test-images 32 --batch-size 32 --epochs 1"


def run(out: Path, *options: str) -> dict[str, Any]:
    return main([*TINY.split(), "--out", str(out), *options])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first")
    run(out)
    return out / "last.pt"


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return {name: value for name, value in found.items() if name.endswith("weight")}


def test_a_training_starts_from_the_weights_and_goes_on_without_the_file(first: Path, tmp_path: Path) -> None:
    net = tmp_path / "net.pt"
    net.write_bytes(first.read_bytes())
    run(tmp_path / "second", "--from", str(net), "--lr", "1e-12", "--wd", "0")
    for name, value in weights(tmp_path / "second" / "last.pt").items():
        torch.testing.assert_close(value, weights(first)[name])
    again = ["--from", str(net), "--opt", "sgd", "--lr-scheduler", "step"]
    run(tmp_path / "third", *again)
    run(tmp_path / "third", *again, "--epochs", "2", "--resume")
    assert not any(torch.equal(w, weights(first)[name]) for name, w in weights(tmp_path / "third" / "last.pt").items())


def test_the_net_that_a_training_starts_from_has_to_be_such_a_net(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as error:
        run(tmp_path / "other", "--from", str(first), "--width", "0.125")
    assert "--from" in capsys.readouterr().err + str(error.value)
    with pytest.raises((SystemExit, ValueError)) as error:
        run(tmp_path / "other", "--from", str(tmp_path / "none.pt"))
    assert "want a file that exists" in capsys.readouterr().err + str(error.value)
