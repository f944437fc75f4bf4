"""The figures of the keyword spotting table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from snn_ext.plots.style import finish, legend_beside, look, new_figure, plain_log

__all__ = ["Line", "best_line", "confusion_figure", "lines_of_page", "not_beaten", "pareto_figure"]

MARKERS = {"separable": "o", "resnet8": "s", "resnet18": "D", "recurrent-lif": "^"}
PLACES = {
    "ATIF-u": 0, "ATIF-nu": 1, "ATIF-u, pre-charged": 2, "ReLU, converted": 3, "LIF, one recurrent layer": 4,
    "IF": 5, "ReLU": 6, "IF, threshold 1": 7,
}  # fmt: skip
"""Of a row among the colours: the ReLU net is black, the neuron with nothing to train grey, and any other row 5."""
CALIBRATED = ", calibrated"
"""End of the name of a row whose marker is hollow, in the colour of the row without it."""


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


def lines_of_page(page: str) -> list[Line]:
    """Return the lines of the table on a page of results, with means and ranges as they stand there.

    Of three seeds the values follow; of more, those between the smallest and the largest are taken to be equal.
    """
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    header = next(i for i, row in enumerate(rows) if {"net", "neuron", "seeds"} <= {*row})
    found = []
    for row in rows[header + 2 :]:
        if len(row) != len(rows[header]):
            break
        cells = dict(zip(rows[header], row, strict=True))
        seeds, wanted = map(int, cells["seeds"].split(" of "))
        accuracy, energy = (_values(cells[name], seeds) for name in ("accuracy (%)", "energy (nJ)"))
        results = [{"accuracy": a / 100, "energy_nj": e} for a, e in zip(accuracy, energy, strict=True)]
        found.append(Line(cells["net"], cells["neuron"], wanted, results))
    return found


def _values(cell: str, seeds: int) -> list[float]:
    """Return as many values as there are seeds, of the mean, the smallest and the largest of a cell."""
    if not seeds:
        return []
    mean, *ends = map(float, re.findall(r"\d+(?:\.\d+)?", cell.replace(",", "")))
    if not ends:
        return [mean] * seeds
    low, high = ends
    return [low, *[(seeds * mean - low - high) / (seeds - 2)] * (seeds - 2), high]


def pareto_figure(found: Sequence[Line], title: str) -> Figure:
    """Plot accuracy over energy: means over the seeds, bars from the smallest to the largest, and the unbeaten ones."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    axes.set_title(f"{title}; bars: from the smallest to the largest of the seeds", fontsize=10)
    for line in (line for line in found if line.results):
        energy, accuracy = line.values("energy_nj"), [100 * value for value in line.values("accuracy")]
        x, y = fmean(energy), fmean(accuracy)
        style = look(PLACES.get(line.row.removesuffix(CALIBRATED), 5)) | {"marker": MARKERS[line.model], "ls": "none"}
        style["mfc"] = "white" if line.row.endswith(CALIBRATED) else style["color"]
        low_high = [[x - min(energy)], [max(energy) - x]], [[y - min(accuracy)], [max(accuracy) - y]]
        if len(energy) > 1:
            axes.errorbar(x, y, low_high[1], low_high[0], fmt="none", ecolor=style["color"], capsize=4)
        axes.plot(x, y, **style, label=f"{line.model}: {line.row}{'' if len(energy) > 1 else ', one seed'}")
    way = [(fmean(line.values("energy_nj")), 100 * fmean(line.values("accuracy"))) for line in not_beaten(found)]
    axes.plot(*zip(*way, strict=True), color="grey", lw=1, ls="--", zorder=0, label="Pareto front: not beaten in both")
    axes.set(xscale="log", xlabel="energy of a clip (nJ, 45 nm, arithmetic only)", ylabel="test accuracy (%)")
    axes.margins(0.08)
    plain_log(axes.xaxis)
    finish(axes, legend=False)
    legend_beside(figure, axes)
    return figure


def best_line(found: Sequence[Line]) -> Line:
    """Return the spiking line with the best mean accuracy; if there is none, the best."""
    known = [line for line in found if line.results and "confusion" in line.results[0]]
    spiking = [line for line in known if not line.row.startswith("ReLU")]
    return max(spiking or known, key=lambda line: fmean(line.values("accuracy")))


def confusion_figure(found: Sequence[Line]) -> Figure:
    """Plot the confusion matrix of the best spiking net, over all its seeds, in percent of the clips of a word."""
    line = best_line(found)
    counts = np.sum([result["confusion"] for result in line.results], axis=0)
    share = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    words = line.results[0]["words"]
    figure = new_figure(10, 9, f"{line.model}, {line.row}: {line.results[0]['data']}")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(words))
    axes.set_xticks(ticks, words, rotation=90, fontsize=8)
    axes.set_yticks(ticks, words, fontsize=8)
    for row, column in zip(*np.nonzero(share >= 10), strict=True):
        at = {"ha": "center", "va": "center", "color": "white" if share[row, column] > 55 else "black"}
        axes.text(column, row, f"{share[row, column]:.0f}", fontsize=7, **at)
    axes.set(xlabel="taken for", ylabel="said")
    figure.colorbar(image, label="% of the clips of a word", shrink=0.8)
    return figure
