"""``integrate_and_fire`` in CUDA, on the CPU: planted bugs have to be caught by the checks; kernels, loaders."""

from __future__ import annotations

import gc
import itertools
import math
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from snn_ext import functional, ops
from snn_ext.functional import Sigmoid
from snn_ext.ops import implementation, use_implementation
from snn_ext.ops.integrate_and_fire.operator import Inputs, Outputs, Settings
from snn_ext.ops.machine import cuda
from snn_ext.ops.machine.cuda import CudaMachine, Kernel
from tests.ops import every_variant
from tests.ops.emulation import (
    OPERATORS,
    Emulator,
    Recorder,
    check,
    emulated,
    installed,
    source_of,
    untested,
    with_bugs,
)
from tests.ops.integrate_and_fire.cases import Case, leaky_case, make_case, normed, own_thresholds

OPERATOR = "integrate_and_fire"
SUM = "for (int w = 0; w < WARPS; w++) sum += step_sums[threadIdx.x][w];"
THETA = "continue;\n                const float step_theta = thresholds[THRESHOLDS_STRIDE ? first + k : 0]"
BARRIER = "__syncthreads();\n                if (threadIdx.x < ROWS"
CASES: dict[str, Callable[[], Case]] = {
    "ties": lambda: make_case("ulp", 4, 500),
    "ties above": lambda: make_case("ulp", 4, 500, fire_at_threshold=False),
    "special": lambda: make_case("special", 4, 500, reset="zero"),
    "blocks": lambda: make_case("random", 4, 2100, surrogate=Sigmoid(4.0, gain=0.5)),
    "chunks": lambda: make_case("random", 4, 2101),
    "segments": lambda: make_case("random", 33, 24),
    "scaled": lambda: make_case("random", 5, 64, torch.bfloat16),
    "detached": lambda: make_case("random", 4, 23, detach_reset=True),
    "leak": lambda: leaky_case("random", 4, 500, charge="tau_input"),
    "leak each": lambda: leaky_case("random", 17, 24, charge="rate", each=True),
    "delayed": lambda: leaky_case("random", 4, 63, reset="delayed", detach_reset=True),
    "own thresholds": lambda: own_thresholds("random", make_case("random", 17, 28)),
    "norm": lambda: normed(make_case("random", 4, 504), 7),
    "norm, channels last": lambda: normed(make_case("random", 17, 64), 8, True),
    "norm and leak": lambda: normed(leaky_case("random", 4, 63, charge="tau_input"), 7),
    "own thresholds that leak": lambda: own_thresholds("random", leaky_case("random", 4, 500, each=True)),
}
BUGS = {
    "> for >=": ("fire_at_threshold ? h >= theta", "fire_at_threshold ? h > theta", "ties"),
    ">= for >": (": h > theta)", ": h >= theta)", "ties above"),
    "NaN fires": ("(fire_at_threshold ? h >= theta", "(fire_at_threshold ? !(h < theta)", "special"),
    "zero reset subtracts": ("return s != 0.0f ? 0.0f : h", "return h - s * theta", "special"),
    "no bounds check": ("if (n >= N) return;", "", "ties"),
    "last neurons missing": ("if (n >= N) return;", "if (n + VECTOR >= N) return;", "ties"),
    "one element never written": ("out.at[i] = s != 0.0f", "if (i != 3) out.at[i] = s != 0.0f", "ties"),
    "initial potential of the first neuron": ("v_stride ? load(v + n) : all(v[0])", "all(v[0])", "ties"),
    "checkpoint in the wrong place": ("store(checkpoints + (first / SEGMENT - 1) * N + n", "store(checkpoints + n",
                                      "segments"),
    "wrong checkpoint": ("first ? load(checkpoints + (first / SEGMENT - 1) * N + n)", "first ? load(checkpoints + n)",
                         "segments"),
    "gradient row loaded twice": ("g[k - AHEAD] = load(grad_spike_seq + (first + k - AHEAD) * N + n)",
                                  "g[k - AHEAD] = load(grad_spike_seq + (first + k) * N + n)", "segments"),
    "wrong sign in the gradient through the reset": ("g = g - theta * c", "g = g + theta * c", "blocks"),
    "gradient through a detached reset": ("!detach_reset && kind == RESET_SUBTRACT", "kind == RESET_SUBTRACT",
                                          "detached"),
    "carried gradient lost in the threshold's": ("-g_u - s * c : -g_u", "-g_u : -g_u", "blocks"),
    "first threshold for all steps": (THETA, THETA.replace("THRESHOLDS_STRIDE ? first + k : 0", "0"), "chunks"),
    "gain forgotten": ("height * surrogate(", "surrogate(", "blocks"),
    "poor exponential": ("1.44269504f", "1.442f", "blocks"),
    "scale forgotten": ("HAS_SCALE ? g_spike * factor : g_spike", "g_spike", "scaled"),
    "bfloat16 truncates": ("0x7fffu + ((u >> 16) & 1u)", "0u", "scaled"),
    "lost last warp": (SUM, SUM.replace("w < WARPS", "w < WARPS - 1"), "chunks"),
    "lost last warp of a block's sum": ("threadIdx.x == 0 && w < WARPS", "threadIdx.x == 0 && w < WARPS - 1", "blocks"),
    "neurons beyond the end are counted": ("if (!inside) terms = scale_terms = 0.0f;", "", "chunks"),
    "chunks forget the one before": ("double sum = *partial;", "double sum = 0.0;", "chunks"),
    "last block adds all but itself": ("b < gridDim.x; b += LANES", "b < gridDim.x - 1; b += LANES", "blocks"),
    "first block adds up": ("atomicAdd(counter, 1u) == gridDim.x - 1", "atomicAdd(counter, 1u) == 0", "blocks"),
    "missing barrier": (BARRIER, BARRIER.removeprefix("__syncthreads();"), "chunks"),
    "missing second barrier": ("*partial = sum;\n                }\n                __syncthreads();",
                               "*partial = sum;\n                }", "chunks"),
    "barrier in divergent code": ("if (inside && grad_v_stride)", "if (inside) __syncthreads();\n if (grad_v_stride)",
                                  "chunks"),
    "fast division": ("return __fdiv_rn(a, b);", "return a * (1.0f / b);", "leak"),
    "input does not decay": ("return v + divide(x - v, d)", "return v + divide(-v, d) + x", "leak"),
    "contracted leak": ("return v - v * d + x", "return __builtin_fmaf(-v, d, v) + x", "leak each"),
    "decay of the first neuron": ("start(decay, decay_stride, n)", "all(decay[0])", "leak each"),
    "delayed reset by the spike of the step": ("d * v + x - fires(v,", "d * v + x - fires(d * v + x,", "delayed"),
    "gradient of the input not divided": ("*g_x = of_input ? e * rate : e", "*g_x = e", "leak"),
    "gradient does not leak": ("return rule == CHARGE_BETA ? e * d : e - e * rate", "return e", "leak"),
    "gradient of the rate for that of tau": ("(divides ? -rate * rate : 1.0f)", "(divides ? -rate : 1.0f)", "leak"),
    "delayed reset lost in the threshold's gradient": (
        "if (kind == RESET_DELAYED) *g_theta -= fires(v, theta, fire_at_threshold) * e;", "", "delayed"),
    "decay's gradient of the potential before its reset": (
        "k ? reset(at, fires(at, theta_before, FIRE_AT_THRESHOLD), theta_before, RESET) : at", "at", "leak each"),
    "reset by the next threshold": ("THRESHOLDS_STRIDE && k ? first + k - 1", "THRESHOLDS_STRIDE ? first + k",
                                    "leak each"),
    "potential of the sequence's start": ("? h[k ? k - 1 : 0].at[i] : entry.at[i]", "? h[k ? k - 1 : 0].at[i] : v[0]",
                                          "leak each"),
    "threshold of the first neuron": ("load(thresholds + n)", "all(thresholds[0])", "own thresholds"),
    "threshold's gradient of the first step alone": ("g_theta.at[i] += term", "g_theta.at[i] = term", "own thresholds"),
    "own thresholds' gradient overwritten by a sum": ("? (THRESHOLDS_EACH ? 0 : grad_thresholds)", "? grad_thresholds",
                                                      "own thresholds"),
    "recomputed with the first neuron's threshold": (
        "const float theta = THRESHOLDS_EACH ? own_theta.at[i] : step_theta;\n                    const float charged",
        "const float theta = thresholds[0];\n                    const float charged", "own thresholds"),
    "reset before by the first neuron's threshold": (
        "theta_before = THRESHOLDS_EACH ? own_theta.at[i] : step_before", "theta_before = step_before",
        "own thresholds that leak"),
    "decay's sum lost": ("partial[2 * gridDim.x] = decay_sum", "partial[2 * gridDim.x] = 0.0", "leak"),
    "a vector has one channel": ("(n + i) / stride % channels", "n / stride % channels", "norm, channels last"),
    "channels without their place in memory": ("(n + i) / stride % channels", "(n + i) % channels", "norm"),
    "channels of the first sample alone": ("/ stride % channels;", "/ stride < channels ? (n + i) / stride : 0;",
                                           "norm"),
    "norm in two roundings": ("return __fmaf_rn(a, b, c);", "return a * b + c;", "norm"),
    "norm forgotten backward": ("charge(potential.at[i], input(norm, i, rows[k].at[i]), constant.at[i], theta,\n",
                                "charge(potential.at[i], from_io(rows[k].at[i]), constant.at[i], theta,\n", "norm"),
    "gain's gradient not centred": ("(from_io(rows[k].at[i]) - norm.center.at[i])", "from_io(rows[k].at[i])", "norm"),
    "gain forgotten in the input's gradient": ("g_x *= norm.gain.at[i];", "", "norm"),
    "norm's gradient of the first step alone": ("g_shift.at[i] += g_x;", "g_shift.at[i] = g_x;", "norm"),
    "leak's gradient of the input without its norm": ("before, input(norm, i, rows[k].at[i])",
                                                      "before, from_io(rows[k].at[i])", "norm and leak"),
    "neurons beyond the end in the decay's sum": ("decay_sum += inside ? g_decay.at[i] : 0.0f",
                                                  "decay_sum += g_decay.at[i]", "leak"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bugs() -> Emulator:
    """Return the source as it is and with each bug, all compiled in one unit."""
    return with_bugs(OPERATOR, CASES, BUGS)


@pytest.mark.parametrize("name", CASES)
def test_without_a_bug_nothing_is_caught(bugs: Emulator, name: str) -> None:
    with untested():
        check(emulated(OPERATOR, bugs), bugs, CASES[name]())


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bugs: Emulator, bug: str) -> None:
    old, new, name = BUGS[bug]
    with untested(), pytest.raises((AssertionError, RuntimeError), match=r"Case\(|wait for each other"):
        check(emulated(OPERATOR, bugs, source_of(OPERATOR, (old, new))), bugs, CASES[name]())


def test_gradients_do_not_depend_on_the_order_of_the_threads(emulator: Emulator) -> None:
    cases = list(Case.gradient_cases())[::5]
    with installed(emulated(OPERATOR, emulator)):
        for case in cases:
            found = []
            for emulator.descending in (False, True):
                leaves = [case.x_seq.clone().requires_grad_(), case.thresholds.clone().requires_grad_()]
                out = replace(case, x_seq=leaves[0], thresholds=leaves[1]).run(ops)
                found.append(torch.autograd.grad(out[0].square().sum() + out[1].sum(), leaves))
            assert all(map(torch.equal, *found)), case
    emulator.descending = False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_arrays_that_are_not_aligned(offset: int, dtype: torch.dtype, capfd: pytest.CaptureFixture[str]) -> None:
    machine = emulated(OPERATOR, Emulator((), "-fsanitize=undefined"))
    storage = torch.randint(-8, 17, (4 * 64 + 8,)).to(dtype) / 8
    x_seq = storage.as_strided((4, 64), (64, 1), offset).requires_grad_()
    with untested(), installed(machine):
        spike_seq, _ = ops.integrate_and_fire(x_seq, torch.zeros(65)[1:], torch.ones(1))
        spike_seq.sum().backward()
    assert torch.equal(spike_seq, functional.integrate_and_fire(x_seq, 0.0, torch.ones(1))[0])
    assert "runtime error" not in capfd.readouterr().err


def test_a_vector_access_that_is_not_aligned_is_caught(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CudaMachine, "width", lambda *arguments: 4)
    with untested(), installed(emulated(OPERATOR, Emulator((), "-fsanitize=undefined"))):
        ops.integrate_and_fire(torch.rand(4 * 64 + 1)[1:].view(4, 64), 0.0, torch.ones(1))
    assert "misaligned address" in capfd.readouterr().err


@pytest.mark.parametrize("operator", ["integrate_and_fire", "adaptive_spiking"])
def test_a_sample_of_every_variant_under_the_sanitizer(operator: str, capfd: pytest.CaptureFixture[str]) -> None:
    sample = itertools.islice(every_variant.variants(False, operator), 7, None, 150)
    assert every_variant.run(operator, sample, *every_variant.SANITIZER) >= 3
    assert "runtime error" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="takes address space without memory behind it")
def test_more_than_two_thousand_million_elements() -> None:
    """Of 2^31 neurons and 8 the last block is run: neither neuron nor step may be counted in 32 bits."""
    size = 2**31 + 8

    def untouched(dtype: torch.dtype, *shape: int) -> Tensor:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags), dtype=dtype).view(shape)

    try:
        x_seq, spike_seq, g, grad_x_seq = (untouched(torch.bfloat16, 2, size) for _ in range(4))
        v_end = untouched(torch.float32, size)
    except OSError as error:
        pytest.skip(f"no address space: {error}")
    x_seq[:, -8:] = torch.arange(16).view(2, 8) / 8
    g[:, -8:] = torch.arange(16).view(2, 8) / 4
    emulator = Emulator(multiprocessors=2**20)
    emulator.last_block_alone = True
    machine, v, thresholds = emulated(OPERATOR, emulator), torch.tensor(0.25), torch.ones(1)
    settings, inputs = Settings("subtract", True, False, 0, 4.0, 1.0), Inputs(x_seq, v.expand(size), thresholds, None)
    machine.forward(inputs, settings, None, Outputs(spike_seq, v_end))
    machine.backward(inputs, settings, None, Outputs(g, None), Inputs(grad_x_seq, None, None, None))
    last = x_seq[:, -8:].clone().requires_grad_()
    want, want_v = functional.integrate_and_fire(last, 0.25, thresholds)
    want.backward(g[:, -8:].clone())
    assert torch.equal(spike_seq[:, -8:], want) and torch.equal(v_end[-8:], want_v)
    torch.testing.assert_close(grad_x_seq[:, -8:], last.grad, rtol=1.6e-2, atol=1e-2)
    assert not spike_seq[:, :1000].any() and not grad_x_seq[:, :1000].any()


def test_widths_of_access() -> None:
    def width(backward: bool, time_steps: int, size: int, dtype: torch.dtype = torch.float32, start: int = 0) -> int:
        x_seq = torch.empty(time_steps * size + start, dtype=dtype)[start:]
        inputs = Inputs(x_seq.view(time_steps, size), torch.empty(size), torch.empty(1), None)
        return OPERATORS[OPERATOR].width(backward, inputs, (None,))

    assert [width(False, t, 64) for t in (1, 4, 16, 17)] == [4, 4, 4, 4]
    assert [width(False, t, 64, torch.bfloat16) for t in (1, 4, 16, 17)] == [8, 8, 8, 4]
    assert [width(True, t, 64) for t in (1, 4, 8, 16, 17)] == [4, 4, 4, 2, 2]
    assert [width(True, t, 64, torch.float16) for t in (1, 4, 8, 16, 17)] == [8, 8, 4, 2, 2]
    assert [width(False, 4, size, torch.float16) for size in (8, 12, 6, 7)] == [8, 4, 2, 1]
    assert [width(False, 4, 64, torch.float16, start) for start in (8, 4, 2, 1)] == [8, 4, 2, 1]


# -- kernels and their loader ------------------------------------------------------------------------------------------


def test_it_is_never_chosen_for_the_cpu() -> None:
    unavailable = implementation("integrate_and_fire", "cpu").unavailable
    assert unavailable["cuda-cupy"] == unavailable["cuda-nvrtc"] == "it runs on CUDA devices, not on cpu"


def test_other_dtypes_are_a_recorded_reason(emulator: Emulator) -> None:
    with installed(emulated(OPERATOR, emulator)), pytest.raises(RuntimeError, match="not written for torch.float64"):
        with use_implementation("cuda-cupy"):
            ops.integrate_and_fire(torch.rand(4, 2, dtype=torch.float64), 0.0, torch.ones(1))


def test_kernels_that_disagree_with_torch_are_not_used(bugs: Emulator) -> None:
    device = torch.device("cpu")
    old, new, _ = BUGS["wrong sign in the gradient through the reset"]
    reason = emulated(OPERATOR, bugs, source_of(OPERATOR, (old, new))).why_not(device, torch.float32)
    assert reason == "its kernels disagree with torch"
    assert emulated(OPERATOR, bugs).why_not(device, torch.float32) is None


def test_kernels_that_do_not_load_are_a_recorded_reason() -> None:
    class Broken(Recorder):
        def load(self, *arguments: object) -> Kernel:
            raise RuntimeError("cuModuleLoadData: no kernel image is available\nand more")

    reason = emulated(OPERATOR, Broken()).why_not(torch.device("cpu"), torch.float32)
    assert reason == "its kernels do not run: cuModuleLoadData: no kernel image is available"


def run_once(x_seq: Tensor | None = None) -> tuple[Tensor, Tensor]:
    x_seq = torch.linspace(0, 1, 4 * 64).view(4, 64) if x_seq is None else x_seq
    threshold = torch.ones(1, requires_grad=True)
    spike_seq, _ = ops.integrate_and_fire(x_seq, 0.0, threshold)
    spike_seq.sum().backward()
    return spike_seq.detach(), threshold.grad


class Capturing(Emulator):
    capturing = False

    def is_capturing(self) -> bool:
        return self.capturing


def test_what_is_compiled_can_be_captured_and_what_is_not_says_so() -> None:
    loader = Capturing()
    machine = emulated(OPERATOR, loader)
    with installed(machine):
        loader.capturing = True
        with pytest.raises(RuntimeError, match="run the same forward and backward pass once outside of the capture"):
            run_once()
        loader.capturing = False
        want = run_once()
        loader.capturing = True
        assert all(map(torch.equal, run_once(), want))
        with pytest.raises(RuntimeError, match="outside of the capture"):
            run_once(torch.rand(5, 64))


def test_nothing_stays_on_the_device_between_calls(emulator: Emulator) -> None:
    """Memory that outlives a call may lie in the pool of a graph, and launches that overlap must share none."""
    machine = emulated(OPERATOR, emulator)
    with installed(machine):
        run_once()
        gc.collect()
        before = {id(thing) for thing in gc.get_objects() if type(thing) is Tensor}
        run_once()
        gc.collect()
        left = [thing for thing in gc.get_objects() if type(thing) is Tensor and id(thing) not in before]
    assert not left


def test_everything_happens_on_the_device_of_the_input() -> None:
    class Guarded(Emulator):
        inside = 0

        @contextmanager
        def guard(self, device: torch.device) -> Iterator[None]:
            self.inside += 1
            yield
            self.inside -= 1

        def load(self, *arguments: object) -> Kernel:
            assert self.inside
            kernel = super().load(*arguments)

            def launch(*launched: object) -> None:
                assert self.inside
                kernel(*launched)

            return launch

        def is_capturing(self) -> bool:
            assert self.inside
            return False

    with installed(emulated(OPERATOR, Guarded())):
        run_once()


def test_each_device_has_its_own_kernels() -> None:
    recorder = Recorder()
    machine = emulated(OPERATOR, recorder)
    variant = (0, 0, 4, 4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)
    kernels = [machine._kernel(torch.device("cuda", index), variant) for index in (0, 1, 0)]
    assert kernels[0] is kernels[2] is not kernels[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_while_a_kernel_is_compiled(emulator: Emulator) -> None:
    torch.use_deterministic_algorithms(False)
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with cuda._lock:
            held.set()
            leave.wait(60)

    with installed(emulated(OPERATOR, emulator)):
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, b"fired" if run_once()[0].any() else b"silent")
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"fired"
        os.waitpid(child, 0)
        leave.set()
        thread.join()


def test_threads_that_ask_for_the_same_kernel() -> None:
    emulator, results = Emulator(), []
    with installed(emulated(OPERATOR, emulator)):
        threads = [threading.Thread(target=lambda: results.append(run_once())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 4
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


def test_autocast_leaves_the_state_in_float32(emulator: Emulator) -> None:
    with installed(emulated(OPERATOR, emulator)), torch.autocast("cpu", dtype=torch.bfloat16):
        x_seq = torch.nn.functional.linear(torch.rand(4, 8, 8), torch.rand(16, 8))
        spike_seq, v = ops.integrate_and_fire(x_seq, 0.0, torch.ones(1))
    assert x_seq.dtype == spike_seq.dtype == torch.bfloat16 and v.dtype == torch.float32
    want = functional.integrate_and_fire(x_seq, 0.0, torch.ones(1))
    assert torch.equal(spike_seq, want[0]) and torch.equal(v, want[1])
