"""C sources of operators with a bug in them, built and put instead of all other implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from snn_ext.ops import registry
from snn_ext.ops.machine import build
from snn_ext.ops.machine.cpu import CpuImplementation
from tests.ops.emulation import replaced

Plant = Callable[[dict[str, str] | None], None]
OPERATORS = {op: found["cpu"] for op, found in registry.IMPLEMENTATIONS.items()}
"""The implementation in C of every operator."""


def in_c(operator: str, changed: dict[str, str] | None = None) -> CpuImplementation:
    """Return the implementation in C, not built yet, with other sources if these are given."""
    real = OPERATORS[operator]
    if isinstance(real, CpuImplementation):
        return type(real)(real._package, real._agreement, changed)
    return type(real)()


def patched(operator: str, old: str, new: str) -> dict[str, str]:
    """Return the sources with a change."""
    sources = in_c(operator).sources()
    changed = {name: text.replace(old, new) for name, text in sources.items()}
    assert changed != sources, f"the source no longer contains {old!r}"
    return changed


@contextmanager
def planting(operator: str, cache: Path) -> Iterator[Plant]:
    """Yield what builds changed sources, without comparing them with torch, and lets nothing else run."""
    with pytest.MonkeyPatch.context() as patch, replaced({}):
        patch.setenv("SNN_EXT_CACHE", str(cache))
        patch.setattr(CpuImplementation, "_agrees_with_torch", lambda *arguments: True)
        patch.setattr(build, "_FLAGS", tuple(f.replace("-O3", "-O1") for f in build._FLAGS))

        def plant(changed: dict[str, str] | None) -> None:
            found = in_c(operator, changed)
            assert found.why_not(torch.device("cpu"), torch.float32) is None
            registry.IMPLEMENTATIONS[operator] = {"cpu": found}

        yield plant
