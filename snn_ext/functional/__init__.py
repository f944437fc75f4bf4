"""The mathematics: pure, differentiable, any floating dtype, any device; float64 is the oracle of every faster path."""

from .quantization import (
    best_points,
    best_threshold,
    decode,
    nonuniform_staircase,
    nonuniform_thresholds,
    sqnr,
    staircase,
    uniform_points,
)
from .soft_reset import soft_reset_if, state_dtype
from .surrogates import (
    ATan,
    Erf,
    PiecewiseExp,
    PiecewiseQuadratic,
    Sigmoid,
    SoftSign,
    SuperSpike,
    Surrogate,
    as_surrogate,
    spike,
)

__all__ = [
    "ATan",
    "Erf",
    "PiecewiseExp",
    "PiecewiseQuadratic",
    "Sigmoid",
    "SoftSign",
    "SuperSpike",
    "Surrogate",
    "as_surrogate",
    "best_points",
    "best_threshold",
    "decode",
    "nonuniform_staircase",
    "nonuniform_thresholds",
    "soft_reset_if",
    "spike",
    "sqnr",
    "staircase",
    "state_dtype",
    "uniform_points",
]
