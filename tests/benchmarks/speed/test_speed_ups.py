"""The picture of the benchmark is that of its tables."""

from __future__ import annotations

import pytest

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")
pytest.importorskip("matplotlib")

from benchmarks.speed.cases import Row  # noqa: E402
from benchmarks.speed.contenders import BASELINE  # noqa: E402
from benchmarks.speed.measuring import Ratio  # noqa: E402
from benchmarks.speed.report import read, speed_ups, to_markdown  # noqa: E402

ROWS = [
    Row("inference [4,32,64]", BASELINE, 2.0, "ms", Ratio(1.0, 1.0, 1.0, 1.0)),
    Row("inference [4,32,64]", "operator, cpu", 0.5, "ms", Ratio(3.0, 4.0, 5.0, 4.5)),
    Row("overhead, training", "operator, cpu", 0.5, "us", Ratio(0.5, 0.6, 0.7, 0.65)),
    Row("kept for backward", "operator, cpu", 4.0, "bytes"),
]


def test_tables_are_read_back_as_they_were_written() -> None:
    assert read(to_markdown(ROWS, {"torch": "2"})) == [row for row in ROWS if row.speedup is not None]


def test_each_kind_of_case_has_a_panel_and_each_contender_one_look() -> None:
    figure = speed_ups(ROWS)
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == ["inference", "overhead"]
    (drawn,) = figure.axes[0].containers
    assert drawn.lines[0].get_ydata().tolist() == [4.0]
    colours = {axes.containers[0].lines[0].get_color() for axes in figure.axes[:2]}
    assert len(colours) == 1 and len(figure.legends[0].get_texts()) == 1


def test_a_study_of_few_rows_is_drawn_too() -> None:
    assert speed_ups([]) is not None
