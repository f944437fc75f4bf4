"""The neurons for SpikingJelly: ``BaseNode`` subclasses that take the place of ``IFNode``."""

from .neurons import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode

__all__ = ["ASNNode", "ATIFnuNode", "ATIFuNode", "PCMPIFNode"]
