"""Changing several objects together, or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

__all__ = ["all_or_nothing"]


class all_or_nothing:  # noqa: N801
    """Give attributes their old values back if the block fails or is interrupted.

    The block has to replace values, not to write into them.

    Parameters
    ----------
    places : iterable of (object, str)
        The attributes that the block sets.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> one = SimpleNamespace(value=1)
    >>> try:
    ...     with all_or_nothing([(one, "value")]):
    ...         one.value = 2
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     one.value
    1
    """

    def __init__(self, places: Iterable[tuple[Any, str]]) -> None:
        self._old = [(owner, name, getattr(owner, name)) for owner, name in places]

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            for owner, name, value in self._old:
                setattr(owner, name, value)
