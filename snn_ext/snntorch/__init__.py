"""The neurons for snnTorch: ``snn.Leaky`` subclasses, reset and detach of nested nets, whole sequences, a trainer."""

from ..hosts import need

need("snntorch", __name__)

from . import asn, neurons  # noqa: E402
from .asn import *  # noqa: E402, F403
from .neurons import *  # noqa: E402, F403
from .sequence import run_steps  # noqa: E402
from .training import bptt, detach, reset  # noqa: E402

__all__ = [*asn.__all__, *neurons.__all__, "bptt", "detach", "reset", "run_steps"]
