"""The mixins that neurons are made of, in either host, and the table of the neurons of this package.

To add a neuron: subclass a mixin of this module for its parameters and its operator, give each host a class of it
(``snn_ext/spikingjelly/``, ``snn_ext/snntorch/``), and add a row to :data:`NEURONS`. Registration, the tests of both
hosts and the recipes read that table; ``docs/extending.md`` lists all files.
"""

from importlib import import_module
from typing import Any, NamedTuple

from ..hosts import Host
from .asn import AdaptiveSpikingNeuron
from .base import MIN_THRESHOLD, ThresholdNeuron
from .integrate_and_fire import IFState, IntegrateAndFireNeuron, NonUniformIntegrateAndFireNeuron, Thresholds

__all__ = [
    "MIN_THRESHOLD", "NEURONS", "AdaptiveSpikingNeuron", "IFState", "IntegrateAndFireNeuron", "Neuron",
    "NonUniformIntegrateAndFireNeuron", "ThresholdNeuron", "Thresholds",
]  # fmt: skip


class Neuron(NamedTuple):
    """A neuron of this package: its name in its paper, and its class in each host.

    Examples
    --------
    >>> NEURONS["atif-u"].of("snntorch")
    <class 'snn_ext.snntorch.neurons.ATIFu'>
    """

    title: str
    source: str
    spikingjelly: str
    snntorch: str

    def of(self, host: Host) -> Any:
        """Return the class for a host, which is imported."""
        return getattr(import_module(f"snn_ext.{host}"), getattr(self, host))


NEURONS = {
    "atif-u": Neuron("ATIF-u", "Castagnetti et al. 2023", "ATIFuNode", "ATIFu"),
    "atif-nu": Neuron("ATIF-nu", "Castagnetti et al. 2023", "ATIFnuNode", "ATIFnu"),
    "pcmp": Neuron("PCMP IF", "Hwang et al. 2021", "PCMPIFNode", "PCMPIF"),
    "asn": Neuron("ASN", "Zambrano et al. 2017", "ASNNode", "ASN"),
}
"""The neurons of this package by the name that command lines use."""
