"""Errors for wrong arguments, all of one form: ``name: got X, want Y``."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NoReturn


def describe(value: Any) -> str:
    """Say in one short line what a value is: a tensor by its dtype and shape, anything else by its repr."""
    if isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype"):  # and no proxy of one
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    text = " ".join(repr(value).split())  # a tensor in a list is printed in lines
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_line(error: BaseException) -> str:
    """Return the reason of an error, without what torch adds on further lines; of one without words, its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def bad_value(name: str, got: Any, want: str) -> NoReturn:
    """Raise the ``ValueError`` that names the argument, what came and what is wanted."""
    raise ValueError(f"{name}: got {describe(got)}, want {want}")


def bad_type(name: str, got: Any, want: str) -> NoReturn:
    """Raise the ``TypeError`` that names the argument, what came and what is wanted."""
    kind = type(got).__name__
    of_type = "" if kind in ("Tensor", "Parameter") else f" of type {kind}"  # a tensor is described as one
    raise TypeError(f"{name}: got {describe(got)}{of_type}, want {want}")


def check_bool(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool."""
    if not isinstance(value, bool):
        bad_type(name, value, "True or False")
    return value


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        bad_value(name, value, "one of " + ", ".join(repr(c) for c in choices))
    return value


def check_real(name: str, value: Any, want: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return ``value`` as a float if it is a finite number in ``[low, high]``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        bad_type(name, value, want)
    number = float(value)
    if not (-math.inf < number < math.inf and low <= number <= high):  # isfinite breaks the graph of torch.compile
        bad_value(name, value, want)
    return number


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value`` if it is an int of at least 1, or as given."""
    if isinstance(value, bool) or not isinstance(value, int):
        bad_type(name, value, f"an int >= {least}")
    if value < least:
        bad_value(name, value, f"an int >= {least}")
    return value
