"""The implementations of every operator: which one runs, and why another cannot."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._errors import check_choice, describe
from ..functional.surrogates import Surrogate, as_surrogate

__all__ = [
    "NAMES",
    "Implementation",
    "check_definition_may_run",
    "implementation",
    "register",
    "select",
    "use_implementation",
    "why_definition",
]

NAMES = ("cuda-cupy", "cuda-nvrtc", "cpu", "torch")
"""All implementations, the preferred first."""

VARIABLE = "SNN_EXT_IMPLEMENTATION"

IMPLEMENTATIONS: dict[str, dict[str, Any]] = {}
"""By operator and name; a name that is missing is not part of this version."""

_forced: str | None = os.environ.get(VARIABLE) or None


@dataclass(frozen=True)
class Implementation:
    """The implementation that an operator uses, and the reason for each one that it cannot use."""

    name: str
    unavailable: dict[str, str] = field(default_factory=dict)


def register(op: str, implementation: Any) -> None:
    """Enter an implementation of an operator: it has a ``name`` and a method ``why_not(device, dtype)``.

    ``why_not`` returns the reason, in one line, why it cannot run there, or None.
    """
    IMPLEMENTATIONS.setdefault(op, {})[implementation.name] = implementation


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
    op : {"integrate_and_fire", "adaptive_spiking", "asn_transfer", "spike_convolution", "spike_counts", "value_codes"}
        Name of the operator; the last three are a layer behind spikes in a simulation, the counts of an evaluation, and
        spikes packed as bits.
    device : torch.device or str
        Where the input is.
    dtype : torch.dtype, optional
        Dtype of the input; float32 by default.
    surrogate : optional
        Surrogate of the spike; one that is known by default.

    Returns
    -------
    Implementation
        ``name``, and in ``unavailable`` the reason for each implementation that cannot run.

    Raises
    ------
    ValueError
        If the operator is unknown.
    RuntimeError
        If an implementation is forced that cannot run.

    Examples
    --------
    >>> implementation("integrate_and_fire", "cpu", torch.float64).name
    'torch'
    >>> implementation("integrate_and_fire", "cpu", torch.float64).unavailable["cpu"]
    'it is not written for torch.float64'
    """
    check_choice("op", op, tuple(IMPLEMENTATIONS))
    reason = _why_unknown(as_surrogate(surrogate))
    if reason is not None:
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
    """Force an implementation inside a ``with`` block; one that cannot run raises when the operator is called.

    The choice holds for all threads of the process, because autograd may run the backward pass in another thread; so
    do not use it in several threads at once. It is meant for tests and benchmarks. To force an implementation for a
    whole process, set ``SNN_EXT_IMPLEMENTATION`` before the package is imported.

    Parameters
    ----------
    name : {"cuda-cupy", "cuda-nvrtc", "cpu", "torch"}

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
    """Raise if another implementation than torch is forced for a call that only the definition can run."""
    return _choose(op, {name: reason for name in NAMES if name != "torch"})


def why_definition(surrogate: object, *arguments: Any) -> str | None:
    """Return why only the definition can run a call, apart from the values of its arguments; None if others can.

    The surrogate is what ``as_surrogate`` has made of it, or None for an operator without one.

    torch neither lets a registered operator take part in ``torch.func`` nor tells it of tangents.
    """
    if torch._C._are_functorch_transforms_active():
        return "it is transformed by torch.func, which only the definition can be"
    if forward_ad._current_level >= 0 and any(map(_has_tangent, arguments)):  # at level -1 there are none
        return "its forward-mode derivative is wanted, which only the definition has"
    onnx = sys.modules.get("torch.onnx")
    if onnx is not None and not torch.compiler.is_dynamo_compiling() and onnx.is_in_onnx_export():
        return "it is exported to ONNX, which only the definition can be"
    return _why_unknown(surrogate)


def _has_tangent(argument: object) -> bool:
    return isinstance(argument, Tensor) and forward_ad.unpack_dual(argument).tangent is not None


def _why_unknown(surrogate: object) -> str | None:
    if surrogate is None or isinstance(surrogate, Surrogate):
        return None
    return f"the surrogate {describe(surrogate)} is not one of the known curves; the definition runs it"


def select(op: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the implementation that runs an operator: :func:`implementation` for the operator itself."""
    return _select(op, device, dtype, _forced)


@functools.lru_cache
def _select(op: str, device: torch.device, dtype: torch.dtype, forced: str | None) -> Any:
    return IMPLEMENTATIONS[op][_choose(op, _reasons(op, device, dtype)).name]


def _reasons(op: str, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    reasons = {}
    for name in NAMES:
        found = IMPLEMENTATIONS[op].get(name)
        reason = "it is not part of this version" if found is None else found.why_not(device, dtype)
        if reason is not None:
            reasons[name] = reason
    return reasons


def _choose(op: str, unavailable: dict[str, str]) -> Implementation:
    if _forced is None:
        return Implementation(next(name for name in NAMES if name not in unavailable), unavailable)
    check_choice(VARIABLE, _forced, NAMES)
    if _forced in unavailable:
        raise RuntimeError(f"{op}: the implementation {_forced!r} is forced and cannot run: {unavailable[_forced]}")
    return Implementation(_forced, unavailable)
