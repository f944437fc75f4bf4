"""The neurons for SpikingJelly: ``BaseNode`` subclasses that take the place of ``IFNode``."""

from .neuron import ATIFnuNode, ATIFuNode, PCMPIFNode

__all__ = ["ATIFnuNode", "ATIFuNode", "PCMPIFNode"]
