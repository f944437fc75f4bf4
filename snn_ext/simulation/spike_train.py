"""Spike trains packed as bits."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..ops.layout import dense

__all__ = ["SpikeTrain"]


class SpikeTrain:
    """A train of 0/1 spikes ``[T, N, ...]``, eight to a byte, appended and read in chunks of time.

    Examples
    --------
    >>> import torch
    >>> train = SpikeTrain()
    >>> train.append(torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]))
    >>> train.read(1, 2), train.nbytes
    (tensor([[[0., 1., 0.]]]), 2)

    Parameters
    ----------
    scale : float or Tensor
        Value of a spike, one element or one for each channel: every entry other than 0 is read back as this value.
    """

    def __init__(self, scale: float | Tensor = 1.0) -> None:
        self._scale = scale
        self._steps: list[Tensor] = []  # a row of bytes for each step
        self._template: Tensor | None = None

    def append(self, spikes: Tensor) -> None:
        """Add the spikes of the next steps; all have one shape and one layout in memory."""
        spikes = dense(spikes)
        if self._template is None:
            self._template = torch.empty_strided(
                spikes.shape[1:], spikes.stride()[1:], dtype=spikes.dtype, device="meta"
            )
        self._steps.append(_pack(self._in_memory_order(spikes)))

    def read(self, start: int, stop: int) -> Tensor:
        """Return the spikes of steps ``start <= t < stop`` as ``[T', N, ...]``."""
        assert self._template is not None
        rows = torch.cat(_rows(self._steps, start, stop))
        own = self._scale if isinstance(self._scale, Tensor) and self._scale.numel() > 1 else None
        value = float(self._scale) if own is None else 1.0
        flat = _unpack(rows, self._template.numel(), value, self._template.dtype)
        spikes = flat.as_strided((len(rows), *self._template.shape), (flat.stride(0), *self._template.stride()))
        return spikes if own is None else spikes * own.reshape(-1, *[1] * (spikes.ndim - 3)).to(spikes)

    def __len__(self) -> int:
        return sum(map(len, self._steps))

    @property
    def nbytes(self) -> int:
        """Bytes that the train takes."""
        return sum(rows.numel() for rows in self._steps)

    def _in_memory_order(self, spikes: Tensor) -> Tensor:
        assert self._template is not None
        like = (self._template.numel(), *self._template.stride())
        if spikes.stride() != like:
            spikes = torch.empty_strided(spikes.shape, like, dtype=spikes.dtype, device=spikes.device).copy_(spikes)
        return spikes.as_strided((len(spikes), like[0]), (like[0], 1))


def _rows(chunks: list[Tensor], start: int, stop: int) -> list[Tensor]:
    found, offset = [], 0
    for rows in chunks:
        low, high = max(start - offset, 0), min(stop - offset, len(rows))
        if low < high:
            found.append(rows[low:high])
        offset += len(rows)
    return found


# Eight bytes of 0 and 1, read as one integer, times this: the most significant byte holds the eight bits.
_GATHER = 0x0102040810204080


def _pack(flat: Tensor) -> Tensor:
    """Return ``[T, N]`` as bits, ``[T, ceil(N / 8)]``."""
    spikes = flat != 0
    if flat.shape[1] % 8:
        spikes = torch.nn.functional.pad(spikes, (0, -flat.shape[1] % 8))
    return (spikes.view(torch.int64) * _GATHER >> 56).to(torch.uint8)


def _unpack(rows: Tensor, size: int, value: float, dtype: torch.dtype) -> Tensor:
    """Return bits as ``[T, N]``, 0 or ``value``."""
    table = _table(value, dtype, rows.device)
    return table.index_select(0, rows.flatten().int()).view(len(rows), -1)[:, :size]


@functools.lru_cache
def _table(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the eight spikes of each byte; the order of the bits depends on the byte order of the machine."""
    order = _pack(torch.eye(8, device="cpu")).flatten().int().log2().round().int()
    bits = (torch.arange(256, device="cpu").unsqueeze(1) >> order) & 1
    return (bits * value).to(device=device, dtype=dtype)
