"""What the CUDA executions share: a source, its variants compiled when they are first needed, and a self-test."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import resources
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .layout import is_one
from .self_test import undisturbed

__all__ = ["DTYPES", "THREADS", "Backend", "CudaKernels", "Kernel", "address", "blocks", "variant_key", "vector"]

THREADS = 128
"""Threads of a block, as in the sources."""

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

Kernel = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], None]
"""Called as ``cupy.RawKernel`` is: grid, block, arguments; these are int for a pointer or int64, float for double."""


class Backend(Protocol):
    """What the launcher asks of a machine. Everything but ``why_not`` is called on the device of :meth:`guard`."""

    name: str

    def why_not(self, device: torch.device) -> str | None:
        """Return why kernels can not run on a device; None if they can."""

    def guard(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make a device the current one."""

    def load(self, source: str, options: tuple[str, ...], name: str, device: torch.device) -> Kernel:
        """Compile a kernel, or take it from the cache, and load it; launching it is on torch's current stream."""

    def is_capturing(self) -> bool:
        """Whether torch's current stream is being captured into a graph."""

    def multiprocessors(self, device: torch.device) -> int:
        """Return how many multiprocessors a device has."""


# Two locks: a self-test runs in a thread of its own, which asks for kernels while its caller waits for the outcome.
# A child process may be forked while another thread holds one.
_lock, _test_lock = threading.RLock(), threading.RLock()


def _renew_locks() -> None:
    global _lock, _test_lock
    _lock, _test_lock = threading.RLock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class CudaKernels:
    """A CUDA source of ``kernels``; tested once for a device and dtype before it is used.

    Nothing is kept on the device but the kernels: memory that outlives a call may lie in the pool of somebody's graph.
    """

    operator: ClassVar[str]
    names: ClassVar[tuple[str, str]]
    """The kernels of the forward and of the backward pass."""
    files: ClassVar[tuple[str, ...]]
    """The source, and what it includes."""
    macros: ClassVar[tuple[str, ...]]
    """What the source wants to be defined; a variant is a tuple of their values. The first is BACKWARD."""

    def __init__(self, backend: Backend, source: str | None = None) -> None:
        self.name = backend.name
        self._backend = backend
        self._changed_source = source
        self._kernels: dict[tuple[torch.device, tuple[int, ...]], Kernel] = {}
        self._failures: dict[tuple[torch.device, torch.dtype], str | None] = {}

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it can not run: another device or dtype, a broken set-up, a failed self-test."""
        reason = self._backend.why_not(device)
        if reason is not None:
            return reason
        if dtype not in DTYPES:
            return f"it has no kernel for {dtype}"
        return self._self_test(device, dtype)

    @classmethod
    def source(cls) -> str:
        """Return the CUDA source with what it includes in its place: NVRTC searches no folder."""
        folder = resources.files(__package__) / "kernels"
        source, *included = ((folder / name).read_text(encoding="utf-8") for name in cls.files)
        for name, text in zip(cls.files[1:], included, strict=True):
            source = source.replace(f'#include "{name}"\n', text)
        return source

    @classmethod
    def options(cls, variant: tuple[int, ...]) -> tuple[str, ...]:
        """Return the compiler's options for a variant, but for the architecture.

        IEEE arithmetic as it is written: no contraction into FMA, and subnormal numbers are kept. Only the division is
        the fast one: only surrogates and ``asn_transfer`` divide.
        """
        macros = (f"-D{name}={value}" for name, value in zip(cls.macros, variant, strict=True))
        return ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=false", "--disable-warnings", *macros)

    def _kernel(self, device: torch.device, variant: tuple[int, ...]) -> Kernel:
        kernel = self._kernels.get((device, variant))
        if kernel is None:
            with _lock:
                kernel = self._kernels.get((device, variant))
                if kernel is None:
                    self._refuse_while_capturing()
                    source, name = self._changed_source or self.source(), self.names[variant[0]]
                    kernel = self._backend.load(source, self.options(variant), name, device)
                    self._kernels[device, variant] = kernel
        return kernel

    def _self_test(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if (device, dtype) not in self._failures:
            with _test_lock:
                if (device, dtype) not in self._failures:
                    with self._backend.guard(device):
                        self._refuse_while_capturing()
                    self._failures[device, dtype] = self._failure(device, dtype)
        return self._failures[device, dtype]

    def _failure(self, device: torch.device, dtype: torch.dtype) -> str | None:
        try:
            if undisturbed(functools.partial(self._agrees_on, device, dtype)):
                return None
        except Exception as error:  # whatever a broken driver, compiler or CuPy raises
            return f"its kernels do not run: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return "its kernels fail their self-test: they disagree with torch"

    def _agrees_on(self, device: torch.device, dtype: torch.dtype) -> bool:
        with self._backend.guard(device):  # a thread has a device of its own
            return self._agrees_with_torch(device, dtype)

    def _agrees_with_torch(self, device: torch.device, dtype: torch.dtype) -> bool:
        raise NotImplementedError

    def _refuse_while_capturing(self) -> None:
        if self._backend.is_capturing():
            raise RuntimeError(
                f"{self.operator}: a kernel has to be compiled while a CUDA graph is captured, want it before: run the "
                "same forward and backward pass once outside of the capture"
            )


def variant_key(source: str, compiler_options: tuple[str, ...], *more: str) -> str:
    """Hash of everything that compiled code depends on."""
    return hashlib.sha256("\0".join((source, *compiler_options, *more)).encode()).hexdigest()[:24]


def vector(most: int, size: int, *arrays: Tensor | None) -> int:
    """Return how many neurons a thread takes: at most so many, a divisor of all, and every array aligned to them.

    Examples
    --------
    >>> vector(8, 12, torch.empty(12), None)
    4
    """
    rows = [array for array in arrays if array is not None and not is_one(array)]
    while size % most or any(array.data_ptr() % min(16, most * array.element_size()) for array in rows):
        most //= 2
    return most


def blocks(size: int, vector: int) -> int:
    """Return how many blocks take all neurons.

    Examples
    --------
    >>> blocks(1025, 1), blocks(4096, 8)
    (9, 4)
    """
    return -(-size // (THREADS * vector))


def address(tensor: Tensor | None) -> int:
    """Return where the elements of a tensor are; 0, which a kernel sees as NULL, for no tensor."""
    return 0 if tensor is None else tensor.data_ptr()
