"""Figures of the conversion pages."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from snn_ext.evaluation import Evaluation
from snn_ext.plots import COLOURS, draw_accuracy, draw_rates, draw_spikes_by_depth, look
from snn_ext.plots.style import finish, new_figure, step_axis

__all__ = ["accuracy_over_time", "bars", "by_depth", "curves", "images", "rates"]


def accuracy_over_time(evaluations: Mapping[str, Evaluation], title: str) -> Figure:
    """Draw accuracy over time steps, on a logarithmic axis: most happens in the first ones."""
    figure, axes = _axes(title)
    draw_accuracy(axes, {name: (evaluation, evaluation.delays[0]) for name, evaluation in evaluations.items()})
    step_axis(axes, max(evaluation.time_steps for evaluation in evaluations.values()), log=True)
    return figure


def rates(evaluations: Mapping[str, Evaluation], title: str) -> Figure:
    """Draw the normalised rates of the layers over time, one panel each."""
    figure = new_figure(3.4 * len(evaluations), 3.4, title)
    panels = figure.subplots(1, len(evaluations), sharey=True, squeeze=False)[0]
    for axes, (name, evaluation) in zip(panels, evaluations.items(), strict=True):
        draw_rates(axes, evaluation)
        axes.set_title(name, fontsize=9)
        if axes is not panels[0]:
            axes.set_ylabel("")
    return figure


def by_depth(evaluations: Mapping[str, Evaluation], thresholds: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw spikes per neuron, and thresholds, over the depth of the layer."""
    figure = new_figure(9, 3.8, title)
    spikes, levels = figure.subplots(1, 2)
    draw_spikes_by_depth(spikes, evaluations)
    for place, (name, values) in enumerate(thresholds.items()):
        levels.plot(range(1, len(values) + 1), values, label=name, **look(place))
    levels.set(xlabel="spiking layer", ylabel="threshold (input of the layer in spikes)")
    levels.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(spikes, levels)
    return figure


def curves(
    values: Mapping[str, tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]], xlabel: str, ylabel: str,
    title: str, *, log: bool = False, dashed: Sequence[str] = (), marker: str = "",
) -> Figure:  # fmt: skip
    """Draw some curves with a legend."""
    figure, axes = _axes(title)
    for i, (name, (x, y)) in enumerate(values.items()):
        style = look(i) | {"ls": "--" if name in dashed else "-", "markevery": 1 if marker else max(1, len(x) // 8)}
        axes.plot(x, y, label=name, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axes.legend(frameon=False, fontsize=8)
    return figure


def bars(values: Mapping[str, Sequence[float | None]], groups: Sequence[str], ylabel: str, title: str) -> Figure:
    """Draw groups of bars; one that is not there has no height."""
    figure, axes = _axes(title)
    width = 0.8 / len(values)
    for i, (name, heights) in enumerate(values.items()):
        colour = COLOURS[i % len(COLOURS)]
        x = [group + (i - (len(values) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(x, [torch.nan if h is None else h for h in heights], width, label=name, color=colour)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(ylabel)
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside lower center", ncols=min(3, len(values)), frameon=False, fontsize=8)
    return figure


def images(grid: Mapping[str, Sequence[Tensor]], columns: Sequence[str], title: str) -> Figure:
    """Draw rows of pictures ``[C, H, W]`` in [0, 1]."""
    figure = Figure(figsize=(2.1 * len(columns), 2.3 * len(grid)), layout="constrained")
    rows = figure.subplots(len(grid), len(columns), squeeze=False)
    for i, (row, (name, pictures)) in enumerate(zip(rows, grid.items(), strict=True)):
        for axes, picture, column in zip(row, pictures, columns, strict=True):
            shown = picture.clamp(0, 1).permute(1, 2, 0).squeeze(-1)
            axes.imshow(shown, cmap="gray" if shown.ndim == 2 else None, vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_title(column, fontsize=9)
        row[0].set_ylabel(name, fontsize=9)
    figure.suptitle(title)
    return figure


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.set_title(textwrap.fill(title, 75), fontsize=10)
    finish(axes, legend=False)
    return figure, axes
