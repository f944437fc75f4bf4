"""Operators in C on the CPU: compiled at the first use, compared with torch, called by ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .agreement import Agreement, undisturbed
from .build import BuildError, load_library
from .source import (
    DTYPES,
    Argument,
    address,
    addresses,
    arguments,
    c_declaration,
    gradient_addresses,
    operator_constants,
    sources,
    struct,
)

__all__ = ["CpuImplementation", "Library", "threads_for"]

# Neuron-steps below which a second thread costs more than it brings.
_MIN_WORK = 32768


class Library:
    """``cpu.c`` of an operator's folder; built, loaded and tested once, when it is first asked for.

    Parameters
    ----------
    name : str
        Name of the operator.
    package : str
        The folder, as a package.
    functions : dict of str to list of Argument
        What the library exports: ``int name(const name_arguments *call)``, which returns 0 if all went well.
    constants : str
        More text for ``declaration.h``.
    changed : dict of str to str, optional
        Other sources, by file name.
    """

    name = "cpu"

    def __init__(
        self,
        name: str,
        package: str,
        functions: Mapping[str, Sequence[Argument]],
        constants: str = "",
        changed: dict[str, str] | None = None,
    ) -> None:
        self._operator, self._package, self._functions, self._constants = name, package, functions, constants
        self._changed = changed
        self._calls: dict[str, Callable[..., int]] | None = None
        self._failure: str | None = None

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it cannot run: another device or dtype, no compiler, a failed build or comparison with torch."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if dtype not in DTYPES:
            return f"it is not written for {dtype}"
        if self._calls is None and self._failure is None:
            with _lock:
                if self._calls is None and self._failure is None:
                    self._load()
        return self._failure

    def sources(self) -> dict[str, str]:
        """Return the C sources by file name, the one to compile first."""
        found = sources(self._package, "cpu.c", c_declaration(self._functions, self._constants))
        return {f"{self._operator}.c": found.pop("cpu.c"), **found}

    def _load(self) -> None:
        try:
            library = load_library(self._changed or self.sources())
        except BuildError as error:
            self._failure = str(error)
            return
        calls = {name: _caller(getattr(library, name), fields) for name, fields in self._functions.items()}
        if undisturbed(lambda: self._agrees_with_torch(calls)):
            self._calls = calls  # last: another thread may be waiting for it
        else:
            self._failure = "the compiled code disagrees with torch"

    def _agrees_with_torch(self, calls: dict[str, Callable[..., int]]) -> bool:
        """Compare a small case with torch: a compiler may be broken in more ways than refusing to compile."""
        raise NotImplementedError


def _caller(function: Any, fields: Sequence[Argument]) -> Callable[..., int]:
    arguments, byref = struct(fields), ctypes.byref
    return lambda *values: function(byref(arguments(*values)))


class CpuImplementation(Library):
    """An operator made from its declaration alone: ``forward`` and ``backward`` of ``cpu.c``."""

    def __init__(self, package: str, agreement: Agreement, changed: dict[str, str] | None = None) -> None:
        op = agreement.op
        functions = {
            name: [*arguments(op, backward), Argument("dtype", "int"), Argument("threads", "int")]
            for name, backward in (("forward", False), ("backward", True))
        }
        super().__init__(op.name, package, functions, operator_constants(op), changed)
        self.op, self._agreement = op, agreement
        self._codes = functools.lru_cache(maxsize=256)(op.codes)

    def forward(self, inputs: Any, settings: Any, checkpoints: Tensor | None, outputs: Any) -> None:
        """Fill the outputs and checkpoints."""
        self._call("forward", inputs, settings, [*addresses(self.op, inputs), *map(address, (*outputs, checkpoints))])

    def backward(self, inputs: Any, settings: Any, checkpoints: Tensor | None, incoming: Any, gradients: Any) -> None:
        """Recompute the states from the input and walk back."""
        values = [*addresses(self.op, inputs), address(checkpoints), *map(address, incoming)]
        self._call("backward", inputs, settings, values + gradient_addresses(self.op, gradients))

    def _call(self, name: str, inputs: Any, settings: Any, values: list[Any]) -> None:
        x_seq = inputs[0]
        calls, dtype = self._calls, DTYPES[x_seq.dtype]
        assert calls is not None
        if calls[name](*values, *self.op.places(x_seq), *self._codes(settings), dtype, threads_for(x_seq)):
            raise MemoryError(f"{self.op.name}: no memory for the sums over neurons")

    def _agrees_with_torch(self, calls: dict[str, Callable[..., int]]) -> bool:
        trial = CpuImplementation(self._package, self._agreement)
        trial._calls = calls
        return self._agreement(trial, torch.device("cpu"))


# Threads of an OpenMP pool do not survive a fork, and a child that waits for them never goes on; nor does the thread
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
