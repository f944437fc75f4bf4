"""Reasons why the CUDA kernels cannot run here, a sentence for every broken set-up."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from importlib import metadata

import torch

from ..._errors import first_line
from .nvrtc import CompileError, load_nvrtc

__all__ = ["architecture", "cupy_wheels", "why_not_cuda", "why_not_cupy"]

_OLDEST = (7, 5)
_CUPY_WHEEL = re.compile(r"cupy(-cuda\d+x?|-rocm[-\d]+)?")
_CUPY_MAJOR = 14  # the first with Stream.from_external


def why_not_cuda(device: torch.device) -> str | None:
    """Return why kernels cannot be compiled for and run on a device; None if they can.

    Examples
    --------
    >>> why_not_cuda(torch.device("cpu"))
    'it runs on CUDA devices, not on cpu'
    """
    if device.type != "cuda":
        return f"it runs on CUDA devices, not on {device.type}"
    if torch.version.hip is not None:
        return f"torch is built for ROCm {torch.version.hip}, and the kernels are for NVIDIA GPUs"
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if sys.platform != "linux":
        return f"it runs on Linux, not on {'Windows' if sys.platform == 'win32' else sys.platform}"
    return _why_not_device(device)


@functools.lru_cache
def _why_not_device(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return f"torch cannot use a GPU: {_words_of_torch()}"
    try:
        target, capability = architecture(device), torch.cuda.get_device_capability(device)
    except (RuntimeError, AssertionError) as error:
        return f"torch cannot use {device}: {first_line(error)}"
    if capability < _OLDEST:
        return f"{target} is not supported, sm_75 is the oldest that is"
    try:
        nvrtc = load_nvrtc()
    except CompileError as error:
        return str(error)
    if int(target.removeprefix("sm_")) not in nvrtc.architectures:
        known = ", ".join(f"sm_{number}" for number in nvrtc.architectures)
        return f"NVRTC {'.'.join(map(str, nvrtc.version))} does not compile for {target}, only for {known}"
    return None


def architecture(device: torch.device) -> str:
    """Return the name by which the compiler knows a device: sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.lru_cache
def why_not_cupy() -> str | None:
    """Return why CuPy cannot launch kernels beside this torch; None if it can."""
    cuda, wheels = (torch.version.cuda or "").split(".")[0], cupy_wheels()
    if len(wheels) > 1:
        return f"several CuPy packages are installed, which overwrite each other: {', '.join(wheels)}; keep one"
    if not wheels:
        return f"CuPy is not installed: pip install cupy-cuda{cuda}x"
    if "rocm" in wheels[0]:
        return f"{wheels[0]} is CuPy for ROCm, and torch is built for CUDA {torch.version.cuda}"
    try:
        cupy = importlib.import_module("cupy")
        version, runtime = str(cupy.__version__), int(cupy.cuda.runtime.runtimeGetVersion()) // 1000
    except Exception as error:  # whatever a broken installation raises
        return f"CuPy does not import: {first_line(error)}"
    if str(runtime) != cuda:
        return (
            f"CuPy {version} is for CUDA {runtime} and torch for CUDA {torch.version.cuda}: "
            f"pip uninstall {wheels[0]}, and install cupy-cuda{cuda}x"
        )
    if int(version.split(".")[0]) < _CUPY_MAJOR:
        return f"CuPy {version} is too old: {_CUPY_MAJOR} is wanted"
    return None


def cupy_wheels() -> list[str]:
    """Return the names of the packages of CuPy that are installed; each CUDA has its own."""
    names = (str(distribution.metadata["Name"]).lower() for distribution in metadata.distributions())
    return sorted({name for name in names if _CUPY_WHEEL.fullmatch(name)})


def _words_of_torch() -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError: torch has several
        return first_line(error)
    return "no GPU is visible"
