"""The two ways to launch, against a fake CuPy and a fake driver that run the kernels on the CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from snn_ext import functional, ops
from snn_ext.ops.machine import cuda, cuda_loaders
from snn_ext.ops.machine.cuda_loaders import CupyLoader, DriverLoader
from tests.ops.emulation import Emulator, emulated, installed

OPERATOR = "integrate_and_fire"


class World:
    """What happened, and the kernels that the faked machine code stands for."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.codes: dict[bytes, tuple[str, tuple[str, ...]]] = {}
        self.streams: list[int] = []
        self.stream = SimpleNamespace(cuda_stream=77)

    def compile(self, source: str, options: tuple[str, ...], name: str, device: torch.device) -> tuple[str, bytes]:
        code = b"code %d" % len(self.codes)
        self.codes[code] = source, options
        return f"{len(self.codes)}.cubin", code

    def kernel(self, code: bytes, name: str) -> cuda.Kernel:
        return self.emulator.load(*self.codes[code], name, torch.device("cpu"))


@pytest.fixture
def world(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(emulator)
    base = cuda_loaders._CudaLoader
    monkeypatch.setattr(base, "_compile", lambda self, *arguments: world.compile(*arguments))
    for loader in (base, CupyLoader):
        monkeypatch.setattr(loader, "why_not", lambda self, device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: world.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cuda_loaders, "_multiprocessors", lambda device: 2)
    return world


def fake_cupy(world: World) -> SimpleNamespace:
    class External:
        def __init__(self, handle: int) -> None:
            self.handle = handle

        def __enter__(self) -> None:
            world.streams.append(self.handle)

        def __exit__(self, *error: object) -> None:
            world.streams.append(-self.handle)

    class RawModule:
        def __init__(self, *, path: str) -> None:
            self.code = Path(path).read_bytes()

        def get_function(self, name: str) -> Callable[..., None]:
            return world.kernel(self.code, name)

    class Stream:
        made = 0

        @staticmethod
        def from_external(stream: Any) -> Any:
            Stream.made += 1
            return External(stream.cuda_stream)

    return SimpleNamespace(RawModule=RawModule, cuda=SimpleNamespace(Stream=Stream))


class FakeDriver:
    """The driver's functions, as ctypes would call them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.context: int | None = None
        self.modules: list[bytes] = []
        self.functions: list[cuda.Kernel] = []
        self.status = 0

    def cuCtxGetDevice(self, device: Any) -> int:
        if self.context is None:
            return 201  # CUDA_ERROR_INVALID_CONTEXT
        device._obj.value = self.context - 1000
        return 0

    def cuDeviceGet(self, handle: Any, ordinal: ctypes.c_int) -> int:
        handle._obj.value = ordinal.value
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, handle: ctypes.c_int) -> int:
        context._obj.value = 1000 + handle.value
        return 0

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:
        self.context = context.value
        return 0

    def cuModuleLoadData(self, module: Any, code: bytes) -> int:
        self.modules.append(code)
        module._obj.value = len(self.modules)
        return self.status

    def cuModuleGetFunction(self, function: Any, module: ctypes.c_void_p, name: bytes) -> int:
        self.functions.append(self.world.kernel(self.modules[module.value - 1], name.decode()))
        function._obj.value = len(self.functions)
        return 0

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        x, y, z, bx, by, bz, shared = (number.value for number in rest[:7])
        stream, addresses, extra = rest[7:]
        assert self.context and (y, z, by, bz, shared, extra) == (1, 1, 1, 1, 0, None)
        words = tuple(ctypes.c_int64.from_address(address).value for address in addresses)
        self.world.streams.append(stream.value)
        self.functions[function.value - 1]((x,), (bx,), words)
        return 0

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"no kernel image is available for execution on the device"
        return 0


def check_operator() -> None:
    x_seq = (torch.randint(-8, 17, (18, 300)) / 8).requires_grad_()
    weight = torch.randn(x_seq.shape)
    results = []
    for function in (ops.integrate_and_fire, functional.integrate_and_fire):
        threshold, scale = torch.ones(1, requires_grad=True), torch.tensor(0.5, requires_grad=True)
        spike_seq, v = function(x_seq, torch.tensor(0.25), threshold, scale=scale)
        grads = torch.autograd.grad((spike_seq * weight).sum() + v.sum(), (x_seq, threshold, scale))
        results.append((spike_seq, v, *grads))
    (spikes, v, *grads), (want_spikes, want_v, *want_grads) = results
    assert torch.equal(spikes, want_spikes) and torch.equal(v, want_v)
    for found, want in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_cupy_launches_on_the_stream_of_torch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = fake_cupy(world)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with installed(emulated(OPERATOR, CupyLoader())):
        check_operator()
        assert set(world.streams) == {77, -77} and cupy.cuda.Stream.made == 1
        world.stream = SimpleNamespace(cuda_stream=78)
        check_operator()
        assert set(world.streams[-4:]) == {78, -78} and cupy.cuda.Stream.made == 2


def test_the_driver_launches_on_the_stream_of_torch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(world)
    monkeypatch.setattr(cuda_loaders, "_driver", lambda: cuda_loaders._Driver(driver))
    with installed(emulated(OPERATOR, DriverLoader())):
        check_operator()
        assert set(world.streams) == {77} and driver.context == 1000
        for left in (None, 1003):  # a thread in which torch has not touched the device; somebody left another one
            driver.context = left
            world.stream = SimpleNamespace(cuda_stream=78)
            check_operator()
            assert world.streams[-2:] == [78, 78] and driver.context == 1000


def test_the_drivers_words_are_the_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(world)
    driver.status = 209
    monkeypatch.setattr(cuda_loaders, "_driver", lambda: cuda_loaders._Driver(driver))
    reason = emulated(OPERATOR, DriverLoader()).why_not(torch.device("cpu"), torch.float32)
    assert reason == (
        "its kernels do not run: cuModuleLoadData: no kernel image is available for execution on the device"
    )
