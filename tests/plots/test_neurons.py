"""Figures of single neurons show what the neurons do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402
from spikingjelly.activation_based import neuron  # noqa: E402

from snn_ext import convert, plots  # noqa: E402
from snn_ext.plots.style import look, name_axis, step_axis  # noqa: E402
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode  # noqa: E402


def line(axes: Any, label: str) -> torch.Tensor:
    (found,) = (each for each in axes.lines if each.get_label() == label)
    return torch.as_tensor(found.get_ydata())


@pytest.mark.parametrize("scaled", [False, True])
def test_a_staircase_has_its_edges_where_the_neuron_has_them(scaled: bool) -> None:
    made = {
        "floor": ATIFuNode(2.0, scale_output=scaled),
        "half": ATIFuNode(2.0, v_init=0.5),
        "host": neuron.IFNode(v_reset=None),
    }
    figure = plots.staircase(made, 4, limit=4.0)
    for axes, edges in zip(figure.axes, ((0.5, 1.0, 1.5, 2.0), (0.25, 0.75, 1.25, 1.75)), strict=False):
        x, decoded = torch.as_tensor(axes.lines[1].get_xdata()), line(axes, "decoded")
        want = sum((x >= edge).double() for edge in edges) * 0.5
        torch.testing.assert_close(decoded.double(), want)
    assert set(line(figure.axes[2], "decoded").tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_points_are_the_edges_of_atif_nu_in_both_hosts() -> None:
    pytest.importorskip("snntorch")
    from snn_ext.snntorch import ATIFnu

    points = torch.tensor([1.0, 0.5, 0.25, 0.125])
    figure = plots.staircase({"a": ATIFnuNode(points), "b": ATIFnu(points)})
    for axes in figure.axes:
        x, decoded = torch.as_tensor(axes.lines[1].get_xdata()), line(axes, "decoded")
        torch.testing.assert_close(decoded, (x.unsqueeze(1) > points).sum(1) / 4)


def test_an_adaptive_neuron_decodes_its_transfer_function() -> None:
    (axes,) = plots.staircase({"asn": ASNNode(m_f=0.1)}, limit=1.5).axes
    x, decoded = torch.as_tensor(axes.lines[1].get_xdata()), line(axes, "decoded")
    from snn_ext.functional import asn_transfer

    high = x > 0.3
    torch.testing.assert_close(decoded[high], asn_transfer(x, 0.1)[high], atol=0.03, rtol=0)


def test_the_potential_starts_charged_and_falls_by_the_threshold_at_a_spike() -> None:
    node = PCMPIFNode(1.0, precharge=0.5)
    figure = plots.potential(node, torch.full((4,), 0.375))
    values = line(figure.axes[0], "potential").tolist()
    assert values == [0.5, 0.875, 0.875, 1.25, 0.25, 0.625, 0.625, 1.0, 0.0]
    assert line(figure.axes[0], "spike").tolist() == [1.25, 1.0]
    assert node.v == 0.0  # untouched


def test_the_potential_of_atif_nu_has_the_threshold_of_each_step() -> None:
    node = ATIFnuNode(torch.tensor([2.0, 1.25, 0.75, 0.25]))
    figure = plots.potential(node, torch.full((4,), 0.5))
    assert line(figure.axes[0], "threshold").tolist()[1:] == node.thresholds().of_steps.tolist()
    plots.potential(ASNNode(analog_input=True), torch.ones(60))


def test_a_raster_shows_the_spikes_of_every_layer_by_its_name() -> None:
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    snn = convert(ann, torch.rand(16, 4), time_steps=4, progress=False)
    x = torch.rand(1, 4)
    figure = plots.raster(snn, x, 4, neurons=6)
    assert [axes.get_ylabel().split()[1:] for axes in figure.axes] == [["6", "of", "8"], ["6", "of", "6"]]
    from snn_ext.simulation import Simulation

    counts: dict[str, int] = {}
    for _ in Simulation(snn).run(x, 4, lambda name, _, s: counts.update({name: counts.get(name, 0) + int(s.sum())})):
        pass
    drawn = sum(len(each.get_positions()) for each in figure.axes[1].collections)
    assert drawn == counts[figure.axes[1].get_ylabel().split("\n")[0]]


def test_wrong_arguments_are_named() -> None:
    for call, message in (
        (lambda: plots.staircase({}), "neurons: got"),
        (lambda: plots.staircase({"a": nn.ReLU()}), "neuron: got"),
        (lambda: plots.staircase({"a": ATIFuNode()}, 0), "time_steps: got 0"),
        (lambda: plots.staircase({"a": ATIFuNode()}, limit=-1.0), "limit: got"),
        (lambda: plots.potential(ATIFuNode(), torch.ones(2, 2)), "x_seq: got"),
        (lambda: plots.potential(neuron.IFNode(), torch.ones(2)), "neuron: got"),
        (lambda: plots.raster(nn.Sequential(ATIFuNode()), torch.ones(2, 2), 4), "x: got"),
        (lambda: plots.raster(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), 4), "net: got"),
        (lambda: plots.dial({"a": {}}), "sweeps: got"),
        (lambda: plots.energy({}), "evaluations: got"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("last", [1, 2, 4, 7, 64, 500])
def test_steps_are_whole_numbers(last: int, log: bool) -> None:
    axes = Figure().subplots()
    axes.plot(range(1, last + 1), range(last))
    step_axis(axes, last, log=log)
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(float(tick).is_integer() for tick in ticks)


def test_no_two_of_twelve_curves_look_alike() -> None:
    looks = [look(i) for i in range(12)]
    assert len({each["marker"] for each in looks}) == 12
    assert len({(each["color"], each["ls"]) for each in looks}) == 12


def test_names_of_many_layers_do_not_overlap() -> None:
    axes = Figure().subplots()
    name_axis(axes, [f"layer{i}" for i in range(50)])
    assert 2 < len(axes.get_xticks()) <= 12
