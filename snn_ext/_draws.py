"""Random numbers that operations of torch draw."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ._tracing import innermost

__all__ = ["Draws"]


class Draws(TorchDispatchMode):
    """Notices where random numbers are drawn inside, on any device and of any generator.

    Attributes
    ----------
    found : list of str
        The line of the net for each draw, or ``""``.

    Examples
    --------
    >>> with Draws() as draws:
    ...     x = torch.nn.functional.dropout(torch.ones(3))
    >>> len(draws.found)
    1
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.append(innermost(traceback.walk_stack(None)))
        return func(*args, **(kwargs or {}))
