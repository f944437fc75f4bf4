"""The page of the ablation: tables, a picture, and comparisons of nets on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from statistics import fmean, median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from snn_ext.plots.style import finish, legend_beside, look, new_figure

from .pages import spread, table

__all__ = ["NOTES", "REFERENCE", "accuracy_over_spikes", "difference", "section"]

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Name of a row to its runs, one for each seed, as ``ablation.measured`` returns them."""
REFERENCE = "ATIF-u"
NOTES = """\
swap: thresholds are fitted to the inputs of the ReLUs, V(0) = 0; pre-charged: V(0) is half a threshold; calibrated:
thresholds, pre-charges, biases and weights are fitted to the current that arrives (`snn_ext.calibrate`). "IF" has a
fixed threshold. difference: to ATIF-u on the same test images, mean over the seeds, ± its standard error over the
images. Spikes: of a neuron in all T steps of an image. SQNR: median over the layers. silent: share of channels that
never fire on the test images. moved: median relative change of the thresholds by the training. Means over the seeds,
with (smallest..largest)."""


def section(title: str, runs: Runs) -> str:
    """Return the tables of a net: a line for each row, and what its layers do."""
    rows, layers = [], []
    for name, seeds in runs.items():
        after = [run["after"] for run in seeds]
        rows.append([
            name,
            f"{100 * fmean(_share(run['before']) for run in seeds):.2f}",
            spread([100 * _share(each) for each in after], 2),
            difference(seeds, runs.get(REFERENCE, ())),
        ])  # fmt: skip
        if seeds[0]["after"]["spikes_per_neuron"] is None:
            continue
        rows[-1] += [
            f"{fmean(each['spikes_per_neuron'] for each in after):.3f}",
            f"{fmean(_median(each['sqnr_db']) for each in after):.1f}",
            f"{100 * fmean(each['silent_channels'] for each in after):.1f}",
            f"{100 * fmean(map(_moved, seeds)):.1f}",
        ]
        layers.append([
            name,
            *(
                " ".join(_mean(values, form) for values in zip(*(each[key] for each in after), strict=True))
                for key, form in (("spikes", ".2f"), ("sqnr_db", ".1f"))
            ),
        ])  # fmt: skip
    header = [
        "net", "before, %", "trained, %", "difference, points", "spikes per neuron", "SQNR, dB",
        "silent, %", "moved, %",
    ]  # fmt: skip
    wide = [row + [None] * (len(header) - len(row)) for row in rows]
    by_layer = table(layers, ["net", "spikes per neuron by layer", "SQNR by layer, dB"])
    return f"## {title}\n\n{table(wide, header)}\n\n{by_layer}"


def difference(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> str | None:
    """Return by how many points runs are better than others on the same images, with the standard error over these."""
    if len(runs) != len(reference) or runs is reference:
        return None
    each = torch.stack([_right(a["after"]) - _right(b["after"]) for a, b in zip(runs, reference, strict=True)]).mean(0)
    return f"{100 * each.mean():+.2f} ± {100 * each.std() / len(each) ** 0.5:.2f}"


def accuracy_over_spikes(runs: Runs, title: str) -> Figure:
    """Plot accuracy over spikes of the trained nets, a marker each, bars from the smallest to the largest."""
    figure = new_figure(9, 5.2, title)
    axes = figure.subplots()
    for place, (name, seeds) in enumerate(runs.items()):
        values = [100 * _share(run["after"]) for run in seeds]
        style = look(place) | {"ls": "none"}
        if seeds[0]["after"]["spikes_per_neuron"] is None:
            axes.axhline(fmean(values), color=style["color"], ls="--", label=name)
            continue
        mean = fmean(values)
        bars = [[mean - min(values)], [max(values) - mean]]
        axes.errorbar(fmean(r["after"]["spikes_per_neuron"] for r in seeds), mean, bars, label=name, capsize=2, **style)
    axes.set(xlabel="spikes per neuron and image", ylabel="test accuracy (%)")
    finish(axes, legend=False)
    legend_beside(figure, axes)
    return figure


def _right(activity: Mapping[str, Any]) -> Tensor:
    return torch.tensor([float(answer) for answer in activity["right"]])


def _share(activity: Mapping[str, Any]) -> float:
    return float(_right(activity).mean())


def _median(values: Sequence[float | None]) -> float:
    """Return the median of what is known: a layer without signal or error has no SQNR."""
    known = [value for value in values if value is not None]
    return median(known) if known else nan


def _mean(values: Sequence[float | None], form: str) -> str:
    return "-" if None in values else f"{fmean(value for value in values if value is not None):{form}}"


def _moved(run: Mapping[str, Any]) -> float:
    pairs = zip(run["before"]["thresholds"], run["after"]["thresholds"], strict=True)
    return median(abs(b / a - 1) for old, new in pairs for a, b in zip(old, new, strict=True))
