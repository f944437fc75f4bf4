"""Data of the recipes: images and spoken words by name, and embedded sets of both that always work."""

from .embedded import FASHION_MNIST_SUBSET, LabelledImages, fashion_mnist_subset

__all__ = ["FASHION_MNIST_SUBSET", "LabelledImages", "fashion_mnist_subset"]
