"""The figures of the keyword spotting table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from recipes.lib.fine_tuning import COLOURS
from snn_ext.plots import COLOURS as PALETTE

__all__ = ["Line", "best_line", "confusion_figure", "not_beaten", "pareto_figure"]

MARKERS = {"separable": "o", "resnet8": "s", "resnet18": "D", "recurrent-lif": "^"}
OTHER_COLOURS = {"ReLU, converted": PALETTE[3], "LIF, one recurrent layer": PALETTE[4]}


@dataclass
class Line:
    """One line of the table: a net with a neuron, and the results of its seeds."""

    model: str
    row: str
    wanted: int
    results: list[dict[str, Any]]

    def values(self, name: str) -> list[float]:
        """Return one figure of every seed that has it."""
        return [result[name] for result in self.results if result.get(name) is not None]


def not_beaten(found: Sequence[Line]) -> list[Line]:
    """Return the lines that no other one beats in mean accuracy and in mean energy at once, by energy."""
    known = [line for line in found if line.results]
    points = {id(line): (fmean(line.values("energy_nj")), -fmean(line.values("accuracy"))) for line in known}

    def beaten(line: Line) -> bool:
        mine = points[id(line)]
        others = (points[id(other)] for other in known if other is not line)
        return any(e <= mine[0] and a <= mine[1] and (e, a) != mine for e, a in others)

    return sorted((line for line in known if not beaten(line)), key=lambda line: points[id(line)][0])


def pareto_figure(found: Sequence[Line]) -> Figure:
    """Plot accuracy over energy, one small marker a seed and a large one their mean; a line joins the unbeaten ones."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    known = [line for line in found if line.results]
    for line in known:
        colour = COLOURS.get(line.row) or OTHER_COLOURS[line.row]
        energy, accuracy = line.values("energy_nj"), [100 * value for value in line.values("accuracy")]
        axes.plot(energy, accuracy, MARKERS[line.model], color=colour, ms=4, alpha=0.5)
        label = f"{line.model}: {line.row}"
        axes.plot(fmean(energy), fmean(accuracy), MARKERS[line.model], color=colour, ms=10, mec="white", label=label)
    front = not_beaten(found)
    way = [(fmean(line.values("energy_nj")), 100 * fmean(line.values("accuracy"))) for line in front]
    axes.plot(*zip(*way, strict=True), color="grey", lw=1, ls="--", zorder=0, label="not beaten in both")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="energy of a clip (nJ, 45 nm, arithmetic only)", ylabel="test accuracy (%)")
    axes.set_title(known[0].results[0]["data"])
    axes.grid(alpha=0.3, which="both")
    axes.margins(0.08)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def best_line(found: Sequence[Line]) -> Line:
    """Return the spiking line with the best mean accuracy; if there is none, the best."""
    known = [line for line in found if line.results and "confusion" in line.results[0]]
    spiking = [line for line in known if line.row != "ReLU" and line.row != "ReLU, converted"]
    return max(spiking or known, key=lambda line: fmean(line.values("accuracy")))


def confusion_figure(found: Sequence[Line]) -> Figure:
    """Plot the confusion matrix of the best spiking net, over all its seeds, in percent of the clips of a word."""
    line = best_line(found)
    counts = np.sum([result["confusion"] for result in line.results], axis=0)
    share = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    words = line.results[0]["words"]
    figure = Figure(figsize=(10, 9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(words))
    axes.set_xticks(ticks, words, rotation=90, fontsize=8)
    axes.set_yticks(ticks, words, fontsize=8)
    for row, column in zip(*np.nonzero((share >= 10) & ~np.eye(len(words), dtype=bool)), strict=True):
        axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=7)
    axes.set(xlabel="taken for", ylabel="said")
    axes.set_title(f"{line.model}, {line.row}: {line.results[0]['data']}")
    figure.colorbar(image, label="% of the clips of a word", shrink=0.8)
    return figure
