"""Small data sets of numbers: IRIS and the 8x8 digits from scikit-learn, SONAR from a file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..lib.files import intact
from .images import ImageData, data_folder

__all__ = ["Table", "digits", "folds", "load_table"]


@dataclass(frozen=True)
class Table:
    """Features ``[N, F]``, float32, labels ``[N]``, and what results are called."""

    name: str
    features: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load_table(name: str, folder: Path | None = None) -> Table:
    """Load "iris", or "sonar" from ``Sonar.rda`` (R's package mlbench) or ``sonar.all-data`` (UCI) in a folder."""
    if name == "iris":
        from sklearn.datasets import load_iris

        data = load_iris()
        return Table("IRIS", _features(data.data), torch.as_tensor(data.target), tuple(map(str, data.target_names)))
    if name != "sonar":
        raise ValueError(f"name: got {name!r}, want iris or sonar")
    folder = folder or data_folder()
    for path, read in ((folder / "sonar.all-data", _read_uci), (folder / "Sonar.rda", _read_rda)):
        if path.is_file():
            with intact(path, "the file of SONAR", "get another copy"):
                features, names = read(path)
                if features.shape != (208, 60) or not ((features >= 0) & (features <= 1)).all():
                    raise ValueError(f"got {features.shape} numbers, want 208 x 60 in [0, 1]")
                if len(names) != 208 or not set(names) <= {"M", "R"}:
                    raise ValueError(f"got {set(names)}, want 208 of M and R")
            return Table("SONAR", _features(features), torch.tensor([int(n == "R") for n in names]), ("M", "R"))
    raise FileNotFoundError(
        f"{folder}: holds neither sonar.all-data (archive.ics.uci.edu, Connectionist Bench) nor Sonar.rda (of R's "
        "package mlbench, Debian's r-cran-mlbench), want one of them, or --data-dir"
    )


def digits(folder: Path | None = None) -> ImageData:
    """Return scikit-learn's 1,797 digits of 8x8 pixels as images, every fifth of a class for the test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.as_tensor(np.round(data.images * (255.0 / 16.0)), dtype=torch.uint8).unsqueeze(1)
    labels = torch.as_tensor(data.target).long()
    place = torch.zeros(len(labels), dtype=torch.long)
    for label in range(10):
        place[labels == label] = torch.arange(int((labels == label).sum()))
    test = place % 5 == 4
    parts = [(images[mask], labels[mask]) for mask in (~test, test)]
    return ImageData("Digits 8x8", *parts, tuple(map(str, range(10))))


def folds(table: Table, count: int, seed: int) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Yield the training and the test part of each fold, stratified, standardised by the training part."""
    from sklearn.model_selection import StratifiedKFold

    splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(table.features, table.labels)
    for train, test in splits:
        mean, std = table.features[train].mean(0), table.features[train].std(0).clamp_min(1e-6)
        yield tuple(((table.features[rows] - mean) / std, table.labels[rows]) for rows in (train, test))  # type: ignore


def _features(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def _read_uci(path: Path) -> tuple[np.ndarray, list[str]]:
    rows = [line.strip().split(",") for line in path.read_text("utf-8").splitlines() if line.strip()]
    return np.array([[float(v) for v in row[:-1]] for row in rows]), [row[-1] for row in rows]


def _read_rda(path: Path) -> tuple[np.ndarray, list[str]]:
    columns = _RData(path.read_bytes()).data_frame()
    names = columns.pop("Class")
    return np.stack(list(columns.values()), 1), names


class _RData:
    """Reads the data frame of an .rda file: R's serialisation, version 2 or 3, in XDR.

    Source: R Internals, "Serialization Formats".
    """

    def __init__(self, content: bytes) -> None:
        for magic, unpack in ((b"\xfd7zXZ", lzma.decompress), (b"BZh", bz2.decompress), (b"\x1f\x8b", gzip.decompress)):
            if content.startswith(magic):
                content = unpack(content)
        if content[:7] not in (b"RDX2\nX\n", b"RDX3\nX\n"):
            raise ValueError("Sonar.rda: got a file of another format, want one that R's save() wrote")
        self.content, self.place, self.references = content, 7, list[Any]()
        version, _, _ = self._ints(3)
        if version == 3:
            self._take(self._ints(1)[0])

    def data_frame(self) -> dict[str, Any]:
        """Return the columns of the first object by name; factors as words."""
        columns, attributes = next(iter(self._item().values()))
        return {n: _words(c) for n, c in zip(attributes["names"], columns, strict=True)}

    def _ints(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}i", self._take(4 * count))

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.content) - self.place:
            raise ValueError("Sonar.rda: got a length that is not there, want a whole file")
        self.place += count
        return self.content[self.place - count : self.place]

    def _item(self) -> Any:
        flags = self._ints(1)[0]
        kind, attributed, tagged = flags & 255, bool(flags & 0x200), bool(flags & 0x400)
        if kind in (254, 253, 242, 251):  # NULL and the environments
            return None
        if kind == 255:
            return self.references[(flags >> 8 or self._ints(1)[0]) - 1]
        if kind == 1:  # a symbol
            self.references.append(self._item())
            return self.references[-1]
        if kind == 9:  # a string
            size = self._ints(1)[0]
            return None if size < 0 else self._take(size).decode()
        if kind == 2:  # a pair of a list
            if attributed:
                self._item()
            name = self._item() if tagged else None
            return {name: self._item()} | (self._item() or {})
        length = self._ints(1)[0]
        if kind in (10, 13):
            value: Any = self._ints(length)
        elif kind == 14:
            value = np.frombuffer(self._take(8 * length), ">f8").astype(float)
        elif kind in (16, 19, 20):
            value = [self._item() for _ in range(length)]
        else:
            raise ValueError(f"Sonar.rda: got an R object of type {kind}, want a data frame of numbers and a factor")
        return (value, self._item()) if attributed else value


def _words(column: Any) -> Any:
    if isinstance(column, tuple) and isinstance(column[1], dict):
        codes, attributes = column
        return [attributes["levels"][code - 1] for code in codes] if "levels" in attributes else codes
    return column
