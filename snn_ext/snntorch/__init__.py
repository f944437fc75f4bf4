"""The neurons for snnTorch: ``snn.Leaky`` subclasses, a reset and a detach for nested nets, whole sequences, a trainer on them."""

from . import asn, neurons
from .asn import *  # noqa: F403
from .neurons import *  # noqa: F403
from .sequence import run_steps
from .training import bptt, detach, reset

__all__ = [*asn.__all__, *neurons.__all__, "bptt", "detach", "reset", "run_steps"]
