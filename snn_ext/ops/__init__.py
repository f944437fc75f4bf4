"""The operators of :mod:`snn_ext.functional` with the same signatures, by the fastest implementation that can run.

:func:`implementation` tells which one runs, and why another cannot. Nothing switches silently.
"""

from . import norm_statistics, spike_convolution, spike_counts, value_codes  # noqa: F401 (they register their implementations)
from .asn import adaptive_spiking, postsynaptic_potential
from .asn_transfer import asn_transfer
from .integrate_and_fire import integrate_and_fire
from .registry import Implementation, implementation, use_implementation

__all__ = [
    "Implementation",
    "adaptive_spiking",
    "asn_transfer",
    "implementation",
    "integrate_and_fire",
    "postsynaptic_potential",
    "use_implementation",
]
