"""Nets of the recipes, built so that one module runs as an analog net and, with its neurons replaced, as a spiking one."""

from .small_cnn import SmallCNN

__all__ = ["SmallCNN"]
