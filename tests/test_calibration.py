"""Recorded inputs are those that arrived, recording leaves no trace, and thresholds fit the records."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.nn import functional as F

from snn_ext import (
    ConstantInputNet,
    NonUniformQuantizedReLU,
    QuantizedReLU,
    calibrate,
    record_inputs,
    replace_neurons,
)
from snn_ext.functional import best_points, best_threshold, uniform_points
from snn_ext.snntorch import PCMPIF, ATIFnu, ATIFu
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU(inplace=True))


def test_inputs_are_those_of_the_eval_mode_even_before_an_in_place_relu() -> None:
    net, x = make_net(), torch.randn(5, 4)
    records = record_inputs(net, [x])
    net.eval()
    assert torch.equal(records[net[2]], net[:2](x).flatten().detach())
    assert torch.equal(records[net[4]], net[:4](x).flatten().detach())
    assert (records[net[4]] < 0).any()


def test_recording_leaves_no_trace() -> None:
    net = make_net()
    net[1].eval()  # frozen by its owner
    before = {name: value.clone() for name, value in net.state_dict().items()}
    record_inputs(net, [torch.randn(5, 4)])
    assert net.training and not net[1].training and not net[2]._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_hooks_are_removed_after_a_failure() -> None:
    net = make_net()
    with pytest.raises(RuntimeError):
        record_inputs(net, [torch.randn(5, 3)])
    assert net.training and not net[2]._forward_pre_hooks


def test_a_loader_with_labels_and_several_batches_works() -> None:
    net = make_net()
    records = record_inputs(net, [(torch.randn(5, 4), torch.zeros(5))] * 2)
    assert [len(r) for r in records.values()] == [60, 30]
    assert list(records) == [net[2], net[4]]


def test_the_sample_is_limited_and_spread_over_the_input() -> None:
    net = nn.Sequential(nn.ReLU())
    (record,) = record_inputs(net, [torch.arange(1000.0)], limit=100).values()
    assert len(record) == 100 and record[0] == 0 and record[-1] >= 990


def test_spiking_nets_start_every_batch_afresh_and_are_left_reset() -> None:
    net = nn.Sequential(nn.Linear(4, 3), ATIFnuNode(0.5, T=1), nn.Linear(3, 3), ATIFu(0.5, init_hidden=True))
    x = torch.rand(5, 4)
    records = record_inputs(net, [x, x])
    assert torch.equal(*records[net[3]].chunk(2))
    assert net[1].t == 0 and net[1].v == 0.0 and not net[3].mem.any()


@pytest.mark.parametrize(
    ("net", "batches", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), [], "net: got 'Sequential'"),
        (make_net(), [], "batches: got"),
        ("net", [], "net: got 'net'"),
    ],
)
def test_wrong_arguments_are_named(net: nn.Module, batches: list[torch.Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        record_inputs(net, batches)
    assert message in str(caught.value) and "want" in str(caught.value)


def test_inputs_by_keyword_are_recorded_and_what_is_no_number_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(input=x)

    net, x = Net(), torch.rand(3, 4)
    assert torch.equal(record_inputs(net, [x, x[:0]])[net.relu], x.flatten())
    with pytest.raises(ValueError, match="batches: got 'NaN or infinite values that reach relu', want finite numbers"):
        record_inputs(net, [x, x / 0])
    assert net.training and not net.relu._forward_pre_hooks


# -- calibrate --------------------------------------------------------------------------------------------------------

FITTED = {  # what a neuron's threshold has to be, from the inputs of its layer
    "ATIFuNode": (lambda: ATIFuNode(v_init=0.5), lambda x: best_threshold(x, 4, v_init=0.5)),
    "PCMPIFNode": (lambda: PCMPIFNode(precharge=0.25), lambda x: best_threshold(x, 4, v_init=0.25)),
    "ATIFnuNode": (lambda: ATIFnuNode(T=4), lambda x: best_points(x, 4)),
    "ATIFnuNode, v_init": (
        lambda: ATIFnuNode(T=4, v_init=0.5),
        lambda x: uniform_points(best_threshold(x, 4, v_init=0.5), 4),
    ),
    "ATIFu": (lambda: ATIFu(init_hidden=True), lambda x: best_threshold(x, 4)),
    "PCMPIF": (lambda: PCMPIF(init_hidden=True), lambda x: best_threshold(x, 4, v_init=0.5)),
    "ATIFnu": (lambda: ATIFnu(T=4, init_hidden=True), lambda x: best_points(x, 4)),
    "IFNode": (lambda: neuron.IFNode(0.7), lambda x: 0.7),  # not ours: as the factory made it
}


@pytest.mark.parametrize("kind", FITTED)
def test_thresholds_fit_the_inputs_of_their_layer(kind: str) -> None:
    make, want = FITTED[kind]
    net, x = make_net(), torch.randn(50, 4)
    records = {m: record.clone() for m, record in record_inputs(net, [x]).items()}
    old = [net[2], net[4]]
    neurons = calibrate(net, [x], lambda relu: make(), time_steps=4)
    assert neurons == [net[2], net[4]] and all(not isinstance(m, nn.ReLU) for m in neurons)
    for relu, new in zip(old, neurons, strict=True):
        name = next(name for name in ("p", "v_threshold", "threshold") if hasattr(new, name))
        fitted = torch.as_tensor(getattr(new, name)).detach().flatten()
        assert torch.equal(fitted, torch.as_tensor(want(records[relu])).flatten())


def test_a_silent_layer_keeps_its_threshold_and_what_the_factory_returns_stays() -> None:
    net = make_net()
    net[0].weight.data.zero_()
    net[1].weight.data.zero_(), net[1].bias.data.fill_(-1.0)
    spared = net[4]
    (node,) = calibrate(net, [torch.rand(8, 4)], lambda relu: relu if relu is spared else ATIFuNode(0.7), 4)
    assert node.v_threshold == torch.tensor([0.7]) and net[4] is spared


def test_spiking_neurons_of_the_net_are_left_alone() -> None:
    node = ATIFuNode(0.5)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), node)
    calibrate(net, [torch.rand(8, 4)], lambda relu: ATIFuNode(), 4)
    assert net[3] is node and node.v_threshold.item() == 0.5


@pytest.mark.parametrize(
    ("factory", "time_steps", "message"),
    [
        (ATIFuNode, 4, "factory: got <class 'snn_ext.spikingjelly.neurons.ATIFuNode'>"),
        (lambda relu: ATIFuNode(), 0, "time_steps: got 0"),
        (lambda relu: ATIFnuNode(T=3), 4, "time_steps: got 4, want 3"),
        (lambda relu: ATIFuNode(v_init=torch.rand(6)), 4, "v_init: got"),
        (lambda relu: relu, 4, "net: got no neuron to replace"),
    ],
)
def test_what_can_not_be_calibrated_is_refused_and_the_net_stays(factory: Any, time_steps: int, message: str) -> None:
    net = make_net()
    before = list(net)
    with pytest.raises((TypeError, ValueError), match=message):
        calibrate(net, [torch.randn(8, 4)], factory, time_steps)
    assert list(net) == before


def test_a_calibrated_net_is_nearer_to_the_analog_one_than_an_uncalibrated() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    x = 3 * torch.rand(64, 8)

    def make(relu: nn.Module) -> nn.Module:
        return ATIFuNode(v_init=0.5, scale_output=True, step_mode="m")

    def error(snn: nn.Module) -> float:
        return float((snn(x.expand(16, -1, -1)).mean(0) - net(x)).square().mean() / net(x).square().mean())

    calibrated, plain = copy.deepcopy(net), copy.deepcopy(net)
    calibrate(calibrated, [x], make, 16)
    replace_neurons(plain, make)
    with torch.no_grad():
        assert error(calibrated) < min(0.01, error(plain))


class Functional(nn.Module):
    """Two functional ReLUs, one in place, and a shared ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = self.act(self.second(x) * 40.0)
        return self.head(self.act(x * 0.1 - 0.1).relu_())


@pytest.mark.parametrize("make", [ATIFuNode, ATIFu])
def test_functional_and_shared_relus_are_calibrated_each_to_its_own_inputs(make: Any) -> None:
    torch.manual_seed(0)
    net, x = Functional(), torch.rand(64, 4)
    want = net(x)
    neurons = calibrate(net, [x], lambda _: make(v_init=0.5, scale_output=True), 64, functional=True)
    names = [name for name, module in net.named_modules() if module in neurons]
    assert names == ["act", "relu", "act_1", "relu_1"] and len({n._raw_threshold().item() for n in neurons}) > 2
    assert net.act._raw_threshold().item() <= 6.0, "the inputs of a ReLU6 are cut off at its ceiling"
    with torch.no_grad():
        got = torch.stack([net(x) for _ in range(64)]).mean(0)
    assert (got - want).abs().max() < 0.1 * want.abs().max()


@pytest.mark.parametrize("make", [lambda: ATIFuNode(), lambda: ATIFnuNode(T=64), lambda: PCMPIFNode(), lambda: ATIFu()])
def test_the_ceiling_of_a_relu6_is_kept(make: Any) -> None:
    net, x = nn.Sequential(nn.Linear(1, 1), nn.ReLU6()), torch.linspace(-1.0, 2.0, 500).reshape(-1, 1)
    net[0].weight.data.fill_(6.0), net[0].bias.data.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (neuron,) = calibrate(net, [x], lambda _: make(), 64)
    assert 5.5 < float(neuron._raw_threshold().detach().max()) <= 6.0


@pytest.mark.parametrize("time_steps", [None, 4])
def test_functional_relus_of_a_net_with_constant_input_are_those_of_one_step(time_steps: int | None) -> None:
    torch.manual_seed(0)
    net, x = (
        ConstantInputNet(Functional(), time_steps, stem=nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
        torch.rand(9, 4),
    )
    assert len(calibrate(net, [x], lambda _: ATIFuNode(scale_output=True), 64, functional=True)) == 5
    before = net(x)
    net.time_steps = 64
    functional.reset_net(net)
    assert not torch.equal(net(x), before)


def test_functional_relus_become_modules_first_and_are_calibrated_after_it() -> None:
    torch.manual_seed(0)
    (net, twin), x = (Functional(), Functional()), torch.rand(64, 4)
    twin.load_state_dict(net.state_dict())
    replace_neurons(net, lambda relu: type(relu)(), functional=True)
    found = calibrate(net, [x], lambda _: ATIFuNode(), 8)
    wanted = calibrate(twin, [x], lambda _: ATIFuNode(), 8, functional=True)
    assert [float(n.v_threshold) for n in found] == [float(n.v_threshold) for n in wanted] and len(found) == 4


def test_a_failed_calibration_leaves_functional_relus_as_they_are() -> None:
    net = Functional()
    before, text = list(net.modules()), str(net)
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibrate(net, [torch.full((2, 4), torch.nan)], lambda _: ATIFuNode(), 8, functional=True)
    assert list(net.modules()) == before and str(net) == text and type(net) is Functional


def test_a_net_that_makes_tensors_in_its_forward_pass_is_calibrated() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.first((x - torch.tensor([0.4, 0.5, 0.6, 0.5])) / 0.2)))

    torch.manual_seed(0)
    net, x = Normalised(), torch.rand(64, 4)
    want = net(x)
    calibrate(net, [x], lambda _: ATIFuNode(v_init=0.5, scale_output=True), 64, functional=True)
    with torch.no_grad():
        assert (torch.stack([net(x) for _ in range(64)]).mean(0) - want).abs().max() < 0.1 * want.abs().max()


class Auxiliary(nn.Module):
    """A second output that training alone computes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3)
        self.side = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return (self.head(x), self.side(F.relu(x - 0.1))) if self.training else self.head(x)


@pytest.mark.parametrize("of_functions", [False, True])
def test_a_relu_that_evaluation_never_calls_gets_the_neuron_of_the_factory_and_is_named(of_functions: bool) -> None:
    torch.manual_seed(0)
    net, x = Auxiliary(), torch.rand(64, 4)
    names = ["body.1", "side.1", *["relu"] * of_functions]
    message = f"got {1 + of_functions} ReLUs? that no batch reaches: {', '.join(names[1:])}, want"
    with pytest.warns(UserWarning, match=message) as caught:
        neurons = calibrate(net, [x], lambda _: ATIFuNode(0.7, scale_output=True), 4, functional=of_functions)
    assert any(w.filename == __file__ for w in caught)
    assert [name for name, module in net.named_modules() if module in neurons] == names
    thresholds = {name: round(net.get_submodule(name).v_threshold.item(), 6) for name in names}
    assert thresholds.pop("body.1") != 0.7 and set(thresholds.values()) == {0.7}
    with pytest.raises(ValueError, match="batches: got 'nothing that reaches body.1, side.1', want at least one batch"):
        calibrate(Auxiliary(), [], lambda _: ATIFuNode(), 4)
    with pytest.raises(ValueError, match="batches: got 'nothing that reaches side.1', want at least one batch"):
        record_inputs(Auxiliary(), [x])


# -- quantised activations ---------------------------------------------------------------------------------------------


def quantised_net(*activations: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), activations[0], nn.Linear(16, 16), activations[1], nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("kind", [QuantizedReLU, NonUniformQuantizedReLU])
def test_a_quantised_activation_is_fitted_as_its_neuron_is(kind: Any) -> None:
    net, x = quantised_net(nn.ReLU(), nn.ReLU6()), 20 * torch.rand(64, 4)
    inputs = list(record_inputs(net, [x]).values())
    first, second = calibrate(net, [x], lambda _: kind(4), 4)
    twin = kind(4)
    twin.fit(inputs[0], 4)
    assert torch.equal(first._raw_threshold(), twin._raw_threshold())
    assert second._raw_threshold().max() <= 6
    with pytest.raises(ValueError, match="time_steps: got 8, want 4"):
        calibrate(quantised_net(nn.ReLU(), nn.ReLU()), [x], lambda _: kind(4), 8)


@pytest.mark.parametrize("kind", [ATIFuNode, ATIFu])
@pytest.mark.parametrize("rounding", ["floor", "round", "ceil"])
def test_the_first_quantised_layer_keeps_its_staircase_and_the_next_gets_no_worse(kind: Any, rounding: Any) -> None:
    torch.manual_seed(0)
    net, x = quantised_net(QuantizedReLU(4, 0.5, rounding), QuantizedReLU(4, 0.25, rounding)), torch.rand(256, 4)
    wanted, errors = net(x).detach(), {}
    for method in ("inputs", "calibrated"):
        twin = copy.deepcopy(net)
        first, second = calibrate(twin, [x], lambda _: kind(), 4, method=method)  # type: ignore[arg-type]
        assert first.fire_at_threshold == second.fire_at_threshold == (rounding != "ceil")
        assert first._raw_threshold().item() == 0.5
        assert second._raw_threshold().item() <= 0.25
        with torch.no_grad():
            errors[method] = float((torch.stack([twin(x) for _ in range(4)]).mean(0) - wanted).norm())
    assert errors["calibrated"] <= errors["inputs"]


@pytest.mark.parametrize("kind", [ATIFnuNode, ATIFnu])
@pytest.mark.parametrize("recursion", ["min", "cumulative"])
def test_points_are_kept_up_to_a_factor_by_atif_nu_and_the_net_gets_better(kind: Any, recursion: str) -> None:
    torch.manual_seed(0)
    points = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    net, x = quantised_net(*(NonUniformQuantizedReLU(4, points) for _ in range(2))), torch.rand(256, 4)
    wanted, errors = net(x).detach(), {}
    for method in ("inputs", "calibrated"):
        twin = copy.deepcopy(net)
        first, second = calibrate(twin, [x], lambda _: kind(T=4, recursion=recursion), 4, method=method)  # type: ignore[arg-type]
        torch.testing.assert_close(first.p.detach(), points)
        torch.testing.assert_close(second.p.detach() / second.p.detach()[0], points / points[0])
        with torch.no_grad():
            errors[method] = float((torch.stack([twin(x) for _ in range(4)]).mean(0) - wanted).norm())
    assert errors["calibrated"] < errors["inputs"]
    with pytest.raises(ValueError, match="time_steps: got 8, want 4"):
        calibrate(net, [x], lambda _: kind(T=4), 8)


def test_points_are_fitted_by_a_neuron_of_one_threshold() -> None:
    net = quantised_net(*(NonUniformQuantizedReLU(4, torch.tensor([0.5, 0.25, 0.125, 0.0625])) for _ in range(2)))
    found = calibrate(net, [torch.rand(64, 4)], lambda _: ATIFuNode(), 4)
    assert all(0 < neuron.v_threshold.item() <= 0.5 for neuron in found)


def test_batches_without_samples_are_named() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    with pytest.raises(ValueError, match="batches: got 'nothing that reaches 1', want"):
        calibrate(net, torch.rand(0, 1, 8, 8), lambda relu: ATIFuNode(scale_output=True), time_steps=4)
    assert isinstance(net[1], nn.ReLU)


def test_a_tensor_is_one_batch_and_its_rows_are_no_batches() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    x = torch.rand(4, 1, 8, 8)
    one, listed = record_inputs(net, x), record_inputs(net, [x])
    assert torch.equal(one[net[2]], listed[net[2]])
    (node,) = calibrate(net, x, lambda relu: ATIFuNode(scale_output=True), time_steps=4, progress=False)
    assert net[2] is node


def test_neurons_with_a_scaled_gradient_are_calibrated_like_others_as_no_gradient_is_asked_for() -> None:
    torch.manual_seed(0)
    net, x = make_net().eval(), torch.randn(64, 4)
    plain, scaled = copy.deepcopy(net), copy.deepcopy(net)
    for each, grad_scale in ((plain, None), (scaled, "lsq")):
        calibrate(each, x, lambda relu, g=grad_scale: ATIFuNode(scale_output=True, grad_scale=g), 4, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), scaled.parameters(), strict=True))
