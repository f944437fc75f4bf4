"""Data of the recipes: an embedded set of images that always works, and the script that has packed it."""

from .embedded import FASHION_MNIST_SUBSET, LabelledImages, fashion_mnist_subset

__all__ = ["FASHION_MNIST_SUBSET", "LabelledImages", "fashion_mnist_subset"]
