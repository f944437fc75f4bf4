"""Figures of evaluations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("spikingjelly")

from snn_ext import evaluate  # noqa: E402
from tests.evaluation.nets import T, batches, small_net  # noqa: E402


def test_figures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from snn_ext import plots

    found = evaluate(small_net(), batches(), T, delay=(0, 3), correlation_steps=(4, 8), progress=False)
    found.plot(tmp_path / "overview.png")
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
    plots.delays({"net": found}).savefig(tmp_path / "delays.png")
    plots.correlations(found).savefig(tmp_path / "correlations.png")
    legends = []
    for copies in (1, 8):  # names of many layers would hide the curves
        axes = Figure().subplots()
        plots.draw_rates(axes, dataclasses.replace(found, layers=found.layers * copies))
        legends.append(axes.get_legend() is not None)
    assert legends == [True, False]
    names = [text.get_text() for text in axes.figure.axes[1].get_yticklabels()]  # of the bar of colours
    assert names[0] == found.layers[0].name
    depth = found.plot().axes[3]
    assert [text.get_text() for text in depth.get_xticklabels()] == [
        layer.name for layer in found.layers if layer.kind != "pool"
    ]
    with pytest.raises(ValueError, match="want evaluate"):
        plots.correlations(evaluate(small_net(), batches(), 2, progress=False))
    unlabelled = evaluate(small_net(), [batches()[0][0]], T, progress=False)
    unlabelled.plot()
    figure = plots.accuracy_latency_synops({"one": found, "other": found}, "both", level=1.0)
    assert [axes.get_xlabel().split()[0] for axes in figure.axes] == ["time", "operations"]
    spent = figure.axes[1].lines[0].get_xdata()
    torch.testing.assert_close(torch.as_tensor(spent), (found.synops + found.input_macs) / found.macs)
    assert len(figure.axes[0].lines) == 2 * 2 + 1  # a curve and a dot each, and the analog accuracy
    figure.savefig(tmp_path / "methods.png")
    for bad, message in (({}, "want at least one"), ({"a": unlabelled}, "loader: got 'data without labels'")):
        with pytest.raises(ValueError, match=message):
            plots.accuracy_latency_synops(bad)
    found.macs = None
    with pytest.raises(ValueError, match="evaluations: got 'unknown synapses of a'"):
        plots.accuracy_latency_synops({"a": found})


def test_seeds_are_a_mean_over_a_band_and_energy_is_that_of_the_answer() -> None:
    pytest.importorskip("matplotlib")
    from snn_ext import plots

    found = evaluate(small_net(), batches(), T, progress=False)
    worse = dataclasses.replace(found, correct=found.correct * 0.5)
    figure = plots.accuracy_latency_synops({"seeds": [found, worse]}, level=1.0)
    drawn = torch.as_tensor(figure.axes[0].lines[0].get_ydata())
    torch.testing.assert_close(drawn, 75 * found.accuracy)
    assert len(figure.axes[0].collections) == 1
    for level in (1.0, 100.0 / float(found.analog_accuracy) + 1.0):  # reached at once, and never
        t = found.latency_at(levels=(level,))[level] or int(found.accuracy.argmax()) + 1
        axes = plots.energy({"net": found}, level=level).axes[0]
        width = sum(bar.get_width() for bar in axes.patches)
        assert width == pytest.approx(1e-6 * float(found.energy()[t - 1]), rel=1e-6)
        best = 100 * float(found.accuracy.max()) / found.analog_accuracy
        assert axes.texts[0].get_text() == f" step {t}" + (f": {best:.1f} %" if level > 1 else "")
    found.dt = worse.dt = 1.0
    panels = plots.dial({"net": {0.1: found, 0.3: worse}}).axes
    assert panels[0].lines[0].get_xdata()[0] == pytest.approx(found.firing_rate)
