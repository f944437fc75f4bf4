"""Images by name, and batches that depend on seed and epoch alone."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

torchvision = pytest.importorskip("torchvision")

from recipes.data.image_folder import ImageFolders  # noqa: E402
from recipes.data.images import Batches, ImageData, channel_statistics, load_images  # noqa: E402

ZERO, ONE = torch.zeros(1), torch.ones(1)


def numbered(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous(), torch.arange(n)


def test_epoch_is_repeated_exactly_and_the_next_is_another() -> None:
    batches = Batches(numbered(), 8, ZERO, ONE, train=True, crop=2, flip=True, mixup=1.0, classes=40, seed=3)
    first = list(batches)
    for (x, y), (again, labels) in zip(first, batches, strict=True):
        assert torch.equal(x, again) and torch.equal(y, labels)
    batches.set_epoch(1)
    assert not torch.equal(first[0][1], next(iter(batches))[1])


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_processes_together_see_the_batch_of_one(mixup: float) -> None:
    kwargs = {"train": True, "crop": 2, "flip": True, "mixup": mixup, "classes": 40}
    one = Batches(numbered(), 8, ZERO, ONE, **kwargs)
    shares = [Batches(numbered(), 8, ZERO, ONE, rank=r, processes=4, **kwargs) for r in range(4)]
    for (x, y), *parts in zip(one, *shares, strict=True):
        for r, (images, labels) in enumerate(parts):
            assert torch.equal(images, x[r::4]) and torch.equal(labels, y[r::4])


def test_every_image_comes_at_most_once_in_an_epoch_of_full_batches() -> None:
    labels = torch.cat([y for _, y in Batches(numbered(43), 8, ZERO, ONE, train=True)])
    assert len(labels) == len(labels.unique()) == 40


def test_crop_moves_the_image_in_a_black_border_and_mixture_weighs_labels_as_images() -> None:
    images, labels = numbered()
    (x, y), *_ = Batches((images + 1, labels), 40, ZERO, ONE, train=True, crop=2)
    assert ((x == 0) | torch.isclose(x, (y + 1).view(-1, 1, 1, 1) / 255)).all() and (x == 0).any()
    (x, y), *_ = Batches((images, labels), 40, ZERO, ONE, train=True, mixup=1.0, classes=40)
    torch.testing.assert_close(x[:, 0, 0, 0] * 255, y @ torch.arange(40.0))
    torch.testing.assert_close(y.sum(1), torch.ones(40))


def test_statistics_are_those_of_the_pixels() -> None:
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    torch.testing.assert_close(mean, (images / 255).mean((0, 2, 3)))
    torch.testing.assert_close(std, (images / 255).std((0, 2, 3), correction=0))


def test_sample_is_named_as_one() -> None:
    data = load_images("fashion-mnist-subset").first(100, 50)
    assert data.name == "Fashion-MNIST subset (10,000 + 2,000 images), sample of 100 + 50 images"
    assert data.train[0].dtype == torch.uint8 and len(data.test[1]) == 50


def test_torchvision_files_are_found_without_download(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 6), ("t10k", 4)):
        pixels = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + bytes(range(n)))
    data = load_images("mnist", tmp_path)
    assert data.name == "MNIST" and data.train[0].shape == (6, 1, 28, 28) and data.test[1].tolist() == [0, 1, 2, 3]


def idx(folder: Path, part: str, images: bytes, labels: bytes, counts: tuple[int, int]) -> None:
    """Write two files of MNIST whose headers declare those counts of images and labels."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, counts[0], 28, 28) + images)
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, counts[1]) + labels)


@pytest.mark.parametrize(
    ("images", "labels", "counts", "message"),
    [
        (bytes(784 * 6), bytes(5), (6, 5), "MNIST, train: got 5 labels of 6 samples"),
        (bytes(784 * 6), bytes(7), (6, 7), "MNIST, train: got 7 labels of 6 samples"),
        (bytes(784 * 6), bytes([0] * 5 + [10]), (6, 6), "MNIST, train: got the label 10, want one of 0..9"),
        (bytes(784 * 6), bytes([0] * 5 + [200]), (6, 6), "MNIST, train: got the label 200, want one of 0..9"),
        (b"", b"", (0, 0), "MNIST: got damaged files"),
        (bytes(784 * 5), bytes(6), (6, 6), "MNIST: got damaged files"),
        (bytes(784 * 7), bytes(6), (6, 6), "MNIST: got damaged files"),
        (bytes(784 * 6), bytes(5), (6, 6), "MNIST: got damaged files"),
    ],
)
def test_mnist_files_that_do_not_belong_together_are_refused(
    images: bytes, labels: bytes, counts: tuple[int, int], message: str, tmp_path: Path
) -> None:
    idx(tmp_path, "t10k", bytes(784), bytes(1), (1, 1))
    idx(tmp_path, "train", images, labels, counts)
    with pytest.raises(ValueError, match=message):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0\0", b"<html>not found</html>", bytes(16)])
def test_mnist_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        idx(tmp_path, part, bytes(784), bytes(1), (1, 1))
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="MNIST: got damaged files in .*, want a folder that holds it as"):
        load_images("mnist", tmp_path)


def test_images_and_labels_of_another_kind_are_refused() -> None:
    images, labels = numbered(4)
    for other, message in (
        ((images.float(), labels), "got images torch.float32"),
        ((images[:, 0], labels), r"got images torch.uint8 \[4, 6, 6\], want uint8 \[N, C, H, W\]"),
        ((images, labels.float()), "got labels torch.float32"),
        ((images, labels - 1), "got the label -1, want one of 0..3"),
        ((images[..., :5], labels), r"x, test: got images \[1, 6, 5\], want those of training, \[1, 6, 6\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageData("x", (images, labels), other, tuple("abcd"))


def test_folders_of_images_have_the_same_classes_and_a_damaged_image_is_named(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            torchvision.io.write_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8), str(tmp_path / part / name / "0.jpg"))
    folders = ImageFolders(tmp_path, torchvision.transforms.PILToTensor())
    assert [len(labels) for _, labels in folders.loader("test", None, 2)] == [2]
    (tmp_path / "val" / "b" / "0.jpg").write_bytes((tmp_path / "val" / "a" / "0.jpg").read_bytes()[:150])
    with pytest.raises(ValueError, match="val/b/0.jpg: got no image that can be read"):
        list(folders.loader("test", None, 2))
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "c")
    with pytest.raises(ValueError, match="got b, c in one of train and val, want the same classes"):
        ImageFolders(tmp_path, torchvision.transforms.PILToTensor())


def test_missing_data_are_named_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="cifar10-jpeg-q75.npz"):
        load_images("cifar10-jpeg", tmp_path)

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(FileNotFoundError, match=rf"CIFAR-10: not found in {tmp_path}, and the download failed"):
        load_images("cifar10", tmp_path)


@pytest.mark.data
def test_jpeg_copy_is_whole_and_not_called_cifar_alone() -> None:
    folder = Path(os.environ.get("SNN_EXT_DATA", "."))
    if not (folder / "cifar10-jpeg-q75.npz").is_file():
        pytest.skip("SNN_EXT_DATA names no folder with cifar10-jpeg-q75.npz")
    data = load_images("cifar10-jpeg", folder)
    assert data.name == "CIFAR-10 (JPEG copy)"
    assert data.train[0].shape == (50_000, 3, 32, 32) and data.test[1].bincount().tolist() == [1000] * 10
