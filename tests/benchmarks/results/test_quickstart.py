"""The study of the quickstart: several seeds become one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("spikingjelly")

from benchmarks.results import quickstart as study  # noqa: E402

TINY = [
    "--epochs", "1", "--fine-tune-epochs", "1", "--train-images", "64", "--test-images", "20", "--conversion-images",
    "4", "--conversion-steps", "6", "--calibration-images", "16", "--time-steps", "2",
]  # fmt: skip
VARIANTS = ["ReLU", "IF, threshold 1", "ATIF-u", "ATIF-nu", "ATIF-u, pre-charged"]


def test_page_has_mean_and_spread_over_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RateCoding Max", "data-norm 99.9 %, pre-charge 0.5")
    monkeypatch.setattr(study, "CONVERSIONS", names)
    arguments: list[Any] = []
    write = study.page
    monkeypatch.setattr(study, "page", lambda *given: arguments.extend(given) or write(*given))
    page = tmp_path / "docs" / "page.md"
    study.main([*TINY, "--seeds", "0", "1", "--out", str(tmp_path / "run"), "--markdown", str(page)])
    torch.use_deterministic_algorithms(False)
    text, content = page.read_text(), json.loads((tmp_path / "run" / "results.json").read_text())
    runs = content["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    low, high = (f(100 * run["rows"][0]["after"]["accuracy"] for run in runs) for f in (min, max))
    assert f"{(low + high) / 2:.2f} ({low:.2f}..{high:.2f})" in text
    assert all(f"| {name} " in text for name in (*VARIANTS, *names)) and str(tmp_path) not in text
    assert "    python -m benchmarks.results.quickstart --seeds 0 1 --time-steps 2" in text
    assert content["setting"]["machine"]["cpus"] >= 1 and content["setting"]["versions"]["torch"] == torch.__version__
    assert len(list((tmp_path / "run").glob("*.png"))) == 4
    assert content["conversions"][names[0]]["time_steps"] == 6

    rows, found, setting, options = arguments
    options.seeds = [3]
    text = write(rows[:1], found, setting, options)  # of one seed alone: no mean, no spread
    assert f"| {100 * runs[0]['rows'][0]['after']['accuracy']:.2f} " in text and "Seed 3." in text
    assert ".." not in text.split("- swapped")[0] and "benchmarks.results.quickstart --seeds 3 --time-steps 2" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1", "1"], "--seeds: got 1 1, want different ones"),
        (["--markdown", "{folder}"], "--markdown: got {folder}, want a file: it is a folder"),
    ],
)
def test_wrong_argument_is_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        study.main([argument.format(folder=tmp_path) for argument in arguments])
    assert message.format(folder=tmp_path) in capsys.readouterr().err
