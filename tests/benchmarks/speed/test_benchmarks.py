"""The machinery of the benchmarks; no test depends on a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from benchmarks.speed import cases, report
from benchmarks.speed import operators as runner
from benchmarks.speed.contenders import BASELINE, hosts, ours
from benchmarks.speed.measuring import Timing, kept_bytes, measure, ratio


def test_contenders_take_turns() -> None:
    turns: list[str] = []
    timings = measure({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=3)
    assert all(set(turns[i : i + 2]) == {"a", "b"} for i in range(0, 10, 2)) and len(turns) == 10
    assert len(timings["a"].seconds) == 3


def test_ratio_is_taken_round_by_round() -> None:
    found = ratio(Timing((1.0, 10.0, 100.0)), Timing((1.0, 5.0, 10.0)))
    assert (found.median, found.best) == (2.0, 1.0)


def test_kept_bytes_counts_a_storage_once() -> None:
    x = torch.rand(10, requires_grad=True)
    assert kept_bytes(lambda: x * x) == 40
    assert kept_bytes(lambda: (x * 2).exp()) == 40
    assert kept_bytes(lambda: x + 1) == 0


def test_contenders_give_the_same_spikes_on_a_grid() -> None:
    x_seq = torch.randint(-10, 21, (6, 50)) / 16 + 1 / 256  # no ties: the hosts break them differently
    want = hosts()[BASELINE].infer(x_seq)
    for name, contender in {**hosts(), **ours()}.items():
        assert torch.equal(contender.infer(x_seq), want), name


def test_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "correct", lambda: True)
    monkeypatch.setitem(cases.CASES, "tiny", cases.inference((2, 10), {"operator, torch": 1e9}, 2.5))
    assert runner.main(["--cases", "tiny", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"benchmarks.{s}" for s in ("json", "md", "png")}
    data = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {"torch", "processor", "seed", "rounds"} <= set(data["about"])
    assert [row["met"] for row in data["rows"] if row["contender"] == "operator, torch"] == [False]
    assert "| operator, torch" in (tmp_path / "benchmarks.md").read_text()


def test_nothing_is_measured_when_the_operators_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "correct", lambda: False)
    assert runner.main(["--quick", "--out", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


def test_cases_are_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--list"]) == 0
    assert set(capsys.readouterr().out.splitlines()) == set(cases.CASES)
    assert runner.main(["--cases", "no such case"]) == 2
    assert set(cases.CASES) > cases.QUICK


def test_quick_cases_that_time_nothing_run() -> None:
    rows = cases.kept(cases.Settings(rounds=2))
    ours_kept = [row for row in rows if row.demand]
    assert ours_kept and all(row.met for row in ours_kept)
    assert report.to_markdown(rows, {"seed": 0}).startswith("Measured with seed 0.")


def test_conversion_is_measured_against_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.speed import conversion

    out = tmp_path / "new" / "conversion.json"
    options = ["--unchecked", "--rounds", "1", "--width", "0.05", "--cases", "simulation", "--out", str(out)]
    assert conversion.main(options) == 0
    rows = json.loads(out.read_text())
    assert [row["wanted"] for row in rows] == [3.0, 2.0, 1.6] and all(row["times as fast"] > 0 for row in rows)
    assert "simulate, N = 16" in capsys.readouterr().out
