"""Evaluation of spiking nets: simulation; accuracy and latency at every step, rates, synaptic operations, energy."""

from .delay import Regime, best_delay, delay_regimes
from .energy import ENERGY_45NM, EnergyModel
from .result import Evaluation, LayerEvaluation, first_crossing, last_crossing
from .runner import evaluate
from .simulation import Simulation
from .synapses import Synapses, count_synapses

__all__ = [
    "ENERGY_45NM",
    "EnergyModel",
    "Evaluation",
    "LayerEvaluation",
    "Regime",
    "Simulation",
    "Synapses",
    "best_delay",
    "count_synapses",
    "delay_regimes",
    "evaluate",
    "first_crossing",
    "last_crossing",
]
