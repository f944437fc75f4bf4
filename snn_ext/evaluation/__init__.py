"""Evaluation of spiking nets: simulation; accuracy and latency at every step, rates, synaptic operations, energy."""

from .activity import LayerActivity, NetActivity, measure_activity
from .arousal import Arousal, ArousedSimulation
from .delay import Regime, best_delay, delay_regimes
from .energy import ENERGY_45NM, EnergyModel
from .evaluate import evaluate
from .margins import Margins, estimate_arousal, observe_margins
from .precision_sweep import lowest_rate, sweep_precision
from .result import Evaluation, LayerEvaluation, first_crossing, last_crossing
from .synapses import Synapses, count_synapses

__all__ = [
    "ENERGY_45NM",
    "Arousal",
    "ArousedSimulation",
    "EnergyModel",
    "Evaluation",
    "LayerActivity",
    "LayerEvaluation",
    "Margins",
    "NetActivity",
    "Regime",
    "Synapses",
    "best_delay",
    "count_synapses",
    "delay_regimes",
    "estimate_arousal",
    "evaluate",
    "first_crossing",
    "last_crossing",
    "lowest_rate",
    "measure_activity",
    "observe_margins",
    "sweep_precision",
]
