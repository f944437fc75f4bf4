"""The operators of :mod:`snn_ext.functional` with the same signatures, by the fastest implementation that can run.

Which one runs, and why another can not, can always be asked: :func:`implementation`. Nothing switches silently.
"""

from .adaptive import adaptive_spiking, postsynaptic_potential
from .integrate_and_fire import integrate_and_fire
from .selection import Implementation, implementation, use_implementation
from .transfer import asn_transfer

__all__ = [
    "Implementation",
    "adaptive_spiking",
    "asn_transfer",
    "implementation",
    "postsynaptic_potential",
    "integrate_and_fire",
    "use_implementation",
]
