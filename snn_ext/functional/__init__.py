"""The mathematics: pure, differentiable, any floating dtype, any device; float64 is the oracle of every faster path."""

from .asn import ASNState, PSPState, adaptive_spiking, postsynaptic_potential
from .asn_transfer import asn_ceiling, asn_interval, asn_spike_height, asn_transfer
from .integrate_and_fire import integrate_and_fire, state_dtype
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
    "integrate_and_fire",
    "spike",
    "sqnr",
    "staircase",
    "state_dtype",
    "uniform_points",
]
