from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from snn_ext import functional, ops
from snn_ext.ops import implementation, registry, use_implementation
from tests.ops.emulation import Emulator, emulated, installed, replaced
from tests.ops.planting import OPERATORS, in_c

CPU = torch.device("cpu")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(ops.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_reasons_are_given_for_what_can_not_run() -> None:
    chosen = implementation("integrate_and_fire", "cpu", torch.float64)
    assert chosen.name == "torch"
    assert set(chosen.unavailable) == {"cuda-cupy", "cuda-nvrtc", "cpu"}
    assert "float64" in chosen.unavailable["cpu"]
    assert "cuda" in implementation("integrate_and_fire", "cuda").unavailable["cpu"]


def test_forcing_is_nested_and_undone() -> None:
    default = implementation("integrate_and_fire", "cpu").name
    with use_implementation("torch"):
        assert implementation("integrate_and_fire", "cpu").name == "torch"
        with pytest.raises(ValueError, match="cup"), use_implementation("cup"):
            pass
        assert implementation("integrate_and_fire", "cpu").name == "torch"
    assert implementation("integrate_and_fire", "cpu").name == default


def test_what_is_forced_and_can_not_run_raises() -> None:
    with use_implementation("cuda-cupy"):
        with pytest.raises(RuntimeError, match="'cuda-cupy' is forced and cannot run"):
            implementation("integrate_and_fire", "cpu")
        with pytest.raises(RuntimeError, match="'cuda-cupy' is forced and cannot run"):
            ops.integrate_and_fire(torch.rand(4, 2), 0.0, torch.ones(1))
    with use_implementation("cpu"), pytest.raises(RuntimeError, match="not written for torch.float64"):
        ops.integrate_and_fire(torch.rand(4, 2).double(), 0.0, torch.ones(1))


def test_the_operator_runs_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for found in registry.IMPLEMENTATIONS["integrate_and_fire"].values():

        def forward(*arguments, _name=found.name, _forward=found.forward):
            ran.append(_name)
            return _forward(*arguments)

        monkeypatch.setattr(found, "forward", forward)
    want = []
    for name in (None, "torch", None):
        for dtype in (torch.float32, torch.float64):
            x_seq = torch.rand(4, 2, dtype=dtype)
            if name is None:
                ops.integrate_and_fire(x_seq, 0.0, torch.ones(1))
                want.append(implementation("integrate_and_fire", "cpu", dtype).name)
            else:
                with use_implementation(name):
                    ops.integrate_and_fire(x_seq, 0.0, torch.ones(1))
                want.append(name)
    assert ran == want


def test_the_environment_forces() -> None:
    ask = (
        "from snn_ext.ops import implementation, use_implementation\n"
        "try: implementation('integrate_and_fire', 'cpu')\n"
        "except ValueError as error: print(error)\n"
        "with use_implementation('torch'): print(implementation('integrate_and_fire', 'cpu').name)"
    )
    lines = run_python(ask, SNN_EXT_IMPLEMENTATION="triton").stdout.splitlines()
    assert "SNN_EXT_IMPLEMENTATION: got 'triton'" in lines[0] and lines[1:] == ["torch"]


def test_no_compiler_is_a_recorded_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))
    torch_alone = registry.IMPLEMENTATIONS["integrate_and_fire"]["torch"]
    with replaced({"integrate_and_fire": {"cpu": in_c("integrate_and_fire"), "torch": torch_alone}}):
        chosen = implementation("integrate_and_fire", "cpu")
        assert chosen.name == "torch"
        assert chosen.unavailable["cpu"] == "no C compiler: looked for no-such-compiler"
        spike_seq, _ = ops.integrate_and_fire(torch.full((4, 1), 0.5), 0.0, torch.ones(1))
        assert spike_seq.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
        sentence = "is forced and cannot run: no C compiler"
        with use_implementation("cpu"), pytest.raises(RuntimeError, match=sentence):
            ops.integrate_and_fire(torch.full((4, 1), 0.5), 0.0, torch.ones(1))


def test_unknown_operators_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="op: got 'lif'"):
        implementation("lif", "cpu")


def test_an_argument_of_no_effect_is_refused() -> None:
    with pytest.raises(TypeError, match="'T'"):
        implementation("integrate_and_fire", "cpu", T=4)


# -- what a user may have set as a default, or be in the midst of -----------------------------------------------------


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def mapping() -> Iterator[None]:
    """Be inside of a ``vmap``, where tensors that are made are wrapped."""
    level = torch._C._functorch._vmap_increment_nesting(2, "different")
    assert level and torch._C._are_functorch_transforms_active()
    try:
        yield
    finally:
        torch._C._functorch._vmap_decrement_nesting()


MODES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "vmap": mapping,
    "fake": FakeTensorMode,
    "counted": lambda: FlopCounterMode(display=False),
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[Any]:
    with MODES[request.param]() as entered:
        yield entered


def test_comparisons_with_torch_do_not_depend_on_modes(mode: Any) -> None:
    for operator in OPERATORS:
        reason = in_c(operator).why_not(CPU, torch.float32)
        assert reason is None or reason.startswith("no C compiler")
    if isinstance(mode, FlopCounterMode):
        assert mode.get_total_flops() == 0


def test_comparisons_on_cuda_do_not_depend_on_modes(emulator: Emulator, mode: Any) -> None:
    assert emulated("integrate_and_fire", emulator).why_not(CPU, torch.float32) is None


def test_comparisons_with_torch_draw_no_random_numbers() -> None:
    before = torch.get_rng_state()
    for operator in OPERATORS:
        in_c(operator).why_not(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_small_stack_is_enough() -> None:
    code = """if True:
        import threading, torch
        from snn_ext import ops

        def work():
            x_seq = torch.rand(20, 9000, dtype=torch.float16, requires_grad=True)
            spike_seq = ops.integrate_and_fire(x_seq, 0.0, torch.ones(1))[0]
            (ops.adaptive_spiking(spike_seq)[0].sum() + ops.asn_transfer(x_seq).sum()).backward()
            print(ops.implementation("spike_convolution", "cpu").name, bool(x_seq.grad.isfinite().all()))

        threading.stack_size(64 * 1024)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """
    done = run_python(code, OMP_NUM_THREADS="1")
    assert done.returncode == 0 and done.stdout.endswith("True\n"), done


@pytest.fixture(params=["float64", "meta"])
def defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set another default dtype, or another default device."""
    with MODES[request.param]():
        yield


def test_the_operators_do_not_depend_on_defaults(defaults: None, emulator: Emulator) -> None:
    x_seq = torch.linspace(-1, 2, 80, dtype=torch.float32, device="cpu").view(4, 20).requires_grad_()
    threshold = torch.full((1,), 0.75, dtype=torch.float32, device="cpu", requires_grad=True)

    def check() -> None:
        x_seq.grad = threshold.grad = None
        spike_seq, v = ops.integrate_and_fire(x_seq, 0.25, threshold)
        (spike_seq.sum() + v.sum()).backward()
        assert spike_seq.dtype == v.dtype == threshold.grad.dtype == torch.float32
        assert torch.equal(spike_seq, functional.integrate_and_fire(x_seq, 0.25, threshold)[0])

    check()
    with installed(emulated("integrate_and_fire", emulator)):
        check()
