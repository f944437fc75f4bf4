"""The execution on NVIDIA GPUs: which variant of the CUDA source a call needs, and its arguments."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import resources
from typing import Any, Protocol

import torch
from torch import Tensor

from .execution import SEGMENT, Settings
from .layout import is_one
from .self_test import agrees_with_torch

__all__ = ["MACROS", "THREADS", "Backend", "CudaExecution", "Kernel", "kernel_source", "options", "variant_key"]

MACROS = (
    *("BACKWARD", "DTYPE", "STEPS", "VECTOR", "PER_STEP", "SCALED", "RESET", "FIRE_AT_THRESHOLD", "DETACH_RESET"),
    "SURROGATE",
)
"""What ``soft_reset_cuda.cu`` wants to be defined; a variant is a tuple of their values."""

THREADS = 128
"""Threads of a block, as in the source."""

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_RESETS = {"subtract": 0, "zero": 1, "none": 2}
# The backward kernel is launched with as many blocks as run at the same time, and these share the neurons: fewer
# partial sums to add up, and no half empty last wave. With few steps a thread has few loads in flight.
_RESIDENT_BLOCKS = {1: 8, 2: 8, 3: 6}  # a multiprocessor, by time steps; else 4

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

    def stream(self, device: torch.device) -> int:
        """Return the handle of torch's current stream."""

    def is_capturing(self) -> bool:
        """Whether that stream is being captured into a graph."""

    def multiprocessors(self, device: torch.device) -> int:
        """Return how many multiprocessors a device has."""


# A child process may be forked while another thread holds the lock.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class CudaExecution:
    """``soft_reset_cuda.cu``, a variant compiled when it is first needed; tested once a device before it is used."""

    def __init__(self, backend: Backend, source: str | None = None) -> None:
        self.name = backend.name
        self._backend = backend
        self._source = source
        self._kernels: dict[tuple[torch.device, tuple[int, ...]], Kernel] = {}
        self._counters: dict[tuple[torch.device, int], Tensor] = {}
        self._failures: dict[torch.device, str | None] = {}

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it can not run: another device or dtype, a broken set-up, a failed self-test."""
        reason = self._backend.why_not(device)
        if reason is not None:
            return reason
        if dtype not in _DTYPES:
            return f"it has no kernel for {dtype}"
        return self._self_test(device)

    def forward(
        self,
        x_seq: Tensor,
        v: Tensor,
        thresholds: Tensor,
        scale: Tensor | None,
        settings: Settings,
        *,
        spike_seq: Tensor,
        v_end: Tensor,
        checkpoints: Tensor | None,
    ) -> None:
        """Integrate and fire."""
        time_steps, device = x_seq.shape[0], x_seq.device
        size = x_seq.numel() // time_steps
        with self._backend.guard(device):
            vector = _vector(False, time_steps, size, x_seq, v, v_end, spike_seq, checkpoints)
            kernel = self._kernel(device, _variant(False, x_seq, vector, thresholds, scale, settings))
            arguments = (
                x_seq.data_ptr(),
                spike_seq.data_ptr(),
                v.data_ptr(),
                int(not is_one(v)),
                v_end.data_ptr(),
                thresholds.data_ptr(),
                _address(scale),
                _address(checkpoints),
                time_steps,
                size,
            )
            kernel((_blocks(size, vector),), (THREADS,), arguments)

    def backward(
        self,
        grad_spike_seq: Tensor | None,
        grad_v_end: Tensor | None,
        x_seq: Tensor,
        v: Tensor,
        thresholds: Tensor,
        scale: Tensor | None,
        checkpoints: Tensor | None,
        settings: Settings,
        *,
        grad_x_seq: Tensor | None,
        grad_v: Tensor | None,
        grad_thresholds: Tensor | None,
        grad_scale: Tensor | None,
    ) -> None:
        """Recompute the potential from the input and walk back; sums over neurons come from the same launch."""
        time_steps, device = x_seq.shape[0], x_seq.device
        size = x_seq.numel() // time_steps
        with self._backend.guard(device):
            if grad_spike_seq is None:  # rare: only the final potential was used
                grad_spike_seq = torch.zeros_like(x_seq)
            grad_v_sum, grad_v = (grad_v, None) if v.dim() == 0 else (None, grad_v)
            arrays = (grad_spike_seq, grad_v_end, x_seq, v, checkpoints, grad_x_seq, grad_v)
            vector = _vector(True, time_steps, size, *arrays)
            resident = _RESIDENT_BLOCKS.get(time_steps, 4) * self._backend.multiprocessors(device)
            blocks = min(_blocks(size, vector), resident)
            partial_sums = counter = None
            if not (grad_v_sum is grad_thresholds is grad_scale is None):
                columns = thresholds.shape[0] + 2
                partial_sums = torch.empty(columns * blocks, dtype=torch.float64, device=device)
                counter = self._counter(device)
            kernel = self._kernel(device, _variant(True, x_seq, vector, thresholds, scale, settings))
            arguments = (
                grad_spike_seq.data_ptr(),
                _address(grad_v_end),
                x_seq.data_ptr(),
                v.data_ptr(),
                int(not is_one(v)),
                thresholds.data_ptr(),
                _address(scale),
                _address(checkpoints),
                _address(grad_x_seq),
                _address(grad_v),
                _address(grad_v_sum),
                _address(grad_thresholds),
                _address(grad_scale),
                _address(partial_sums),
                _address(counter),
                time_steps,
                size,
                float(settings.alpha),
                float(settings.gain),
            )
            kernel((blocks,), (THREADS,), arguments)

    def _kernel(self, device: torch.device, variant: tuple[int, ...]) -> Kernel:
        kernel = self._kernels.get((device, variant))
        if kernel is None:
            with _lock:
                kernel = self._kernels.get((device, variant))
                if kernel is None:
                    self._refuse_while_capturing()
                    name = "soft_reset_backward" if variant[0] else "soft_reset_forward"
                    kernel = self._backend.load(self._source or kernel_source(), options(variant), name, device)
                    self._kernels[device, variant] = kernel
        return kernel

    def _counter(self, device: torch.device) -> Tensor:
        """Return the zero by which the blocks of a launch count themselves; they leave a zero.

        Launches that may run at the same time must not share it: each stream has one, and each launch in a graph, for
        a graph may be replayed on any stream.
        """
        if self._backend.is_capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        key = device, self._backend.stream(device)
        if key not in self._counters:
            self._counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
        return self._counters[key]

    def _self_test(self, device: torch.device) -> str | None:
        if device not in self._failures:
            with _lock:
                if device not in self._failures:
                    with self._backend.guard(device):
                        self._refuse_while_capturing()
                    self._failures[device] = self._failure(device)
        return self._failures[device]

    def _failure(self, device: torch.device) -> str | None:
        try:
            if all(agrees_with_torch(self, device, time_steps) for time_steps in (4, 18)):
                return None
        except (RuntimeError, OSError) as error:
            return f"its kernels do not run: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return "its kernels fail their self-test: they disagree with torch"

    def _refuse_while_capturing(self) -> None:
        if self._backend.is_capturing():
            raise RuntimeError(
                "soft_reset_if: a kernel has to be compiled while a CUDA graph is captured, want it before: run the "
                "same forward and backward pass once outside of the capture"
            )


def kernel_source() -> str:
    """Return the CUDA source with what it includes in its place: NVRTC searches no folder.

    Examples
    --------
    >>> "#include" in kernel_source()
    False
    """
    folder = resources.files(__package__) / "kernels"
    source, step = ((folder / name).read_text(encoding="utf-8") for name in ("soft_reset_cuda.cu", "soft_reset_step.h"))
    return source.replace('#include "soft_reset_step.h"\n', step)


def options(variant: tuple[int, ...]) -> tuple[str, ...]:
    """Return the compiler's options for a variant, but for the architecture.

    IEEE arithmetic as it is written: no contraction into FMA, and subnormal numbers are kept. Only the division is the
    fast one: it is used in surrogates alone.

    Examples
    --------
    >>> options((0, 0, 4, 4, 0, 0, 0, 1, 0, 0))[-2:]
    ('-DDETACH_RESET=0', '-DSURROGATE=0')
    """
    macros = (f"-D{name}={value}" for name, value in zip(MACROS, variant, strict=True))
    return ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=false", "--disable-warnings", *macros)


def variant_key(source: str, compiler_options: tuple[str, ...], *more: str) -> str:
    """Hash of everything that compiled code depends on."""
    return hashlib.sha256("\0".join((source, *compiler_options, *more)).encode()).hexdigest()[:24]


def _variant(
    backward: bool, x_seq: Tensor, vector: int, thresholds: Tensor, scale: Tensor | None, settings: Settings
) -> tuple[int, ...]:
    time_steps = x_seq.shape[0]
    return (
        int(backward),
        _DTYPES[x_seq.dtype],
        time_steps if time_steps <= SEGMENT else 0,
        vector,
        int(thresholds.shape[0] > 1),
        int(scale is not None),
        _RESETS[settings.reset],
        int(settings.fire_at_threshold),
        int(backward and settings.detach_reset),
        settings.surrogate if backward else 0,
    )


def _vector(backward: bool, time_steps: int, size: int, x_seq: Tensor, *others: Tensor | None) -> int:
    """Return how many neurons a thread takes: as many as fit into 16 bytes and the registers, and are aligned."""
    most = 16 // x_seq.element_size()
    if backward:  # the charges of up to 16 steps are kept in registers
        most = min(most, 8 if time_steps <= 4 else 4 if time_steps <= 8 else 2)
    elif time_steps > SEGMENT:
        most = min(most, 4)
    arrays = [array for array in (x_seq, *others) if array is not None and not is_one(array)]
    while size % most or any(array.data_ptr() % min(16, most * array.element_size()) for array in arrays):
        most //= 2
    return most


def _blocks(size: int, vector: int) -> int:
    return -(-size // (THREADS * vector))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
