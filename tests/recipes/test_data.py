"""The embedded images, and the script that has packed them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.data import fashion_mnist_subset
from recipes.data.embedded import PATH
from recipes.makers.fashion_mnist import main, pack, select_balanced

SOURCE = Path(os.environ.get("FASHION_MNIST_SOURCE", "/usr/share/datasets/fashion-mnist"))
needs_source = pytest.mark.skipif(
    not SOURCE.is_dir(), reason=f"no {SOURCE}: install dataset-fashion-mnist or set FASHION_MNIST_SOURCE"
)


@pytest.fixture(scope="module")
def subsets():
    return fashion_mnist_subset()


def test_shapes_types_and_range_are_those_of_a_float_image_set(subsets):
    for subset, size in zip(subsets, (10_000, 2_000), strict=True):
        images, labels = subset.tensors
        assert images.shape == (size, 1, 28, 28) and images.dtype == torch.float32
        assert images.min() == 0.0 and images.max() == 1.0
        assert labels.shape == (size,) and labels.dtype == torch.int64
        assert len(subset.classes) == 10 and subset.classes[9] == "Ankle boot"


def test_every_class_has_the_same_number_of_images(subsets):
    for subset, per_class in zip(subsets, (1000, 200), strict=True):
        assert subset.tensors[1].bincount().tolist() == [per_class] * 10


def test_classes_are_shuffled_as_in_the_original_and_not_sorted(subsets):
    assert subsets[0].tensors[1][:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


def test_no_training_image_is_a_test_image(subsets):
    train, test = ({image.numpy().tobytes() for image in subset.tensors[0]} for subset in subsets)
    assert not train & test


def test_a_damaged_file_is_refused_by_name(tmp_path):
    content = bytearray(PATH.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.npz: got sha256 .* want .*git checkout"):
        fashion_mnist_subset(damaged)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: not found"):
        fashion_mnist_subset(tmp_path / "nowhere.npz")


def test_the_file_stays_small_enough_for_a_repository_and_has_its_licence_beside_it():
    assert PATH.stat().st_size < 6 * 2**20
    assert "Copyright (c) 2017 Zalando SE" in PATH.with_name("FASHION_MNIST_LICENSE").read_text()


def test_selection_takes_the_first_of_each_class_in_their_original_order():
    assert select_balanced(np.array([1, 0, 0, 1, 1, 0]), 2).tolist() == [0, 1, 2, 3]


def test_selection_refuses_more_than_the_smallest_class_has():
    with pytest.raises(ValueError, match="per_class: got 3, want at most 1"):
        select_balanced(np.array([0, 0, 0, 1]), 3)


def test_packing_refuses_a_source_that_is_not_the_original_and_writes_nothing(tmp_path):
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="source: .*train-labels.* cannot be unpacked"):
        pack(tmp_path, tmp_path / "packed.npz")
    assert not list(tmp_path.glob("*.npz"))


def test_packing_names_the_option_when_the_source_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pack", "--source", str(tmp_path)])
    with pytest.raises(SystemExit, match="source: "):
        main()


@needs_source
def test_packing_twice_gives_the_same_bytes_and_the_embedded_arrays(tmp_path):
    assert pack(SOURCE, tmp_path / "a.npz") == pack(SOURCE, tmp_path / "b.npz")
    # The compressed bytes depend on zlib, the arrays do not.
    with np.load(tmp_path / "a.npz") as packed, np.load(PATH) as embedded:
        assert packed.files == embedded.files
        for name in packed.files:
            np.testing.assert_array_equal(packed[name], embedded[name])
