"""Figures of the AdSNN page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snn_ext.evaluation import Evaluation
from snn_ext.functional import adaptive_spiking, asn_spike_height, asn_transfer, postsynaptic_potential
from snn_ext.plots import COLOURS, MARKERS
from snn_ext.plots.style import finish, new_figure, plain_log

__all__ = ["neuron_figures", "of_data_set"]

PRECISIONS = (0.05, 0.1, 0.3, 1.0)


def neuron_figures() -> Iterator[tuple[str, Figure]]:
    """Yield the figures of one neuron: f(S) and its simulation, rate and coding precision."""
    figure = new_figure(9, 3.8)
    transfer, error = figure.subplots(1, 2)
    signal = torch.linspace(0.0, 4.0, 161, dtype=torch.float64)
    for colour, m_f in zip(COLOURS, (0.05, 0.1, 0.3, 1.0), strict=False):
        simulated = _simulate(signal, m_f)[1]
        f = asn_transfer(signal, m_f)
        transfer.plot(signal, f, color=colour, lw=1.2, label=f"m_f = {m_f:g}")
        transfer.plot(signal[::8], simulated[::8], "o", color=colour, ms=4, mfc="none")
        error.plot(signal, simulated - f, color=colour, lw=1.0, label=f"m_f = {m_f:g}")
    transfer.set(xlabel="signal S", ylabel="f(S); circles: simulated, mean over 1..4 s", title="Transfer function")
    error.set(xlabel="signal S", ylabel="simulated - f(S)", title="Difference (below S = m_f / 2 no spike)")
    _finish(transfer, error)
    yield "transfer_function", figure
    figure = new_figure(9, 3.8)
    rates, precision = figure.subplots(1, 2)
    signal = torch.linspace(0.0, 2.0, 81, dtype=torch.float64)
    m_fs = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    deviations = []
    for m_f in m_fs:
        rate, _, deviation = _simulate(signal, m_f)
        deviations.append(deviation[torch.tensor([20, 40, 80])])
        if m_f in (*PRECISIONS, 0.2, 0.5):
            rates.plot(signal, rate, lw=1.2, color=COLOURS[m_fs.index(m_f) - 1], label=f"m_f = {m_f:g}")
    for colour, level, values in zip(COLOURS, (0.5, 1.0, 2.0), zip(*deviations, strict=True), strict=False):
        precision.loglog(m_fs, values, "o-", ms=4, color=colour, label=f"S = {level:g}")
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
    """Yield the figures of one data set; several seeds are drawn in one colour, with markers of their own."""
    first = results[0]
    sweep: Mapping[float, Evaluation] = first["sweep"]
    figure, axes = _one(title)
    for colour, m_f in zip(COLOURS, [m for m in sweep if m in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)], strict=False):
        _over_time(axes, sweep[m_f], colour, f"m_f = {m_f:g}, {sweep[m_f].firing_rate:.0f} Hz")
    if "arousal" in first:
        share, evaluation = list(first["arousal"].items())[-1]
        _over_time(axes, evaluation, COLOURS[6], f"arousal ({share:g} % of errors), {evaluation.firing_rate:.0f} Hz")
    axes.axhline(100 * _analog(sweep), color="black", ls="--", lw=1)
    low = min(100 * float(e.accuracy[-1]) for e in sweep.values())
    axes.set(xlabel="time (ms)", ylabel="accuracy (%); dashed: ANN", ylim=(max(0.0, low - 15), 100.5))
    _finish(axes)
    yield "accuracy_over_time", figure

    for stem, xlabel in (("accuracy_against_rate", "firing rate (Hz)"), ("accuracy_against_precision", "m_f")):
        figure, axes = _one(title)
        for colour, key, name in zip(
            COLOURS, ("sweep", "relu"), ("net of AANs", "ReLU net, adaptive height"), strict=False
        ):
            for i, sweep in enumerate(result[key] for result in results if key in result):
                x = list(sweep) if xlabel == "m_f" else [e.firing_rate for e in sweep.values()]
                _points(axes, x, sweep.values(), colour, name if i == 0 else None, MARKERS[i])
                axes.axhline(100 * _analog(sweep), color=colour, ls="--", lw=0.8)
        axes.set(xlabel=xlabel, ylabel="accuracy (%); dashed: ANN; a marker for each seed", xscale="log")
        _finish(axes)
        yield stem, figure

    if "taus" in first:
        figure, axes = _one(title)
        taus: Mapping[float, Evaluation] = first["taus"]
        points = [(e.matching_time(), e.firing_rate) for e in taus.values()]
        axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[0], ms=5)
        for tau, point in zip(taus, points, strict=True):
            axes.annotate(f"tau {tau:g} ms", point, textcoords="offset points", xytext=(6, 4), fontsize=8)
        axes.set(xlabel="matching time (ms)", ylabel=f"firing rate (Hz), m_f = {first['high']:g}")
        axes.margins(0.12)
        _finish(axes)
        yield "rate_against_matching_time", figure

    if any("arousal" in result for result in results):
        yield "arousal", _arousal(results, title)


def _arousal(results: Sequence[Mapping[str, Any]], title: str) -> Figure:
    figure = new_figure(10, 3.6, title)
    trade, selectivity, windows = figure.subplots(1, 3)
    for i, result in enumerate(r for r in results if "arousal" in r):
        sweep, aroused = result["sweep"], result["arousal"]
        marker = MARKERS[i]
        for colour, name, found in ((COLOURS[0], "one precision", sweep), (COLOURS[1], "arousal", aroused)):
            rates = [evaluation.firing_rate for evaluation in found.values()]
            _points(trade, rates, found.values(), colour, name * (not i), marker)
        share = [100 * (e.selectivity or 0.0) for e in aroused.values()]
        seed = f"seed {result.get('seed', i)}"
        selectivity.plot(list(aroused), share, marker=marker, ms=4, color=COLOURS[1], label=seed)
        found = result["windows"]
        shares = [100 * share for _, share in found.values()]
        windows.plot(list(found), shares, marker=marker, ms=4, color=COLOURS[2], label=seed)
    trade.set(xlabel="firing rate (Hz)", ylabel="accuracy (%)", xscale="log", title="Accuracy for spikes")
    selectivity.set(xlabel="share of the errors to be switched, on training images (%)", ylabel="selectivity (%)")
    selectivity.set_title("Images that are switched")
    windows.set(xlabel="window (ms)", ylabel="switched training images (%)", title="95 % of the errors")
    _finish(trade, selectivity, windows)
    return figure


def _over_time(axes: Axes, evaluation: Evaluation, colour: str, label: str) -> None:
    dt = evaluation.dt or 1.0
    time = [dt * t for t in range(1, evaluation.time_steps + 1)]
    axes.plot(time, 100 * evaluation.accuracy, color=colour, lw=1.1, label=label)
    matched = evaluation.matching_time()
    if matched is not None:
        axes.plot(matched, 100 * float(evaluation.accuracy[round(matched / dt) - 1]), "o", color=colour, ms=5)


def _points(
    axes: Axes, x: Sequence[float], evaluations: Any, colour: str, label: str | None, marker: str = "o"
) -> None:
    accuracy = [100 * float(e.accuracy[-1]) for e in evaluations]
    axes.plot(x, accuracy, marker=marker, ms=4, lw=1, color=colour, label=label or None)


def _analog(sweep: Mapping[float, Evaluation]) -> float:
    return next(iter(sweep.values())).analog_accuracy


def _one(title: str) -> tuple[Figure, Axes]:
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    return figure, axes


def _finish(*panels: Axes) -> None:
    finish(*panels)
    for axes in panels:
        if axes.get_xscale() == "log":
            plain_log(axes.xaxis)
