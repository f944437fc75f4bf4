"""Random positions of a layer, the same for all its channels, and what is computed there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["POSITIONS", "Samples", "places_of", "values_at"]

POSITIONS = 4096
"""Positions of a channel that are enough for a search."""


@dataclass
class Samples:
    """What the analog net computes at random positions of a layer, the same for all channels.

    Attributes
    ----------
    shape : torch.Size
        Of the layer, ``[N, C, ...]``, for some N.
    places : list of (Tensor, Tensor)
        For each batch the index of the sample, and of the place in the flattened output.
    current, target : Tensor
        Input and output of the activation, ``[C, M]``.
    """

    shape: torch.Size
    places: list[tuple[Tensor, Tensor]]
    current: Tensor
    target: Tensor

    def of(self, value: Tensor, batch: int) -> Tensor:
        """Return the values ``[T', C, M_b]`` of ``[T', N, C, ...]`` at the positions in a batch."""
        return values_at(value, *self.places[batch])

    def fewer(self, positions: int) -> Samples:
        """Return every k-th position, so that there are enough for a search, and at most so many."""
        step = math.ceil(self.current.shape[1] / max(1, min(POSITIONS, positions)))
        places, start = [], 0
        for sample, place in self.places:
            kept = slice(-start % step, None, step)
            places.append((sample[kept], place[kept]))
            start += len(sample)
        return Samples(self.shape, places, self.current[:, ::step], self.target[:, ::step])


def values_at(value: Tensor, sample: Tensor, place: Tensor) -> Tensor:
    """Return the values ``[T', C, M]`` of ``[T', N, C, ...]`` at some positions."""
    return value.reshape(*value.shape[:3], -1)[:, sample, :, place].permute(1, 2, 0)


def places_of(
    sizes: Sequence[int], places: int, count: int, generator: torch.Generator, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Draw positions in the order of the samples, batch by batch; all of them, if there are not more."""
    total = sum(sizes) * places
    chosen = torch.arange(total)
    if total > count:
        chosen = torch.randint(total, (count,), generator=generator).sort().values
    samples, found, start = chosen // places, [], 0
    for size in sizes:
        here = (samples >= start) & (samples < start + size)
        found.append(((samples[here] - start).to(device), (chosen[here] % places).to(device)))
        start += size
    return found
