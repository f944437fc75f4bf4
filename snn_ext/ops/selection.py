"""Which implementation of an operator runs, and why another can not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .._errors import check_choice

__all__ = ["Implementation", "implementation", "use_implementation"]

NAMES = ("cuda-cupy", "cuda-nvrtc", "cpu-native", "torch")
VARIABLE = "SNN_EXT_IMPLEMENTATION"

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
    T: int | None = None,
    surrogate: Any = None,
) -> Implementation:
    """Return which implementation runs an operator for a device (and dtype, number of steps, surrogate).

    Parameters
    ----------
    op : {"soft_reset_if"}
        Name of the operator.
    device : torch.device or str
        Where the input is.
    dtype : torch.dtype, optional
        Dtype of the input; any by default.
    T : int, optional
        Number of steps; any by default.
    surrogate : optional
        Surrogate of the spike; any by default.

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
    >>> implementation("soft_reset_if", "cpu").name
    'torch'
    """
    check_choice("op", op, ("soft_reset_if",))
    torch.device(device)
    unavailable = {name: "this version has the torch implementation only" for name in NAMES if name != "torch"}
    if _forced is not None:
        check_choice(VARIABLE, _forced, NAMES)
        if _forced in unavailable:
            raise RuntimeError(
                f"{op}: the implementation {_forced!r} is forced and can not run: {unavailable[_forced]}"
            )
    return Implementation("torch", unavailable)


@contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Force an implementation inside a ``with`` block; one that can not run raises when the operator is called.

    The environment variable ``SNN_EXT_IMPLEMENTATION``, read when the package is imported, does it for a whole process.

    Parameters
    ----------
    name : {"cuda-cupy", "cuda-nvrtc", "cpu-native", "torch"}

    Examples
    --------
    >>> with use_implementation("torch"):
    ...     implementation("soft_reset_if", "cpu").name
    'torch'
    """
    check_choice("name", name, NAMES)
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
