"""ImageNet as a folder of images, for nets with torchvision's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

__all__ = ["FolderImages", "ImageFolders", "check_classes", "folder_name", "image_folder", "middle", "picture"]

IMAGENET = 1000, 50_000
"""Classes and validation images of what may be called ImageNet."""


class ImageFolders:
    """``train/CLASS/*.jpg`` for calibration and ``val/CLASS/*.jpg`` for the test, read when they are needed.

    Parameters
    ----------
    folder : Path
        Classes in the alphabetical order of their folders, as torchvision's weights count them.
    transform : callable
        From a picture to ``[C, H, W]``; that of the weights.
    device : torch.device or str
        Where the batches go.
    workers : int
        Processes that read.

    Raises
    ------
    FileNotFoundError
        If one of the two folders is not there, or holds no images.
    ValueError
        If they have other classes; later, if an image cannot be read.
    """

    def __init__(self, folder: Path, transform: Callable[[Any], Tensor], device: Any = "cpu", workers: int = 0) -> None:
        self.parts = {}
        for part, name in (("train", "train"), ("test", "val")):
            self.parts[part] = image_folder(folder / name, transform)
        check_classes(folder, *(data.classes for data in self.parts.values()))
        self.device, self.workers = device, workers
        self.name = folder_name(self.parts["test"])
        self.classes = tuple(self.parts["test"].classes)

    def fingerprint(self) -> str:
        """Return what tells the images of two folders apart, or two transforms; the files are not read for it."""
        content = [repr(part.transform) + files_of(part) for part in self.parts.values()]
        return hashlib.sha256("".join(content).encode()).hexdigest()

    def loader(self, part: str, images: int | None, batch_size: int) -> _Batches:
        """Return batches in an order that is always the same; a sample is drawn from all classes."""
        data = self.parts[part]
        if images is not None and images < len(data):
            data = Subset(data, torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:images].tolist())
        return _Batches(DataLoader(data, batch_size, num_workers=self.workers), self.device)


def image_folder(folder: Path, transform: Callable[[Any], Tensor] | None = None) -> Any:
    """Return torchvision's view of a folder with a folder of images for each class; images are read later."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: not found, want a folder with a folder of images per class")
    return torchvision.datasets.ImageFolder(str(folder), transform, loader=picture)


def check_classes(folder: Path, train: Sequence[str], val: Sequence[str]) -> None:
    """Raise ``ValueError`` if the two parts have other classes: a label is the place of a class among them."""
    if differ := sorted({*train} ^ {*val}):
        names = ", ".join(differ[:5])
        raise ValueError(f"{folder}: got {names} in one of train and val, want the same classes in both")


def picture(path: str) -> Any:
    """Read an image as RGB; ``ValueError`` names one that cannot be read."""
    try:
        return torchvision.datasets.folder.default_loader(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: of a broken PNG
        raise ValueError(f"{path}: got no image that can be read ({error})") from error


def middle(size: int) -> list[Any]:
    """Return the transforms of a picture to a square: the shorter side becomes 8/7 of the size, the middle is cut."""
    return [torchvision.transforms.Resize(size * 8 // 7), torchvision.transforms.CenterCrop(size)]


class _Batches:
    def __init__(self, loader: DataLoader[Any], device: Any) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            yield images.to(self.device), labels.to(self.device)


def folder_name(test: Any) -> str:
    """Return what results with the test images of a folder are called: ImageNet only if it can be."""
    classes, images = len(test.classes), len(test)
    kind = "ImageNet" if (classes, images) == IMAGENET else "image folder"
    return f"{kind}, {classes:,} classes, {images:,} test images"


def files_of(folder: Any) -> str:
    """Return the files of a folder of images with their sizes."""
    paths = [Path(name) for name, _ in folder.samples]
    return repr([(*path.parts[-2:], path.stat().st_size) for path in paths])


class FolderImages:
    """The images of a folder, read when they are indexed: stands for a tensor ``[N, 3, size, size]``, uint8.

    Parameters
    ----------
    folder : torchvision.datasets.ImageFolder
        Without a transform.
    size : int
        The shorter side is scaled to 8/7 of it, and the middle is cut out.
    """

    def __init__(self, folder: Any, size: int) -> None:
        steps = [*middle(size), torchvision.transforms.PILToTensor()]
        self._folder, self._transform = folder, torchvision.transforms.Compose(steps)
        self.shape = torch.Size((len(folder), 3, size, size))

    def __repr__(self) -> str:
        """Return what tells the images of two folders or sizes apart."""
        return f"{self._transform}{files_of(self._folder)}"

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.stack([self._transform(self._folder[int(i)][0].convert("YCbCr")) for i in index])
