"""Random numbers that operations of torch draw."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Draws"]


class Draws(TorchDispatchMode):
    """Notices in ``any`` whether random numbers are drawn inside, on any device and of any generator.

    Examples
    --------
    >>> with Draws() as draws:
    ...     x = torch.nn.functional.dropout(torch.ones(3))
    >>> draws.any
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
