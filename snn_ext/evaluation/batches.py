"""Checks of the batches of a loader: inputs, labels, and that all numbers are finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from .._errors import bad_type, bad_value

__all__ = ["Frames", "check_finite", "check_finite_weights", "check_labels", "inputs_and_labels", "numbered"]

Frames = Literal["TN", "NT"] | None
"""Order of the first two dimensions of sequences of frames; ``None`` for inputs ``[N, ...]`` that do not change."""


def numbered(loader: Iterable[Any], frames: Frames = None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yield number (from 1), inputs ``[N, ...]`` and labels or ``None`` of each batch; only N may vary.

    With ``frames`` the inputs are sequences in the order of their first two dimensions, and come as ``[T, N, ...]``.
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        bad_type("loader", loader, "batches of it: torch.utils.data.DataLoader(dataset, batch_size=64)")
    if isinstance(loader, Tensor) or not isinstance(loader, Iterable):
        bad_type("loader", loader, "batches (inputs, labels) or inputs, as [inputs] for a single one")
    shape: torch.Size | None = None
    for number, batch in enumerate(loader, 1):
        x, labels = inputs_and_labels(batch)
        if frames is not None:
            x = _time_first(x, frames, number)
        elif x.ndim < 2 or len(x) < 1:
            bad_value("loader", x, f"inputs [N, ...] of at least one sample in batch {number}")
        one = x.shape[1:] if frames is None else (x.shape[0], *x.shape[2:])
        if shape not in (None, one):
            bad_value("loader", x, f"samples of one shape, {list(shape or ())} as in batch 1, also in batch {number}")
        shape = torch.Size(one)
        check_finite("loader", x, f"the inputs of batch {number}")
        yield number, x, labels


def _time_first(x: Tensor, frames: str, number: int) -> Tensor:
    """Return frames as ``[T, N, ...]``."""
    if x.ndim < 3 or 0 in x.shape[:2] or not x.is_floating_point():
        order = ", ".join(frames)
        bad_value("loader", x, f"frames [{order}, ...] of floating point in batch {number}, as frames={frames!r} says")
    return x if frames == "TN" else x.transpose(0, 1)


def inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return inputs and labels of a batch ``(inputs, labels)``, ``(inputs,)`` or inputs alone."""
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if not parts or not all(isinstance(part, Tensor) for part in parts[:2]):
        bad_type("loader", batch, "batches (inputs, labels) or inputs, as tensors")
    return parts[0], parts[1] if len(parts) > 1 else None


def check_labels(labels: Tensor, scores: Tensor) -> Tensor:
    """Return labels as int64; there must be one class number for each row of the scores."""
    integer = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not integer:
        bad_value("loader", labels, f"one integer label for each of the outputs {list(scores.shape)}")
    labels = labels.long()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= scores.shape[1]:
        got = f"labels from {low} to {high}"
        bad_value("loader", got, f"class numbers from 0 to {scores.shape[1] - 1}, one for each output")
    return labels


def check_finite(name: str, values: Tensor, what: str) -> None:
    """Raise ``ValueError`` if a value is NaN or infinite: a comparison with NaN decides anything."""
    if not bool(values.isfinite().all()):
        bad_value(name, f"NaN or infinite values in {what}", "finite numbers")


def check_finite_weights(name: str, net: nn.Module) -> None:
    """Raise ``ValueError`` if a parameter is not finite or a buffer is NaN; a mask may be infinite."""
    for kind, tensors in (("parameter", net.named_parameters()), ("buffer", net.named_buffers())):
        for key, value in tensors:
            bad = value.isnan() if kind == "buffer" else ~value.isfinite()
            if bool(bad.any()):
                bad_value(name, f"NaN or infinite values in the {kind} {key}", "finite numbers")
