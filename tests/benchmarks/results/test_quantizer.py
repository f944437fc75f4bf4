"""All figures of the quantiser are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("spikingjelly")

from benchmarks.results.quantizer import main  # noqa: E402


def test_figures_and_numbers_are_written(tmp_path: Path) -> None:
    main(["--iterations", "20", "--no-recorded", "--out", str(tmp_path)])
    assert len(list(tmp_path.glob("figure_?_*.png"))) == 6
    assert (tmp_path / "results.json").stat().st_size > 1000
