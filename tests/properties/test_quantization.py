"""Staircases and quantisers against exact numbers, and searches against all candidates."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from snn_ext import functional as F
from tests.properties import references as ref
from tests.properties.profiles import examples

dyadic = st.integers(-96, 256).map(lambda n: Fraction(n, 64))
positive = st.integers(1, 256).map(lambda n: Fraction(n, 64))
points = st.lists(positive, min_size=1, max_size=9).map(lambda p: sorted(p, reverse=True))
inputs = st.lists(dyadic, min_size=1, max_size=30)


def tensor(numbers: list[Fraction]) -> Tensor:
    return torch.tensor([float(number) for number in numbers], dtype=torch.float64)


@examples(150)
@given(inputs, positive, dyadic, st.integers(1, 40), st.booleans())
def test_staircase_is_the_count_of_the_neuron(
    xs: list[Fraction], theta: Fraction, v: Fraction, time_steps: int, at: bool
) -> None:
    """For every start between 0 and the threshold, both included."""
    start = min(abs(v), theta)
    want = [ref.count_of_constant_input(x, start, [theta] * time_steps, at) for x in xs]
    found = F.staircase(tensor(xs), float(theta), time_steps, v=float(start), fire_at_threshold=at)
    assert found.tolist() == want
    quantised = F.decode(found, float(theta), time_steps)
    ref.assert_close(quantised, tensor([count * theta / time_steps for count in want]), 1e-15)


@examples(150)
@given(inputs, points, st.sampled_from(("min", "paper", "cumulative")))
def test_thresholds_of_points_and_the_staircase_that_they_aim_at(
    xs: list[Fraction], p: list[Fraction], recursion: Any
) -> None:
    want = ref.nonuniform_thresholds(p, recursion)
    assert F.nonuniform_thresholds(tensor(p), recursion).tolist() == [float(theta) for theta in want]
    count = F.nonuniform_staircase(tensor(xs), tensor(p)).tolist()
    assert count == [sum(x >= point for point in p) for x in xs]
    if recursion == "cumulative":  # exact for any points, without a reset
        assert count == [ref.count_of_constant_input(x, Fraction(0), want, True, resets=False) for x in xs]


@examples(100)
@given(inputs, positive, st.integers(1, 12))
def test_uniform_points_are_the_uniform_neuron(xs: list[Fraction], theta: Fraction, time_steps: int) -> None:
    p = [Fraction(time_steps - k, time_steps) * theta for k in range(time_steps)]
    found = F.uniform_points(float(theta), time_steps)
    assert found.dtype == torch.float32
    assert found.tolist() == torch.tensor([float(point) for point in p], dtype=torch.float64).float().tolist()
    assert ref.nonuniform_thresholds(p, "min") == [theta] * time_steps
    for x in xs:
        assert sum(x >= point for point in p) == ref.count_of_constant_input(x, Fraction(0), [theta] * time_steps, True)


@examples(60)
@given(inputs, st.data())
def test_ratio_of_signal_to_noise_is_its_formula(xs: list[Fraction], data: Any) -> None:
    noise = [data.draw(dyadic) for _ in xs]
    signal, error = sum(x * x for x in xs), sum(n * n for n in noise)
    assume(signal and error)
    found = F.sqnr(tensor(xs), tensor([x - n for x, n in zip(xs, noise, strict=True)]))
    assert float(found) == pytest.approx(10 * math.log10(signal / error), abs=1e-9)


# -- searches ----------------------------------------------------------------------------------------------------------


@st.composite
def recordings(draw: Any) -> Tensor:
    """Draw inputs of a layer: a few values, many, with heavy tails, and with values that do not count."""
    kind, count = draw(st.sampled_from(("few", "gaussian", "heavy"))), draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    if kind == "few":
        return torch.tensor(draw(st.lists(st.integers(1, 32), min_size=1, max_size=6)), dtype=torch.float64) / 8
    x = torch.randn(count, generator=generator, dtype=torch.float64) * draw(st.sampled_from((0.01, 1.0, 30.0)))
    x = x if kind == "gaussian" else x**3
    assume(bool((x > 0).any()))
    return torch.cat([x, torch.tensor([-1.0, 0.0, math.nan, math.inf])])


def grid_of(x: Tensor) -> list[float]:
    """Return the documented grid: 0.2 % between 1e-3 and 2 times the largest input."""
    high = float(x[x.isfinite()].max())
    return [1e-3 * high * 1.002**k for k in range(int(math.log(2000) / math.log(1.002)) + 1)]


def loss_in_decibel(x: Tensor, found: float, noise: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return how much more noise there is than at the best point of the grid."""
    x = x[(x > 0) & x.isfinite()]
    grid = torch.tensor([found, *grid_of(x)], dtype=torch.float64)[:, None]
    noises = noise(x, grid).square().mean(1)
    peak = float(x.square().mean())
    return 10 * math.log10((float(noises[0]) + 1e-9 * peak) / (float(noises.min()) + 1e-9 * peak))


TOLERANCE_IN_DECIBEL = 0.03  # points are returned in float32


@examples(25)
@given(recordings(), st.integers(1, 8), st.sampled_from((0.0, 0.5)))
def test_best_threshold_is_the_best_of_the_documented_grid(x: Tensor, time_steps: int, v_init: float) -> None:
    def noise(x: Tensor, theta: Tensor) -> Tensor:
        count = ((x * time_steps + v_init * theta) / theta).floor().clamp(0, time_steps)
        return x - count * theta / time_steps

    loss = loss_in_decibel(x, F.best_threshold(x, time_steps, v_init=v_init), noise)
    assert loss <= TOLERANCE_IN_DECIBEL


@examples(25)
@given(recordings(), st.integers(1, 8))
def test_best_points_are_the_best_of_the_documented_grid(x: Tensor, time_steps: int) -> None:
    """Edges half way between levels but for the first, which is both."""

    def noise(x: Tensor, p_1: Tensor) -> Tensor:
        edges = [p_1] + [(time_steps - k + 0.5) / time_steps * p_1 for k in range(2, time_steps + 1)]
        return x - sum((x >= edge).double() for edge in edges) * p_1 / time_steps

    p = F.best_points(x, time_steps).double()
    factors = [1.0] + [(time_steps - k + 0.5) / time_steps for k in range(2, time_steps + 1)]
    ref.assert_close(p, float(p[0]) * torch.tensor(factors, dtype=torch.float64), 1e-6)
    loss = loss_in_decibel(x, float(p[0]), noise)
    assert loss <= TOLERANCE_IN_DECIBEL
