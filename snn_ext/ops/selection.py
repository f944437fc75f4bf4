"""Which implementation of an operator runs, and why another can not."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .._errors import check_choice, describe
from ..functional.surrogates import Surrogate, as_surrogate
from .adaptive_cuda import AdaptiveCudaExecution
from .adaptive_native import AdaptiveNativeExecution
from .adaptive_torch import AdaptiveTorchExecution
from .cuda_backends import CupyBackend, DriverBackend
from .cuda_execution import CudaExecution
from .native_execution import NativeExecution
from .spike_convolution import SpikeConvolutionNative, SpikeConvolutionTorch
from .torch_execution import TorchExecution
from .transfer_cuda import TransferCudaExecution
from .transfer_executions import TransferNativeExecution, TransferTorchExecution

__all__ = [
    "Implementation",
    "check_definition_may_run",
    "implementation",
    "select",
    "use_implementation",
    "why_transformed",
]

NAMES = ("cuda-cupy", "cuda-nvrtc", "cpu-native", "torch")
"""All implementations, the preferred first."""

VARIABLE = "SNN_EXT_IMPLEMENTATION"

EXECUTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "integrate_and_fire": {
            e.name: e
            for e in (CudaExecution(CupyBackend()), CudaExecution(DriverBackend()), NativeExecution(), TorchExecution())
        },
        "adaptive_spiking": {
            e.name: e
            for e in (
                AdaptiveCudaExecution(CupyBackend()),
                AdaptiveCudaExecution(DriverBackend()),
                AdaptiveNativeExecution(),
                AdaptiveTorchExecution(),
            )
        },
        "spike_convolution": {e.name: e for e in (SpikeConvolutionNative(), SpikeConvolutionTorch())},
        "asn_transfer": {
            e.name: e
            for e in (
                TransferCudaExecution(CupyBackend()),
                TransferCudaExecution(DriverBackend()),
                TransferNativeExecution(),
                TransferTorchExecution(),
            )
        },
    }
)
"""By operator and name; the names that are missing are not part of this version."""

_forced: str | None = os.environ.get(VARIABLE) or None


@dataclass(frozen=True)
class Implementation:
    """The implementation that an operator uses, and the reason for each one that it can not use."""

    name: str
    unavailable: dict[str, str] = field(default_factory=dict)


def implementation(
    op: str,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    surrogate: Any = None,
) -> Implementation:
    """Return which implementation runs an operator for a device (and dtype, surrogate).

    The first question about a device compiles what the cache does not hold, and tests it.

    Parameters
    ----------
    op : {"integrate_and_fire", "adaptive_spiking", "asn_transfer", "spike_convolution"}
        Name of the operator; the last one is a layer behind spikes in a simulation.
    device : torch.device or str
        Where the input is.
    dtype : torch.dtype, optional
        Dtype of the input; float32 by default.
    surrogate : optional
        Surrogate of the spike; one that is known by default.

    Returns
    -------
    Implementation
        ``name``, and in ``unavailable`` the reason for each implementation that can not run.

    Raises
    ------
    ValueError
        If the operator is unknown.
    RuntimeError
        If an implementation is forced that can not run.

    Examples
    --------
    >>> implementation("integrate_and_fire", "cpu", torch.float64).name
    'torch'
    >>> implementation("integrate_and_fire", "cpu", torch.float64).unavailable["cpu-native"]
    'it has no kernel for torch.float64'
    """
    check_choice("op", op, tuple(EXECUTIONS))
    surrogate = as_surrogate(surrogate)
    if not isinstance(surrogate, Surrogate):
        reason = f"the surrogate {describe(surrogate)} is not one of the known curves; the definition runs it"
        return check_definition_may_run(op, reason)
    return _choose(op, _reasons(op, _with_index(torch.device(device)), dtype or torch.float32))


def _with_index(device: torch.device) -> torch.device:
    """Return the device that "cuda" alone means now: reasons are remembered by device."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        with suppress(RuntimeError, AssertionError):  # of a driver that fails later; that is a reason, too
            return torch.device("cuda", torch.cuda.current_device())
    return device


@contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Force an implementation inside a ``with`` block; one that can not run raises when the operator is called.

    The environment variable ``SNN_EXT_IMPLEMENTATION``, read when the package is imported, does it for a whole process.
    So does the block, as long as it lasts: a backward pass may run in a thread of its own. It is for tests and
    measurements; threads that force different ones at the same time disturb each other.

    Parameters
    ----------
    name : {"cuda-cupy", "cuda-nvrtc", "cpu-native", "torch"}

    Examples
    --------
    >>> with use_implementation("torch"):
    ...     implementation("integrate_and_fire", "cpu").name
    'torch'
    """
    check_choice("name", name, NAMES)
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def check_definition_may_run(op: str, reason: str) -> Implementation:
    """Raise if another implementation is forced for what, for a reason, only the definition can run."""
    return _choose(op, {name: reason for name in NAMES if name != "torch"})


def why_transformed(*arguments: Any) -> str | None:
    """Return why only the definition can run here, apart from the arguments' values; None if every implementation can.

    torch neither lets a registered operator take part in ``torch.func`` nor tells it of tangents.
    """
    if torch._C._are_functorch_transforms_active():
        return "it is transformed by torch.func, which only the definition can be"
    if any(isinstance(argument, Tensor) and unpack_dual(argument).tangent is not None for argument in arguments):
        return "its forward-mode derivative is wanted, which only the definition has"
    return None


def select(op: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return what runs an operator: :func:`implementation` for the operator itself."""
    return _select(op, device, dtype, _forced)


@functools.lru_cache
def _select(op: str, device: torch.device, dtype: torch.dtype, forced: str | None) -> Any:
    return EXECUTIONS[op][_choose(op, _reasons(op, device, dtype)).name]


def _reasons(op: str, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    reasons = {}
    for name in NAMES:
        execution = EXECUTIONS[op].get(name)
        reason = "it is not part of this version" if execution is None else execution.why_not(device, dtype)
        if reason is not None:
            reasons[name] = reason
    return reasons


def _choose(op: str, unavailable: dict[str, str]) -> Implementation:
    if _forced is None:
        return Implementation(next(name for name in NAMES if name not in unavailable), unavailable)
    check_choice(VARIABLE, _forced, NAMES)
    if _forced in unavailable:
        raise RuntimeError(f"{op}: the implementation {_forced!r} is forced and can not run: {unavailable[_forced]}")
    return Implementation(_forced, unavailable)
