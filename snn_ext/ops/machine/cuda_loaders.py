"""Two ways to load a compiled kernel and to launch it on torch's current stream: CuPy, and the driver by ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from ..._files import scratch
from .build import load_or_make
from .cuda import Kernel, variant_key
from .cuda_setup import architecture, why_not_cuda, why_not_cupy
from .nvrtc import load_nvrtc

__all__ = ["CupyLoader", "DriverLoader"]


class _CudaLoader:
    """The common part: torch's devices and streams, and machine code from NVRTC, kept on disk."""

    def why_not(self, device: torch.device) -> str | None:
        """Return why kernels cannot run on a device; None if they can."""
        return why_not_cuda(device)

    def guard(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make a device the current one."""
        return torch.cuda.device(device)

    def is_capturing(self) -> bool:
        """Return True while torch's current stream is being captured into a graph."""
        return torch.cuda.is_current_stream_capturing()

    def multiprocessors(self, device: torch.device) -> int:
        """Return how many multiprocessors a device has."""
        return _multiprocessors(device)

    def _compile(self, source: str, options: tuple[str, ...], name: str, device: torch.device) -> tuple[str, bytes]:
        """Return a file name and machine code, out of the cache if it has it.

        CuPy's own compiler is not used: it adds ``-ftz=true``, and a flushed subnormal changes a spike train.
        """
        nvrtc, target = load_nvrtc(), architecture(device)
        file_name = f"{name}-{target}-{variant_key(source, options, target, str(nvrtc.version))}.cubin"
        return file_name, load_or_make(file_name, lambda: nvrtc.compile(source, options, target))


class CupyLoader(_CudaLoader):
    """CuPy loads and launches. Nothing is allocated through it."""

    name = "cuda-cupy"

    def __init__(self) -> None:
        # Never dropped: with its wrapper CuPy may destroy the stream, which is torch's.
        self._streams: dict[tuple[torch.device, int], Any] = {}

    def why_not(self, device: torch.device) -> str | None:
        """Return why kernels cannot run on a device; None if they can."""
        return why_not_cuda(device) or why_not_cupy()

    def load(self, source: str, options: tuple[str, ...], name: str, device: torch.device) -> Kernel:
        """Hand the machine code to ``cupy.RawModule`` in a file, the way that CuPy documents."""
        cupy = importlib.import_module("cupy")
        file_name, code = self._compile(source, options, name, device)
        with scratch(Path(tempfile.gettempdir())) as folder:
            path = folder / file_name
            path.write_bytes(code)
            kernel = cupy.RawModule(path=str(path)).get_function(name)  # reads the file

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            with self._stream(cupy, device):
                kernel(grid, block, arguments)

        return launch

    def _stream(self, cupy: Any, device: torch.device) -> Any:
        stream = torch.cuda.current_stream(device)
        key = device, int(stream.cuda_stream)
        if key not in self._streams:
            self._streams[key] = cupy.cuda.Stream.from_external(stream)
        return self._streams[key]


class DriverLoader(_CudaLoader):
    """The CUDA driver loads and launches, called by ctypes."""

    name = "cuda-nvrtc"

    def load(self, source: str, options: tuple[str, ...], name: str, device: torch.device) -> Kernel:
        """Load the machine code into the context of torch."""
        driver, (_, code) = _driver(), self._compile(source, options, name, device)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        driver.bind(device)
        driver.call("cuModuleLoadData", ctypes.byref(module), code)  # stays loaded, like the kernels of torch
        driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            values = [ctypes.c_double(a) if isinstance(a, float) else ctypes.c_int64(a) for a in arguments]
            addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            x, y, z, bx, by, bz = (ctypes.c_uint(n) for n in (*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3]))
            stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
            driver.bind(device)
            driver.call("cuLaunchKernel", function, x, y, z, bx, by, bz, ctypes.c_uint(0), stream, addresses, None)

        return launch


class _Driver:
    """The functions of the CUDA driver that are used; a status other than 0 raises with the driver's own words."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else f'CUDA error {status}'}")

    def bind(self, device: torch.device) -> None:
        """Give this thread the context of torch, if it has none or another device's: torch sets it late."""
        found = ctypes.c_int()
        status, wanted = self._library.cuCtxGetDevice(ctypes.byref(found)), device.index or 0
        if status != 0 or found.value != wanted:
            handle, context = ctypes.c_int(), ctypes.c_void_p()
            self.call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(wanted))
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
            self.call("cuCtxSetCurrent", context)


@functools.lru_cache
def _driver() -> _Driver:
    return _Driver(ctypes.CDLL("libcuda.so.1"))


@functools.lru_cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
