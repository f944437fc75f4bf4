"""The blocks of a page that promises it run one after the other as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


NEEDS = {"deployment.md": ("onnx", "onnxruntime", "onnxscript", "nir")}
"""Packages beside those of the other tests, by page."""


@pytest.mark.parametrize("page", ["quantised-twin.md", "deployment.md"])
def test_blocks_of_the_page_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert "nan" not in capsys.readouterr().out
