"""The gradients of quantised activations against the rules as they are stated, in float64, edges and ties included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from snn_ext import NonUniformQuantizedReLU, QuantizedReLU, parameter_groups
from snn_ext.functional import best_points, best_threshold, nonuniform_staircase
from snn_ext.neurons.quantized import nonuniform_quantized_relu, quantized_relu

every_rounding = pytest.mark.parametrize("rounding", ["floor", "round", "ceil"])
every_level = pytest.mark.parametrize("levels", [1, 2, 4, 7])
THRESHOLDS = (0.5, 0.75, 1.3)


def inputs(threshold: float, levels: int) -> Tensor:
    """Return a grid with every edge of every rounding, numbers beside them, and what is far outside."""
    edges = torch.arange(-4, 4 * levels + 5, dtype=torch.float64) * threshold / (4 * levels)
    beside = [torch.nextafter(edges, edges + side) for side in (-1, 1)]
    return torch.cat((edges, *beside, torch.tensor([-torch.inf, -1e3, 1e3, torch.inf], dtype=torch.float64)))


def rule(x: Tensor, threshold: float, levels: int, rounding: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and its derivatives by input and by threshold, as the docstring states them."""
    level = (x * levels / threshold).clamp(-1.0, levels + 1.0)
    rounded = {"floor": level.floor(), "round": (level + 0.5).floor(), "ceil": level.ceil()}[rounding]
    y = rounded.clamp(0, levels) * (threshold / levels)
    inside, above = (x > 0) & (x < threshold), x >= threshold
    by_threshold = torch.where(above, 1.0, torch.where(inside, (y - x) / threshold, 0.0))
    return y, inside.double(), by_threshold


@every_rounding
@every_level
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_value_and_gradients_are_those_of_the_rule(threshold: float, levels: int, rounding: Any) -> None:
    x, layer = inputs(threshold, levels).requires_grad_(), QuantizedReLU(levels, threshold, rounding).double()
    theta = layer.threshold.detach()
    y = layer(x)
    want, by_x, by_threshold = rule(x.detach(), float(theta), levels, rounding)
    assert torch.equal(y, want)
    for weight in torch.eye(len(x), dtype=torch.float64):  # one element at a time: nothing cancels
        g_x, g_threshold = torch.autograd.grad(y, (x, layer.threshold), weight, retain_graph=True)
        assert torch.equal(g_x, by_x * weight)
        torch.testing.assert_close(g_threshold, (by_threshold * weight).nansum().reshape(1), rtol=1e-12, atol=1e-12)


@every_rounding
def test_other_ways_to_differentiate_agree(rounding: Any) -> None:
    x, theta = inputs(0.75, 4).clamp(-2.0, 2.0), torch.tensor([0.75], dtype=torch.float64)
    _, by_x, by_threshold = rule(x, 0.75, 4, rounding)

    def one(x: Tensor, theta: Tensor) -> Tensor:
        return quantized_relu(x, theta, 4, rounding).sum()

    found_x, found_theta = vmap(grad(one, (0, 1)), (0, None))(x, theta)
    assert torch.equal(found_x, by_x)
    torch.testing.assert_close(found_theta[:, 0], by_threshold)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, tangent = jvp(lambda x, t: quantized_relu(x, t, 4, rounding), (x, theta), (direction, torch.ones_like(theta)))
    torch.testing.assert_close(tangent, by_x * direction + by_threshold)


def test_one_level_trains() -> None:
    torch.manual_seed(0)
    layer, activation = torch.nn.Linear(3, 1), QuantizedReLU(1, 1.0, trainable=False)
    x = torch.rand(200, 3)
    target = (x[:, :1] > 0.5).float()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 0.4, 0.3]]))
        layer.bias.fill_(0.1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    losses = []
    for _ in range(150):
        loss = (activation(layer(x)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_nan_stays_and_narrow_inputs_take_the_threshold_as_it_is() -> None:
    assert QuantizedReLU(4)(torch.tensor([torch.nan])).isnan()
    x = torch.linspace(-0.5, 1.5, 301).bfloat16()
    layer = QuantizedReLU(4, 0.357)
    assert torch.equal(layer(x), layer(x.float()))


@pytest.mark.parametrize("trainable", [True, False])
def test_made_on_meta_and_reset(trainable: bool) -> None:
    with torch.device("meta"):
        layer = QuantizedReLU(4, 0.375, trainable=trainable)
    layer.to_empty(device="cpu").threshold.data.fill_(torch.nan)
    layer.reset_parameters()
    assert layer.threshold.tolist() == [0.375] and layer.threshold.requires_grad == trainable


def test_the_earlier_name_of_the_module_is_the_same_class() -> None:
    pytest.importorskip("spikingjelly")
    from snn_ext.conversion import QuantizedReLU as other
    from snn_ext.conversion.quantized import QuantizedReLU as another

    assert other is another is QuantizedReLU


# -- at points ---------------------------------------------------------------------------------------------------------

POINTS: dict[str, list[float]] = {
    "one": [0.75],
    "uniform": [1.0, 0.75, 0.5, 0.25],
    "convex": [1.5, 0.75, 0.375, 0.1875],
    "concave": [1.0, 0.875, 0.75],
    "that meet": [1.0, 0.5, 0.5, 0.5, 0.25],
    "that are near": [1.0, 0.51, 0.5],
}
every_points = pytest.mark.parametrize("points", list(POINTS.values()), ids=list(POINTS))


def around(p: Tensor) -> Tensor:
    """Return the points, 0, numbers beside and between them, and what is far outside."""
    edges = torch.cat((p, torch.zeros(1, dtype=torch.float64), torch.linspace(-0.5, 2.0, 61, dtype=torch.float64)))
    beside = [torch.nextafter(edges, edges + side) for side in (-1, 1)]
    return torch.cat((edges, *beside, torch.tensor([-torch.inf, -1e3, 1e3, torch.inf], dtype=torch.float64)))


def rule_at_points(x: float, p: list[float]) -> tuple[float, float, list[float]]:
    """Return y and its derivatives by input and by points, as the docstring states them."""
    levels, by_x, by_p = len(p), 0.0, [0.0] * len(p)
    count = sum(x >= point for point in p)
    scale = p[0] / levels
    by_p[0] += count / levels
    if 0.0 < x < p[0]:
        k = levels - count - 1  # the lowest point above x; the one below it is p[k + 1], or 0
        below = p[k + 1] if k + 1 < levels else 0.0
        narrow = p[k] - below < 0.25 * scale
        w = max(p[k] - below, 0.25 * scale)
        by_x = scale / w
        by_p[k] -= 0.0 if narrow else scale * (x - below) / w**2
        if k + 1 < levels:
            by_p[k + 1] -= scale * (1 / w if narrow else (p[k] - x) / w**2)
    return count * scale, by_x, by_p


@every_points
def test_value_and_gradients_at_points_are_those_of_the_rule(points: list[float]) -> None:
    layer = NonUniformQuantizedReLU(len(points), torch.tensor(points)).double()
    p = layer.p.detach()
    x = around(p).requires_grad_()
    y = layer(x)
    assert torch.equal(y, nonuniform_staircase(x.detach(), p) * (p[:1] / len(p)))
    strict = len(set(points)) == len(points)  # where points meet, the running maximum shares the gradient
    for k, weight in enumerate(torch.eye(len(x), dtype=torch.float64)):
        g_x, g_p = torch.autograd.grad(y, (x, layer.p), weight, retain_graph=True)
        _, by_x, by_p = rule_at_points(float(x[k].detach()), p.tolist())
        torch.testing.assert_close(g_x, by_x * weight)
        want = torch.tensor(by_p, dtype=torch.float64)
        torch.testing.assert_close(g_p if strict else g_p.sum(), want if strict else want.sum())


@pytest.mark.parametrize("levels", [1, 2, 4, 7])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_uniform_points_are_the_uniform_activation(threshold: float, levels: int) -> None:
    uniform = QuantizedReLU(levels, threshold, "floor").double()
    points = NonUniformQuantizedReLU(levels, threshold).double()
    shares = torch.arange(levels, 0, -1, dtype=torch.float64) / levels
    points.p.data.copy_(shares * uniform.threshold.detach())  # in float64, so that edges are the same
    x = (torch.rand(200, dtype=torch.float64) * 2.0 - 0.5).requires_grad_()
    y, same = uniform(x), points(x)
    torch.testing.assert_close(same, y)
    weight = torch.randn(200, dtype=torch.float64)
    wanted, found = (
        torch.autograd.grad(out, (x, own), weight) for out, own in ((y, uniform.threshold), (same, points.p))
    )
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close((found[1] * shares).sum().reshape(1), wanted[1])


def test_gradients_at_points_are_the_differences_of_the_line_through_the_edges() -> None:
    p = torch.tensor([1.5, 0.75, 0.5, 0.125], dtype=torch.float64)
    x = torch.rand(50, dtype=torch.float64) * 1.4 + 0.05
    counts = nonuniform_staircase(x, p)

    def line(x: Tensor, p: Tensor) -> Tensor:
        edges = torch.cat((p.new_zeros(1), p.flip(0)))
        n = counts.long()
        within = (x - edges[n]) / (edges[n + 1] - edges[n])
        return (within + (n - within).detach()) * p[0] / 4  # the value is that of the staircase, for the factor

    want = torch.autograd.functional.jacobian(line, (x, p))
    found = torch.autograd.functional.jacobian(nonuniform_quantized_relu, (x.detach(), p.detach()))
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other)


def test_other_ways_to_differentiate_at_points_agree() -> None:
    p = torch.tensor([1.5, 0.75, 0.5, 0.125], dtype=torch.float64)
    x = around(p).clamp(-2.0, 2.0)
    wanted = [rule_at_points(value, p.tolist()) for value in x.tolist()]
    by_x, by_p = (torch.tensor([w[k] for w in wanted], dtype=torch.float64) for k in (1, 2))
    found_x, found_p = vmap(grad(lambda x, p: nonuniform_quantized_relu(x, p).sum(), (0, 1)), (0, None))(x, p)
    torch.testing.assert_close(found_x, by_x)
    torch.testing.assert_close(found_p, by_p)
    direction, turn = torch.randn_like(x), torch.randn_like(p)
    _, tangent = jvp(nonuniform_quantized_relu, (x, p), (direction, turn))
    torch.testing.assert_close(tangent, by_x * direction + by_p @ turn)


def test_points_that_cross_are_used_in_order_and_can_part_again() -> None:
    layer = NonUniformQuantizedReLU(3, torch.tensor([1.0, 0.5, 0.25]))
    layer.p.data.copy_(torch.tensor([0.75, 0.5, 0.625]))
    assert layer.quantization_points().tolist() == [0.75, 0.625, 0.625]
    x = torch.linspace(0.0, 1.0, 101)
    assert torch.equal(layer(x), nonuniform_staircase(x, torch.tensor([0.75, 0.625, 0.625])) * 0.25)
    (gradient,) = torch.autograd.grad(layer(torch.tensor([0.3, 0.7])).sum(), layer.p)
    assert gradient[2] != 0 and gradient[0] != 0


def test_nan_stays_at_points_and_narrow_inputs_take_them_as_they_are() -> None:
    layer = NonUniformQuantizedReLU(3, torch.tensor([0.9, 0.357, 0.2]))
    assert layer(torch.tensor([torch.nan])).isnan()
    x = torch.linspace(-0.5, 1.5, 301).bfloat16()
    assert torch.equal(layer(x), layer(x.float()))


@pytest.mark.parametrize("trainable", [True, False])
def test_points_made_on_meta_and_reset(trainable: bool) -> None:
    with torch.device("meta"):
        layer = NonUniformQuantizedReLU(2, trainable=trainable)
    layer.to_empty(device="cpu").p.data.fill_(torch.nan)
    layer.reset_parameters()
    assert layer.p.tolist() == [1.0, 0.5] and layer.p.requires_grad == trainable


@pytest.mark.parametrize(
    ("arguments", "match"),
    [((0,), "levels: got 0"), ((2, -1.0), "threshold: got -1"), ((2, torch.tensor([0.5, 1.0])), "non-increasing"),
     ((3, torch.tensor([1.0, 0.5])), r"\[T\] = \[3\]")],
)  # fmt: skip
def test_bad_points_are_refused_by_name(arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        NonUniformQuantizedReLU(*arguments)


def test_points_learn_a_quantiser_that_no_threshold_has() -> None:
    x = torch.randn(4000).abs() ** 3  # heavy tails: good edges are far from uniform
    target = nonuniform_staircase(x, torch.tensor([2.0, 0.5, 0.125])) * (2.0 / 3)
    errors = []
    for layer in (QuantizedReLU(3, 2.0), NonUniformQuantizedReLU(3, 2.0)):
        optimizer = torch.optim.Adam(layer.parameters(), 0.01)
        for _ in range(300):
            loss = (layer(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors.append(loss.item())
    assert errors[1] < 0.1 * errors[0]


def test_fit_is_the_best_quantiser_of_recorded_inputs() -> None:
    x = torch.randn(2000)
    uniform, points = QuantizedReLU(4, rounding="round"), NonUniformQuantizedReLU(4)
    uniform.fit(x, 4)
    points.fit(x, 4)
    assert uniform.threshold.item() == pytest.approx(best_threshold(x, 4, v_init=0.5))
    assert torch.equal(points.p.detach(), best_points(x, 4))
    with pytest.raises(ValueError, match="time_steps: got 8, want 4"):
        points.fit(x, 8)


def test_thresholds_and_points_have_no_weight_decay() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), QuantizedReLU(4), NonUniformQuantizedReLU(2))
    _, of_neurons = parameter_groups(net, 0.1, weight_decay=0.5)
    assert {id(p) for p in of_neurons["params"]} == {id(net[1].threshold), id(net[2].p)}
    assert of_neurons["weight_decay"] == 0.0
