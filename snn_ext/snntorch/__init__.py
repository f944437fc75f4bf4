"""The neurons for snnTorch: ``snn.Leaky`` subclasses, reset and detach of nested nets, whole sequences, a trainer."""

from . import asn, neurons
from .asn import *  # noqa: F403
from .neurons import *  # noqa: F403
from .sequence import run_steps
from .training import bptt, detach, reset

__all__ = [*asn.__all__, *neurons.__all__, "bptt", "detach", "reset", "run_steps"]
