"""Figures: what a neuron does, and what an evaluation has found. They need matplotlib, and nothing else imports it.

Each function returns a ``matplotlib.figure.Figure``; ``figure.savefig("name.png")`` writes it, a notebook shows it.
"""

from .evaluations import (
    accuracy_latency_synops,
    correlations,
    delays,
    dial,
    draw_accuracy,
    draw_rates,
    draw_spikes_by_depth,
    energy,
    overview,
)
from .neurons import draw_staircase, potential, raster, staircase
from .style import COLOURS, MARKERS, look

__all__ = [
    "COLOURS", "MARKERS", "accuracy_latency_synops", "correlations", "delays", "dial", "draw_accuracy", "draw_rates",
    "draw_spikes_by_depth", "draw_staircase", "energy", "look", "overview", "potential", "raster", "staircase",
]  # fmt: skip
