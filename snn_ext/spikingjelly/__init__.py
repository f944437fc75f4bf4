"""The neurons as nodes of SpikingJelly, on the contract of its ``BaseNode`` 2.0."""

from . import asn, neurons
from .asn import *  # noqa: F403
from .neurons import *  # noqa: F403

__all__ = [*asn.__all__, *neurons.__all__]
