"""The CUDA sources on the CPU: a loader that compiles them by g++, under the same machinery as a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from snn_ext.ops import implementation, registry, use_implementation
from snn_ext.ops.machine import cuda
from snn_ext.ops.machine.build import cache_folder, load_or_make
from snn_ext.ops.machine.cuda import CudaMachine, Kernel
from snn_ext.ops.machine.source import DTYPES
from snn_ext.ops.sequence import SequenceOp
from tests.ops.harness import Case

FLAGS = ("-std=c++17", "-O0", "-ffp-contract=off", "-fPIC", "-shared", "-w")
HEADER = Path(__file__).with_name("cuda_on_cpu.h")

OPERATORS = {op: found["cuda-cupy"] for op, found in registry.IMPLEMENTATIONS.items() if "cuda-cupy" in found}
"""The CUDA implementation of every operator that has one."""

Wanted = tuple[str, tuple[str, ...], str]
"""Source, options and name of a kernel."""


class Recorder:
    """A loader that runs nothing and remembers which kernels were asked for."""

    name = "cuda-cupy"

    def __init__(self, multiprocessors: int = 2) -> None:
        self.wanted: dict[Wanted, None] = {}
        self._multiprocessors = multiprocessors

    def why_not(self, device: torch.device) -> str | None:
        return None

    def guard(self, device: torch.device) -> nullcontext:
        return nullcontext()

    def load(self, source: str, options: tuple[str, ...], name: str, device: torch.device) -> Kernel:
        self.wanted[source, options, name] = None
        return lambda grid, block, arguments: None

    def is_capturing(self) -> bool:
        return False

    def multiprocessors(self, device: torch.device) -> int:
        return self._multiprocessors


class Emulator(Recorder):
    """Compiles what is wanted in one unit beforehand, and what else is asked for one by one."""

    def __init__(self, wanted: Iterable[Wanted] = (), *flags: str, multiprocessors: int = 2) -> None:
        super().__init__(multiprocessors)
        self._flags = (*FLAGS, *flags)
        self._libraries = {}
        self._lock = threading.Lock()  # there is one set of fibers
        self.descending = False
        self.last_block_alone = False
        self.build(wanted)

    def build(self, wanted: Iterable[Wanted]) -> None:
        """Compile kernels together, into one library."""
        wanted = tuple(dict.fromkeys(wanted))
        if wanted:
            if not shutil.which("g++"):
                pytest.skip("no g++ to compile the CUDA source for the CPU")
            library = _library(wanted, self._flags)
            self._libraries |= {_symbol(each): library for each in wanted}

    def load(self, source: str, options: tuple[str, ...], name: str, device: torch.device) -> Kernel:
        wanted = source, options, name
        if _symbol(wanted) not in self._libraries:
            self.build([wanted])
        library = self._libraries[_symbol(wanted)]
        function = getattr(library, _symbol(wanted))

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            words = (ctypes.c_int64 * len(arguments))(*map(_word, arguments))
            with self._lock:
                library.set_order(self.descending, grid[0] - 1 if self.last_block_alone else 0)
                if function(*grid, *block, words):
                    raise RuntimeError(f"{name}: its threads wait for each other")

        return launch


def emulated(operator: str, loader: Recorder, source: str | None = None) -> CudaMachine:
    """Return the CUDA implementation of an operator with another loader, and with another source if one is given."""
    real = OPERATORS[operator]
    return type(real)(real._package, real._agreement, loader, source)


def source_of(operator: str, *replacements: tuple[str, str]) -> str:
    """Return the CUDA source of an operator with changes; each has to apply exactly once."""
    source = cuda.source(OPERATORS[operator].op, OPERATORS[operator]._package)
    for old, new in replacements:
        assert source.count(old) == 1, f"the source has {source.count(old)} times {old!r}"
        source = source.replace(old, new)
    return source


@contextmanager
def installed(*implementations: CudaMachine) -> Iterator[None]:
    """Put implementations instead of all others of their operators."""
    changed = {found.op.name: {found.name: found} for found in implementations}
    with replaced(changed):
        yield


@contextmanager
def replaced(changed: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Change what is registered for some operators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "IMPLEMENTATIONS", {**registry.IMPLEMENTATIONS, **changed})
        registry._select.cache_clear()
        yield
    registry._select.cache_clear()


def recorded(operator: str, calls: Callable[[], object], source: str | None = None) -> list[Wanted]:
    """Return the kernels that calls of an operator need."""
    recorder = Recorder()
    with untested(), installed(emulated(operator, recorder, source)):
        calls()
    return list(recorder.wanted)


def with_bugs(
    operator: str, cases: Mapping[str, Callable[[], Any]], bugs: Mapping[str, tuple[str, str, str]]
) -> Emulator:
    """Return the kernels of the source as it is and with each bug, all compiled in one unit.

    A bug is a text of the source, what takes its place, and the case that has to catch it.
    """

    def wanted_by(source: str | None, name: str) -> list[Wanted]:
        return recorded(operator, cases[name]().run_gradients, source)

    wanted = [kernel for name in cases for kernel in wanted_by(None, name)]
    for old, new, name in bugs.values():
        wanted += wanted_by(source_of(operator, (old, new)), name)
    return Emulator(wanted)


def available(operator: str) -> list[str]:
    """Return the implementations that run here without a GPU."""
    unavailable = implementation(operator, "cpu").unavailable
    return [name for name in ("cpu", "torch") if name not in unavailable]


def fixtures(operator: str, emulator: str) -> tuple[Any, Any]:
    """Return the fixtures ``running``, by every implementation and the emulated one, and ``running_on_cpu``."""
    names = available(operator)

    @pytest.fixture(params=[*names, "emulated"])
    def running(request: pytest.FixtureRequest) -> Iterator[str]:
        if request.param != "emulated":
            with use_implementation(request.param):
                yield request.param
            return
        with installed(emulated(operator, request.getfixturevalue(emulator))):
            yield request.param

    @pytest.fixture(params=names)
    def running_on_cpu(request: pytest.FixtureRequest) -> Iterator[str]:
        with use_implementation(request.param):
            yield request.param

    return running, running_on_cpu


def comparison_kernels(operator: str) -> list[Wanted]:
    """Return the kernels that the comparison with torch needs, for every dtype."""
    recorder = Recorder()
    for dtype in DTYPES:
        emulated(operator, recorder)._failure(torch.device("cpu"), dtype)
    return list(recorder.wanted)


def _library(wanted: tuple[Wanted, ...], flags: tuple[str, ...]) -> ctypes.CDLL:
    unit = "\n".join(['#include "cuda_on_cpu.h"', *map(_in_namespace, wanted)])
    digest = hashlib.sha256("\0".join((unit, HEADER.read_text(), *flags)).encode()).hexdigest()[:16]

    def make() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder, "unit.cpp"), Path(folder, "unit.so")
            source.write_text(unit, encoding="utf-8")
            command = ["g++", *flags, f"-I{HEADER.parent}", str(source), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:4000]
            return library.read_bytes()

    name = f"emulated-{digest}.so"
    load_or_make(name, make)
    return ctypes.CDLL(str(cache_folder() / name))


def _in_namespace(wanted: Wanted) -> str:
    source, options, name = wanted
    macros = [option[2:].split("=") for option in options if option.startswith("-D")]
    return "\n".join(
        [
            *(f"#define {macro} {value}" for macro, value in macros),
            f"namespace {_symbol(wanted)}_ {{",
            source.replace('extern "C" __global__ void', "static void"),
            f"static void body(const int64_t *words) {{ call({name}, words); }}",
            "}",
            f'extern "C" int {_symbol(wanted)}(unsigned grid, unsigned block, const int64_t *words) {{',
            f"    return launch({_symbol(wanted)}_::body, grid, block, words);",
            "}",
            *(f"#undef {macro}" for macro in (*re.findall(r"#define (\w+)", source), *(m for m, _ in macros))),
        ]
    )


def _symbol(wanted: Wanted) -> str:
    source, options, name = wanted
    return "kernel_" + hashlib.sha256("\0".join((source, *options, name)).encode()).hexdigest()[:16]


def _word(argument: int | float) -> int:
    if isinstance(argument, float):
        return ctypes.c_int64.from_buffer(ctypes.c_double(argument)).value
    return argument


@contextmanager
def untested() -> Iterator[None]:
    """Let kernels be used without a comparison with torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CudaMachine, "_tested", lambda *arguments: None)
        yield


# -- checks ------------------------------------------------------------------------------------------------------------


def check(implementation: CudaMachine, emulator: Emulator, case: Case, gradients: bool = True) -> None:
    """Hold an implementation to the definition: in both orders of the threads, twice, between guard zones."""
    with installed(implementation), guard_zones() as check_zones:
        for emulator.descending in (False, True, False):
            case.check_exact()
            if gradients and not case.x_seq.isnan().any():
                case.check_gradients()
            check_zones()


@contextmanager
def guard_zones() -> Iterator[Callable[[], None]]:
    """Put everything that an operator writes between two zones, and yield what checks them."""
    zones: list[Tensor] = []
    size, mark = 4096, 12345.0

    def guarded(like: Tensor) -> Tensor:
        storage = torch.full((like.numel() + 2 * size,), mark, dtype=like.dtype)
        zones.extend((storage[:size], storage[-size:]))
        return storage.as_strided(like.shape, like.stride(), size).fill_(torch.nan)

    def check_zones() -> None:
        touched = sum(int((zone != zone.new_tensor(mark)).sum()) for zone in zones)
        assert not touched, f"Case(...): {touched} elements beyond the arrays were written"

    with pytest.MonkeyPatch.context() as patch:
        for name in ("room", "room_for_gradients"):
            room = getattr(SequenceOp, name)
            patch.setattr(SequenceOp, name, lambda *a, _room=room: tree_map(guarded, _room(*a)))
        yield check_zones
