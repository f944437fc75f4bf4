"""``adaptive_spiking`` in CUDA, on the CPU: planted bugs have to be caught by the checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from snn_ext.ops import implementation
from tests.ops.asn.cases import STEP_BUGS, Case, absorbed_case, make_case
from tests.ops.emulation import OPERATORS, Emulator, Recorder, check, emulated, source_of, untested, with_bugs

OPERATOR = "adaptive_spiking"
CASES: dict[str, Callable[[], Case]] = {
    "ties": lambda: make_case("ulp", 4, 1200, constants="dyadic", analog_input=True),
    "special": lambda: make_case("special", 4, 100),
    "filtered": lambda: make_case("random", 17, 24),
    "heights": lambda: make_case("random", 18, 23, constants="by neuron", height="adaptive"),
    "attached": lambda: make_case("random", 33, 36, detach_adaptation=False, analog_input=True),
    "absorbed": absorbed_case,
    "sixteen bits": lambda: make_case("random", 4, 64, torch.bfloat16, constants="by neuron", height="none"),
}
BUGS = {
    ">= for >": (*STEP_BUGS[">= for >"], "ties"),
    "NaN fires": (*STEP_BUGS["NaN fires"], "special"),
    "contracted filter": (*STEP_BUGS["contracted filter"], "filtered"),
    "bias after the comparison": (*STEP_BUGS["bias after the comparison"], "absorbed"),
    "threshold of rest in the jump": (*STEP_BUGS["threshold of rest in the jump"], "heights"),
    "adaptation decays before it jumps": (*STEP_BUGS["adaptation decays before it jumps"], "heights"),
    "refractory response decays late": (*STEP_BUGS["refractory response decays late"], "heights"),
    "analog input is integrated": (*STEP_BUGS["analog input is integrated"], "ties"),
    "gradient through a detached spike": (*STEP_BUGS["gradient through a detached spike"], "filtered"),
    "gradient of the threshold lost": (*STEP_BUGS["gradient of the threshold lost"], "heights"),
    "gradient of the height lost": (*STEP_BUGS["gradient of the height lost"], "heights"),
    "analog gradient goes back in time": (*STEP_BUGS["analog gradient goes back in time"], "attached"),
    "no bounds check": ("if (n >= N) return;\n    const float *const from", "const float *const from", "ties"),
    "last neurons missing": ("if (n >= N) return;\n    const float *const from",
                             "if (n + VECTOR >= N) return;\n    const float *const from", "ties"),
    "one constant for all neurons": ("UNIFORM ? all(array[k]) : load(", "1 ? all(array[k * N]) : load(", "heights"),
    "constants of the first neurons": ("load(array + k * N + n)", "load(array + k * N)", "heights"),
    "states in the wrong order": ("states.of[2].at[i] = n.s_hat, states.of[3].at[i] = n.adaptation",
                                  "states.of[3].at[i] = n.s_hat, states.of[2].at[i] = n.adaptation", "heights"),
    "checkpoint in the wrong place": ("store(checkpoints + ((first / SEGMENT - 1) * STATES + k) * N + n",
                                      "store(checkpoints + k * N + n", "attached"),
    "wrong checkpoint": ("load(checkpoints + ((first / SEGMENT - 1) * STATES + k) * N + n)",
                         "load(checkpoints + k * N + n)", "attached"),
    "gradient row loaded twice": ("g[k - AHEAD] = load(grad_out_seq + (first + k - AHEAD) * N + n)",
                                  "g[k - AHEAD] = load(grad_out_seq + (first + k) * N + n)", "filtered"),
    "gradient of the bias of the last step only": ("bias_sum.at[i] += adaptive", "bias_sum.at[i] = adaptive",
                                                   "filtered"),
    "first bias for all": ("bias_stride, n);\n    States states;", "0, n);\n    States states;", "special"),
    "bfloat16 truncates": ("0x7fffu + ((u >> 16) & 1u)", "0u", "sixteen bits"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bugs() -> Emulator:
    """Return the source as it is and with each bug, all compiled in one unit."""
    return with_bugs(OPERATOR, CASES, BUGS)


@pytest.mark.parametrize("name", CASES)
def test_without_a_bug_nothing_is_caught(bugs: Emulator, name: str) -> None:
    with untested():
        check(emulated(OPERATOR, bugs), bugs, CASES[name](), gradients=name != "absorbed")


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bugs: Emulator, bug: str) -> None:
    old, new, name = BUGS[bug]
    source = source_of(OPERATOR, (old, new))
    with untested(), pytest.raises(AssertionError, match=r"Case\("):
        check(emulated(OPERATOR, bugs, source), bugs, CASES[name](), gradients=name != "absorbed")


def test_kernels_that_disagree_with_torch_are_not_used(bugs: Emulator) -> None:
    cpu = torch.device("cpu")
    source = source_of(OPERATOR, STEP_BUGS["gradient of the threshold lost"])
    reason = emulated(OPERATOR, bugs, source).why_not(cpu, torch.float32)
    assert reason == "its kernels disagree with torch"


def test_widths_of_access() -> None:
    def width(backward: bool, time_steps: int, size: int, dtype: torch.dtype = torch.float32, start: int = 0) -> int:
        x_seq = torch.empty(time_steps * size + start, dtype=dtype)[start:].view(time_steps, size)
        step, found = torch.empty(size), OPERATORS[OPERATOR]
        return found.width(backward, found.op.Inputs(x_seq, *[step] * 5, torch.empty(6)), (None,))

    assert [width(False, t, 64) for t in (1, 4, 16, 17)] == [4, 4, 4, 4]
    assert [width(False, t, 64, torch.bfloat16) for t in (1, 4, 16, 17)] == [8, 8, 8, 4]
    assert [width(True, t, 64, torch.float16) for t in (1, 4, 8, 17)] == [4, 4, 2, 2]
    assert [width(False, 4, size, torch.float16) for size in (8, 12, 6, 7)] == [8, 4, 2, 1]
    assert [width(False, 4, 64, torch.float16, start) for start in (8, 4, 2, 1)] == [8, 4, 2, 1]


def test_reasons_are_told() -> None:
    unavailable = implementation("adaptive_spiking", "cpu").unavailable
    assert unavailable["cuda-cupy"] == unavailable["cuda-nvrtc"] == "it runs on CUDA devices, not on cpu"
    assert emulated(OPERATOR, Recorder()).why_not(torch.device("cpu"), torch.float64) == (
        "it is not written for torch.float64"
    )
