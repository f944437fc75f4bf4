"""The neurons for SpikingJelly: ``BaseNode`` subclasses that take the place of ``IFNode``."""

from .neuron import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode

__all__ = ["ASNNode", "ATIFnuNode", "ATIFuNode", "PCMPIFNode"]
