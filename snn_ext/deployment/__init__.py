"""Nets outside of this package: as programs of ``torch.export``, as ONNX files, and as NIR graphs."""

from . import nir, onnx, program
from .nir import *  # noqa: F403
from .onnx import *  # noqa: F403
from .program import *  # noqa: F403

__all__ = [*nir.__all__, *onnx.__all__, *program.__all__]
