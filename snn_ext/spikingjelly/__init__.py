"""The neurons as nodes of SpikingJelly, on the contract of its ``BaseNode`` 2.0."""

from ..hosts import need

need("spikingjelly", __name__)

from . import asn, neurons  # noqa: E402
from .asn import *  # noqa: E402, F403
from .neurons import *  # noqa: E402, F403

__all__ = [*asn.__all__, *neurons.__all__]
