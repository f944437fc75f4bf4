"""Figures of evaluations. They need matplotlib, which is imported here and nowhere else in the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from .._errors import bad_value

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("snn_ext: plots need matplotlib, want it installed: pip install 'snn_ext[plots]'") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import Evaluation

__all__ = [
    "accuracy_latency_synops", "correlations", "delays", "draw_accuracy", "draw_rates", "draw_spikes_by_depth",
    "overview",
]  # fmt: skip

# Okabe and Ito's colours, which colour-blind readers can tell apart; line styles repeat them.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":")


def overview(evaluation: Evaluation) -> Figure:
    """Draw accuracy (or error), normalised rates and operations over time, and spikes per neuron by depth."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (first, rates), (operations, depth) = figure.subplots(2, 2)
    if evaluation.correct is not None:
        draw_accuracy(first, {f"delay {d}" if d else "no delay": (evaluation, d) for d in evaluation.delays})
    else:
        for delay in evaluation.delays:
            first.semilogy(_steps(evaluation), evaluation.mse_at(delay), label=f"delay {delay}")
        first.set(xlabel="time step", ylabel="mean squared error of the output")
        first.legend(frameon=False)
    draw_rates(rates, evaluation)
    operations.plot(_steps(evaluation), evaluation.synops, label="synaptic operations")
    if evaluation.macs is not None:
        operations.axhline(evaluation.macs, color="black", ls="--", lw=1, label="MACs of the analog net")
    operations.set(xlabel="time step", ylabel="operations for one sample")
    operations.legend(frameon=False)
    draw_spikes_by_depth(depth, {"": evaluation})
    for axes in (first, rates, operations, depth):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{evaluation.samples:,} samples, T = {evaluation.time_steps}")
    return figure


def accuracy_latency_synops(evaluations: Mapping[str, Evaluation], title: str = "", *, level: float = 99.0) -> Figure:
    """Draw accuracy over time steps, and over operations, of several spiking nets beside one analog net.

    A dot marks where a curve reaches ``level`` percent of the analog accuracy. Operations are synaptic operations and
    the multiply-accumulates behind an analog input, over the multiply-accumulates of the analog net.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By their label, with labels in the data and known synapses; the analog accuracy is that of the first.
    title : str
        Of the figure.
    level : float
        Percent of the analog accuracy.

    Examples
    --------
    >>> figure = accuracy_latency_synops({"data-norm": one, "Spike-Norm": other})  # doctest: +SKIP
    >>> figure.savefig("methods.png")  # doctest: +SKIP
    """
    if not evaluations:
        bad_value("evaluations", evaluations, "at least one")
    figure = Figure(figsize=(12, 5), layout="constrained")
    time, operations = figure.subplots(1, 2, sharey=True)
    for i, (name, evaluation) in enumerate(evaluations.items()):
        if evaluation.macs is None:
            bad_value("evaluations", f"unknown synapses of {name}", "evaluations with synaptic operations")
        look = {"color": _COLOURS[i % len(_COLOURS)], "ls": _STYLES[i // len(_COLOURS) % len(_STYLES)], "lw": 1.3}
        accuracy = 100 * evaluation.accuracy
        spent = (evaluation.synops + evaluation.multiply_accumulates) / evaluation.macs
        arrived = evaluation.latency_at(levels=(level,))[level]
        for axes, x in ((time, torch.arange(1, evaluation.time_steps + 1)), (operations, spent)):
            axes.plot(x, accuracy, label=name, **look)
            if arrived is not None:
                axes.plot(x[arrived - 1], accuracy[arrived - 1], "o", color=look["color"], ms=6)
    analog = 100 * next(iter(evaluations.values())).analog_accuracy
    for axes in (time, operations):
        axes.axhline(analog, color="black", ls="--", lw=1)
        axes.set(xscale="log", ylim=(0.6 * analog, 1.03 * analog) if analog > 0 else (0.0, 1.0))
        axes.grid(alpha=0.3)
    time.set(xlabel="time step", ylabel=f"accuracy (%); dashed: analog; dot: {level:g} % of it")
    operations.set(xlabel="operations so far / multiply-accumulates of the analog net")
    operations.set_xlim(left=0.1)
    operations.axvline(1.0, color="black", ls=":", lw=1)
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def draw_accuracy(axes: Axes, curves: Mapping[str, tuple[Evaluation, int]]) -> None:
    """Draw accuracy over time for several evaluations and delays, with the analog accuracy of the first."""
    for label, (evaluation, delay) in curves.items():
        axes.plot(_steps(evaluation), 100 * evaluation.accuracy_at(delay), label=label, lw=1.2)
    evaluation = next(iter(curves.values()))[0]
    axes.axhline(100 * evaluation.analog_accuracy, color="black", ls="--", lw=1)
    axes.set(xlabel="time step", ylabel="accuracy (%); dashed: analog")
    axes.legend(frameon=False, fontsize=8)


def draw_rates(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the normalised rate of every layer over time, from light (first) to dark (last)."""
    layers = [layer for layer in evaluation.layers if layer.mean_activation]
    for i, layer in enumerate(layers):
        colour = (0.75 - 0.75 * (i + 1) / len(layers),) * 2 + (0.9 - 0.5 * i / len(layers),)
        axes.plot(_steps(evaluation), layer.normalised_rate, color=colour, lw=1, label=layer.name)
    axes.axhline(1.0, color="black", ls="--", lw=1)
    axes.set(xlabel="time step", ylabel="mean rate / mean activation", ylim=(0, 1.25))
    if 0 < len(layers) <= 8:
        axes.legend(frameon=False, fontsize=8)


def draw_spikes_by_depth(axes: Axes, evaluations: Mapping[str, Evaluation]) -> None:
    """Draw the spikes of a neuron in all steps over the depth of its layer."""
    for label, evaluation in evaluations.items():
        values = [layer.spikes_per_neuron for layer in evaluation.layers if layer.kind != "pool"]
        axes.plot(range(1, len(values) + 1), values, "o-", ms=4, label=label or None)
    axes.axhline(1.0, color="black", ls=":", lw=1)
    axes.set(xlabel="spiking layer", ylabel="spikes per neuron", yscale="log")
    if any(evaluations):
        axes.legend(frameon=False, fontsize=8)


def delays(evaluations: Mapping[str, Evaluation], levels: tuple[float, ...] = (99.0, 99.5, 99.9)) -> Figure:
    """Draw the latency over the delay, one panel for each evaluation; a level that is not reached has no point."""
    figure = Figure(figsize=(4.2 * len(evaluations), 3.6), layout="constrained")
    for axes, (name, evaluation) in zip(figure.subplots(1, len(evaluations), squeeze=False)[0], evaluations.items(),
                                        strict=True):  # fmt: skip
        grid = sorted(evaluation.delays)
        for level in levels:
            latency = [evaluation.latency_at(d, (level,))[level] for d in grid]
            axes.plot(grid, [torch.nan if t is None else t for t in latency], "o-", ms=3, label=f"{level} %")
        axes.plot(grid, grid, color="black", ls=":", lw=1, label="end of the delay")
        axes.set(title=name, xlabel="delay (steps)", ylabel="latency (steps)")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return figure


def correlations(evaluation: Evaluation, layers: int = 4) -> Figure:
    """Draw rates over activations at the steps that were asked for, of some layers evenly spaced in depth."""
    known = [layer for layer in evaluation.layers if layer.scatter]
    if not known:
        bad_value("evaluation", "one without correlation_steps", "evaluate(..., correlation_steps=(50, 100))")
    shown = [known[round(i * (len(known) - 1) / max(1, layers - 1))] for i in range(min(layers, len(known)))]
    steps = list(shown[0].scatter)
    figure = Figure(figsize=(2.6 * len(shown), 2.5 * len(steps)), layout="constrained")
    grid = figure.subplots(len(steps), len(shown), squeeze=False)
    for row, step in zip(grid, steps, strict=True):
        for axes, layer in zip(row, shown, strict=True):
            rate, activation = layer.scatter[step]
            axes.plot(activation, rate, ".", ms=1.5, alpha=0.4, rasterized=True)
            end = max(1.0, float(activation.max()))
            axes.plot((0, end), (0, end), color="black", lw=0.8)
            axes.set_title(f"{layer.name}, t = {step}: r = {layer.correlation[step]:.3f}", fontsize=8)
        row[0].set_ylabel("firing rate")
    for axes in grid[-1]:
        axes.set_xlabel("activation / threshold")
    return figure


def _steps(evaluation: Evaluation) -> range:
    return range(1, evaluation.time_steps + 1)
