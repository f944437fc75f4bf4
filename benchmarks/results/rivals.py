"""SpikingJelly's converter, as a rival of ours."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from spikingjelly.activation_based.ann2snn import Converter
from spikingjelly.activation_based.ann2snn.recipes import LocalThresholdBalancingRecipe, RateCodingRecipe
from torch import nn

import snn_ext

__all__ = ["RIVALS", "convert"]

_BEST = {"channel_wise": True, "pre_spike_maxpool": True, "half_threshold": True}
RIVALS: dict[str, dict[str, Any]] = {
    "RateCoding Max": {"recipe": RateCodingRecipe, "mode": "Max"},
    "RateCoding 99.9 %": {"recipe": RateCodingRecipe, "mode": "99.9%"},
    "RateCoding Max, channel-wise, half threshold": {"recipe": RateCodingRecipe, "mode": "Max", **_BEST},
    "RateCoding 99.9 %, channel-wise, half threshold": {"recipe": RateCodingRecipe, "mode": "99.9%", **_BEST},
    # It moves the thresholds a little with each batch: with one pass over 256 images they are far from their end.
    "LocalThresholdBalancing, 40 passes": {"recipe": LocalThresholdBalancingRecipe, "passes": 40},
}
"""Options of :func:`convert`: the usual settings, the settings that are best here, and the newest recipe."""


def convert(
    ann: nn.Module, data: Iterable[Any], *, recipe: type | None = None, passes: int = 1, **options: Any
) -> nn.Module:
    """Convert by a recipe of SpikingJelly, or without one by :func:`snn_ext.convert`; the analog net stays as it is."""
    if recipe is None:
        return snn_ext.convert(ann, data, **options)
    return Converter(recipe(list(data) * passes, **options)).convert(copy.deepcopy(ann))
