"""NVIDIA's run-time compiler, called by ctypes: from CUDA text to machine code, with neither a driver nor a GPU."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

__all__ = ["CompileError", "Nvrtc", "load_nvrtc"]


class CompileError(RuntimeError):
    """The reason why there is no machine code, in one line."""


class Nvrtc:
    """A loaded library, its version, and the architectures that it compiles for: 90 is sm_90."""

    def __init__(self, library: Any) -> None:
        self._library = library
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self._check(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        architectures = (ctypes.c_int * count.value)()
        self._check(library.nvrtcGetSupportedArchs(architectures))
        self.version = (major.value, minor.value)
        self.architectures = tuple(architectures)

    def compile(self, source: str, options: tuple[str, ...], architecture: str) -> bytes:
        """Return machine code (a cubin) for an architecture such as sm_90.

        Raises
        ------
        CompileError
            With the first line of the compiler's log that has an error.
        """
        return self.compile_with_log(source, options, architecture)[0]

    def compile_with_log(self, source: str, options: tuple[str, ...], architecture: str) -> tuple[bytes, str]:
        """Return machine code, and what the compiler says: with ``--ptxas-options=-v`` registers and spills."""
        library, program = self._library, ctypes.c_void_p()
        self._check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
        try:
            words = [word.encode() for word in (*options, f"--gpu-architecture={architecture}")]
            status = library.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
            log = self._content(program, "ProgramLog").decode(errors="replace").rstrip("\0")
            if status != 0:
                lines = log.splitlines()
                raise CompileError(
                    "NVRTC failed: " + next((line for line in lines if "error" in line), " ".join(lines) or str(status))
                )
            return self._content(program, "CUBIN"), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _content(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, status: int) -> None:
        if status != 0:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise CompileError(f"NVRTC: {self._library.nvrtcGetErrorString(status).decode()}")


@functools.lru_cache
def load_nvrtc(major: int | None = None) -> Nvrtc:
    """Load the library of a CUDA version: the one that torch brings, or one that the system knows.

    Parameters
    ----------
    major : int, optional
        12 or 13; that of torch by default, and any if torch is built without CUDA.

    Raises
    ------
    CompileError
        If there is none.
    """
    if major is None and torch.version.cuda is not None:
        major = int(torch.version.cuda.split(".")[0])
    majors = (major,) if major is not None else (13, 12)
    for path in (path for number in majors for path in _candidates(number)):
        try:
            for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")) if os.sep in path else ():
                ctypes.CDLL(str(builtins))  # it looks for this by name, and not beside itself
            return Nvrtc(ctypes.CDLL(path))
        except (OSError, AttributeError):
            continue
    names = " or ".join(f"libnvrtc.so.{number}" for number in majors)
    raise CompileError(f"no NVRTC: looked for {names} in Python's packages, CUDA_HOME and the system's libraries")


def _candidates(major: int) -> Iterator[str]:
    name = f"libnvrtc.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for inside in (f"cu{major}/lib", "cuda_nvrtc/lib"):
            yield str(Path(folder, inside, name))
    for variable in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"):
        if os.environ.get(variable):
            yield from (str(Path(os.environ[variable], inside, name)) for inside in ("lib64", "lib"))
    yield name
