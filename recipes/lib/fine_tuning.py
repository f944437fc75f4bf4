"""Nets before and after their fine-tuning: a table and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from tabulate import tabulate
from torch import Tensor, nn

from snn_ext.evaluation import NetActivity
from snn_ext.plots import COLOURS as PALETTE
from snn_ext.plots import draw_staircase
from snn_ext.plots.style import finish, new_figure
from snn_ext.spikingjelly import ATIFnuNode

__all__ = ["NOTES", "Row", "accuracy_against_spikes", "staircases", "table", "threshold_history", "thresholds"]

NOTES = """\
- swapped: accuracy right after the ReLUs are replaced by neurons, without any training. Thresholds are fitted to the
  inputs of the ReLUs; "calibrated": thresholds, pre-charges and biases to the current that arrives in the spiking net.
- tuned: accuracy after fine-tuning at T steps.
- spikes: mean number of spikes of a neuron of the spiking layers in the T steps of one test image.
- thresholds: in the units of the layer's input; of ATIF-nu its points p_1..p_T.
- SQNR: of the layer's decoded value (rate x threshold, or rate x p_1) against its mean input over time, where that is
  not negative; in the fine-tuned net, on the test images.
- The standard error of an accuracy, from the number of test images alone, is 0.7 percentage points at 89 % of 2,000."""

COLOURS = {
    "ReLU": "#000000", "IF, threshold 1": PALETTE[7], "ATIF-u": PALETTE[0], "ATIF-nu": PALETTE[1],
    "ATIF-u, pre-charged": PALETTE[2], "ATIF-u, calibrated": PALETTE[3],
}  # fmt: skip
MARKERS = {"IF, threshold 1": "s", "ATIF-u": "o", "ATIF-nu": "D", "ATIF-u, pre-charged": "^", "ATIF-u, calibrated": "v"}


@dataclass
class Row:
    """A net before and after its fine-tuning.

    ``thresholds`` has for each spiking layer its threshold, or the points p_1..p_T of ATIF-nu, ``history`` has them
    before the first step of the fine-tuning and after every step.
    """

    name: str
    net: nn.Module
    layers: list[nn.Module]
    before: NetActivity
    after: NetActivity
    history: list[list[list[float]]]

    @property
    def thresholds(self) -> list[list[float]]:
        return self.history[-1]

    def as_json(self) -> dict[str, Any]:
        """Return everything that JSON can hold."""
        found: dict[str, Any] = {"name": self.name, "thresholds": self.thresholds, "threshold_history": self.history}
        for when, activity in (("before", self.before), ("after", self.after)):
            layers = [{k: v for k, v in vars(layer).items() if k != "inputs"} for layer in activity.layers]
            found[when] = {"accuracy": activity.accuracy, "spikes_per_neuron": activity.spikes_per_neuron}
            found[when]["layers"] = layers
        return found


def thresholds(layers: list[nn.Module]) -> list[list[float]]:
    """Return the present thresholds of the layers, of ATIF-nu its points as they are used."""
    values = [layer.quantization_points() if isinstance(layer, ATIFnuNode) else layer.v_threshold for layer in layers]
    return [torch.as_tensor(value).flatten().tolist() for value in values]


def table(rows: Sequence[Row]) -> str:
    """Return a line for each net, with one line in a cell for each spiking layer."""
    lines = [
        [
            row.name,
            f"{row.before.accuracy:.2%}",
            f"{row.after.accuracy:.2%}",
            f"{row.after.spikes_per_neuron:.3f}" if row.layers else "-",
            "\n".join(" ".join(f"{value:.2f}" for value in layer) for layer in row.thresholds) or "-",
            "\n".join(f"{layer.sqnr_db:.1f}" for layer in row.after.layers) or "-",
        ]
        for row in rows
    ]
    header = ["accuracy:", "swapped", "tuned", "spikes", "thresholds\nby layer", "SQNR\n(dB)"]
    return tabulate(lines, header, tablefmt="simple", disable_numparse=True)  # of 80 columns


def accuracy_against_spikes(runs: Sequence[Sequence[Row]], test_images: int, title: str) -> Figure:
    """Plot accuracy over spikes per neuron, one marker a seed: the way from the swap, and the fine-tuned nets alone."""
    figure = new_figure(11, 4.8)
    way, end = figure.subplots(1, 2)
    for seed, rows in enumerate(runs):
        for row in rows:
            colour, marker, label = COLOURS[row.name], MARKERS.get(row.name), row.name if seed == 0 else None
            accuracy = 100 * row.after.accuracy
            if row.after.spikes_per_neuron is None:
                for axes in (way, end):
                    axes.axhline(accuracy, color=colour, ls="--", lw=1, label=label if axes is way else None)
                continue
            start = row.before.spikes_per_neuron, 100 * row.before.accuracy
            way.plot(*zip(start, (row.after.spikes_per_neuron, accuracy), strict=True), color=colour, lw=1, alpha=0.5)
            way.plot(*start, marker, color=colour, mfc="white", ms=7)
            way.plot(row.after.spikes_per_neuron, accuracy, marker, color=colour, ms=8, label=label, ls="none")
            error = 100 * (row.after.accuracy * (1 - row.after.accuracy) / test_images) ** 0.5
            end.errorbar(row.after.spikes_per_neuron, accuracy, error, fmt=marker, color=colour, ms=8, lw=1, capsize=3)
    way.plot([], [], "o", color="grey", mfc="white", label="hollow: before fine-tuning")
    way.set_title("swapped (hollow) and fine-tuned")
    end.set_title(f"fine-tuned; bars: standard error of {test_images:,} images")
    for axes in (way, end):
        axes.set(xlabel="spikes per neuron and image", ylabel="test accuracy (%)")
        axes.margins(0.12)
        finish(axes, legend=False)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return figure


@torch.no_grad()
def staircases(rows: Sequence[Row], time_steps: int, title: str) -> Figure:
    """Plot what each fine-tuned layer decodes from a constant input, over the density of its inputs in the net."""
    rows = [row for row in rows if row.layers]
    layers = len(rows[0].layers)
    limits = [max(float(row.after.layers[i].inputs.quantile(0.999)) for row in rows) for i in range(layers)]
    figure = new_figure(3.4 * layers, 2.3 * len(rows))
    grid = figure.subplots(len(rows), layers, sharex="col", sharey="col", squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for i, (axes, neuron, limit) in enumerate(zip(axes_row, row.layers, limits, strict=True)):
            x = torch.linspace(-0.25 * limit, limit, 4001)
            _density(axes, row.after.layers[i].inputs, x)
            axes.plot(x, x.clamp_min(0.0), color=COLOURS["ReLU"], ls="--", lw=1)
            channels = getattr(neuron, "v_init", torch.zeros(1)).numel()
            draw_staircase(axes, neuron, x, time_steps, color=COLOURS[row.name], lw=2 if channels == 1 else 0.4)
            axes.set(xlim=(float(x[0]), float(x[-1])))
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
            label = f"SQNR {row.after.layers[i].sqnr_db:.1f} dB"
            axes.text(0.03, 0.94, label, transform=axes.transAxes, va="top", fontsize=9, bbox=box)
        axes_row[0].set_ylabel(f"{row.name}\ndecoded value", color=COLOURS[row.name])
    for i, (top, bottom) in enumerate(zip(grid[0], grid[-1], strict=True)):
        top.set_title(f"spiking layer {i + 1}")
        bottom.set_xlabel("input current, mean over time")
    handles = [
        Line2D([], [], color="grey", lw=2, label=f"neuron, T = {time_steps}, constant input"),
        Line2D([], [], color=COLOURS["ReLU"], ls="--", lw=1, label="ReLU"),
        Patch(color="0.88", label="density of its inputs on the test images (peaks cut off)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Fine-tuned staircases: {title}")
    return figure


def threshold_history(rows: Sequence[Row], title: str) -> Figure:
    """Plot the thresholds of the layers (the points p_1..p_T of ATIF-nu) over the steps of fine-tuning."""
    rows = [row for row in rows if row.thresholds]
    layers = len(rows[0].thresholds)
    figure = new_figure(4 * layers, 4)
    grid = figure.subplots(1, layers, squeeze=False)
    for i, axes in enumerate(grid[0]):
        for row in rows:
            history = np.array([step[i] for step in row.history])
            look = {"marker": MARKERS.get(row.name), "markevery": max(1, len(history) // 6), "ms": 5}
            lines = axes.plot(history, color=COLOURS[row.name], lw=1.5, **look)
            lines[0].set_label(row.name if i == 0 else None)
        axes.set(title=f"spiking layer {i + 1}", xlabel="step of fine-tuning")
        axes.set_ylim(bottom=0.0)
        finish(axes, legend=False)
    grid[0][0].set_ylabel("threshold (ATIF-nu: its points p)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Thresholds during fine-tuning: {title}")
    return figure


def _density(axes: Axes, inputs: Tensor, x: Tensor) -> None:
    background = axes.twinx()
    height, _, _ = background.hist(inputs.numpy(), bins=120, range=(float(x[0]), float(x[-1])), color="0.88")
    # The black background of the images gives every channel of the first layer one value, a peak that hides the rest.
    background.set_ylim(0, 1.4 * np.quantile(height, 0.93))
    background.set_yticks([])
    axes.set_zorder(background.get_zorder() + 1)
    axes.patch.set_visible(False)
