"""``adaptive_spiking`` in C: bugs planted in the source have to be caught by the checks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.ops.asn.cases import STEP_BUGS, Case
from tests.ops.planting import Plant, in_c, patched, planting

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")

OPERATOR = "adaptive_spiking"
BUGS = STEP_BUGS | {
    "one constant for all neurons": ("if (uniform) return c->same;", "return (adaptive_constants){*c->rows};"),
    "wrong checkpoint": ("checkpoints + ((segment - 1) * STATES + k)", "checkpoints + (0 * STATES + k)"),
    "tail elements missing": ("? call->N - k * BLOCK : BLOCK", "? (call->N - k * BLOCK) / 8 * 8 : BLOCK"),
    "gradient of the bias of the last step only": ("g_bias[i] += adaptive_step", "g_bias[i] = adaptive_step"),
}  # fmt: skip


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    with planting(OPERATOR, tmp_path) as plant:
        yield plant


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str, plant: Plant) -> None:
    plant(patched(OPERATOR, *BUGS[bug]))
    with pytest.raises(AssertionError, match=r"Case\("):
        Case.check_all()


@pytest.mark.slow
def test_without_a_bug_the_checks_pass(plant: Plant) -> None:
    plant(None)
    Case.check_all()


def test_a_library_that_disagrees_with_torch_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    reason = in_c(OPERATOR, patched(OPERATOR, *BUGS["gradient of the threshold lost"])).why_not(
        torch.device("cpu"), torch.float32
    )
    assert reason == "the compiled code disagrees with torch"
