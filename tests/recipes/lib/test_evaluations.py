"""Kept evaluations are used only with the settings that they were made with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from recipes.lib.evaluations import Evaluations  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402


def test_kept_evaluation_is_used_only_with_the_same_settings(tmp_path: Path) -> None:
    made = []

    def make() -> nn.Module:
        made.append(1)
        return nn.Sequential(nn.Linear(2, 3), PCMPIFNode(), nn.Linear(3, 2))

    kept, data = Evaluations(tmp_path), [(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))]
    for settings, count in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2), ({"a": 2}, 2)):
        kept.get("A net, 1 %", settings, make, data, 4, progress=False)
        assert len(made) == count
    assert [path.name for path in tmp_path.iterdir()] == ["a-net-1.json"]
