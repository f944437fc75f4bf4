"""An operator's folder says which implementations there are."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snn_ext.ops import implementation, registry
from snn_ext.ops.asn_transfer.operator import OP, agreement_case
from snn_ext.ops.asn_transfer.torch import TorchImplementation
from snn_ext.ops.machine.folder import register_operator
from tests.ops.emulation import replaced

SOURCES = Path(sys.modules["snn_ext.ops.asn_transfer"].__file__ or "").parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield an empty folder that can be imported as a package."""
    path = tmp_path / "operator_without_sources"
    path.mkdir()
    (path / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop(path.name, None)


@pytest.mark.parametrize("sources", [[], ["cpu.c", "step.h"], ["cpu.c", "cuda.cu", "step.h"]], ids=len)
def test_an_implementation_is_there_if_its_source_is(folder: Path, sources: list[str]) -> None:
    for name in sources:
        shutil.copy(SOURCES / name, folder)
    want = {"torch"} | ({"cpu"} if "cpu.c" in sources else set())
    want |= {"cuda-cupy", "cuda-nvrtc"} if "cuda.cu" in sources else set()
    with replaced({OP.name: {}}):
        register_operator(folder.name, OP, TorchImplementation(), agreement_case)
        assert set(registry.IMPLEMENTATIONS[OP.name]) == want
        found = implementation(OP.name, "cpu")
        missing = "it is not part of this version"
        assert {name for name, reason in found.unavailable.items() if reason == missing} == {*registry.NAMES} - want
