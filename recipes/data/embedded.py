"""The embedded data set: 12,000 of the 70,000 images of Fashion-MNIST (MIT licence, see FASHION_MNIST_LICENSE)."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

__all__ = ["FASHION_MNIST_SUBSET", "LabelledImages", "embedded_file", "fashion_mnist_subset"]

FASHION_MNIST_SUBSET = "Fashion-MNIST subset (10,000 + 2,000 images)"
"""Name of the data in results, which do not compare with those on the whole set."""

PATH = Path(__file__).with_name("fashion_mnist_subset.npz")
SHA256 = "78ba38656e467909b68ad76a9666a9f2ff965935d05bfb71c1385725814f9a70"


class LabelledImages(TensorDataset):
    """Images ``[N, 1, H, W]``, float32 in [0, 1], with their labels ``[N]``, int64, and the names of the classes."""

    def __init__(self, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
        super().__init__(images, labels)
        self.classes = classes

    def first(self, count: int | None) -> LabelledImages:
        """Return the first images, or all of them."""
        return LabelledImages(*(tensor[:count] for tensor in self.tensors), self.classes)


def fashion_mnist_subset(path: Path = PATH) -> tuple[LabelledImages, LabelledImages]:
    """Load the embedded subset of Fashion-MNIST, 1000 training and 200 test images of each of the ten classes.

    Parameters
    ----------
    path : Path
        Another place of the same file.

    Returns
    -------
    train, test : LabelledImages
        Images ``[10000, 1, 28, 28]`` and ``[2000, 1, 28, 28]`` in [0, 1].

    Raises
    ------
    FileNotFoundError
        If the file is not there.
    ValueError
        If its checksum is not the expected one.
    """
    content = embedded_file(path, SHA256)
    with np.load(io.BytesIO(content)) as arrays:
        classes = tuple(arrays["classes"].tolist())
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays if name != "classes"}
    train, test = (
        LabelledImages(tensors[f"{part}_images"].unsqueeze(1) / 255.0, tensors[f"{part}_labels"].long(), classes)
        for part in ("train", "test")
    )
    return train, test


def embedded_file(path: Path, sha256: str) -> bytes:
    """Return the content of a file that comes with the repository, if it is whole."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, want the file that a git checkout or a wheel holds there")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path}: got sha256 {digest}, want {sha256}; the file is damaged: restore it with "
            f"'git checkout -- recipes/data/{path.name}', or install the package again"
        )
    return content
