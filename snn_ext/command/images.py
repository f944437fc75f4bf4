"""Images for a net: a folder, an ``.npz``, or a data set by its name, as batches that are scaled as the net wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._errors import bad_value
from .._files import load_arrays
from ..recipes.data.images import DATA_SETS, load_images

__all__ = ["Batches", "Images", "Part", "Scaling", "load"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TEST = ("test", "val", "validation")
"""Names of the part of a folder, or of the arrays of an ``.npz``, that is measured."""


@dataclass(frozen=True)
class Scaling:
    """Preparation of images in [0, 1] of any size: cut to a square, shifted and divided for each channel."""

    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return images ``[N, C, H, W]`` as the net wants them."""
        for name, values in (("--mean", self.mean), ("--std", self.std)):
            if values is not None and len(values) not in (1, images.shape[1]):
                bad_value(name, [*values], f"one number, or one for each of the {images.shape[1]} channels")
        shift, divisor = (
            torch.tensor([neutral] if values is None else [*values], dtype=images.dtype)[:, None, None]
            for values, neutral in ((self.mean, 0.0), (self.std, 1.0))
        )
        return (images - shift) / divisor

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values, which a saved net keeps."""
        return {k: list(v) if isinstance(v, tuple | list) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Part:
    """Some images, read when they are needed: ``read`` returns those of some indices.

    They are in [0, 1], or ``scaled`` as the net wants them.
    """

    read: Callable[[Sequence[int]], Tensor]
    count: int
    labels: Tensor | None
    scaled: bool = False

    def sample(self, count: int | None, seed: int = 0, leave: int = 0) -> list[int]:
        """Return the indices of a random sample that is always the same, after those of one that is left out."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed)).tolist()
        return sorted(order[leave:][: len(order) if count is None else count])


@dataclass(frozen=True)
class Images:
    """Images to calibrate with and images to measure; ``shared`` where both are from one part."""

    name: str
    calibration: Part
    test: Part
    classes: tuple[str, ...] | None
    shared: bool


class Batches:
    """Batches of a part, with labels where there are any."""

    def __init__(
        self, part: Part, indices: Sequence[int], scaling: Scaling, size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.part, self.indices, self.scaling, self.size, self.device = part, indices, scaling, size, device

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.indices), self.size):
            index = self.indices[start : start + self.size]
            images = self.part.read(index)
            images = (images if self.part.scaled else self.scaling(images)).to(self.device)
            labels = () if self.part.labels is None else (self.part.labels[torch.tensor(index)].to(self.device),)
            yield (images, *labels)


def load(source: str, scaling: Scaling, categories: Sequence[str] | None = None) -> Images:
    """Load images by name, from an ``.npz`` or from a folder.

    Parameters
    ----------
    source : str
        A data set of the recipes. Or an ``.npz`` with ``images`` ``[N, C, H, W]`` or ``[N, H, W, C]``, uint8 or
        floats that are scaled already, and ``labels``; ``train_images`` and ``test_images`` keep two parts. Or a
        folder of images, or of a folder for each class, or with such folders in ``train`` and ``test`` or ``val``.
    scaling : Scaling
        Its size is that of the images of a folder.
    categories : sequence of str, optional
        The classes of the net; folders of these names are in that order. Others are in alphabetical order.
    """
    path = Path(source)
    if source in DATA_SETS:
        data = load_images(source)
        train, test = (Part(_reader(images), len(images), labels) for images, labels in (data.train, data.test))
        return Images(data.name, train, test, data.classes, shared=False)
    if path.is_dir():
        return _folder(path, scaling, categories)
    if path.is_file():
        return _arrays(path)
    raise ValueError(f"data: got {source}, want a folder of images, an .npz, or one of {', '.join(DATA_SETS)}")


def _reader(images: Tensor) -> Callable[[Sequence[int]], Tensor]:
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    return lambda index: images[torch.tensor(index)].float() / scale


# -- arrays ------------------------------------------------------------------------------------------------------------


def _arrays(path: Path) -> Images:
    arrays = load_arrays(path, "an .npz of images", "want images, and labels")
    found: dict[str, Part] = {}
    for part in ("", "train", *TEST):
        prefix = f"{part}_" if part else ""
        images = next((arrays[name] for name in (f"{prefix}images", f"{prefix}x") if name in arrays), None)
        labels = next((arrays[name] for name in (f"{prefix}labels", f"{prefix}y") if name in arrays), None)
        if images is not None:
            found["test" if part in TEST else part] = _part(f"{path}, {prefix}images", images, labels)
    test = found.get("test", found.get(""))
    if test is None:
        raise ValueError(f"data: got {path} with {', '.join(arrays) or 'nothing'}, want images, or test_images")
    calibration = found.get("train", test)
    names = arrays.get("classes")
    classes = None if names is None else tuple(map(str, names.tolist()))
    return Images(path.name, calibration, test, classes, shared=calibration is test)


def _part(name: str, images: Any, labels: Any) -> Part:
    pictures = torch.from_numpy(images)
    if pictures.ndim == 3:
        pictures = pictures.unsqueeze(1)
    if pictures.ndim == 4 and pictures.shape[-1] in (1, 3) and pictures.shape[1] not in (1, 3):
        # Strides change how a convolution rounds; contiguous() leaves those of grey images.
        pictures = pictures.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    if pictures.ndim != 4 or not len(pictures) or not (pictures.dtype == torch.uint8 or pictures.is_floating_point()):
        raise ValueError(
            f"{name}: got {images.dtype} {list(images.shape)}, want uint8 or floats [N, C, H, W] or [N, H, W, C]"
        )
    scaled = pictures.is_floating_point()
    if labels is None:
        return Part(_reader(pictures), len(pictures), None, scaled)
    targets = torch.from_numpy(labels)
    if targets.ndim != 1 or targets.is_floating_point() or len(targets) != len(pictures):
        raise ValueError(f"{name}: got labels {labels.dtype} {list(labels.shape)}, want ints [{len(pictures)}]")
    return Part(_reader(pictures), len(pictures), targets.long(), scaled)


# -- folders -----------------------------------------------------------------------------------------------------------


def _folder(path: Path, scaling: Scaling, categories: Sequence[str] | None) -> Images:
    test = next((path / name for name in TEST if (path / name).is_dir()), path)
    train = path / "train" if test is not path and (path / "train").is_dir() else test
    parts, classes = [], []
    for place in dict.fromkeys((train, test)):
        files, labels, names = _files(place, categories)
        parts.append(Part(_pictures(files, scaling.size), len(files), labels))
        classes.append(names)
    if len({names for names in classes}) > 1:
        differ = sorted({*(classes[0] or ())} ^ {*(classes[1] or ())})
        raise ValueError(f"data: got {', '.join(differ[:5])} in one of {train} and {test}, want the same classes")
    return Images(path.name, parts[0], parts[-1], classes[0], shared=len(parts) == 1)


def _files(place: Path, categories: Sequence[str] | None) -> tuple[list[Path], Tensor | None, tuple[str, ...] | None]:
    """Return the images of a folder, and, where it has a folder for each class, the labels and names of the classes."""
    found = [(path, None) for path in _images(place)]
    names = sorted(folder.name for folder in place.iterdir() if folder.is_dir() and folder.name[0] != ".")
    names = [name for name in names if any(_images(place / name))]
    if found and names:
        raise ValueError(f"data: got images beside the folders of classes in {place}, want one or the other")
    if found:
        return [path for path, _ in found], None, None
    if not names:
        raise ValueError(f"data: got {place} without images, want {', '.join(SUFFIXES)}, or a folder of them per class")
    order = tuple(names)
    if categories is not None and len(categories) != len(names):
        known = {category.lower().replace("_", " "): category for category in categories}
        if unknown := [name for name in names if name.lower().replace("_", " ") not in known]:
            raise ValueError(
                f"data: got {len(names)} classes for a net of {len(categories)}, {unknown[0]} among them, want a "
                "folder for each class of the net, folders with the names of its classes, or images without folders"
            )
        order = tuple(categories)
        names = [known[name.lower().replace("_", " ")] for name in names]
    folders = sorted(folder for folder in place.iterdir() if folder.is_dir() and any(_images(folder)))
    pairs = [(path, order.index(name)) for folder, name in zip(folders, names, strict=True) for path in _images(folder)]
    return [path for path, _ in pairs], torch.tensor([label for _, label in pairs]), order


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")


def _pictures(files: Sequence[Path], size: int | None) -> Callable[[Sequence[int]], Tensor]:
    """Return the function that reads pictures, cut to squares of a size."""
    from torchvision.transforms import Compose, ToTensor

    from ..recipes.data.image_folder import middle, picture

    transform = Compose([*([] if size is None else middle(size)), ToTensor()])

    def read(index: Sequence[int]) -> Tensor:
        pictures = [transform(picture(str(files[i]))) for i in index]
        if len({p.shape for p in pictures}) > 1:
            raise ValueError(
                f"--image-size: got none, and the images have several sizes, {files[index[0]]} another one"
            )
        return torch.stack(pictures)

    return read
