"""Cells of the pages, and the commands that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("spikingjelly")

from benchmarks.results import adsnn_images, precharge  # noqa: E402
from benchmarks.results.pages import command_line, latency, mean_and_deviation, reduction, spread, table  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402


def test_cells_of_the_tables() -> None:
    assert (latency(None), latency(5, 5), latency(5, 9), latency(5)) == ("-", "5", "5 (9)", "5 (-)")
    assert (reduction(50, 100), reduction(None, 1), reduction(1, None)) == ("50 %", "-", "-")
    assert mean_and_deviation([1.0, 3.0]) == "2.00 ± 1.41" and mean_and_deviation([1.0]) == "1.00"
    assert spread([1.0, 3.0], 1) == "2.0 (1.0..3.0)" and spread([1.0], 1) == "1.0"
    assert "| -" in table([[None, 1]], ["a", "b"])


@pytest.mark.parametrize(
    ("module", "arguments", "told"),
    [
        (precharge, "--model net2 --preset paper --epochs 250", "--preset paper --model net2"),  # 250 is the preset's
        (precharge, "--model net1 --no-flip --lr-milestones 2 3 --wd 0.5", "--weight-decay 0.5 --lr-milestones 2 3"),
        (adsnn_images, "--data digits --taus --flip --relu-seeds", "--relu-seeds --taus --data digits --flip"),
    ],
)
def test_a_page_names_the_command_that_makes_the_same_options(module, arguments: str, told: str) -> None:
    options = parse(module.Options, [*arguments.split(), "--out", "a b"])
    line = command_line(options).removeprefix(f"python -m {module.__name__} ")
    assert sorted(line.split()) == sorted(told.split())
    assert vars(parse(module.Options, [*line.split(), "--out", "a b"])) == vars(options) and options.out == Path("a b")
