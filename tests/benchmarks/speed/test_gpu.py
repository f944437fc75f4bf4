"""The benchmark for GPUs, as far as a CPU can show it: every case runs on the CPU under a clock that is faked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from spikingjelly.activation_based import layer

from benchmarks.speed import gpu
from benchmarks.speed.contenders import BASELINE, Contender, available
from benchmarks.speed.measuring import Timing
from snn_ext.ops import Implementation
from tests.ops.asn import cases as asn_cases
from tests.ops.emulation import Emulator, comparison_kernels, emulated, installed, recorded, source_of, untested
from tests.ops.harness import Case
from tests.ops.integrate_and_fire import cases

IF, ASN = "integrate_and_fire", "adaptive_spiking"

SETTING = gpu.Setting(torch.device("cpu"), neurons=24, rounds=2, images=1)


def clock(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Run everything once; the copy takes two seconds, IFNode three, FlexSN four, all others one."""
    for call in calls.values():
        call()
    seconds = {gpu.COPY: 2.0, BASELINE: 3.0, gpu.FLEX: 4.0}
    return {name: Timing((seconds.get(name, 1.0),) * rounds) for name in calls}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what takes long on a CPU: the compiler, and the ResNet-18."""
    monkeypatch.setattr(gpu, "compiled_loop", lambda device: Contender(lambda x_seq: x_seq * 1.0))

    def net(node: type[nn.Module]) -> nn.Module:
        conv = layer.Conv2d(3, 2, 3, stride=8, step_mode="m")
        return nn.Sequential(
            conv, node(step_mode="m"), layer.Flatten(step_mode="m"), layer.Linear(32, 10, step_mode="m")
        )

    monkeypatch.setattr(gpu, "_resnet18", net)


def rows_of(case: Callable[..., list[gpu.Row]]) -> dict[str, gpu.Row]:
    return {row.contender: row for row in case(SETTING, clock) if row.case == case(SETTING, clock)[0].case}


def test_inference_reads_once_and_writes_once() -> None:
    rows = rows_of(gpu.inference)
    assert {gpu.COPY, BASELINE, gpu.FLEX, gpu.COMPILE, "operator, torch"} <= set(rows)
    assert rows["operator, torch"].roof == 2.0 and rows["operator, torch"].speedup == 3.0
    assert rows[BASELINE].roof == pytest.approx(2 / 3) and rows[gpu.COPY].roof == 1.0


def test_training_is_five_passes_and_backward_three() -> None:
    assert rows_of(gpu.training)["operator, torch"].roof == 5.0
    assert rows_of(gpu.backward)["operator, torch"].roof == 3.0


def test_other_numbers_of_steps_run() -> None:
    rows = gpu.steps(SETTING, clock)
    assert {row.case.split(",")[1] for row in rows} == {" T = 1", " T = 8", " T = 16", " T = 32"}


def test_the_adaptive_neuron_is_measured_against_the_plain_loop() -> None:
    rows = gpu.adaptive(SETTING, clock)
    assert [row.contender for row in rows[:3]] == [gpu.COPY, "plain loop", f"adaptive operator, {available()[0]}"]
    assert {row.case.split(",")[1] for row in rows} == {" inference", " training"}


def test_a_training_step_of_a_net_runs() -> None:
    rows = gpu.resnet18(SETTING, clock)
    assert [row.contender for row in rows][0] == BASELINE and rows[-1].speedup == 3.0


def test_demands_are_for_cuda_and_compared() -> None:
    x_seq = torch.zeros(4, 8)
    calls = {name: lambda: None for name in (BASELINE, gpu.FLEX, "operator, cuda-cupy", "operator, torch")}
    for wanted, met in (
        ((2.9, 3.9, 1.9), True),
        ((3.1, 3.9, 1.9), False),
        ((2.9, 4.1, 1.9), False),
        ((2.9, 3.9, 2.1), False),
    ):
        rows = {r.contender: r for r in gpu._layer("case", x_seq, 2, calls, {"operator": wanted}, 3, clock)}
        assert rows["operator, cuda-cupy"].met is met
        assert rows["operator, torch"].met is None and rows[BASELINE].met is None
    assert rows["operator, cuda-cupy"].demand == ">= 2.9x IFNode, >= 3.9x FlexSN, >= 2.1 of the copy"


def test_who_can_not_do_a_case_is_left_out_but_ours_may_not(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise NotImplementedError("no bfloat16")

    assert list(gpu._working({"rival": fail, "other": lambda: None})) == ["other"]
    assert "rival is left out: NotImplementedError: ['no bfloat16']" in capsys.readouterr().err
    with pytest.raises(NotImplementedError):
        gpu._working({"operator, cuda-cupy": fail})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Fake a GPU for the command line."""
    monkeypatch.setattr(gpu, "implementation", lambda op, device: Implementation("cuda-cupy", {}))
    monkeypatch.setattr(gpu, "environment", lambda setting: {"device": "a fake GPU"})
    monkeypatch.setattr(gpu, "gpu_clock", clock)
    monkeypatch.setattr(gpu, "check", lambda device: None)
    monkeypatch.setattr(gpu, "CASES", (gpu.inference, gpu.resnet18))
    return monkeypatch


def test_a_run_ends_with_a_table_and_writes_json(
    machine: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--device", "cpu", "--neurons", "24", "--images", "1", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "Measured with device a fake GPU." in table and "| ResNet-18 training step" in table
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert data["about"] == {"device": "a fake GPU"}
    assert {"case", "contender", "milliseconds", "roof", "speedup", "met"} <= set(data["rows"][0])
    assert (tmp_path / "gpu.md").read_text().strip() in table
    assert len(list(tmp_path.iterdir())) == 2


class FakeGraph:
    """Replays what went through the dispatcher, on the same memory; for a CPU."""

    def __init__(self) -> None:
        self.tape: list[tuple[Callable[..., object], tuple, dict, object]] = []

    def replay(self) -> None:
        for function, arguments, keywords, kept in self.tape:
            given = {t.untyped_storage().data_ptr() for t in tree_leaves(arguments) if isinstance(t, torch.Tensor)}
            for old, new in zip(tree_leaves(kept), tree_leaves(function(*arguments, **keywords)), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)


class Capture(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kept = function(*args, **(kwargs or {}))
        self.graph.tape.append((function, args, kwargs or {}, kept))
        return kept


def few(kind: type[Case], name: str, step: int) -> staticmethod:
    """Return a function that gives every so many of the small cases of a kind."""
    every = getattr(kind, name)
    return staticmethod(lambda: islice((case for case in every() if case.x_seq.numel() < 1000), 1, None, step))


FEW = [
    (kind, name, few(kind, name, step))
    for kind, step in ((cases.Case, 4), (asn_cases.Case, 8))
    for name in ("exact_cases", "gradient_cases")
]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    """Return the CUDA sources on the CPU, with the variants compiled that a few checks need."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, name, value in FEW:
            patch.setattr(kind, name, value)
        wanted = recorded(IF, cases.Case.run_all) + comparison_kernels(IF)
        return Emulator(wanted + recorded(ASN, asn_cases.Case.run_all))


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, emulator: Emulator) -> Iterator[pytest.MonkeyPatch]:
    """Put the CUDA kernels on the CPU instead of the CPU's, with streams and graphs faked."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": FakeGraph,
        "graph": Capture,
        "synchronize": lambda device=None: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(gpu, "gpu_clock", clock)
    monkeypatch.setattr(gpu, "CASES", [case for case in gpu.CASES if case is not gpu.steps])
    for kind, name, value in FEW:
        monkeypatch.setattr(kind, name, value)
    for module, name, arguments in (
        (cases, "check_reproducible", {"size": 6001, "rounds": 2}),
        (cases, "check_side_stream", {"size": 600}),
        (cases, "check_graph", {"size": 600}),
        (asn_cases, "check_graph", {"size": 60}),
    ):
        step = getattr(module, name)
        monkeypatch.setattr(module, name, wraps(step)(partial(step, **arguments)))
    with installed(emulated(IF, emulator), emulated(ASN, emulator)):
        yield monkeypatch


ARGUMENTS = ["--device", "cpu", "--neurons", "24", "--rounds", "2", "--images", "1"]


def test_a_whole_run_on_the_emulated_kernels(
    on_the_cpu: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([*ARGUMENTS, "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    for name in ("check_all", "check_reproducible", "check_side_stream", "check_graph", "graph", "resnet18"):
        assert f"{name} ..." in captured.err
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    mine = [row for row in rows if row["contender"] == "operator, cuda-cupy"]
    assert all(row["met"] for row in mine) and "operator, cuda-cupy, as a graph" in captured.out
    assert "adaptive_spiking, check_all ..." in captured.err and "adaptive operator, cuda-cupy" in captured.out


def test_a_wrong_kernel_is_found_before_it_is_measured(
    on_the_cpu: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = source_of(IF, ("fire_at_threshold ? h >= theta", "fire_at_threshold ? h > theta"))
    with untested(), installed(emulated(IF, Emulator(), wrong)):
        assert gpu.main([*ARGUMENTS, "--out", str(tmp_path)]) == 1
    assert "The kernels fail their checks, and nothing is measured: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_measured_when_a_check_fails(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(device: torch.device) -> None:
        raise AssertionError("spikes differ")

    machine.setattr(gpu, "check", fail)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "No CUDA kernel runs on cpu" in captured.err and "it runs on CUDA devices, not on cpu" in captured.err
    assert not captured.out and not list(tmp_path.iterdir())
