"""Figures of the AdSNN page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from snn_ext.evaluation import Evaluation
from snn_ext.functional import adaptive_spiking, asn_spike_height, asn_transfer, postsynaptic_potential
from snn_ext.plots.style import finish, legend_beside, look, new_figure, plain_log

__all__ = ["neuron_figures", "of_data_set"]

PRECISIONS = (0.05, 0.1, 0.3, 1.0)
OVER_TIME = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def neuron_figures() -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one neuron: f(S) and its simulation, rate and coding precision."""
    figure = new_figure(9, 3.8)
    transfer, error = figure.subplots(1, 2)
    signal = torch.linspace(0.0, 4.0, 161, dtype=torch.float64)
    for place, m_f in enumerate(PRECISIONS):
        simulated, style = _simulate(signal, m_f)[1], look(place)
        f = asn_transfer(signal, m_f)
        transfer.plot(signal, f, color=style["color"], lw=1.2)
        transfer.plot(signal[::8], simulated[::8], **style | {"ls": "none", "mfc": "none"}, label=f"m_f = {m_f:g}")
        error.plot(signal, simulated - f, **style | {"ms": 4}, markevery=(4 * place, 16), label=f"m_f = {m_f:g}")
    transfer.set(xlabel="signal S", ylabel="f(S); markers: simulated, mean over 1..4 s", title="Transfer function")
    error.set(xlabel="signal S", ylabel="simulated - f(S)", title="Difference (below S = m_f / 2 no spike)")
    _finish(transfer, error)
    yield "transfer_function", figure
    figure = new_figure(9, 3.8)
    rates, precision = figure.subplots(1, 2)
    signal = torch.linspace(0.0, 2.0, 81, dtype=torch.float64)
    m_fs = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    deviations = []
    for place, m_f in enumerate(m_fs):
        rate, _, deviation = _simulate(signal, m_f)
        deviations.append(deviation[torch.tensor([20, 40, 80])])
        rates.plot(signal, rate, **look(place), markevery=(2 * place, 16), label=f"m_f = {m_f:g}")
    for place, (level, values) in enumerate(zip((0.5, 1.0, 2.0), zip(*deviations, strict=True), strict=True)):
        precision.loglog(m_fs, values, **look(place), label=f"S = {level:g}")
    rates.set(xlabel="signal S", ylabel="firing rate (Hz)", title="One transfer function, several rates")
    precision.set(xlabel="m_f", ylabel="standard deviation of the decoded signal", title="Coding precision")
    _finish(rates, precision)
    yield "coding_precision", figure


def _simulate(signal: torch.Tensor, m_f: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rate in Hz, mean, and standard deviation of the filtered code, over 1..4 s of a constant signal."""
    spikes, _ = adaptive_spiking(signal.expand(4000, -1), analog_input=True, m_f=m_f)
    psc, _ = postsynaptic_potential(spikes, tau_phi=0.0)
    decoded, _ = postsynaptic_potential(spikes)
    h = asn_spike_height(m_f)
    deviation = h * decoded[1000:].std(0)
    deviation = torch.where(deviation > 0, deviation, torch.nan)  # of a silent neuron there is none
    return 1e3 * spikes[1000:].mean(0), h * psc[1000:].mean(0), deviation


def of_data_set(results: Sequence[Mapping[str, Any]], title: str) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one data set; of several seeds the mean, with bars from the smallest to the largest."""
    first = results[0]
    sweep: Mapping[float, Evaluation] = first["sweep"]
    figure, axes = _one(title, 8.2)
    shown = {f"m_f = {m:g}, {e.firing_rate:.0f} Hz": e for m, e in sweep.items() if m in OVER_TIME}
    if "arousal" in first:
        share, aroused = list(first["arousal"].items())[-1]
        shown[f"arousal ({share:g} % of errors), {aroused.firing_rate:.0f} Hz"] = aroused
    for place, (label, evaluation) in enumerate(shown.items()):
        _over_time(axes, evaluation, place, label)
    axes.axhline(100 * _analog(sweep), color="black", ls="--", lw=1, label="ANN")
    low = min(100 * float(e.accuracy[-1]) for e in sweep.values())
    axes.set(xlabel="time (ms); large white marker: matching time", ylabel="accuracy (%)")
    axes.set_ylim(max(0.0, low - 15), 100.5)
    finish(axes, legend=False)
    legend_beside(figure, axes)
    yield "accuracy_over_time", figure

    kinds = {"net of AANs": "sweep", "ReLU net, adaptive height": "relu"}
    for stem, xlabel in (("accuracy_against_rate", "firing rate (Hz)"), ("accuracy_against_precision", "m_f")):
        figure, axes = _one(title)
        for place, (name, key) in enumerate(kinds.items()):
            sweeps = [result[key] for result in results if key in result]
            if not sweeps:
                continue
            rates = [list(s) if xlabel == "m_f" else [e.firing_rate for e in s.values()] for s in sweeps]
            _mean(axes, rates, [_accuracies(s) for s in sweeps], place, f"{name}{_of_seeds(len(sweeps))}")
            analog = 100 * sum(_analog(s) for s in sweeps) / len(sweeps)
            axes.axhline(analog, color=look(place)["color"], ls="--", lw=0.8)
        axes.set(xlabel=xlabel, ylabel="accuracy (%); dashed: its analog net", xscale="log")
        _finish(axes)
        yield stem, figure

    if "taus" in first:
        figure, axes = _one(title)
        taus: Mapping[float, Evaluation] = first["taus"]
        points = [(e.matching_time(), e.firing_rate) for e in taus.values()]
        axes.plot(*zip(*points, strict=True), **look(0))
        for tau, point in zip(taus, points, strict=True):
            axes.annotate(f"{tau:g} ms", point, textcoords="offset points", xytext=(6, 4), fontsize=8)
        axes.set(xlabel="matching time (ms); numbers: tau_beta = tau_eta")
        axes.set(ylabel=f"firing rate (Hz) at m_f = {first['high']:g}")
        axes.margins(0.12)
        _finish(axes)
        yield "rate_against_matching_time", figure

    if any("arousal" in result for result in results):
        yield "arousal", _arousal([result for result in results if "arousal" in result], title)


def _arousal(results: Sequence[Mapping[str, Any]], title: str) -> Figure:
    several = len(results[0]["arousal"]) > 1  # else all images that are switched are at one place of the axis
    panels = 3 if several else 2
    figure = new_figure(4.6 * panels, 3.8, title)
    trade, windows, *rest = figure.subplots(1, panels)
    for place, (name, key) in enumerate({"one precision": "sweep", "arousal": "arousal"}.items()):
        found = [result[key] for result in results]
        rates = [[evaluation.firing_rate for evaluation in one.values()] for one in found]
        _mean(trade, rates, [_accuracies(one) for one in found], place, f"{name}{_of_seeds(len(results))}")
    for place, result in enumerate(results):
        switched = {share: 100 * (e.selectivity or 0.0) for share, e in result["arousal"].items()}
        (share, last), seed = list(switched.items())[-1], f"seed {result.get('seed', place)}"
        at = {window: 100 * part for window, (_, part) in result["windows"].items()}
        windows.plot(list(at), list(at.values()), **look(place + 2), label=f"{seed}; {last:.0f} % of the test images")
        for axes in rest:
            axes.plot(list(switched), list(switched.values()), **look(place + 2), label=seed)
            axes.set(xlabel="share of the errors to be switched, on training images (%)")
            axes.set(ylabel="switched test images (%)", title="Images that are switched")
    trade.set(xlabel="firing rate (Hz)", ylabel="accuracy (%)", xscale="log", title="Accuracy for spikes")
    windows.set(
        xlabel="window (ms)", ylabel="switched training images (%)", title=f"To catch {share:g} % of the errors"
    )
    windows.set_ylim(bottom=0.0)
    _finish(trade, windows, *rest)
    return figure


def _over_time(axes: Axes, evaluation: Evaluation, place: int, label: str) -> None:
    dt, style = evaluation.dt or 1.0, look(place)
    time = [dt * t for t in range(1, evaluation.time_steps + 1)]
    axes.plot(time, 100 * evaluation.accuracy, **style | {"lw": 1.1}, markevery=(7 * place, 50), label=label)
    matched = evaluation.matching_time()
    if matched is not None:
        there = 100 * float(evaluation.accuracy[round(matched / dt) - 1])
        axes.plot(matched, there, **style | {"ls": "none", "ms": 10, "mfc": "white", "mew": 2}, zorder=3)


def _mean(axes: Axes, x: Sequence[Sequence[float]], y: Sequence[Sequence[float]], place: int, label: str) -> None:
    """Draw the mean over the seeds of points ``[seeds, points]``, with bars from the smallest to the largest."""
    x_all, y_all = torch.tensor(x), torch.tensor(y)
    axes.errorbar(
        x_all.mean(0), y_all.mean(0), yerr=_bars(y_all), xerr=_bars(x_all), capsize=2, elinewidth=0.8, label=label,
        **look(place),
    )  # fmt: skip


def _bars(values: Tensor) -> Tensor:
    """Return how far the smallest and the largest are from the mean, ``[2, points]``."""
    return torch.stack([values.mean(0) - values.amin(0), values.amax(0) - values.mean(0)]).clamp_min(0.0)


def _of_seeds(count: int) -> str:
    return f", {count} seeds" if count > 1 else ", one seed"


def _accuracies(sweep: Mapping[float, Evaluation]) -> list[float]:
    return [100 * float(evaluation.accuracy[-1]) for evaluation in sweep.values()]


def _analog(sweep: Mapping[float, Evaluation]) -> float:
    return next(iter(sweep.values())).analog_accuracy


def _one(title: str, width: float = 6.4) -> tuple[Figure, Axes]:
    figure = new_figure(width, 4.2)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    return figure, axes


def _finish(*panels: Axes) -> None:
    finish(*panels)
    for axes in panels:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                plain_log(axis)
