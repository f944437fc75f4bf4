"""Progress bars of long work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["bar"]


def bar(what: str, unit: str, values: Iterable[Any] | None = None, *, total: int | None = None, progress: bool) -> Any:
    """Return a progress bar over some values, or of a total that ``update`` advances; only a terminal shows it."""
    from tqdm.auto import tqdm  # SpikingJelly requires it

    return tqdm(values, what, total, unit=unit, dynamic_ncols=True, leave=False, disable=None if progress else True)
