"""Simulation of spiking nets: the graph of a net, the table of layer types, chunks of time, spike trains."""

from .analog import AnalogTwin
from .engine import Simulation
from .layers import RULES, Rule, rule_of
from .spike_train import SpikeTrain

__all__ = ["RULES", "AnalogTwin", "Rule", "Simulation", "SpikeTrain", "rule_of"]
