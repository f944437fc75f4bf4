"""Every broken set-up has its sentence, and torch runs; the environments are faked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from snn_ext.ops import implementation, registry
from snn_ext.ops.machine import cuda_setup
from snn_ext.ops.machine.cuda import CudaMachine, Kernel
from snn_ext.ops.machine.nvrtc import CompileError
from tests.ops.emulation import Recorder, emulated

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Ask again after every change of the environment."""

    def forget() -> None:
        cuda_setup._why_not_device.cache_clear()
        cuda_setup.why_not_cupy.cache_clear()
        registry._select.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Fake a machine on which everything works: an sm_90, NVRTC for it, and CuPy for the same CUDA."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(
        cuda_setup, "load_nvrtc", lambda: SimpleNamespace(version=(13, 0), architectures=(75, 80, 90, 120))
    )
    monkeypatch.setattr(CudaMachine, "_tested", lambda *arguments: None)
    install(monkeypatch, ["numpy", "cupy-cuda13x"])
    return monkeypatch


def install(
    monkeypatch: pytest.MonkeyPatch, packages: list[str], version: str = "14.2.0", runtime: int = 13020
) -> None:
    distributions = [SimpleNamespace(metadata={"Name": name}) for name in packages]
    monkeypatch.setattr(cuda_setup.metadata, "distributions", lambda: distributions)
    api = SimpleNamespace(runtimeGetVersion=lambda: runtime)
    cupy = SimpleNamespace(__version__=version, cuda=SimpleNamespace(runtime=api))
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def reasons(device: torch.device = CUDA) -> tuple[str, str, str]:
    """Return what runs, and the reasons of cuda-cupy and cuda-nvrtc; they are the same for all operators."""
    found = implementation("integrate_and_fire", device)
    for other in ("adaptive_spiking", "asn_transfer") if device.type != "cpu" else ():
        assert implementation(other, device) == found
    return found.name, found.unavailable.get("cuda-cupy", ""), found.unavailable.get("cuda-nvrtc", "")


def test_a_whole_machine_runs_cupy(machine: pytest.MonkeyPatch) -> None:
    assert reasons() == ("cuda-cupy", "", "")
    assert implementation("integrate_and_fire", CUDA, torch.float64).name == "torch"


def test_no_driver(machine: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nMore words.")

    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setattr(torch.cuda, "init", fail)
    sentence = "torch cannot use a GPU: Found no NVIDIA driver on your system."
    assert reasons() == ("torch", sentence, sentence)


def test_a_gpu_that_is_hidden(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setattr(torch.cuda, "init", lambda: None)
    assert reasons()[1] == "torch cannot use a GPU: no GPU is visible"


def test_a_device_that_is_not_there(machine: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise AssertionError("Invalid device id")

    machine.setattr(torch.cuda, "get_device_capability", fail)
    assert reasons(torch.device("cuda", 7))[2] == "torch cannot use cuda:7: Invalid device id"


@pytest.mark.parametrize(
    ("capability", "sentence"),
    [
        ((6, 1), "sm_61 is not supported, sm_75 is the oldest that is"),
        ((12, 1), "NVRTC 13.0 does not compile for sm_121, only for sm_75, sm_80, sm_90, sm_120"),
    ],
)
def test_an_unsupported_architecture(machine: pytest.MonkeyPatch, capability: tuple[int, int], sentence: str) -> None:
    machine.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert reasons() == ("torch", sentence, sentence)


def test_no_nvrtc(machine: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise CompileError("no NVRTC: looked for libnvrtc.so.13 in Python's packages")

    machine.setattr(cuda_setup, "load_nvrtc", fail)
    assert reasons()[0] == "torch" and "no NVRTC: looked for libnvrtc.so.13" in reasons()[2]


def test_rocm(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.version, "hip", "7.0")
    machine.setattr(torch.version, "cuda", None)
    assert reasons()[1] == "torch is built for ROCm 7.0, and the kernels are for NVIDIA GPUs"
    assert reasons()[0] == "torch"


def test_torch_without_cuda(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.version, "cuda", None)
    assert reasons() == ("torch", "torch is built without CUDA", "torch is built without CUDA")


def test_windows(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(sys, "platform", "win32")
    assert reasons() == ("torch", "it runs on Linux, not on Windows", "it runs on Linux, not on Windows")


@pytest.mark.parametrize("kind", ["mps", "xpu", "cpu"])
def test_other_devices(machine: pytest.MonkeyPatch, kind: str) -> None:
    name, cupy, nvrtc = reasons(torch.device(kind))
    assert cupy == nvrtc == f"it runs on CUDA devices, not on {kind}"
    assert name == "torch" or kind == "cpu"


# -- CuPy: without it, or with a broken one, NVRTC and the driver do ---------------------------------------------------


def test_no_cupy(machine: pytest.MonkeyPatch) -> None:
    install(machine, ["numpy", "cupy-stubs"])
    assert reasons() == ("cuda-nvrtc", "CuPy is not installed: pip install cupy-cuda13x", "")


def test_two_cupys(machine: pytest.MonkeyPatch) -> None:
    install(machine, ["cupy-cuda13x", "CuPy-cuda12x"])
    sentence = "several CuPy packages are installed, which overwrite each other: cupy-cuda12x, cupy-cuda13x; keep one"
    assert reasons() == ("cuda-nvrtc", sentence, "")


def test_cupy_for_another_cuda(machine: pytest.MonkeyPatch) -> None:
    install(machine, ["cupy-cuda12x"], runtime=12090)
    assert reasons()[0] == "cuda-nvrtc"
    assert reasons()[1] == (
        "CuPy 14.2.0 is for CUDA 12 and torch for CUDA 13.0: pip uninstall cupy-cuda12x, and install cupy-cuda13x"
    )


def test_cupy_for_rocm(machine: pytest.MonkeyPatch) -> None:
    install(machine, ["cupy-rocm-7-0"])
    assert reasons()[1] == "cupy-rocm-7-0 is CuPy for ROCm, and torch is built for CUDA 13.0"


def test_an_old_cupy(machine: pytest.MonkeyPatch) -> None:
    install(machine, ["cupy-cuda13x"], version="13.6.0")
    assert reasons()[1] == "CuPy 13.6.0 is too old: 14 is wanted"


def test_cupy_that_does_not_import(machine: pytest.MonkeyPatch) -> None:
    machine.setitem(sys.modules, "cupy", None)
    assert reasons()[0] == "cuda-nvrtc"
    assert reasons()[1].startswith("CuPy does not import: ")


# -- a device without a number -----------------------------------------------------------------------------------------


def test_cuda_alone_is_the_current_device(machine: pytest.MonkeyPatch) -> None:
    current = 0
    machine.setattr(torch.cuda, "current_device", lambda: current)
    machine.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device.index == 0 else (6, 1))
    assert implementation("integrate_and_fire", "cuda").name == "cuda-cupy"
    current = 1
    assert implementation("integrate_and_fire", "cuda").name == "torch"


def test_a_driver_that_fails_late_is_a_reason(machine: pytest.MonkeyPatch) -> None:
    def fail(*device: object) -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.\nMore words.")

    machine.setattr(torch.cuda, "current_device", fail)
    machine.setattr(torch.cuda, "get_device_capability", fail)
    sentence = "torch cannot use cuda: Cannot re-initialize CUDA in forked subprocess."
    assert reasons(torch.device("cuda")) == ("torch", sentence, sentence)


def test_a_kernel_that_can_not_be_launched_is_a_reason() -> None:
    """Whatever a CuPy raises that nobody has met."""

    class Strange(Recorder):
        def load(self, *arguments: object) -> Kernel:
            def launch(*launched: object) -> None:
                raise TypeError("__cuda_stream__() must return (int, int)")

            return launch

    reason = emulated("integrate_and_fire", Strange()).why_not(torch.device("cpu"), torch.float32)
    assert reason == "its kernels do not run: __cuda_stream__() must return (int, int)"
