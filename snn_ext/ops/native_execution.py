"""The native execution on the CPU: plain C, compiled by the system's compiler at the first use, called by ctypes."""

from __future__ import annotations

import ctypes
import os
import threading
from importlib import resources
from typing import Any, ClassVar

import torch
from torch import Tensor

from .build import BuildError, load_library
from .execution import Settings
from .layout import is_one
from .self_test import agrees_with_torch, undisturbed

__all__ = ["DTYPES", "NativeExecution", "NativeLibrary", "address", "kernel_sources", "threads_for", "types"]

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_RESETS = {"subtract": 0, "zero": 1, "none": 2}
# Neuron-steps below which a second thread costs more than it brings.
_MIN_WORK = 32768

_TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64, "f": ctypes.c_float}


def types(letters: str) -> list[Any]:
    """Return the types of a function's arguments, a letter for each: pointer, int, long, float."""
    return [_TYPES[letter] for letter in letters if letter != " "]


class NativeLibrary:
    """A C source of ``kernels``; its library is built, loaded and tested once, when it is first asked for."""

    name = "cpu-native"
    source: ClassVar[str]
    functions: ClassVar[dict[str, tuple[list[Any], Any]]]
    """Types of arguments and of the result, by the name of the function."""

    def __init__(self, sources: dict[str, str] | None = None) -> None:
        self._sources = sources
        self._library: Any = None
        self._failure: str | None = None

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it can not run: another device or dtype, no compiler, a failed build or self-test."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if dtype not in DTYPES:
            return f"it has no kernel for {dtype}"
        return self._load()

    def _load(self) -> str | None:
        if self._library is None and self._failure is None:
            with _lock:
                if self._library is None and self._failure is None:
                    self._build()
        return self._failure

    def _build(self) -> None:
        try:
            library = load_library(self._sources or kernel_sources(self.source))
        except BuildError as error:
            self._failure = str(error)
            return
        for name, (arguments, result) in self.functions.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
        trial = type(self)()
        trial._library = library
        if undisturbed(trial._passes_self_test):
            self._library = library  # last: another thread may be waiting for it
        else:
            self._failure = "the compiled library fails its self-test: it disagrees with torch"

    def _passes_self_test(self) -> bool:
        """Compare one small case with torch: a compiler may be broken in more ways than refusing to compile."""
        raise NotImplementedError


class NativeExecution(NativeLibrary):
    """``integrate_and_fire_cpu.c``."""

    source = "integrate_and_fire_cpu.c"
    functions: ClassVar[dict[str, tuple[list[Any], Any]]] = {
        "block_size": ([], ctypes.c_int64),
        "integrate_and_fire_forward": (types("pppi ppi pp ll iiii"), None),
        "integrate_and_fire_backward": (types("ppppi pi pppp i ppp ll iiiii ff i"), None),
    }

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
        time_steps = x_seq.shape[0]
        self._library.integrate_and_fire_forward(
            x_seq.data_ptr(),
            spike_seq.data_ptr(),
            v.data_ptr(),
            not is_one(v),
            v_end.data_ptr(),
            thresholds.data_ptr(),
            thresholds.shape[0] > 1,
            address(scale),
            address(checkpoints),
            time_steps,
            x_seq.numel() // time_steps,
            DTYPES[x_seq.dtype],
            _RESETS[settings.reset],
            settings.fire_at_threshold,
            threads_for(x_seq),
        )

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
        """Recompute the potential from the input and walk back."""
        time_steps = x_seq.shape[0]
        size = x_seq.numel() // time_steps
        blocks = -(-size // self._library.block_size())
        sums = torch.zeros(blocks, thresholds.shape[0] + 2, dtype=torch.float64, device="cpu")
        self._library.integrate_and_fire_backward(
            address(grad_spike_seq),
            address(grad_v_end),
            x_seq.data_ptr(),
            v.data_ptr(),
            not is_one(v),
            thresholds.data_ptr(),
            thresholds.shape[0] > 1,
            address(scale),
            address(checkpoints),
            address(grad_x_seq),
            address(grad_v),
            v.dim() == 0,
            address(grad_thresholds),
            address(grad_scale),
            sums.data_ptr(),
            time_steps,
            size,
            DTYPES[x_seq.dtype],
            _RESETS[settings.reset],
            settings.fire_at_threshold,
            settings.detach_reset,
            settings.surrogate,
            settings.alpha,
            settings.gain,
            threads_for(x_seq),
        )

    def _passes_self_test(self) -> bool:
        return agrees_with_torch(self, torch.device("cpu"))


_INCLUDED = {"adaptive_cpu.c": ("adaptive_step.h",), "transfer_cpu.c": ("transfer_step.h",)}


def kernel_sources(name: str = "integrate_and_fire_cpu.c") -> dict[str, str]:
    """Return a C source and what it includes, by file name, the one to compile first.

    Examples
    --------
    >>> list(kernel_sources())
    ['integrate_and_fire_cpu.c', 'cpu.h', 'integrate_and_fire_step.h']
    """
    folder = resources.files(__package__) / "kernels"
    names = (name, "cpu.h", "integrate_and_fire_step.h", *_INCLUDED.get(name, ()))
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


# Threads of an OpenMP pool do not survive a fork, and a child that waits for them waits for ever; nor does the thread
# that may have held the lock.
_forked = False
_lock = threading.Lock()


def _note_fork() -> None:
    global _forked, _lock
    _forked, _lock = True, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def threads_for(x_seq: Tensor) -> int:
    """Return how many threads are to work on a tensor."""
    return 1 if _forked or x_seq.numel() < _MIN_WORK else torch.get_num_threads()


def address(tensor: Tensor | None) -> int | None:
    """Return where the elements of a tensor are; None, which C sees as NULL, for no tensor."""
    return None if tensor is None else tensor.data_ptr()
