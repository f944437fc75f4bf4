"""``integrate_and_fire`` in C: bugs planted in the source have to be caught by the checks; threads, forks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from snn_ext import ops
from snn_ext.ops.machine import torch_parts
from tests.ops.integrate_and_fire.cases import BLOCKS, CHUNKS, Case
from tests.ops.planting import Plant, in_c, patched, planting

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")

OPERATOR = "integrate_and_fire"
NORMALISE = "if (norm) row = normalise(norm, m, row);"
BUGS = {
    "> for >=": ("fire_at_threshold ? h >= theta", "fire_at_threshold ? h > theta"),
    ">= for >": (": h > theta)", ": h >= theta)"),
    "NaN fires": ("(fire_at_threshold ? h >= theta", "(fire_at_threshold ? !(h < theta)"),
    "wrong sign in the gradient through the reset": ("g = g - theta * c", "g = g + theta * c"),
    "gradient through a detached reset": ("!detach_reset && kind == RESET_SUBTRACT", "kind == RESET_SUBTRACT"),
    "carried gradient lost in the threshold's": ("-g_u - s * c : -g_u", "-g_u : -g_u"),
    "zero reset subtracts": ("return s != 0.0f ? 0.0f : h", "return h - s * theta"),
    "tail elements missing": (
        "? call->N - k * BLOCK : BLOCK",
        "? (call->N - k * BLOCK) / 8 * 8 : BLOCK",
    ),
    "tail missing in a sum": ("for (; i < m; i++) sum += row[i];", ""),
    "one element never written": ("spikes[i] = s != 0.0f ? on : off;", "if (i != 6) spikes[i] = s != 0.0f ? on : off;"),
    "wrong checkpoint": ("checkpoints + (segment - 1) * N + b", "checkpoints + 0 * N + b"),
    "checkpoint a step late": ("t && t % SEGMENT == 0", "t > SEGMENT && t % SEGMENT == 1"),
    "initial potential of the first neuron": ("if (v_stride) memcpy", "if (0) memcpy"),
    "first threshold for all steps": ("retreat, call, m, 0, 1, h_row, d, g, scale, theta,",
                                      "retreat, call, m, 0, 1, h_row, d, g, scale, call->thresholds,"),
    "recomputed potential of the step before": ("theta, before[t - first + 1])", "theta, before[t - first])"),
    "threshold of the first neuron": ("(b) * (call)->thresholds_each)", "0)"),
    "threshold of a block's first neuron": ("differences[i] = h[i] - theta[i]", "differences[i] = h[i] - theta[0]"),
    "threshold's gradient of the first step alone": ("sums[i] += row[i]", "sums[i] = row[i]"),
    "own thresholds' gradient of the first block": ("memcpy(call->grad_thresholds + b", "memcpy(call->grad_thresholds"),
    "gain forgotten": ("gain * surrogate(", "surrogate("),
    "poor exponential": ("p = p * r + 8.3334519073e-3f;", ""),
    "scale forgotten": ("g[i] * scale, d[i]", "g[i], d[i]"),
    "float16 rounds ties up": ("0xfffu + (magnitude >> 13 & 1u)", "0x1000u"),
    "every block reads the first": (
        "load_row(call->x_seq, dtype, t * N + b, m, buffer);\n        const float *theta",
        "load_row(call->x_seq, dtype, t * N, m, buffer);\n        const float *theta",
    ),
    "sums of the first block alone": (
        "k < block_count(call->N, BLOCK); k++) sum +=", "k < 1; k++) sum +="
    ),
    "checkpoints of the first block": (
        "memcpy(entry, call->checkpoints + (segment - 1) * N + b", "memcpy(entry, call->checkpoints + (segment - 1) * N"
    ),
    "gradient of the first block's potential": ("memcpy(c, call->grad_v_end + b", "memcpy(c, call->grad_v_end"),
    "bfloat16 truncates": ("0x7fffu + ((u >> 16) & 1u)", "0u"),
    "channels without their place in memory": ("b / stride % channels, left", "b % channels, left"),
    "a block begins with a whole channel": ("left = stride - b % stride", "left = stride"),
    "channels end with the first sample": ("c = c + 1 < channels ? c + 1 : 0", "c = c + 1 < channels ? c + 1 : c"),
    "channels last begin with the first": ("run = channels - c; i < m", "run = channels; i < m"),
    "norm in two roundings": ("return __builtin_fmaf(a, b, c);", "return a * b + c;"),
    "norm forgotten backward": (f"THETA(call, t, b);\n            {NORMALISE}", "THETA(call, t, b);"),
    "leak's gradient of the input without its norm": (f"{NORMALISE}\n                if (sums)", "if (sums)"),
    "gain's gradient not centred": ("(x[i] - center[i])", "x[i]"),
    "gain forgotten in the input's gradient": ("grad[i] *= gain[i];", ""),
    "shift's gradient of the first step alone": ("g_shift[i] += grad[i];", "g_shift[i] = grad[i];"),
    "gain's gradient of the first block": ("memcpy(call->grad_norm_gain + b", "memcpy(call->grad_norm_gain"),
}  # fmt: skip


LATE = (
    *("checkpoints of the first block", "gradient of the first block's potential", "sums of the first block alone"),
    *("wrong checkpoint", "checkpoint a step late", "own thresholds' gradient of the first block"),
    *("threshold of a block's first neuron", "recomputed potential of the step before"),
    "threshold's gradient of the first step alone",
    *("norm forgotten backward", "leak's gradient of the input without its norm", "gain's gradient not centred"),
    *("gain forgotten in the input's gradient", "shift's gradient of the first step alone"),
    "gain's gradient of the first block",
)
"""Those that show in the last cases of all; these are looked at first, to save time."""


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    with planting(OPERATOR, tmp_path) as plant:
        yield plant


def test_checks_need_several_blocks_and_chunks() -> None:
    block = int(re.search(r"BLOCK = (\d+)", in_c(OPERATOR).sources()["integrate_and_fire.c"])[1])
    assert BLOCKS > 2 * block and CHUNKS > 2 * torch_parts._CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str, plant: Plant) -> None:
    plant(patched(OPERATOR, *BUGS[bug]))
    with pytest.raises(AssertionError, match=r"Case\("):
        for case in reversed(list(Case.gradient_cases()) if bug in LATE else []):
            case.check_gradients()
        Case.check_all()


def test_a_library_that_disagrees_with_torch_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    found = in_c(OPERATOR, patched(OPERATOR, *BUGS["wrong sign in the gradient through the reset"]))
    assert found.why_not(torch.device("cpu"), torch.float32) == "the compiled code disagrees with torch"


def test_a_failed_build_gives_the_compilers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    reason = in_c(OPERATOR, patched(OPERATOR, "return v + x;", "return v + y;")).why_not(
        torch.device("cpu"), torch.float32
    )
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
