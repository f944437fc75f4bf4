"""The gradients of the quantised activation against the rule as it is stated, in float64, edges and ties included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

pytest.importorskip("spikingjelly")

from snn_ext.conversion import QuantizedReLU  # noqa: E402
from snn_ext.conversion.quantized import quantized_relu  # noqa: E402

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
