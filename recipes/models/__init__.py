"""Nets of the recipes: each runs as an analog net and, with its activations replaced, as a spiking one."""

from .small_cnn import over_time, plain, small_cnn

__all__ = ["over_time", "plain", "small_cnn"]
