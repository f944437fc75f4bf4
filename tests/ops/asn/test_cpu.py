"""Bugs planted in the native kernels of the adaptive neuron have to be caught by the checks."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from snn_ext.ops import adaptive_native, build, selection
from snn_ext.ops.adaptive_native import AdaptiveNativeExecution
from snn_ext.ops.native_execution import kernel_sources
from tests.ops.adaptive_checks import STEP_BUGS, check_all

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")

BUGS = STEP_BUGS | {
    "one constant for all neurons": ("if (uniform) return c->same;", "return (adaptive_constants){*c->rows};"),
    "wrong checkpoint": ("checkpoints + ((segment - 1) * STATES + k)", "checkpoints + (0 * STATES + k)"),
    "tail elements missing": ("forward_block(b, (int)(N - b < BLOCK ? N - b :",
                              "forward_block(b, (int)(N - b < BLOCK ? (N - b) / 8 * 8 :"),
    "gradient of the bias of the last step only": ("g_bias[i] += adaptive_step", "g_bias[i] = adaptive_step"),
}  # fmt: skip


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Build the kernels from changed text, put them in the place of the native execution and force it."""

    def replace(sources: dict[str, str]) -> AdaptiveNativeExecution:
        execution = AdaptiveNativeExecution(sources)
        mapping = {"adaptive_spiking": {"cpu-native": execution}}
        monkeypatch.setattr(selection, "EXECUTIONS", MappingProxyType(mapping))
        return execution

    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    monkeypatch.setattr(adaptive_native, "adaptive_agrees_with_torch", lambda *arguments: True)
    monkeypatch.setattr(build, "_FLAGS", tuple(f.replace("-O3", "-O1") for f in build._FLAGS))
    selection._select.cache_clear()
    yield replace
    selection._select.cache_clear()


def patched(old: str, new: str) -> dict[str, str]:
    sources = kernel_sources("adaptive_cpu.c")
    changed = {name: text.replace(old, new) for name, text in sources.items()}
    assert changed != sources, f"the source no longer contains {old!r}"
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str, plant) -> None:
    assert plant(patched(*BUGS[bug])).why_not(torch.device("cpu"), torch.float32) is None
    with pytest.raises(AssertionError, match=r"Case\("):
        check_all()


@pytest.mark.slow
def test_without_a_bug_the_checks_pass(plant) -> None:
    plant(kernel_sources("adaptive_cpu.c"))
    check_all()


def test_a_library_that_fails_its_self_test_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    execution = AdaptiveNativeExecution(patched(*BUGS["gradient of the threshold lost"]))
    assert "fails its self-test" in (execution.why_not(torch.device("cpu"), torch.float32) or "")
