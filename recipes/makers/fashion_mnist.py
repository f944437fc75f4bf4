"""Pack the embedded subset of Fashion-MNIST: ``python -m recipes.makers.fashion_mnist --source DIR``.

DIR holds the four original ``*-ubyte.gz`` files, as in Debian's package ``dataset-fashion-mnist``
(``/usr/share/datasets/fashion-mnist``) or in the ``raw`` folder of torchvision's download.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from ..data.embedded import PATH
from ..lib.cli import NewFile
from ..lib.command import command, run_main
from ..lib.files import write_arrays

__all__ = ["pack", "select_balanced"]

# Of what is inside: Debian has compressed the files again.
SOURCES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def select_balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Return the indices ``[C * per_class]`` of the first samples of each class, in their original order.

    Parameters
    ----------
    labels : ndarray
        ``[N]`` class numbers.
    per_class : int
        Samples of each class.
    """
    chosen = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    smallest = min(map(len, chosen))
    if smallest < per_class:
        raise ValueError(f"per_class: got {per_class}, want at most {smallest}, the size of the smallest class")
    return np.sort(np.concatenate(chosen))


def pack(source: Path, target: Path) -> str:
    """Write the subset as a compressed ``.npz`` and return its sha256.

    Parameters
    ----------
    source : Path
        Folder with the four original files.
    target : Path
        The file to write.

    Raises
    ------
    FileNotFoundError, ValueError
        If an original file is missing or is not the original.
    """
    arrays: dict[str, np.ndarray] = {"classes": np.array(CLASSES)}
    for part, prefix, per_class in (("train", "train", 1000), ("test", "t10k", 200)):
        labels = _read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        indices = select_balanced(labels, per_class)
        arrays[f"{part}_images"] = _read_idx(source / f"{prefix}-images-idx3-ubyte.gz")[indices]
        arrays[f"{part}_labels"] = labels[indices]
    write_arrays(target, arrays)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def _read_idx(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"source: {path} not found, want the original files {', '.join(SOURCES)}")
    try:
        data = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"source: {path} cannot be unpacked ({error}), want the original file") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != SOURCES[path.name]:
        raise ValueError(f"source: {path} holds sha256 {digest}, want {SOURCES[path.name]}, that of the original data")
    dimensions = data[3]  # an idx file: two zero bytes, the type (8 = uint8), the number of dimensions, the sizes
    shape = np.frombuffer(data, ">u4", dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(tuple(shape))


@dataclass(kw_only=True)
class Options:
    """Options."""

    source: Annotated[Path, "folder with the four *-ubyte.gz files"]
    target: Annotated[NewFile, "file to write (default: the embedded one)"] = PATH


@command
def main(options: Options) -> None:
    """Write the file, and print its checksum."""
    digest = pack(options.source, options.target)
    print(f"{options.target}: {options.target.stat().st_size:,} bytes, sha256 {digest}")


if __name__ == "__main__":
    run_main(main)
