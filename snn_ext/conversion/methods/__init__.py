"""The conversion methods: one file and one row of :data:`METHODS` each."""

from .adsnn import AdSNNRecipe
from .base import ConversionRecipe
from .data_norm import DataNormRecipe
from .rate import RateRecipe
from .spike_norm import SpikeNormRecipe

__all__ = ["METHODS", "AdSNNRecipe", "ConversionRecipe", "DataNormRecipe", "RateRecipe", "SpikeNormRecipe"]

METHODS: dict[str, type[ConversionRecipe]] = {
    "spike-norm": SpikeNormRecipe,
    "data-norm": DataNormRecipe,
    "adsnn": AdSNNRecipe,
}
"""By the name that :func:`snn_ext.convert` takes."""
