"""The native kernels: bugs planted in their source have to be caught by the checks; threads, forks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from snn_ext import ops
from snn_ext.ops import build, native_execution, selection, torch_execution
from snn_ext.ops.native_execution import NativeExecution, kernel_sources
from tests.ops import checks
from tests.ops.checks import check_all, check_gradients, gradient_cases

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")

BUGS = {
    "> for >=": ("fire_at_threshold ? h >= theta", "fire_at_threshold ? h > theta"),
    ">= for >": (": h > theta)", ": h >= theta)"),
    "NaN fires": ("(fire_at_threshold ? h >= theta", "(fire_at_threshold ? !(h < theta)"),
    "wrong sign in the gradient through the reset": ("g = g - theta * c", "g = g + theta * c"),
    "gradient through a detached reset": ("!detach_reset && kind == RESET_SUBTRACT", "kind == RESET_SUBTRACT"),
    "carried gradient lost in the threshold's": ("-g_u - s * c : -g_u", "-g_u : -g_u"),
    "zero reset subtracts": ("return s != 0.0f ? 0.0f : h", "return h - s * theta"),
    "tail elements missing": (
        "forward_block(b, (int)(N - b < BLOCK ? N - b : BLOCK)",
        "forward_block(b, (int)(N - b < BLOCK ? (N - b) / 8 * 8 : BLOCK)",
    ),
    "tail missing in a sum": ("for (; i < m; i++) sum += row[i];", ""),
    "one element never written": ("spikes[i] = s != 0.0f ? on : off;", "if (i != 6) spikes[i] = s != 0.0f ? on : off;"),
    "wrong checkpoint": ("checkpoints + (segment - 1) * N + b", "checkpoints + 0 * N + b"),
    "checkpoint a step late": ("t && t % SEGMENT == 0", "t > SEGMENT && t % SEGMENT == 1"),
    "initial potential of the first neuron": ("if (v_stride) memcpy", "if (0) memcpy"),
    "first threshold for all steps": ("retreat, kind, at, m, 0, h_row, d, g, scale ? scale[0] : 1.0f, th,",
                                      "retreat, kind, at, m, 0, h_row, d, g, scale ? scale[0] : 1.0f, theta[0],"),
    "gain forgotten": ("gain * surrogate(", "surrogate("),
    "poor exponential": ("p = p * r + 8.3334519073e-3f;", ""),
    "scale forgotten": ("g[i] * scale, d[i]", "g[i], d[i]"),
    "float16 rounds ties up": ("0xfffu + (magnitude >> 13 & 1u)", "0x1000u"),
    "every block reads the first": (
        "load_row(x, dtype, t * N + b, m, buffer), th", "load_row(x, dtype, t * N, m, buffer), th"
    ),
    "sums of the first block alone": (
        "for (index_t k = 0; k < blocks; k++) sum +=", "for (index_t k = 0; k < 1; k++) sum +="
    ),
    "checkpoints of the first block": (
        "memcpy(v, checkpoints + (segment - 1) * N + b", "memcpy(v, checkpoints + (segment - 1) * N"
    ),
    "gradient of the first block's potential": ("memcpy(c, grad_v_end + b", "memcpy(c, grad_v_end"),
    "bfloat16 truncates": ("0x7fffu + ((u >> 16) & 1u)", "0u"),
}  # fmt: skip


LATE = (
    *("checkpoints of the first block", "gradient of the first block's potential", "sums of the first block alone"),
    *("wrong checkpoint", "checkpoint a step late"),
)
"""Those that show in the last cases of all; these are looked at first, to save time."""


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Build the kernels from changed text, put them in the place of the native execution and force it."""

    def replace(sources: dict[str, str]) -> NativeExecution:
        execution = NativeExecution(sources)
        mapping = {"integrate_and_fire": {"cpu-native": execution}}
        monkeypatch.setattr(selection, "EXECUTIONS", MappingProxyType(mapping))
        return execution

    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    monkeypatch.setattr(native_execution, "agrees_with_torch", lambda *arguments: True)
    monkeypatch.setattr(build, "_FLAGS", tuple(f.replace("-O3", "-O1") for f in build._FLAGS))
    selection._select.cache_clear()
    yield replace
    selection._select.cache_clear()


def patched(old: str, new: str) -> dict[str, str]:
    sources = {name: text.replace(old, new) for name, text in kernel_sources().items()}
    assert sources != kernel_sources(), f"the source no longer contains {old!r}"
    return sources


def test_checks_need_several_blocks_and_chunks() -> None:
    execution = NativeExecution()
    assert execution.why_not(torch.device("cpu"), torch.float32) is None
    assert checks.BLOCKS > 2 * execution._library.block_size() and checks.CHUNKS > 2 * torch_execution._CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str, plant) -> None:
    assert plant(patched(*BUGS[bug])).why_not(torch.device("cpu"), torch.float32) is None
    with pytest.raises(AssertionError, match=r"Case\("):
        for case in reversed(list(gradient_cases()) if bug in LATE else []):
            check_gradients(case)
        check_all()


def test_a_library_that_fails_its_self_test_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    execution = NativeExecution(patched(*BUGS["wrong sign in the gradient through the reset"]))
    assert "fails its self-test" in (execution.why_not(torch.device("cpu"), torch.float32) or "")


def test_a_failed_build_gives_the_compilers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    execution = NativeExecution(patched("return v + x;", "return v + y;"))
    reason = execution.why_not(torch.device("cpu"), torch.float32)
    assert reason is not None and "error" in reason and "'y'" in reason.replace("‘", "'").replace("’", "'")
    assert "\n" not in reason


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_wait_for_threads_it_has_not() -> None:
    torch.use_deterministic_algorithms(False)  # torch poisons by many threads, and hangs there
    x_seq = torch.rand(4, 100_000)
    want = ops.integrate_and_fire(x_seq, 0.0, torch.ones(1))[0]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        found = ops.integrate_and_fire(x_seq, 0.0, torch.ones(1))[0]
        os.write(writer, b"same" if (found.numpy() == want.numpy()).all() else b"other")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"same"
    os.waitpid(child, 0)
