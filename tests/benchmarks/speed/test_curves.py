"""The study of training curves: trainings that keep less have the very losses of those that keep all."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.speed import curves, memory


def test_nets_that_keep_less_have_the_losses_of_their_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = curves.main(["--steps", "6", "--batch-size", "4", "--picture", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").stat().st_size > 0
    for reference in (memory.HOST, "accelerated", "ATIFuNode"):
        of_reference = [name for name in losses if name.startswith(reference) and name != curves.FUSED]
        assert len(of_reference) > 1
        assert all(losses[name] == losses[reference] for name in of_reference)
    assert losses[curves.FUSED][:2] == pytest.approx(losses["accelerated"][:2], rel=1e-4)
    assert len(set(losses[memory.HOST])) == 6  # a training, no constant
    assert "| accelerated, packed, convolutions too " in capsys.readouterr().out


def test_differences_are_told() -> None:
    losses = {memory.HOST: [1.0, 2.0], "other": [1.0, 1.5], "packed": [1.0, 1.25]}
    rows = curves.differences(losses, {memory.HOST: memory.HOST, "other": "other", "packed": "other"})
    assert [row["largest difference"] for row in rows] == ["0", "0", "0.25"]
    assert [row[f"to {memory.HOST}"] for row in rows] == ["0", "0.5", "0.75"]


def test_more_steps_than_batches_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, ValueError)) as error:
        curves.main(["--steps", "100000"])
    assert "--steps: got 100000, want at most" in capsys.readouterr().err + str(error.value)
