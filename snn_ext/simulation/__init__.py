"""Simulation of spiking nets: the graph of a net, the table of layer types, chunks of time, spike trains."""

from .analog import AnalogTwin
from .counts import PhasedSimulation
from .engine import Simulation
from .layers import RULES, Rule, rule_of
from .spike_train import SpikeTrain

__all__ = ["RULES", "AnalogTwin", "PhasedSimulation", "Rule", "Simulation", "SpikeTrain", "rule_of"]
