"""The study of kept memory: what lives is counted once, and a small net goes through all contenders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import nn

from benchmarks.speed import memory


def tiny(node: type[nn.Module]) -> nn.Module:
    def block(channels: int) -> nn.Module:
        convolution = layer.Conv2d(channels, 8, 3, padding=1, bias=False)
        return memory.Block(convolution, layer.BatchNorm2d(8), node(v_reset=None))

    pool, head = layer.AdaptiveAvgPool2d(1), layer.Linear(8, 10)
    return nn.Sequential(block(3), block(8), block(8), pool, layer.Flatten(), head)


def test_only_what_was_made_and_lives_is_counted_and_once() -> None:
    before = torch.rand(1000)
    with memory.living() as bytes_of:
        kept = before + 1
        views = kept.view(10, 100), kept[:5], before.view(10, 100), before.add_(1)
        dropped = kept * 2
        del dropped
    assert bytes_of() == 4000
    del kept, views
    assert bytes_of() == 0


def test_every_contender_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "NETS", {"tiny": (tiny, memory.Block)})
    out = tmp_path / "memory.json"
    memory.main(["--batch-size", "2", "--rounds", "1", "--out", str(out)])
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert {row["case"] for row in rows} == {"tiny, T = 4, float32", "tiny, T = 4, bfloat16"}
    assert all(row["gradients"] == "the same bits" for row in rows)
    for case in ("float32", "bfloat16"):
        share = {row[""]: float(row["share"]) for row in rows if case in row["case"]}
        assert share[memory.HOST] == 1.0
        for name in (memory.HOST, "accelerated", "ATIFuNode"):
            assert share[f"{name}, packed"] < 0.9 * share[name]
        for name in ("accelerated", "ATIFuNode"):
            assert share[f"{name}, packed, norms computed again"] < 0.9 * share[f"{name}, packed"]
            assert share[f"{name}, packed, convolutions too"] < 0.5 * share[f"{name}, packed, norms computed again"]
    assert "time of a step" in capsys.readouterr().out


def test_contenders_are_chosen_with_those_that_they_are_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "NETS", {"tiny": (tiny, memory.Block)})
    out = tmp_path / "memory.json"
    memory.main(["--contenders", "ATIFuNode, packed, conv", "--cases", "float32", "--out", str(out)])
    names = [row[""] for row in json.loads(out.read_text("utf-8"))["rows"]]
    assert names == [memory.HOST, "ATIFuNode", "ATIFuNode, packed, convolutions too"]
