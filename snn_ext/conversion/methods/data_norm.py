"""Data-based normalisation: thresholds from the activations of the analog net."""

from __future__ import annotations

from dataclasses import dataclass

from ..batches import Batches
from ..canonicalize import AnalogNet
from ..spiking import ThresholdSetter
from ..thresholds import LargestActivations, check_percentile
from .rate import RateRecipe

__all__ = ["DataNormRecipe"]


@dataclass(eq=False, kw_only=True)
class DataNormRecipe(RateRecipe):
    """Data-based normalisation: the threshold of a layer is the maximum, or a percentile, of its analog activations.

    Parameters
    ----------
    calibration, memory, time_steps, encoder, seed, precharge, reset, readout, schedule, fold_scales, residual, channel_wise
        As in :class:`RateRecipe`.
    percentile : float
        In [1, 100]; 100 is the true maximum over all batches.

    Notes
    -----
    Source: Diehl et al. 2015; Hwang et al. 2021. Percentiles: Rueckauer et al. 2017.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from spikingjelly.activation_based.ann2snn import Converter
    >>> from snn_ext.conversion import DataNormRecipe
    >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> snn = Converter(DataNormRecipe(torch.rand(64, 4), precharge=0.5)).convert(ann)
    >>> [layer.rule for layer in snn.report]
    ['maximum']
    """  # noqa: E501

    percentile: float = 100.0

    def check(self) -> None:
        """Check the options."""
        super().check()
        check_percentile(self.percentile)

    def set_thresholds(self, thresholds: ThresholdSetter, analog: AnalogNet, batches: Batches) -> None:
        """Go through the calibration data with the analog net."""
        rule = "maximum" if self.percentile == 100.0 else f"percentile {self.percentile:g}"
        largest = LargestActivations(
            analog.graph, analog.activations, batches, channel_wise=self.channel_wise, progress=self.progress
        )
        for name, value in largest.thresholds(self.percentile).items():
            thresholds.set(name, value, f"{rule} per channel" if self.channel_wise else rule)
        thresholds.notes.update(largest.notes)
