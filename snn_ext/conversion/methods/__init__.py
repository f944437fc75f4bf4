"""The conversion methods: one file and one row of :data:`METHODS` each."""

from .adsnn import AdSNNRecipe
from .base import ConversionRecipe
from .calibrated import CalibratedRecipe
from .data_norm import DataNormRecipe
from .rate import RateRecipe
from .spike_norm import SpikeNormRecipe

__all__ = [
    "METHODS",
    "AdSNNRecipe",
    "CalibratedRecipe",
    "ConversionRecipe",
    "DataNormRecipe",
    "RateRecipe",
    "SpikeNormRecipe",
]

METHODS: dict[str, type[ConversionRecipe]] = {
    "calibrated": CalibratedRecipe,
    "spike-norm": SpikeNormRecipe,
    "data-norm": DataNormRecipe,
    "adsnn": AdSNNRecipe,
}
"""By the name that :func:`snn_ext.convert` takes."""
