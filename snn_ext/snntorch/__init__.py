"""The neurons for snnTorch: ``snn.Leaky`` subclasses, a reset and a detach for nested nets, a multi-step trainer."""

from .asn import ASN
from .neurons import PCMPIF, ATIFnu, ATIFu
from .training import bptt, detach, reset

__all__ = ["ASN", "PCMPIF", "ATIFnu", "ATIFu", "bptt", "detach", "reset"]
