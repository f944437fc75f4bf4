"""The figures of the quickstart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from spikingjelly.activation_based import functional  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from .files import replacing  # noqa: E402

if TYPE_CHECKING:
    from .quickstart import Row

__all__ = ["accuracy_against_spikes", "save", "staircases", "threshold_history"]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
    "ReLU": "#000000",
    "IF, threshold 1": "#999999",
    "ATIF-u": "#0072B2",
    "ATIF-nu": "#D55E00",
    "ATIF-u, pre-charged": "#009E73",
}
MARKERS = {"IF, threshold 1": "s", "ATIF-u": "o", "ATIF-nu": "D", "ATIF-u, pre-charged": "^"}


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, whole or not at all, and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def accuracy_against_spikes(runs: Sequence[Sequence[Row]], title: str) -> Figure:
    """Plot accuracy over spikes per neuron: hollow just after the swap, filled after fine-tuning; one marker a seed."""
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for seed, rows in enumerate(runs):
        for row in rows:
            colour = COLOURS[row.name]
            if row.after.spikes_per_neuron is None:
                axes.axhline(
                    100 * row.after.accuracy, color=colour, ls="--", lw=1, label=f"{row.name} (analog)" if seed == 0 else None
                )
                continue
            x = row.before.spikes_per_neuron, row.after.spikes_per_neuron
            y = 100 * row.before.accuracy, 100 * row.after.accuracy
            axes.plot(x, y, color=colour, lw=1, alpha=0.5, zorder=1)
            axes.plot(x[0], y[0], MARKERS[row.name], color=colour, mfc="white", ms=7)
            axes.plot(x[1], y[1], MARKERS[row.name], color=colour, ms=8, label=row.name if seed == 0 else None)
    axes.plot([], [], "o", color="grey", mfc="white", label="hollow: before fine-tuning")
    axes.set(xlabel="spikes per neuron and image", ylabel="test accuracy (%)", title=title)
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@torch.no_grad()
def staircases(rows: Sequence[Row], time_steps: int, title: str) -> Figure:
    """Plot what each fine-tuned layer decodes from a constant input, over the density of its inputs in the net."""
    rows = [row for row in rows if row.neurons]
    layers = len(rows[0].neurons)
    limits = [max(float(row.after.layers[i].inputs.quantile(0.999)) for row in rows) for i in range(layers)]
    figure, grid = plt.subplots(
        len(rows), layers, figsize=(3.4 * layers, 2.3 * len(rows)), sharex="col", sharey="col", squeeze=False, layout="constrained"
    )
    for axes_row, row in zip(grid, rows, strict=True):
        for i, (axes, neuron, limit) in enumerate(zip(axes_row, row.neurons, limits, strict=True)):
            x = torch.linspace(-0.25 * limit, limit, 4001)
            _density(axes, row.after.layers[i].inputs, x)
            axes.plot(x, x.clamp_min(0.0), color=COLOURS["ReLU"], ls="--", lw=1)
            axes.plot(x, _decoded(neuron, x, time_steps), color=COLOURS[row.name], lw=2)
            axes.set(xlim=(float(x[0]), float(x[-1])))
            axes.text(0.03, 0.93, f"SQNR {row.after.layers[i].sqnr_db:.1f} dB", transform=axes.transAxes, va="top", fontsize=9)
        axes_row[0].set_ylabel(f"{row.name}\ndecoded value", color=COLOURS[row.name])
    for i, (top, bottom) in enumerate(zip(grid[0], grid[-1], strict=True)):
        top.set_title(f"spiking layer {i + 1}")
        bottom.set_xlabel("input current, mean over time")
    handles = [
        plt.Line2D([], [], color="grey", lw=2, label=f"neuron, T = {time_steps}, constant input"),
        plt.Line2D([], [], color=COLOURS["ReLU"], ls="--", lw=1, label="ReLU"),
        plt.Rectangle((0, 0), 1, 1, color="0.85", label="density of the test set's inputs"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    return figure


def threshold_history(rows: Sequence[Row], title: str) -> Figure:
    """Plot the thresholds of the layers (the points p_1..p_T of ATIF-nu) over the steps of fine-tuning."""
    rows = [row for row in rows if row.thresholds]
    layers = len(rows[0].thresholds)
    figure, grid = plt.subplots(1, layers, figsize=(4 * layers, 4), squeeze=False, layout="constrained")
    for i, axes in enumerate(grid[0]):
        for row in rows:
            history = np.array([step[i] for step in row.history])
            lines = axes.plot(history, color=COLOURS[row.name], lw=1.5)
            lines[0].set_label(row.name if i == 0 else None)
        axes.set(title=f"spiking layer {i + 1}", xlabel="step of fine-tuning")
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("threshold (ATIF-nu: its points p)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    return figure


def _decoded(neuron: nn.Module, x: Tensor, time_steps: int) -> Tensor:
    functional.reset_net(neuron)
    decoded = neuron(x.expand(time_steps, -1)).mean(0)
    functional.reset_net(neuron)
    return decoded


def _density(axes: plt.Axes, inputs: Tensor, x: Tensor) -> None:
    background = axes.twinx()
    background.hist(inputs.numpy(), bins=120, range=(float(x[0]), float(x[-1])), density=True, color="0.85")
    background.set_yticks([])
    axes.set_zorder(background.get_zorder() + 1)
    axes.patch.set_visible(False)
