"""The calibration data: a loader, a tensor, or a callable that returns batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._errors import bad_type, bad_value

__all__ = ["Batches"]


class Batches:
    """Batches of inputs that can be iterated over several times.

    Parameters
    ----------
    calibration : Tensor, iterable or callable
        One batch; batches, or tuples that begin with the input, such as a ``DataLoader`` yields; or a function of no
        argument that returns such an iterable. An iterator, which can be used only once, is kept in memory.
    device : torch.device, optional
        Device of the batches. Inputs of 16 bits become float32, which holds them exactly.

    Examples
    --------
    >>> import torch
    >>> [x.shape[0] for x in Batches([(torch.rand(3, 2), torch.arange(3)), torch.rand(1, 2)])]
    [3, 1]
    """

    def __init__(self, calibration: Any, device: torch.device | None = None) -> None:
        self.device = device
        self._source: Iterable[Any] | Callable[[], Iterable[Any]]
        if isinstance(calibration, Tensor):
            self._source = [calibration]
        elif callable(calibration) and not hasattr(calibration, "__iter__"):
            self._source = calibration
        elif isinstance(calibration, Iterable):
            self._source = list(calibration) if isinstance(calibration, Iterator) else calibration
        else:
            bad_type("calibration", calibration, "a tensor, a loader of batches, or a callable that returns one")

    def __iter__(self) -> Iterator[Tensor]:
        source = self._source() if callable(self._source) else self._source
        found = False
        for batch in source:
            x = batch[0] if isinstance(batch, tuple | list) and batch else batch
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or len(x) < 1:
                bad_value("calibration", x, "batches of floating inputs [N, ...], or tuples that begin with them")
            found = True
            x = x.detach().to(self.device)
            yield x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if not found:
            bad_value("calibration", "no batch", "at least one")

    def upto(self, samples: int) -> list[Tensor]:
        """Return the first batches with so many samples in all, or with all that there are."""
        found: list[Tensor] = []
        for x in self:
            found.append(x[: samples - sum(map(len, found))])
            if sum(map(len, found)) == samples:
                break
        return found

    def first(self) -> Tensor:
        """Return the first batch."""
        return next(iter(self))
