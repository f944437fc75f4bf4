"""Pre-charge from end to end on a few images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("spikingjelly")

from recipes import precharge, train_analog  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402
from recipes.precharge import Options  # noqa: E402

TINY = [
    "--model", "net2", "--train-images", "32", "--test-images", "12", "--batch-size", "16", "--epochs", "1", "--width",
    "0.0625", "--device", "cpu",
]  # fmt: skip
SHORT = [
    "--eval-images", "6", "--time-steps", "30", "--max-delay", "20", "--delay-step", "10", "--search-images", "4",
    "--search-steps", "8", "--calibration-images", "16",
]  # fmt: skip


def test_every_conversion_is_evaluated_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = precharge.main([*TINY, *SHORT, "--out", str(tmp_path)])
    assert {"pre-charge 0", "pre-charge 0.5", "by layer", "threshold x 0.5", "threshold x 0.75"} < set(found)
    assert all(e.delays == (0, 10, 20) for e in found.values()) and (tmp_path / "delay.png").exists()
    printed = capsys.readouterr().out
    assert "pre-charge by layer: " in printed
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    precharge.main([*TINY, *SHORT, "--out", str(tmp_path)])
    assert capsys.readouterr().out == re.sub("epoch 1/1: .*\n", "", printed)  # trained the first time alone


def test_checkpoint_of_another_net_is_refused(tmp_path: Path) -> None:
    train_analog.main([*TINY, "--out", str(tmp_path / "net2")])
    checkpoint = ["--checkpoint", str(tmp_path / "net2" / "last.pt")]
    with pytest.raises(SystemExit, match="with width=0.0625, want 0.125"):
        precharge.main([*TINY, "--width", "0.125", *checkpoint, "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("inputs", ["centred", "channels"])
def test_inputs_less_a_mean_are_refused(inputs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        precharge.main(["--inputs", inputs, "--out", "x"])
    assert f"argument --inputs: got {inputs}, want unit" in capsys.readouterr().err


def test_paper_presets_are_the_papers() -> None:
    options = parse(Options, ["--out", "x", "--preset", "paper", "--model", "resnet20"])
    assert (options.lr, options.lr_milestones, options.inputs) == (0.1, [82, 123, 164], "unit")
    assert (options.constraint, options.time_steps) == (1, 1000)
    options = parse(Options, ["--out", "x", "--preset", "paper"])
    assert (options.opt, options.weight_decay, options.lr_milestones) == ("adam", 1e-4, [60, 120, 180])
    assert options.search_steps == 255
