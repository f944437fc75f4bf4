"""The search against a net that is run anew for every candidate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import AAN, convert  # noqa: E402
from snn_ext.conversion import fold_scales, lower_thresholds, optimize_precharge  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.simulation.analog import AnalogTwin  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode  # noqa: E402
from tests.conversion.nets import ResNet, images, spikes_of, trained, vgg  # noqa: E402
from tests.reference import assert_unchanged, snapshot  # noqa: E402

T, CANDIDATES = 10, 4


def algorithm_1(snn: Any, x: Tensor) -> list[float]:
    """Hwang et al. 2021, algorithm 1, as it stands."""
    activations, found = AnalogTwin(snn).rates(x), []
    steps = torch.arange(1, T + 1).double()
    for layer in snn.report:
        node, errors = snn.get_submodule(layer.name), []
        for value in torch.linspace(0.0, 0.5, CANDIDATES):
            node.v_init = value.reshape(1)
            train = spikes_of(snn, x, T)[layer.name].double()
            rates = train.cumsum(0) / steps.reshape(-1, *[1] * (train.ndim - 1))
            errors.append(float((rates - activations[layer.name]).square().mean(dim=tuple(range(1, train.ndim))).sum()))
        best = int(torch.tensor(errors).argmin())
        node.v_init = torch.linspace(0.0, 0.5, CANDIDATES)[best].reshape(1)
        found.append(float(node.v_init))
    return found


@pytest.mark.parametrize("options", [{}, {"encoder": "if", "readout": "spikes"}, {"reset": "zero"}], ids=str)
@pytest.mark.parametrize("make", [lambda: vgg(pool=lambda: nn.MaxPool2d(2)), ResNet], ids=["vgg", "resnet"])
def test_optimum_is_that_of_a_search_that_runs_every_candidate(make: Any, options: dict[str, Any]) -> None:
    ann, x = trained(make()), images(4)
    one, other = (convert(ann, x, method="data-norm", precharge=0.25, **options) for _ in range(2))
    found = optimize_precharge(one, ann, [x[:3], x[3:]], time_steps=T, candidates=CANDIDATES)
    assert found == pytest.approx(algorithm_1(other, x))
    assert [layer.precharge for layer in one.report] == found
    assert [float(one.get_submodule(layer.name).v_init) for layer in one.report] == pytest.approx(found)


def test_convert_searches_on_the_calibration_data() -> None:
    ann, x = trained(vgg()), images()
    whole = convert(ann, x, method="data-norm", precharge="optimize", time_steps=T)
    later = convert(ann, x, method="data-norm")
    optimize_precharge(later, None, x, time_steps=T)
    assert [layer.precharge for layer in whole.report] == [layer.precharge for layer in later.report]
    assert any(layer.precharge > 0.2 for layer in whole.report)


def test_one_neuron_wants_one_half() -> None:
    x = torch.rand(4000, 1)
    snn = convert(nn.Sequential(nn.Identity(), nn.ReLU()), x, method="data-norm", precharge="optimize", time_steps=255)
    assert snn.report[0].precharge == pytest.approx(0.5)


def test_another_net_as_ann_is_refused() -> None:
    snn = convert(trained(ResNet()), images(), method="data-norm")
    with pytest.raises(ValueError, match="ann: got Sequential without the activation relu"):
        optimize_precharge(snn, trained(vgg()), images(), time_steps=T)


def test_bad_arguments_are_named() -> None:
    ann, x = trained(vgg()), images()
    snn = convert(ann, x, method="data-norm")
    phased = convert(ann, x, method="data-norm", schedule="phased", time_steps=4)
    for message, call in {
        "snn: got": lambda: optimize_precharge(ann, ann, x),  # type: ignore[arg-type]
        "snn: got .the schedule": lambda: optimize_precharge(phased, ann, x),
        "candidates: got 1": lambda: optimize_precharge(snn, ann, x, candidates=1),
        "time_steps: got 0": lambda: optimize_precharge(snn, ann, x, time_steps=0),
        "factor: got 0": lambda: lower_thresholds(snn, 0.0),
        "factor: got 2": lambda: lower_thresholds(snn, 2.0),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_lowered_thresholds_fire_earlier_and_stay_wrong() -> None:
    ann, x = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2)), torch.rand(64, 3)
    plain, charged, lowered = (convert(ann, x, method="data-norm", precharge=p) for p in (0.0, 0.5, 0.0))
    lower_thresholds(lowered, 0.9)
    assert lowered.report[0].threshold == pytest.approx(0.9 * plain.report[0].threshold)
    assert lowered.report[0].rule == "maximum, lowered by 0.9"

    def error(snn: nn.Module, steps: int) -> float:
        with torch.no_grad():
            return float((torch.cat(list(Simulation(snn).run(x, steps))).mean(0) - ann(x)).square().mean())

    early = {snn: sum(int(s.sum()) for s in spikes_of(snn, x, 3).values()) for snn in (plain, lowered)}
    assert early[lowered] > early[plain]
    assert error(charged, 1000) < error(plain, 1000) < 0.01 * error(lowered, 1000)


def test_lowering_lowers_each_threshold_once_though_residual_units_share_one() -> None:
    ann, x = trained(ResNet()), images()
    snn = convert(ann, x, method="data-norm", residual="unit-threshold")
    before = [float(snn.get_submodule(layer.name).v_threshold) for layer in snn.report]
    lower_thresholds(snn, 0.5)
    assert [float(snn.get_submodule(layer.name).v_threshold) for layer in snn.report] == [v / 2 for v in before]
    assert [layer.threshold for layer in snn.report] == [v / 2 for v in before]


@pytest.mark.parametrize("time_steps", [1, 2, 7, 16, 33])
def test_optimum_is_the_best_of_the_grid_where_many_neurons_fire_in_the_same_step(time_steps: int) -> None:
    """Activations on a grid of 1/16: whole groups of neurons change with one candidate."""
    x = torch.randint(0, 17, (40, 3)) / 16
    x[0, 0] = 1.0
    snn = convert(nn.Sequential(nn.Identity(), nn.ReLU()), x, method="data-norm")
    (found,) = optimize_precharge(snn, None, [x[:7], x[7:]], time_steps=time_steps)
    errors = []
    for value in torch.linspace(0.0, 0.5, 51):
        v, count, error = torch.full_like(x, value), torch.zeros_like(x), 0.0
        for t in range(1, time_steps + 1):
            v = v + x
            spikes = (v >= 1.0).float()
            v, count = v - spikes, count + spikes
            error += float((count.double() / t - x.double()).square().mean())
        errors.append(error)
    assert errors[round(100 * found)] <= min(errors) * (1 + 1e-6) + 1e-12


CHANGES: dict[str, Any] = {
    "optimize_precharge": lambda net: optimize_precharge(net, None, images()),
    "lower_thresholds": lambda net: lower_thresholds(net, 0.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_nets_whose_report_names_no_integrate_and_fire_neurons_are_refused_unchanged(name: str) -> None:
    folded = fold_scales(trained(vgg(lambda: ATIFuNode(0.5, scale_output=True))))
    adaptive = convert(trained(vgg(AAN)), images(), method="adsnn")
    for net, message in ((folded, "snn: got 'a report of 0 layers'"), (adaptive, "snn: got '2 .ASNNode.'")):
        before = snapshot(net)
        with pytest.raises(ValueError, match=message):
            CHANGES[name](net)
        assert_unchanged(net, before)


def test_the_search_leaves_states_that_are_in_a_graph_alone() -> None:
    snn, x = convert(trained(vgg()), images(), method="data-norm"), images()
    snn(x).sum()  # with gradient: such a state cannot be deep-copied
    state = snn.get_submodule("2").v
    optimize_precharge(snn, None, x, time_steps=3, candidates=2)
    assert snn.get_submodule("2").v is state and state.requires_grad
