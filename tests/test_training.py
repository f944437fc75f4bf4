"""Thresholds have optimizer groups of their own, and a net sees a constant input for T steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn import functional as F

from snn_ext import ConstantInputNet, QuantizedReLU, parameter_groups, replace_neurons, step_loss, train_epoch
from snn_ext.hosts import reset_neurons
from tests.hosts import NEURONS, NODES

ALL = NODES | NEURONS


# -- parameter_groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_parameters_of_neurons_have_their_own_rate_and_no_weight_decay(kind: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(ALL[kind](), nn.Linear(3, 3)))
    own = list(net[1][0].parameters())
    groups = parameter_groups(net, lr=1.0, threshold_lr=0.5, weight_decay=0.1)
    assert groups[0]["params"] == [p for p in net.parameters() if all(p is not q for q in own)]
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (1.0, 0.1)
    assert groups[1:] == ([{"params": own, "lr": 0.5, "weight_decay": 0.0}] if own else [])


def test_no_parameter_is_lost_or_doubled_and_a_shared_neuron_counts_once() -> None:
    shared = NODES["ATIFuNode"]()
    net = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared, snn.Leaky(0.9, learn_beta=True))
    torch.nn.utils.parametrize.register_parametrization(net[1], "v_threshold", nn.Identity())
    weights, thresholds = parameter_groups(net, 0.1)
    assert len(weights["params"]) == 4 and len(thresholds["params"]) == 2
    assert {*weights["params"], *thresholds["params"]} == {*net.parameters()}
    assert thresholds["lr"] == 0.1 and weights["weight_decay"] == 0.0
    torch.optim.AdamW([weights, thresholds]).step()


def test_weights_inside_a_recurrent_neuron_of_the_host_are_weights() -> None:
    net = snn.RLeaky(0.9, linear_features=3, learn_beta=True, learn_threshold=True)
    weights, thresholds = parameter_groups(net, 0.1, weight_decay=0.1)
    assert {*weights["params"]} == {*net.recurrent.parameters()}
    assert {*thresholds["params"]} == {net.beta, net.threshold}


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": 1.0, "threshold_lr": "x"}, {"lr": 1, "weight_decay": None}])
def test_wrong_rates_are_named(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{list(options)[-1]}: got .* want a finite number >= 0"):
        parameter_groups(nn.Linear(2, 2), **options)


# -- ConstantInputNet -------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A stem that counts its calls."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.conv(x)


def analog() -> ConstantInputNet:
    body = [nn.ReLU(), layer.Conv2d(2, 3, 3), nn.ReLU(), layer.Flatten(), layer.Linear(12, 2)]
    return ConstantInputNet(nn.Sequential(*body), stem=Counting())


def test_without_steps_it_is_the_analog_net() -> None:
    net, x = analog(), torch.rand(4, 1, 6, 6)
    assert torch.equal(net(x), net.body(net.stem(x)))


@pytest.mark.parametrize("kind", ALL)
def test_mean_of_a_loop_over_steps_and_the_stem_runs_once(kind: str) -> None:
    net, x = analog(), torch.rand(4, 1, 6, 6)
    replace_neurons(net, lambda relu: ALL[kind]())
    loop = copy.deepcopy(net)
    want = torch.stack([loop(x) for _ in range(4)]).mean(0)
    found = []
    net.time_steps = 4
    for step_mode in ("s", "m"):
        for module in net.modules():
            if hasattr(module, "step_mode"):
                module.step_mode = step_mode
        net.stem.calls = 0
        reset_neurons(net)
        found.append(net(x))
        assert net.stem.calls == 1
    for out in found:
        torch.testing.assert_close(out, want)
        out.sum().backward()


def test_hosts_own_neurons_run_in_it_too() -> None:
    for make in (lambda: neuron.IFNode(v_reset=None), lambda: snn.Leaky(1.0, init_hidden=True)):
        net = ConstantInputNet(nn.Sequential(make(), nn.Linear(3, 2)), 5)
        out = net(torch.full((2, 3), 0.5))
        assert out.shape == (2, 2)
    node = neuron.IFNode(step_mode="m", v_reset=None)
    net = ConstantInputNet(nn.Sequential(node), 5)
    assert torch.equal(net(torch.full((2, 3), 0.5)), torch.full((2, 3), 0.4))
    functional.reset_net(net)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((None,), "body: got None"), ((nn.ReLU(), 0), "time_steps: got 0"), ((nn.ReLU(), 2.0), "time_steps: got 2.0")],
)
def test_wrong_arguments_of_the_net_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ConstantInputNet(*arguments)


# -- step_loss and train_epoch ----------------------------------------------------------------------------------------


def loss_by_loops(
    outputs: Tensor, labels: Tensor, teacher: Tensor | None, every_step: bool, share: float, tau: float
) -> float:
    answers, losses = (list(outputs) if every_step else [outputs.mean(0)]), []
    for answer in answers:
        for n, label in enumerate(labels.tolist()):
            loss = -float(answer[n].log_softmax(0)[label])
            if teacher is not None:
                p, q = (teacher[n] / tau).softmax(0), (answer[n] / tau).softmax(0)
                distance = sum(float(a) * (float(a.log()) - float(b.log())) for a, b in zip(p, q, strict=True))
                loss = (1 - share) * loss + share * tau**2 * distance
            losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("teacher", [None, torch.randn(5, 3, dtype=torch.float64)], ids=["alone", "teacher"])
@pytest.mark.parametrize(("share", "tau"), [(0.5, 1.0), (0.9, 4.0), (0.0, 2.0), (1.0, 2.0)])
def test_loss_is_that_of_loops(every_step: bool, teacher: Tensor | None, share: float, tau: float) -> None:
    outputs, labels = 3 * torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(3, (5,))
    found = step_loss(outputs, labels, teacher, every_step=every_step, distillation=share, temperature=tau)
    assert found.item() == pytest.approx(loss_by_loops(outputs, labels, teacher, every_step, share, tau))


def test_labels_may_be_probabilities_and_a_net_that_equals_its_teacher_has_no_distance() -> None:
    outputs, labels = torch.randn(1, 5, 3), torch.randint(3, (5,))
    soft = F.one_hot(labels, 3).float()
    torch.testing.assert_close(step_loss(outputs, soft), step_loss(outputs, labels))
    assert step_loss(outputs, labels, outputs[0], distillation=1.0).abs() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(5, 3),), {}, "outputs: got"),
        ((torch.zeros(2, 5, 3), torch.zeros(5, 4)), {}, r"teacher: got .*\[5, 3\]"),
        ((torch.zeros(2, 5, 3),), {"distillation": 1.5}, "distillation: got 1.5"),
        ((torch.zeros(2, 5, 3),), {"temperature": 0.0}, "temperature: got 0.0"),
    ],
)
def test_wrong_arguments_of_the_loss_are_named(
    arguments: tuple[Tensor, ...], options: dict[str, Any], message: str
) -> None:
    outputs, *teacher = arguments
    with pytest.raises(ValueError, match=message):
        step_loss(outputs, torch.zeros(5, dtype=torch.long), *teacher, **options)


@pytest.mark.parametrize("labels", [torch.zeros(4, dtype=torch.long), torch.zeros(5), torch.zeros(5, 4), [0] * 5])
def test_labels_that_are_neither_numbers_nor_probabilities_are_named(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"labels: got .* want class numbers \[5\], or probabilities \[5, 3\]"):
        step_loss(torch.zeros(2, 5, 3), labels)


def quantised_classifier() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    net = nn.Sequential(nn.Linear(4, 16), QuantizedReLU(4, 1.0), nn.Linear(16, 3))
    x = torch.randn(96, 4)
    return net, list(zip(x.split(32), x[:, :3].argmax(1).split(32), strict=True))


@pytest.mark.parametrize("kind", [name for name in ALL if name not in ("ASN", "ASNNode")])
@pytest.mark.parametrize("options", [{}, {"every_step": True}], ids=["mean", "every step"])
def test_every_neuron_of_either_host_learns(kind: str, options: dict[str, Any]) -> None:
    teacher, batches = quantised_classifier()
    adam = torch.optim.Adam(teacher.parameters(), 0.02)
    analog = [train_epoch(teacher, batches, adam) for _ in range(20)]
    assert analog[-1] < analog[0]
    net = copy.deepcopy(teacher)
    replace_neurons(net, lambda _: ALL[kind](), drop=("dynamics", "initial potential"))
    teacher.train()
    steps = len(net[1].p) if hasattr(net[1], "p") else 4
    adam, seen = torch.optim.Adam(net.parameters(), 0.005), list[float]()
    losses = [
        train_epoch(net, batches, adam, steps, teacher=teacher, temperature=2.0, on_step=seen.append, **options)
        for _ in range(15)
    ]
    assert losses[-1] < losses[0] and teacher.training
    assert len(seen) == 45 and losses[-1] == pytest.approx(sum(seen[-3:]) / 3)


def test_an_epoch_is_the_loop_that_one_writes_and_leaves_the_net_reset() -> None:
    net, batches = quantised_classifier()
    replace_neurons(net, lambda _: NODES["ATIFuNode"]())
    twin = copy.deepcopy(net)
    loss = train_epoch(net, batches, torch.optim.SGD(net.parameters(), 0.1), 4)
    sgd, losses = torch.optim.SGD(twin.parameters(), 0.1), []
    for x, labels in batches:
        losses.append(F.cross_entropy(sum(twin(x) for _ in range(4)) / 4, labels))
        sgd.zero_grad()
        losses[-1].backward()
        sgd.step()
        functional.reset_net(twin)
    torch.testing.assert_close(torch.tensor(loss), torch.stack(losses).mean().detach())
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert net[1].v == 0.0


@pytest.mark.parametrize(
    ("net", "batches", "options", "message"),
    [
        (nn.Linear(2, 2), [], {}, "batches: got"),
        (ConstantInputNet(nn.Linear(2, 2), 4), [], {"time_steps": 4}, "time_steps: got 4, want None"),
        ("net", [], {}, "net: got"),
        (nn.Linear(2, 2), [], {"teacher": 1}, "teacher: got"),
        (nn.Linear(2, 2), [torch.rand(3, 2)], {}, r"batches: got .* want pairs \(inputs, labels\)"),
        (nn.Linear(2, 2), [], {"optimizer": "adam"}, "optimizer: got 'adam'"),
    ],
)
def test_wrong_arguments_of_an_epoch_are_named(net: Any, batches: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        train_epoch(net, batches, **{"optimizer": torch.optim.SGD([torch.zeros(1)])} | options)
