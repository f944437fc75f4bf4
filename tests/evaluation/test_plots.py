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

    from snn_ext.evaluation import plots

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
