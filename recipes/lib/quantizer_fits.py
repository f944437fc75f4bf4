"""Fits of neurons as quantisers, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from snn_ext.plots.style import finish, look, new_figure

__all__ = ["Fit", "table", "training"]


@dataclass
class Fit:
    """One training: at each evaluation the SQNR on the whole sample, and the threshold, or the points p_1..p_T.

    ``edges`` has for n = 1..T the smallest input of the sample at which the neuron fires n times, NaN for none. For
    ATIF-nu they are its points, in reverse order, only where the recursion is exact: training may leave that region.
    """

    iterations: list[int] = field(default_factory=list)
    sqnr_db: list[float] = field(default_factory=list)
    thresholds: list[list[float]] = field(default_factory=list)
    edges: list[list[float]] = field(default_factory=list)


def table(results: Mapping[str, Mapping[str, Any]], time_steps: int) -> str:
    """Return optimum and training of every neuron and input, and the gains that the paper states."""
    lines, fits = [], dict[str, Fit]()
    for name, result in results.items():
        best, fits = result["optima"], result["fits"]
        fixed = best[f"IF, threshold 1, T = {time_steps}"][0]
        u, nu, charged = (fit.sqnr_db[-1] for fit in fits.values())
        pairs = [f"{best[neuron][0]:.2f} / {fit.sqnr_db[-1]:.2f}" for neuron, fit in fits.items()]
        lines.append([name, f"{fixed:.2f}", *pairs, f"{u - fixed:+.2f}", f"{nu - u:+.2f}", f"{charged - u:+.2f}"])
    neurons = [f"{neuron}\noptimum / trained" for neuron in fits]
    header = ["input", "IF,\nthreshold 1", *neurons, "gain\nu - IF", "gain\nnu - u", "gain\npre-charge"]
    return tabulate(lines, header, tablefmt="simple", disable_numparse=True)


def training(result: Mapping[str, Any], time_steps: int) -> Figure:
    """Draw the SQNR of each neuron while it is trained; dotted: its optimum."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for i, (kind, found) in enumerate(result["fits"].items()):
        curve = look(i) | {"markevery": max(1, len(found.iterations) // 8)}
        axes.plot(found.iterations, found.sqnr_db, label=f"{kind} ({found.sqnr_db[-1]:.1f} dB)", **curve)
        axes.axhline(result["optima"][kind][0], color=curve["color"], lw=1, ls=":")
    axes.set(xlabel="iteration", ylabel="SQNR (dB)", title=f"T = {time_steps}, Gaussian input; dotted: the optimum")
    finish(axes)
    return figure
