"""Crossings of a level, and files of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("spikingjelly")

from snn_ext import evaluate  # noqa: E402
from snn_ext.evaluation import Evaluation, first_crossing, last_crossing  # noqa: E402
from tests.evaluation.nets import T, batches, small_net  # noqa: E402


def test_crossings_first_and_last_and_none() -> None:
    curve = torch.tensor([torch.nan, 0.5, 0.9, 0.7, 0.9, 0.9])
    assert (first_crossing(curve, 0.9), last_crossing(curve, 0.9)) == (3, 5)
    assert (first_crossing(curve, 0.5), last_crossing(curve, 0.5)) == (2, 2)
    assert (first_crossing(curve, 0.95), last_crossing(curve, 0.95)) == (None, None)
    assert (first_crossing(torch.ones(3), 1.0), last_crossing(torch.ones(3), 1.0)) == (1, 1)
    assert last_crossing(torch.tensor([1.0, 0.0]), 0.5) is None


def test_first_step_of_a_small_error_counts_though_the_error_grows_again() -> None:
    found = evaluate(small_net(), batches(), T, progress=False)
    found.mse = torch.linspace(1.0, 0.1, T).repeat(1, 1)
    found.mse[0, 2], found.mse[0, 3] = 0.3, 2.0
    assert (found.steps_to_mse(0.3), found.steps_to_mse(0.1), found.steps_to_mse(0.05)) == (3, T, None)


def test_one_line_tells_accuracy_latency_and_cost_of_the_last_step() -> None:
    found = evaluate(small_net(), batches(), T, progress=False)
    found.correct = torch.full_like(found.correct, 0.25)
    found.correct[..., -1], found.analog_correct = 0.5, (0.5,)
    assert repr(found) == (
        f"Evaluation({found.samples} samples, T = {T}, 50.00% (analog 50.00%), latency {found.latency}, "
        f"{found.spikes[-1]:,.0f} spikes and {found.synops[-1]:,.0f} SynOps a sample)"
    )
    assert found.spikes[-1] > found.spikes[0]


def test_json_holds_everything_and_csv_a_line_a_step(tmp_path: Path) -> None:
    found = evaluate(small_net(), batches(), T, delay=(0, 3), correlation_steps=(4,), top=(1, 2), progress=False)
    again = Evaluation.from_json(found.to_json(tmp_path / "evaluation.json"))
    assert again.to_json() == found.to_json() == (tmp_path / "evaluation.json").read_text().strip()
    assert again.latency == found.latency and again.layers[0].correlation == found.layers[0].correlation
    json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found.to_csv(tmp_path / "evaluation.csv")
    with open(tmp_path / "evaluation.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == T and float(rows[-1]["top1_delay0"]) == float(found.accuracy[-1])
    assert float(rows[-1]["synops"]) == float(found.synops[-1])


def test_changed_digit_of_a_result_is_noticed() -> None:
    text = evaluate(small_net(), batches(), T, progress=False).to_json()
    digits = [place for place, sign in enumerate(text[: text.index("sha256")]) if sign in "1234"]
    for place in digits[:: max(1, len(digits) // 100)]:
        with pytest.raises(ValueError, match=r"text: damaged or not what Evaluation\.to_json wrote; evaluate again"):
            Evaluation.from_json(f"{text[:place]}{int(text[place]) + 1}{text[place + 1 :]}")
    for other in ("", "{}", "[]", "null", text[:-1], text.replace("sha256", "sha255"), "[" * 10_000):
        with pytest.raises(ValueError, match="evaluate again"):
            Evaluation.from_json(other)
