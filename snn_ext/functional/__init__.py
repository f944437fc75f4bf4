"""The mathematics: pure, differentiable, any floating dtype, any device; float64 is the oracle of every faster path."""

from .adaptive import ASNState, PSPState, adaptive_spiking, postsynaptic_potential
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
from .transfer import asn_ceiling, asn_interval, asn_spike_height, asn_transfer

__all__ = [
    "ASNState",
    "ATan",
    "Erf",
    "PSPState",
    "PiecewiseExp",
    "PiecewiseQuadratic",
    "Sigmoid",
    "SoftSign",
    "SuperSpike",
    "Surrogate",
    "adaptive_spiking",
    "as_surrogate",
    "asn_ceiling",
    "asn_interval",
    "asn_spike_height",
    "asn_transfer",
    "best_points",
    "best_threshold",
    "decode",
    "nonuniform_staircase",
    "nonuniform_thresholds",
    "postsynaptic_potential",
    "soft_reset_if",
    "spike",
    "sqnr",
    "staircase",
    "state_dtype",
    "uniform_points",
]
