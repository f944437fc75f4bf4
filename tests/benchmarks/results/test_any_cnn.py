"""The study of all nets of torchvision, on two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("spikingjelly")
pytest.importorskip("torchvision")

from benchmarks.results import any_cnn  # noqa: E402


def test_nets_are_measured_or_refused_and_kept_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, out = tmp_path / "page.md", str(tmp_path / "run")
    options = ["--nets", "squeezenet1_1", "mobilenet_v3_small", "vit_h_14", "--time-steps", "2", "4", "--size", "32"]
    rows = {row.name: row for row in any_cnn.main([*options, "--out", out, "--markdown", str(page)])}
    good, bad = rows["squeezenet1_1"], rows["mobilenet_v3_small"]
    assert len(good.errors) == 2 and good.limit is not None and good.limit < 1e-3 and good.reason is None
    assert not bad.errors and "Hardswish, 19 times (first: features.0.2;" in str(bad.reason)
    assert "more than 150 million parameters" in str(rows["vit_h_14"].reason)
    text = page.read_text(encoding="utf-8")
    assert (
        "| squeezenet1_1 " in text
        and "| mobilenet_v3_small " in text
        and "| classification | 1         | 3    |" in text
    )
    monkeypatch.setattr(any_cnn, "tried", None)
    assert {row.name: row for row in any_cnn.main([*options, "--out", out])} == rows
