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


def test_nets_of_timm_are_left_out_with_a_note_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(any_cnn, "find_spec", lambda name: None)
    assert [kind for kind, _ in any_cnn.names(["resnet18"])] == ["classification"]
    assert f"timm is not installed: its {len(any_cnn.TIMM)} nets are left out" in capsys.readouterr().out


def test_nets_of_one_name_in_torchvision_and_timm_are_kept_apart(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    assert len(set(any_cnn.TIMM)) == 63 and set(any_cnn.TIMM) <= set(timm.list_models())
    options = ["--nets", "resnet18", "--measured", "1", "--size", "32", "--out", str(tmp_path)]
    first, second = any_cnn.main(options), any_cnn.main(options)
    assert [row.kind for row in first] == ["classification", "timm"] and first == second
