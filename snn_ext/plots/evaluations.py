"""Figures of evaluations: accuracy, rates, operations and energy over the steps; delays; the dial of precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._errors import bad_value
from ..evaluation.energy import ENERGY_45NM, EnergyModel
from .style import COLOURS, finish, legend_beside, look, name_axis, new_figure, plain_log, step_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..evaluation.result import Evaluation

__all__ = [
    "accuracy_latency_synops", "correlations", "delays", "dial", "draw_accuracy", "draw_rates", "draw_spikes_by_depth",
    "energy", "overview",
]  # fmt: skip

_NAMED_CURVES = 7  # curves of more layers are told apart by a scale of colours


def overview(evaluation: Evaluation) -> Figure:
    """Draw accuracy (or error), normalised rates and operations over time, and spikes per neuron by layer."""
    figure = new_figure(11, 7.5, f"{evaluation.samples:,} samples, T = {evaluation.time_steps}")
    (first, rates), (operations, depth) = figure.subplots(2, 2)
    if evaluation.correct is not None:
        draw_accuracy(first, {f"delay {d}" if d else "no delay": (evaluation, d) for d in evaluation.delays})
    else:
        for place, delay in enumerate(evaluation.delays):
            first.plot(
                _steps(evaluation), evaluation.mse_at(delay), label=f"delay {delay}", **_dotted(place, evaluation)
            )
        first.set(xlabel="time step", ylabel="mean squared error of the output", yscale="log")
        plain_log(first.yaxis)
    draw_rates(rates, evaluation)
    spent = {"synaptic operations": evaluation.synops, "multiply-accumulates": evaluation.multiply_accumulates}
    for place, (name, values) in enumerate(spent.items()):
        operations.plot(_steps(evaluation), values, label=name, **_dotted(place, evaluation))
    if evaluation.macs is not None:
        operations.axhline(evaluation.macs, color="black", ls="--", lw=1, label="MACs of the analog net")
    operations.set(xlabel="time step", ylabel="operations for one sample")
    draw_spikes_by_depth(depth, {"": evaluation})
    for axes in (first, rates, operations):
        step_axis(axes, evaluation.time_steps)
    finish(first, operations, depth)
    finish(rates, legend=False)
    return figure


def accuracy_latency_synops(
    evaluations: Mapping[str, Evaluation | Sequence[Evaluation]], title: str = "", *, level: float = 99.0
) -> Figure:
    """Draw accuracy over time steps, and over operations, of several spiking nets beside one analog net.

    A large white marker shows where a curve reaches ``level`` percent of the analog accuracy. Operations are synaptic
    operations and the multiply-accumulates behind an analog input, over the multiply-accumulates of the analog net.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation or sequence of Evaluation
        By their label, with labels in the data and known synapses; the analog accuracy is that of the first. Of a
        sequence, one for each seed, the mean is drawn, over a band from the smallest to the largest.
    title : str
        Of the figure.
    level : float
        Percent of the analog accuracy.

    Examples
    --------
    >>> figure = accuracy_latency_synops({"data-norm": one, "Spike-Norm": [seed_0, seed_1]})  # doctest: +SKIP
    >>> figure.savefig("methods.png")  # doctest: +SKIP
    """
    if not evaluations:
        bad_value("evaluations", evaluations, "at least one")
    figure = new_figure(13, 4.8, title)
    time, operations = figure.subplots(1, 2, sharey=True)
    runs = {name: [e] if not isinstance(e, Sequence) else [*e] for name, e in evaluations.items()}
    for place, (name, seeds) in enumerate(runs.items()):
        accuracies = 100 * torch.stack([evaluation.accuracy for evaluation in seeds])
        accuracy, steps = accuracies.mean(0), len(accuracies[0])
        spent = torch.stack([_relative_operations(name, evaluation) for evaluation in seeds]).mean(0)
        goal = level * sum(e.analog_accuracy for e in seeds) / len(seeds)
        arrived = torch.nonzero(accuracy >= goal - 1e-7).flatten()
        curve = look(place) | {"markevery": [(1 << i) - 1 for i in range(steps.bit_length())]}
        for axes, x in ((time, torch.arange(1, steps + 1)), (operations, spent)):
            axes.plot(x, accuracy, label=name, **curve)
            if len(seeds) > 1:
                axes.fill_between(x, accuracies.amin(0), accuracies.amax(0), color=curve["color"], alpha=0.18, lw=0)
            if len(arrived):
                at = {"marker": curve["marker"], "ms": 10, "mfc": "white", "mew": 2, "color": curve["color"]}
                axes.plot(x[arrived[0]], accuracy[arrived[0]], ls="none", zorder=3, **at)
    analog = 100 * runs[next(iter(runs))][0].analog_accuracy
    for axes in (time, operations):
        axes.axhline(analog, color="black", ls="--", lw=1)
        axes.set(ylim=(0.6 * analog, 1.02 * analog) if analog > 0 else (0.0, 1.0))
    step_axis(time, max(e.time_steps for seeds in runs.values() for e in seeds), log=True)
    time.set(xlabel="time step", ylabel=f"accuracy (%); dashed: analog\nlarge white marker: {level:g} % of it reached")
    operations.set(xlabel="operations so far / multiply-accumulates of the analog net", xscale="log")
    operations.set_xlim(left=0.1)
    operations.axvline(1.0, color="black", ls=":", lw=1)
    plain_log(operations.xaxis)
    finish(time, operations, legend=False)
    legend_beside(figure, time)
    return figure


def energy(
    evaluations: Mapping[str, Evaluation], title: str = "", *, level: float = 99.0, model: EnergyModel = ENERGY_45NM
) -> Figure:
    """Draw the energy of an answer as bars, accumulates and multiply-accumulates, beside the analog net.

    The answer is that at the first step that reaches ``level`` percent of the analog accuracy. Where none does, it is
    that at the first step of the best accuracy, which stands beside the bar in percent of the analog one. Without
    labels it is that at the last step.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By their label, with known synapses.
    title : str
        Of the figure.
    level : float
        Percent of the analog accuracy.
    model : EnergyModel
        Energy of an operation.

    Examples
    --------
    >>> energy({"data-norm": one, "calibrated": other}).savefig("energy.png")  # doctest: +SKIP
    """
    if not evaluations:
        bad_value("evaluations", evaluations, "at least one")
    figure = new_figure(8, 1.2 + 0.34 * len(evaluations), title)
    axes = figure.subplots()
    for place, (name, evaluation) in enumerate(evaluations.items()):
        if evaluation.macs is None:
            bad_value("evaluations", f"unknown synapses of {name}", "evaluations with synaptic operations")
        t, text = _answer(evaluation, level)
        adds = 1e-6 * model.accumulate * float(evaluation.synops[t - 1])
        macs = 1e-6 * model.multiply_accumulate * float(evaluation.multiply_accumulates[t - 1])
        axes.barh(place, macs, 0.65, color=COLOURS[4], label="multiply-accumulates" * (not place))
        axes.barh(place, adds, 0.65, left=macs, color=COLOURS[0], hatch="//", label="accumulates" * (not place))
        axes.annotate(text, (macs + adds, place), va="center", fontsize=8)
    analog = 1e-6 * next(iter(evaluations.values())).analog_energy(model)
    axes.axvline(analog, color="black", ls="--", lw=1, label="analog net")
    axes.set_xlabel(f"energy of an answer (µJ): {model.name}", fontsize=9)
    axes.set_yticks(range(len(evaluations)), list(evaluations), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    finish(axes)
    return figure


def _answer(evaluation: Evaluation, level: float) -> tuple[int, str]:
    if evaluation.correct is None:
        return evaluation.time_steps, f" step {evaluation.time_steps}"
    if reached := evaluation.latency_at(levels=(level,))[level]:
        return reached, f" step {reached}"
    best = int(evaluation.accuracy.nan_to_num(-1.0).argmax())
    return best + 1, f" step {best + 1}: {100 * float(evaluation.accuracy[best]) / evaluation.analog_accuracy:.1f} %"


def dial(sweeps: Mapping[str, Mapping[float, Evaluation]], title: str = "") -> Figure:
    """Draw what the precision of adaptive neurons buys: accuracy over firing rate, and both over ``m_f``.

    Parameters
    ----------
    sweeps : mapping of str to mapping of float to Evaluation
        Results of :func:`snn_ext.evaluation.sweep_precision` by their label.
    title : str
        Of the figure.

    Examples
    --------
    >>> dial({"net": sweep_precision(snn, loader)}).savefig("dial.png")  # doctest: +SKIP
    """
    if not sweeps or not all(sweeps.values()):
        bad_value("sweeps", sweeps, "at least one, each of at least one precision")
    figure = new_figure(10.5, 3.8, title)
    trade, rate = figure.subplots(1, 2)
    for place, (name, sweep) in enumerate(sweeps.items()):
        hertz = [evaluation.firing_rate for evaluation in sweep.values()]
        accuracy = [100 * float(evaluation.accuracy[-1]) for evaluation in sweep.values()]
        trade.plot(hertz, accuracy, label=name, **look(place))
        for x, y, m_f in zip(hertz, accuracy, sweep, strict=True):
            trade.annotate(f"{m_f:g}", (x, y), textcoords="offset points", xytext=(5, -10), fontsize=7)
        trade.axhline(100 * next(iter(sweep.values())).analog_accuracy, color=look(place)["color"], ls="--", lw=1)
        rate.plot(list(sweep), hertz, label=name, **look(place))
    trade.set(xlabel="firing rate (Hz)", ylabel="accuracy (%)", xscale="log")
    trade.set_title("numbers: m_f; dashed: the analog net", fontsize=9)
    rate.set(xlabel="precision m_f (smaller is more precise)", ylabel="firing rate (Hz)", xscale="log", yscale="log")
    for axis in (trade.xaxis, rate.xaxis, rate.yaxis):
        plain_log(axis)
    finish(trade, rate)
    return figure


def draw_accuracy(axes: Axes, curves: Mapping[str, tuple[Evaluation, int]]) -> None:
    """Draw accuracy over time for several evaluations and delays, with the analog accuracy of the first."""
    for place, (label, (evaluation, delay)) in enumerate(curves.items()):
        axes.plot(_steps(evaluation), 100 * evaluation.accuracy_at(delay), label=label, **_dotted(place, evaluation))
    evaluation = next(iter(curves.values()))[0]
    if evaluation.analog_correct is not None:
        axes.axhline(100 * evaluation.analog_accuracy, color="black", ls="--", lw=1)
    axes.set(xlabel="time step", ylabel="accuracy (%); dashed: analog" if evaluation.analog_correct else "accuracy (%)")
    axes.legend(frameon=False, fontsize=8)


def draw_rates(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the normalised rate of every layer over time; of many layers a bar of colours names them."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    layers = [layer for layer in evaluation.layers if layer.mean_activation]
    few = len(layers) <= _NAMED_CURVES
    colours = colormaps["viridis"].resampled(max(len(layers), 1))
    for place, layer in enumerate(layers):
        curve = _dotted(place, evaluation) if few else {"color": colours(place), "lw": 1.2}
        axes.plot(_steps(evaluation), layer.normalised_rate, label=layer.name, **curve)
    axes.axhline(1.0, color="black", ls="--", lw=1)
    axes.set(xlabel="time step", ylabel="mean rate / mean activation", ylim=(0, 1.25))
    if few and layers:
        axes.legend(frameon=False, fontsize=8)
    elif layers:
        every = -(-len(layers) // 16)
        scale = ScalarMappable(BoundaryNorm([i - 0.5 for i in range(len(layers) + 1)], len(layers)), colours)
        bar = axes.figure.colorbar(scale, ax=axes, ticks=range(0, len(layers), every))
        bar.ax.set_yticklabels([layer.name for layer in layers[::every]], fontsize=7)
        bar.ax.invert_yaxis()


def draw_spikes_by_depth(axes: Axes, evaluations: Mapping[str, Evaluation]) -> None:
    """Draw the spikes of a neuron in all steps, layer by layer; the layers have the names of the first evaluation."""
    for place, (label, evaluation) in enumerate(evaluations.items()):
        values = [layer.spikes_per_neuron for layer in evaluation.layers if layer.kind != "pool"]
        axes.plot(range(len(values)), values, label=label or None, **look(place))
    first = next(iter(evaluations.values()))
    name_axis(axes, [layer.name for layer in first.layers if layer.kind != "pool"])
    axes.axhline(1.0, color="black", ls=":", lw=1)
    axes.set(xlabel="spiking layer", ylabel="spikes per neuron", yscale="log")
    plain_log(axes.yaxis)
    if any(evaluations):
        axes.legend(frameon=False, fontsize=8)


def delays(evaluations: Mapping[str, Evaluation], levels: tuple[float, ...] = (99.0, 99.5, 99.9)) -> Figure:
    """Draw the latency over the delay, one panel for each evaluation; a level that is not reached has no point."""
    figure = new_figure(4.2 * len(evaluations), 3.6)
    for axes, (name, evaluation) in zip(figure.subplots(1, len(evaluations), squeeze=False)[0], evaluations.items(),
                                        strict=True):  # fmt: skip
        grid = sorted(evaluation.delays)
        for place, level in enumerate(levels):
            latency = [evaluation.latency_at(d, (level,))[level] for d in grid]
            axes.plot(grid, [torch.nan if t is None else t for t in latency], label=f"{level} %", **look(place))
        axes.plot(grid, grid, color="black", ls=":", lw=1, label="end of the delay")
        axes.set(title=name, xlabel="delay (steps)", ylabel="latency (steps)")
        axes.locator_params(integer=True)
        finish(axes)
    return figure


def correlations(evaluation: Evaluation, layers: int = 4) -> Figure:
    """Draw rates over activations at the steps that were asked for, of some layers evenly spaced in depth."""
    known = [layer for layer in evaluation.layers if layer.scatter]
    if not known:
        bad_value("evaluation", "one without correlation_steps", "evaluate(..., correlation_steps=(50, 100))")
    shown = [known[round(i * (len(known) - 1) / max(1, layers - 1))] for i in range(min(layers, len(known)))]
    steps = list(shown[0].scatter)
    figure = new_figure(2.6 * len(shown), 2.5 * len(steps))
    grid = figure.subplots(len(steps), len(shown), squeeze=False)
    for row, step in zip(grid, steps, strict=True):
        for axes, layer in zip(row, shown, strict=True):
            rate, activation = layer.scatter[step]
            axes.plot(activation, rate, ".", color=COLOURS[0], ms=1.5, alpha=0.4, rasterized=True)
            end = max(1.0, float(activation.max()))
            axes.plot((0, end), (0, end), color="black", lw=0.8)
            axes.set_title(f"{layer.name}, t = {step}: r = {layer.correlation[step]:.3f}", fontsize=8)
        row[0].set_ylabel("firing rate")
    for axes in grid[-1]:
        axes.set_xlabel("activation / threshold")
    return figure


def _steps(evaluation: Evaluation) -> range:
    return range(1, evaluation.time_steps + 1)


def _dotted(place: int, evaluation: Evaluation) -> dict[str, Any]:
    """Return the look of a curve over the steps, with some eight markers on it."""
    return look(place) | {"markevery": max(1, evaluation.time_steps // 8)}


def _relative_operations(name: str, evaluation: Evaluation) -> Tensor:
    if evaluation.macs is None:
        bad_value("evaluations", f"unknown synapses of {name}", "evaluations with synaptic operations")
    return (evaluation.synops + evaluation.multiply_accumulates) / evaluation.macs
