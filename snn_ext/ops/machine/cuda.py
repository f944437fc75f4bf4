"""Operators on NVIDIA GPUs: variants of a CUDA source compiled when they are first needed, compared with torch."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from ..layout import is_one
from ..sequence import SEGMENT, SequenceOp
from .agreement import Agreement, undisturbed
from .source import DTYPES, address, addresses, cuda_declaration, gradient_addresses, sources

__all__ = [
    "THREADS",
    "CudaMachine",
    "Kernel",
    "Loader",
    "blocks",
    "macros",
    "options",
    "source",
    "variant_key",
    "vector",
]

THREADS = 128
"""Threads of a block, as in ``cuda.h``."""

Kernel = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], None]
"""Called as ``cupy.RawKernel`` is: grid, block, arguments; these are int for a pointer or int64, float for double."""


class Loader(Protocol):
    """A way to load and launch kernels. Everything but ``why_not`` is called on the device of :meth:`guard`."""

    name: str

    def why_not(self, device: torch.device) -> str | None:
        """Return why kernels cannot run on a device; None if they can."""

    def guard(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make a device the current one."""

    def load(self, source: str, options: tuple[str, ...], name: str, device: torch.device) -> Kernel:
        """Compile a kernel, or take it from the cache, and load it; launching it is on torch's current stream."""

    def is_capturing(self) -> bool:
        """Return True while torch's current stream is being captured into a graph."""

    def multiprocessors(self, device: torch.device) -> int:
        """Return how many multiprocessors a device has."""


# Two locks: the comparison with torch runs in another thread, which asks for kernels while its caller waits for it.
# A child process may be forked while another thread holds one.
_lock, _test_lock = threading.RLock(), threading.RLock()


def _renew_locks() -> None:
    global _lock, _test_lock
    _lock, _test_lock = threading.RLock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class CudaMachine:
    """An operator made from its declaration and ``cuda.cu``; tested once for a device and dtype before it is used.

    Nothing is kept on the device but the kernels: memory that outlives a call may lie in the pool of somebody's graph.
    """

    op: SequenceOp

    def __init__(self, package: str, agreement: Agreement, loader: Loader, changed: str | None = None) -> None:
        self.name, self.op = loader.name, agreement.op
        self._package, self._agreement, self._loader, self._changed = package, agreement, loader, changed
        self._kernels: dict[tuple[torch.device, tuple[int, ...]], Kernel] = {}
        self._failures: dict[tuple[torch.device, torch.dtype], str | None] = {}

    # -- what an operator may choose -------------------------------------------------------------------------------

    def widest(self, backward: bool, time_steps: int, element_size: int) -> int:
        """Return how many neurons a thread takes at most: as many as fit into 16 bytes, and into the registers."""
        return 16 // element_size

    def grid(self, backward: bool, inputs: Any, gradients: Any, width: int) -> tuple[int, Tensor | None]:
        """Return the number of blocks, and memory for what they have to exchange."""
        return blocks(self.op.sizes(inputs[0])[1], width), None

    # -- running ---------------------------------------------------------------------------------------------------

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it cannot run: another device or dtype, a broken set-up, results other than those of torch."""
        reason = self._loader.why_not(device)
        if reason is not None:
            return reason
        if dtype not in DTYPES:
            return f"it is not written for {dtype}"
        return self._tested(device, dtype)

    def forward(self, inputs: Any, settings: Any, checkpoints: Tensor | None, outputs: Any) -> None:
        """Fill the outputs and checkpoints."""
        with self._loader.guard(inputs[0].device):
            width = self.width(False, inputs, (*outputs, checkpoints))
            pointers = [*addresses(self.op, inputs), *map(address, (*outputs, checkpoints))]
            self._launch(False, inputs, settings, None, width, pointers)

    def backward(self, inputs: Any, settings: Any, checkpoints: Tensor | None, incoming: Any, gradients: Any) -> None:
        """Recompute the states from the input and walk back; sums over neurons come from the same launch."""
        with self._loader.guard(inputs[0].device):
            if incoming[0] is None:  # rare: only the final states were used
                incoming = self.op.Outputs(torch.zeros_like(inputs[0]), *incoming[1:])
            full = [
                g
                for g, array in zip(gradients, self.op.inputs, strict=True)
                if array.kind in (*_NEURONS, "channel") or (array.kind in _TABLES and g is not None and g.dim() > 1)
            ]
            width = self.width(True, inputs, (checkpoints, *incoming, *full))
            pointers = [*addresses(self.op, inputs), address(checkpoints), *map(address, incoming)]
            pointers += gradient_addresses(self.op, gradients)
            self._launch(True, inputs, settings, gradients, width, pointers)

    def width(self, backward: bool, inputs: Any, others: tuple[Tensor | None, ...]) -> int:
        """Return how many neurons a thread takes."""
        time_steps, size = self.op.sizes(inputs[0])
        widest = self.widest(backward, time_steps, inputs[0].element_size())
        arrays = [
            value
            for value, array in zip(inputs, self.op.inputs, strict=True)
            if array.kind in _NEURONS or (array.kind in _TABLES and value.dim() > 1)
        ]
        return vector(widest, size, *arrays, *others)

    def variant(self, backward: bool, inputs: Any, settings: Any, width: int) -> tuple[int, ...]:
        """Return the values of the macros of :func:`macros` for a call."""
        time_steps = self.op.sizes(inputs[0])[0]
        found = [int(backward), DTYPES[inputs[0].dtype], time_steps if time_steps <= SEGMENT else 0, width]
        for array, value in zip(self.op.inputs, inputs, strict=True):
            if array.kind == "per step":
                found += [int(len(value) > 1), int(value.dim() > 1)]
            elif array.kind == "table":
                found.append(int(value.dim() > 1))
            elif array.kind in _OPTIONAL:
                found.append(int(value is not None))
        for setting, code in zip(self.op.settings, self.op.codes(settings), strict=True):
            if setting.type is not float:
                found.append(int(code) if backward or setting.name not in self.op.backward_only else 0)
        return tuple(found)

    def _launch(
        self, backward: bool, inputs: Any, settings: Any, gradients: Any, width: int, pointers: list[int]
    ) -> None:
        device = inputs[0].device
        grid, workspace = self.grid(backward, inputs, gradients, width)
        kernel = self._kernel(device, self.variant(backward, inputs, settings, width))
        reals = [float(v) for s, v in zip(self.op.settings, settings, strict=True) if s.type is float]
        arguments = (*map(int, pointers), *self.op.places(inputs[0]), *reals, address(workspace))
        kernel((grid,), (THREADS,), arguments)

    def _kernel(self, device: torch.device, variant: tuple[int, ...]) -> Kernel:
        kernel = self._kernels.get((device, variant))
        if kernel is None:
            with _lock:
                kernel = self._kernels.get((device, variant))
                if kernel is None:
                    self._refuse_while_capturing()
                    text, name = self._changed or source(self.op, self._package), kernel_name(self.op, variant)
                    kernel = self._loader.load(text, options(self.op, variant), name, device)
                    self._kernels[device, variant] = kernel
        return kernel

    def _tested(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if (device, dtype) not in self._failures:
            with _test_lock:
                if (device, dtype) not in self._failures:
                    with self._loader.guard(device):
                        self._refuse_while_capturing()
                    self._failures[device, dtype] = self._failure(device, dtype)
        return self._failures[device, dtype]

    def _failure(self, device: torch.device, dtype: torch.dtype) -> str | None:
        try:
            if undisturbed(functools.partial(self._agrees_on, device, dtype)):
                return None
        except Exception as error:  # whatever a broken driver, compiler or CuPy raises
            return f"its kernels do not run: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return "its kernels disagree with torch"

    def _agrees_on(self, device: torch.device, dtype: torch.dtype) -> bool:
        with self._loader.guard(device):  # every thread has a current device
            return all(self._agreement(self, device, dtype, time_steps) for time_steps in (4, SEGMENT + 3))

    def _refuse_while_capturing(self) -> None:
        if self._loader.is_capturing():
            raise RuntimeError(
                f"{self.op.name}: a kernel has to be compiled while a CUDA graph is captured, want it before: run the "
                "same forward and backward pass once outside of the capture"
            )


_NEURONS = ("sequence", "state", "step")
"""Kinds of arrays with an element for every neuron."""
_TABLES = ("per step", "table")
"""Kinds that have one where there are more dimensions than one."""
_OPTIONAL = ("one", "channel")
"""Kinds of which the sources know at compile time whether they are given."""


def macros(op: SequenceOp) -> list[str]:
    """Return the macros that a source wants to be defined; a variant is a tuple of their values."""
    names = ["BACKWARD", "DTYPE", "STEPS", "VECTOR"]
    for array in op.inputs:
        names += [f"{array.name}_stride".upper()] if array.kind in _TABLES else []
        names += [f"{array.name}_each".upper()] if array.kind == "per step" else []
    names += [f"has_{array.name}".upper() for array in op.inputs if array.kind in _OPTIONAL]
    return names + [setting.name.upper() for setting in op.settings if setting.type is not float]


def options(op: SequenceOp, variant: tuple[int, ...]) -> tuple[str, ...]:
    """Return the compiler's options for a variant, but for the architecture.

    IEEE arithmetic as it is written: no contraction into FMA, and subnormal numbers are kept. Only the division is the
    fast one: only surrogates and ``asn_transfer`` divide.
    """
    defined = (f"-D{name}={value}" for name, value in zip(macros(op), variant, strict=True))
    return ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=false", "--disable-warnings", *defined)


def kernel_name(op: SequenceOp, variant: tuple[int, ...]) -> str:
    """Return the name of a variant's kernel."""
    return f"{op.name}_{'backward' if variant[0] else 'forward'}"


def source(op: SequenceOp, package: str) -> str:
    """Return the CUDA source with everything that it includes in its place: NVRTC searches no folder."""
    text, *headers = sources(package, "cuda.cu", cuda_declaration(op)).items()
    whole = text[1]
    for name, header in headers:
        whole = whole.replace(f'#include "{name}"\n', header)
    return whole


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
