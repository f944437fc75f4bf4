"""Image data by name, and batches of them that depend on a seed and an epoch alone."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..lib.files import data_folder
from .embedded import FASHION_MNIST_SUBSET, fashion_mnist_subset

__all__ = ["DATA_SETS", "Batches", "ImageData", "channel_statistics", "check_labels", "load_images"]

JPEG_COPY = "cifar10-jpeg-q75.npz"
JPEG_COPY_SHA256 = "c47b43cfba9024de1fcf56812fc912fcfc80fd110a5d9a5d31c71616beb55077"

Part = tuple[Tensor, Tensor]
"""Images ``[N, C, H, W]``, uint8, and labels ``[N]``, int64."""


@dataclass(frozen=True)
class ImageData:
    """A data set in memory.

    Attributes
    ----------
    name : str
        What results obtained with it are called.
    train, test : tuple of Tensor
        Images ``[N, C, H, W]``, uint8, and labels ``[N]``, int64.
    classes : tuple of str
        Their names.

    Raises
    ------
    ValueError
        If the images are others, or there is not one label for each of them that is an index into the classes.
    """

    name: str
    train: Part
    test: Part
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part, (images, labels) in (("train", self.train), ("test", self.test)):
            where = f"{self.name}, {part}"
            if len(images.shape) != 4 or (isinstance(images, Tensor) and images.dtype != torch.uint8):
                got = f"{getattr(images, 'dtype', '')} {list(images.shape)}"
                raise ValueError(f"{where}: got images {got}, want uint8 [N, C, H, W]")
            if images.shape[1:] != self.train[0].shape[1:]:
                sizes = list(images.shape[1:]), list(self.train[0].shape[1:])
                raise ValueError(f"{where}: got images {sizes[0]}, want those of training, {sizes[1]}")
            check_labels(where, labels, images.shape[0], len(self.classes))

    @property
    def channels(self) -> int:
        return self.train[0].shape[1]

    def first(self, train: int | None, test: int | None) -> ImageData:
        """Return a sample of given sizes, always the same one, under a name that says so; ``None`` takes all."""
        if train is None and test is None:
            return self
        parts = _sample(self.train, train), _sample(self.test, test)
        sizes = " + ".join(f"{len(labels):,}" for _, labels in parts)
        return ImageData(f"{self.name}, sample of {sizes} images", *parts, self.classes)


def check_labels(where: str, labels: Tensor, samples: int, classes: int) -> None:
    """Raise ``ValueError`` if there is not one label for each sample, or one that is no class."""
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"{where}: got labels {labels.dtype} {list(labels.shape)}, want int64 [N]")
    if len(labels) != samples or not samples:
        raise ValueError(f"{where}: got {len(labels)} labels of {samples} samples, want one each, and some")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"{where}: got the label {int(wrong)}, want one of 0..{classes - 1}")


@functools.lru_cache(maxsize=2)
def load_images(name: str, folder: Path | None = None) -> ImageData:
    """Load a data set into memory.

    Parameters
    ----------
    name : str
        A key of ``DATA_SETS``.
    folder : Path, optional
        Where torchvision's files are, or are to be downloaded to; for "cifar10-jpeg" also the file itself.

    Returns
    -------
    ImageData

    Raises
    ------
    ValueError
        If there is no such name, or the data are damaged.
    FileNotFoundError
        If the data are missing and cannot be downloaded.
    """
    if name not in DATA_SETS:
        raise ValueError(f"name: got {name!r}, want one of {', '.join(DATA_SETS)}")
    return DATA_SETS[name](folder or data_folder())


def _embedded(folder: Path) -> ImageData:
    train, test = fashion_mnist_subset()
    parts = [(images.mul(255.0).round().byte(), labels) for images, labels in (train.tensors, test.tensors)]
    return ImageData(FASHION_MNIST_SUBSET, *parts, train.classes)


def _torchvision(name: str, kind: str) -> Callable[[Path], ImageData]:
    def load(folder: Path) -> ImageData:
        from torchvision import datasets  # takes longer to import than all the rest

        parts, classes = [], ()
        for train in (True, False):
            data = _read_or_download(name, getattr(datasets, kind), folder, train)
            images = torch.as_tensor(data.data)
            images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
            parts.append((images, torch.as_tensor(data.targets).long()))
            classes = tuple(data.classes)
        return ImageData(name, *parts, classes)

    return load


def _read_or_download(name: str, kind: type, folder: Path, train: bool) -> Any:
    want = f"want a folder that holds it as torchvision.datasets.{kind.__name__} stores it"
    for download in (False, True):
        try:
            return kind(str(folder), train=train, download=download)
        except UNREADABLE as error:
            if isinstance(error, RuntimeError) and "download" in str(error) and not download:
                continue  # not there, or not those of the checksum
            if download and isinstance(error, OSError | RuntimeError):
                raise FileNotFoundError(
                    f"{name}: not found in {folder}, and the download failed ({error}); {want}, or another data set"
                ) from error
            reason = str(error) or type(error).__name__
            raise ValueError(f"{name}: got damaged files in {folder} ({reason}), {want}") from error


UNREADABLE = (
    AssertionError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError,
)  # fmt: skip
"""Errors that torchvision raises for files that are missing, cut off, or of something else."""


def _cifar10_jpeg(folder: Path) -> ImageData:
    from PIL import Image

    path = folder / JPEG_COPY if folder.is_dir() else folder
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, want the packed CIFAR-10 JPEG copy, or a folder with {JPEG_COPY}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != JPEG_COPY_SHA256:
        raise ValueError(f"{path}: got sha256 {digest}, want {JPEG_COPY_SHA256}; the file is damaged or another one")
    with np.load(io.BytesIO(content)) as arrays:
        classes = tuple(arrays["classes"].tolist())
        parts = []
        for part in ("train", "test"):
            files, offsets = arrays[f"{part}_jpg"].tobytes(), arrays[f"{part}_off"]
            images = np.stack(
                [np.asarray(Image.open(io.BytesIO(files[a:b]))) for a, b in zip(offsets, offsets[1:], strict=False)]
            )
            labels = torch.from_numpy(arrays[f"{part}_y"]).long()
            parts.append((torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels))
    return ImageData("CIFAR-10 (JPEG copy)", *parts, classes)


DATA_SETS: dict[str, Callable[[Path], ImageData]] = {
    "fashion-mnist-subset": _embedded,
    "fashion-mnist": _torchvision("Fashion-MNIST", "FashionMNIST"),
    "mnist": _torchvision("MNIST", "MNIST"),
    "cifar10": _torchvision("CIFAR-10", "CIFAR10"),
    "cifar100": _torchvision("CIFAR-100", "CIFAR100"),
    "cifar10-jpeg": _cifar10_jpeg,
}
"""From the name on the command line to a loader; only "cifar10" and "cifar100" are CIFAR."""


class Batches:
    """Batches of a data set in memory, or one process's share of them.

    The order, the crops, the flips and the mixtures are drawn for the whole batch from a generator seeded by
    ``(seed, epoch)``, and each process takes its rows. So an epoch can be repeated exactly, and any number of processes
    see together what one sees.

    Parameters
    ----------
    part : tuple of Tensor
        Images ``[N, C, H, W]``, uint8, and labels ``[N]``.
    batch_size : int
        Images in a batch over all processes.
    mean, std : Tensor
        Of images in [0, 1], for each channel ``[C]`` or each pixel ``[C, H, W]``; the batches are normalised by them.
    train : bool
        Shuffle, augment, and leave out an incomplete last batch (another one in each epoch); otherwise every image
        comes once, in its place.
    crop : int
        Pixels of black border from which images are cropped at random.
    flip : bool
        Mirror every second image.
    mixup : float
        alpha of the Beta distribution from which the weight of a mixture of two images is drawn; 0 for none. With it
        the targets are probabilities ``[N, classes]``.
    classes : int
        Number of classes.
    seed, rank, processes : int
        Seed of the run; which share of how many.
    device : torch.device
        Where the batches are made.
    """

    def __init__(
        self, part: Part, batch_size: int, mean: Tensor, std: Tensor, *, train: bool = False, crop: int = 0,
        flip: bool = False, mixup: float = 0.0, classes: int = 10, seed: int = 0, rank: int = 0, processes: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.images, self.labels = part
        self.batch_size, self.train, self.crop, self.flip, self.mixup, self.classes = (
            batch_size, train, crop, flip, mixup, classes,
        )  # fmt: skip
        self.mean, self.std = (
            255.0 * (value if value.ndim == 3 else value[:, None, None]).to(device) for value in (mean, std)
        )
        self.seed, self.epoch, self.device = seed, 0, device
        self.share = slice(rank, None, processes)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size if self.train else -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.train:
            for start in range(0, len(self.labels), self.batch_size):
                index = torch.arange(len(self.labels))[start : start + self.batch_size][self.share]
                if len(index):
                    yield self._normalised(self.images[index].to(self.device)), self.labels[index].to(self.device)
            return
        draw = np.random.default_rng([self.seed, self.epoch])
        order = torch.from_numpy(draw.permutation(len(self.labels)))
        for index in order[: len(self) * self.batch_size].split(self.batch_size):
            shift = torch.from_numpy(draw.integers(0, 2 * self.crop + 1, (2, len(index))))
            mirror = torch.from_numpy(draw.random(len(index)) < 0.5 * self.flip)
            weight = draw.beta(self.mixup, self.mixup) if self.mixup else 1.0

            def rows(by: int, index: Tensor = index, shift: Tensor = shift, mirror: Tensor = mirror) -> Part:
                """Return this process's rows of the batch, rolled."""
                mine, dy, dx, flipped = (x.roll(by, -1)[..., self.share] for x in (index, *shift, mirror))
                images = _crop(self.images[mine].to(self.device), self.crop, dy.to(self.device), dx.to(self.device))
                images = torch.where(flipped[:, None, None, None].to(self.device), images.flip(-1), images)
                return self._normalised(images), self.labels[mine].to(self.device)

            images, labels = rows(0)
            if self.mixup:
                others, other_labels = rows(1)
                images = weight * images + (1.0 - weight) * others
                one_hot = torch.eye(self.classes, device=self.device)
                labels = weight * one_hot[labels] + (1.0 - weight) * one_hot[other_labels]
            yield images, labels

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the channels of uint8 images, in units of 255."""
    histogram = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.transpose(0, 1)])
    levels = torch.arange(256, dtype=torch.float64) / 255.0
    share = histogram.double() / histogram.sum(1, keepdim=True)
    mean = share @ levels
    dtype = torch.get_default_dtype()
    return mean.to(dtype), (share @ levels.square() - mean.square()).sqrt().to(dtype)


def _crop(images: Tensor, border: int, dy: Tensor, dx: Tensor) -> Tensor:
    """Cut a window of the old size out of each image with a black border, at ``dy``, ``dx`` from its corner."""
    if border == 0:
        return images
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (border,) * 4)
    y = dy[:, None] + torch.arange(height, device=images.device)
    x = dx[:, None] + torch.arange(width, device=images.device)
    sample = torch.arange(n, device=images.device)[:, None, None]
    windows = padded.permute(0, 2, 3, 1)[sample, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    # Not channels-last, which with 4 channels makes torch 2.14.1 corrupt memory; contiguous() is not enough for grey.
    return windows.clone(memory_format=torch.contiguous_format)


def _sample(part: Part, size: int | None) -> Part:
    images, labels = part
    if size is None or size >= len(labels):
        return part
    index = torch.from_numpy(np.random.default_rng(0).permutation(len(labels))[:size]).sort().values
    return images[index], labels[index]
