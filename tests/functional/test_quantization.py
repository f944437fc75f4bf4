"""Staircases by brute force, thresholds from points, the closed form, and the SQNR table of the specification (2.3)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_ext.functional import (
    best_points,
    best_threshold,
    decode,
    nonuniform_staircase,
    nonuniform_thresholds,
    quantization,
    sqnr,
    staircase,
    uniform_points,
)
from tests.reference import constant, dyadic, gaussian_points, half_gaussian, simulate

each_T = pytest.mark.parametrize("time_steps", range(2, 9))


def counts(x: Tensor, thresholds: Tensor, recursion: str = "min", v: float = 0.0, tie: bool = True) -> Tensor:
    """Count the spikes of constant input by running the naive neuron, in float64."""
    reset = "none" if recursion == "cumulative" else "subtract"
    return simulate(constant(x, len(thresholds)), v, thresholds.numpy(), reset=reset, tie=tie)[0].sum(0)


def miscounts(p: Tensor, recursion: Any) -> float:
    """Fraction of inputs in [-0.1, 1.3] p_1, every point included, whose count is not the number of points reached."""
    x = torch.cat((dyadic(torch.linspace(-0.1, 1.3, 20_001).double() * p[0]), p))
    got = counts(x, nonuniform_thresholds(p, recursion), recursion)
    return float((got != nonuniform_staircase(x, p)).double().mean())


def random_points(time_steps: int, number: int) -> list[Tensor]:
    """Non-increasing points of every kind: any steps, repeated points, wide and narrow ranges."""
    generator = torch.Generator().manual_seed(time_steps)
    found = []
    for i in range(number):
        steps = torch.rand(time_steps, generator=generator, dtype=torch.float64) ** (1 + i % 4)
        steps[torch.rand(time_steps, generator=generator) < 0.15 * (i % 3)] = 0.0
        steps[-1] = steps[-1].clamp_min(0.01)
        found.append(dyadic(steps.flip(0).cumsum(0).flip(0), bits=16))
    return found


def convex_points(time_steps: int, number: int) -> list[Tensor]:
    """Points whose steps, down to the one from p_T to 0, get finer towards zero; p_1 / p_T up to some hundreds."""
    generator = torch.Generator().manual_seed(time_steps)
    found = []
    for i in range(number):
        steps = torch.rand(time_steps, generator=generator, dtype=torch.float64) ** (1 + i % 3) + 0.01
        found.append(dyadic(steps.sort().values.cumsum(0).flip(0), bits=16))
        gaps = torch.cat((found[-1], torch.zeros(1))).diff().neg()
        assert (gaps.diff() <= 2**-14).all()
    return found


# -- where each recursion is exact, and where not ---------------------------------------------------------------------


@each_T
def test_cumulative_is_exact_for_every_non_increasing_p(time_steps: int) -> None:
    for p in random_points(time_steps, 40):
        assert miscounts(p, "cumulative") == 0.0, p.tolist()


@each_T
@pytest.mark.parametrize("clip", [0.75, 1.0, 1.625])
def test_min_is_exact_and_constant_for_uniform_p(time_steps: int, clip: float) -> None:
    p = torch.arange(time_steps, 0, -1, dtype=torch.float64) * clip  # p_1 = T * clip: dyadic for every T
    assert torch.equal(nonuniform_thresholds(p), torch.full_like(p, float(p[0])))
    assert miscounts(p, "min") == 0.0


def test_min_at_two_steps_is_exact_if_and_only_if_p1_is_one_and_a_half_p2() -> None:
    exact = {
        ratio: miscounts(dyadic([0.5 * ratio, 0.5]), "min") == 0.0 for ratio in (1.0, 1.25, 1.4375, 1.5, 1.75, 6.0)
    }
    assert exact == {ratio: ratio >= 1.5 for ratio in exact}


@pytest.mark.parametrize("time_steps", [3, 4])
def test_min_is_exact_for_convex_steps(time_steps: int) -> None:
    for p in convex_points(time_steps, 150):
        assert miscounts(p, "min") == 0.0, p.tolist()


def test_min_is_not_exact_where_the_last_step_to_zero_is_the_larger_one() -> None:
    # Convex but for the step from p_T to 0, and with the necessary condition: a charge fires before it should.
    p = dyadic([1.0, 0.575, 0.3681])
    assert p[0] - p[1] > p[1] - p[2] and p[0] > 2 * p[2]
    assert miscounts(p, "min") > 0.03


@each_T
def test_no_step_thresholds_are_exact_below_the_necessary_condition(time_steps: int) -> None:
    # p_1 >= p_T (T + 1) / 2; just below it "min" miscounts, and the exact variant does not.
    p = torch.linspace(1.0, 2.0 / (time_steps + 1) * 1.02, time_steps).double()
    p[0] = 0.95 * p[-1] * (time_steps + 1) / 2
    p = dyadic(torch.cummax(p.flip(0), 0).values.flip(0))
    assert miscounts(p, "min") > 0.0
    assert miscounts(p, "cumulative") == 0.0


@pytest.mark.parametrize("time_steps", [2, 3, 4, 5])
def test_min_is_exact_for_gaussian_quantiles_up_to_five_steps(time_steps: int) -> None:
    assert miscounts(gaussian_points(time_steps), "min") == 0.0


@pytest.mark.parametrize(("time_steps", "bound"), [(6, 0.02), (7, 0.04), (8, 0.06)])
def test_min_is_not_exact_for_gaussian_quantiles_beyond_five_steps(time_steps: int, bound: float) -> None:
    p = gaussian_points(time_steps)
    assert 0.0 < miscounts(p, "min") < bound
    x = dyadic(torch.linspace(-0.1, 1.3, 20_001).double() * p[0])
    wrong = counts(x, nonuniform_thresholds(p)) - nonuniform_staircase(x, p)
    assert wrong.abs().max() == 1.0, "off by one spike at most"


@pytest.mark.parametrize(("time_steps", "fraction"), [(4, 0.13), (6, 0.43), (8, 0.59)])
def test_paper_miscounts_uniform_p(time_steps: int, fraction: float) -> None:
    p = torch.arange(time_steps, 0, -1, dtype=torch.float64)
    assert miscounts(p, "paper") == pytest.approx(fraction, abs=0.01)


@pytest.mark.parametrize(("time_steps", "exact"), [(2, True), (3, False), (4, True), (5, False), (8, False)])
def test_paper_for_gaussian_quantiles(time_steps: int, exact: bool) -> None:
    assert (miscounts(gaussian_points(time_steps), "paper") == 0.0) == exact


def test_printed_equations_of_four_steps_are_the_recursion_called_paper() -> None:
    for p in random_points(4, 50):
        printed = torch.stack([p[0], 3 * p[1] - 4 * (p[2] - p[3]), 4 * (p[2] - p[3]), 4 * p[3]])
        assert torch.equal(nonuniform_thresholds(p, "paper"), printed)


@each_T
def test_min_is_the_largest_threshold_with_which_every_later_step_fires(time_steps: int) -> None:
    # The meaning of the recursion, by running the neuron: silent before k, driven by p_k, it fires at k..T; a little
    # more threshold and it does not.
    for p in random_points(time_steps, 15):
        thresholds = nonuniform_thresholds(p)
        for k in range(time_steps):
            x = constant(p[k].reshape(1), time_steps - k)
            start = float(p[k]) * k
            assert simulate(x, start, thresholds[k:].numpy())[0].all()
            more = thresholds[k:].clone()
            more[0] += 2.0**-16
            assert not simulate(x, start, more.numpy())[0].all()


@pytest.mark.parametrize("recursion", ["min", "paper", "cumulative"])
@pytest.mark.parametrize("time_steps", [1, 2, 3, 8])
def test_thresholds_scale_with_the_points_and_keep_their_dtype(recursion: Any, time_steps: int) -> None:
    p = gaussian_points(time_steps)
    assert torch.equal(nonuniform_thresholds(4 * p, recursion), 4 * nonuniform_thresholds(p, recursion))
    assert nonuniform_thresholds(p.float(), recursion).dtype == torch.float32
    assert nonuniform_thresholds(p, recursion)[-1] == time_steps * p[-1]


def test_one_step_is_one_threshold_for_every_recursion() -> None:
    for recursion in ("min", "paper", "cumulative"):
        assert nonuniform_thresholds(torch.tensor([0.7]), recursion).tolist() == pytest.approx([0.7])  # type: ignore[arg-type]


# -- the closed form, equation 7 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_steps", [1, 2, 4, 8, 16, 20])
@pytest.mark.parametrize("threshold", [0.3, 0.75, 1.0, 1.25])
@pytest.mark.parametrize("tie", [True, False], ids=["at", "above"])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_closed_form_is_the_simulation(time_steps: int, threshold: float, tie: bool, start: float) -> None:
    unit = 2**-16  # in these units everything is an integer, and the staircase a division of integers
    theta = round(threshold * 2**10) * 2**6
    x = torch.cat((torch.arange(-theta // 4, 2 * theta, 7), torch.arange(-8, 16 * time_steps) * theta // 64))
    level = x * time_steps + int(start * theta)
    n = level // theta if tie else -(-level // theta) - 1
    want = n.clamp(0, time_steps).double()
    current, threshold = x.double() * unit, theta * unit
    thresholds = torch.full((time_steps,), threshold, dtype=torch.float64)
    assert torch.equal(counts(current, thresholds, v=start * threshold, tie=tie), want)
    got = staircase(current, threshold, time_steps, v=start * threshold, fire_at_threshold=tie)
    assert torch.equal(got, want)


def test_start_and_tie_rule_make_floor_round_and_ceiling() -> None:
    x = torch.tensor([0.0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.9375, 1.0, 1.5], dtype=torch.float64)
    level = x * 4
    assert torch.equal(staircase(x, 1.0, 4), level.floor().clamp(0, 4))
    assert torch.equal(staircase(x, 1.0, 4, v=0.5), (level + 0.5).floor().clamp(0, 4))
    assert torch.equal(staircase(x, 1.0, 4, v=1.0, fire_at_threshold=False), level.ceil().clamp(0, 4))


def test_closed_form_is_not_for_input_that_varies() -> None:
    # Early charge fires before the later negative charge arrives: documented, and about 8 % of such inputs.
    x_seq = torch.randn(4, 100_000, dtype=torch.float64) * 0.5 + 0.3
    wrong = simulate(x_seq, 0.0, 1.0)[0].sum(0) != staircase(x_seq.mean(0), 1.0, 4)
    assert 0.07 < wrong.double().mean() < 0.09


def test_threshold_may_be_a_tensor_and_counts_keep_the_inputs_dtype() -> None:
    x = torch.tensor([0.3, 0.6])
    assert torch.equal(staircase(x, torch.tensor([0.5, 1.0]), 4), torch.tensor([2.0, 2.0]))
    assert staircase(x.half(), 1.0, 4).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_climb_the_staircase_of_the_neuron(dtype: torch.dtype) -> None:
    # As the neuron, whose potential is float32: the input is what it is, and nothing else is rounded to 16 bits.
    x = torch.linspace(-0.2, 1.5, 1001).to(dtype)
    for threshold, v in ((0.7, 0.0), (1.0, 0.5), (0.33, 0.165)):
        want = staircase(x.float(), threshold, 20, v=v)
        assert torch.equal(staircase(x, threshold, 20, v=v), want.to(dtype))


@pytest.mark.parametrize("time_steps", [1, 3, 4, 10])
def test_uniform_points_are_the_edges_of_the_uniform_staircase(time_steps: int) -> None:
    p = uniform_points(0.75, time_steps)
    assert p.dtype == torch.float32 and p[0] == 0.75
    torch.testing.assert_close(p, torch.arange(time_steps, 0, -1) / time_steps * 0.75)


# -- decode and SQNR --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_threshold_of_one_element_is_its_number_in_any_shape(shape: tuple[int, ...]) -> None:
    assert torch.equal(uniform_points(torch.full(shape, 0.75), 4), uniform_points(0.75, 4))
    with pytest.raises(ValueError, match=r"^threshold: got a torch.float32 tensor of shape \[2\], want one element"):
        uniform_points(torch.full((2,), 0.75), 4)


def decibel(theta: float, time_steps: int, v_init: float = 0.0, sigma: float = 1.0) -> float:
    x = half_gaussian() * sigma
    return float(sqnr(x, decode(staircase(x, theta, time_steps, v=v_init * theta), theta, time_steps)))


@pytest.mark.parametrize(("time_steps", "want"), [(4, 0.45), (8, 4.12), (16, 9.44), (20, 11.26), (24, 12.75)])
def test_sqnr_of_a_fixed_threshold_ten_sigma_high(time_steps: int, want: float) -> None:
    assert decibel(1.0, time_steps, sigma=0.1) == pytest.approx(want, abs=0.02)


@pytest.mark.parametrize(
    ("v_init", "theta", "want"), [(0.0, 1.73, 11.10), (0.25, 1.97, 13.43), (0.5, 2.14, 15.13)], ids=str
)
def test_best_threshold_finds_the_optimum(v_init: float, theta: float, want: float) -> None:
    for sigma in (0.1, 1.0, 40.0):
        found = best_threshold(half_gaussian() * sigma, 4, v_init=v_init)
        assert found == pytest.approx(theta * sigma, rel=0.01)
        assert decibel(found, 4, v_init, sigma) == pytest.approx(want, abs=0.1)
        assert all(decibel(found * f, 4, v_init, sigma) < decibel(found, 4, v_init, sigma) + 1e-3 for f in (0.98, 1.02))


def test_best_points_find_three_decibels_more_than_the_uniform_quantiser() -> None:
    x = half_gaussian()
    p = best_points(x, 4).double()
    assert float(sqnr(x, decode(nonuniform_staircase(x, p), p[0], 4))) == pytest.approx(14.63, abs=0.1)
    # ... and the neuron realises them, at T = 4
    assert float(sqnr(x, decode(counts(x, nonuniform_thresholds(p)), p[0], 4))) == pytest.approx(14.63, abs=0.1)


@pytest.mark.parametrize("time_steps", [1, 2, 3, 8])
def test_best_points_beat_the_uniform_ones(time_steps: int) -> None:
    x = half_gaussian(50_000)
    p = best_points(x, time_steps).double()
    assert (p.diff() <= 0).all() and (p > 0).all()
    uniform = best_threshold(x, time_steps)
    by_points = sqnr(x, decode(nonuniform_staircase(x, p), p[0], time_steps))
    assert by_points >= sqnr(x, decode(staircase(x, uniform, time_steps), uniform, time_steps)) - 1e-3


def adversarial_samples() -> dict[str, Tensor]:
    """Inputs with many local optima: few values, heavy tails, and values on edges of numbers of the grid."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(200, generator=generator, dtype=torch.float64)
    grid = 1e-3 * 1.002 ** torch.arange(3000, 3800, 97, dtype=torch.float64)
    return {
        "one": torch.tensor([0.7]),
        "two": torch.tensor([2.75, 0.875], dtype=torch.float64),
        "two, far apart": torch.tensor([1.0, 0.0123]),
        "three": torch.tensor([1.0, 0.61, 0.33], dtype=torch.float64),
        "heavy tail": torch.cat((uniform, torch.tensor([7.0, 31.0, 55.5], dtype=torch.float64))),
        "heavier tail": (1.0 - uniform) ** -2,
        "sixteenths": torch.randint(1, 40, (300,), generator=generator).double() / 16,
        "on the grid": torch.cat((grid[grid < 1.0], torch.ones(1, dtype=torch.float64))),
        "on edges": torch.cat([grid[grid < 1.0] * k / 4 for k in (1, 2, 3)] + [torch.ones(1, dtype=torch.float64)]),
    }


ADVERSARIAL = adversarial_samples()


def documented_grid(x: Tensor) -> Tensor:
    steps = int(math.log(2.0 / 1e-3) / math.log(1.002)) + 1
    return torch.tensor([1e-3 * float(x.max()) * 1.002**k for k in range(steps)], dtype=torch.float64)


@pytest.mark.parametrize("sample", ADVERSARIAL)
@pytest.mark.parametrize(("time_steps", "v_init"), [(1, 0.0), (4, 0.0), (4, 0.5), (4, 1.0), (7, 0.25), (5, -0.3)])
def test_best_threshold_is_the_best_of_the_grid(sample: str, time_steps: int, v_init: float) -> None:
    x = ADVERSARIAL[sample].double()

    def noise(theta: Tensor) -> Tensor:
        theta = theta[:, None]
        count = staircase(x, theta, time_steps, v=v_init * theta)
        return (x - decode(count, theta, time_steps)).square().sum(1)

    found, grid = torch.tensor([best_threshold(x, time_steps, v_init=v_init)], dtype=torch.float64), documented_grid(x)
    assert (found / grid - 1.0).abs().min() < 1e-12
    assert noise(found) <= noise(grid).min() + 1e-12 * x.square().sum()


@pytest.mark.parametrize("sample", ADVERSARIAL)
@pytest.mark.parametrize("time_steps", [1, 2, 4, 7])
def test_best_points_are_the_best_of_the_grid(sample: str, time_steps: int) -> None:
    x = ADVERSARIAL[sample].double()
    shape = (torch.arange(time_steps, 0, -1, dtype=torch.float64) - 0.5) / time_steps
    shape[0] = 1.0

    def noise(p_1: Tensor) -> Tensor:
        count = (x[:, None] >= (p_1[:, None] * shape)[:, None]).sum(-1)
        return (x - decode(count, p_1[:, None], time_steps)).square().sum(1)

    found, grid = best_points(x, time_steps).double(), documented_grid(x)
    p_1 = grid[(grid - found[0]).abs().argmin()]
    torch.testing.assert_close(found, p_1 * shape, rtol=1e-7, atol=0.0)  # float32
    assert noise(p_1[None]) <= noise(grid).min() + 1e-12 * x.square().sum()


def test_the_tail_of_a_large_sample_is_not_thinned_out_or_blown_up() -> None:
    x = torch.cat((torch.full((400_000,), 0.5), torch.tensor([1.5])))  # the tail is worth nothing at T = 1
    assert best_threshold(x, 1) == pytest.approx(0.5, rel=2e-3)


def test_a_search_with_many_steps_is_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(500)
    want = best_threshold(x, 30)
    monkeypatch.setattr(quantization, "_CHUNK", 100)
    assert best_threshold(x, 30) == want


@pytest.mark.parametrize("search", [best_threshold, best_points])
def test_calibration_ignores_negative_and_non_finite_inputs(search: Any) -> None:
    x = half_gaussian(20_000)
    spoiled = torch.cat((x, -x, torch.tensor([math.nan, math.inf, -math.inf, 0.0])))
    torch.testing.assert_close(torch.as_tensor(search(spoiled, 4)), torch.as_tensor(search(x, 4)))


@pytest.mark.parametrize("search", [best_threshold, best_points])
@pytest.mark.parametrize("x", [torch.zeros(4), -torch.ones(4), torch.empty(0), torch.tensor([math.nan])])
def test_calibration_of_a_silent_layer_says_so(search: Any, x: Tensor) -> None:
    with pytest.raises(ValueError, match="x: .*positive"):
        search(x, 4)


def test_calibration_of_one_value_represents_it() -> None:
    theta = best_threshold(torch.full((10,), 0.7), 4)
    assert float(decode(staircase(torch.tensor(0.7), theta, 4), theta, 4)) == pytest.approx(0.7, rel=0.01)


def test_sqnr_is_in_decibel_and_infinite_without_noise() -> None:
    x = torch.randn(1000)
    assert float(sqnr(x, 0.9 * x)) == pytest.approx(20.0, abs=1e-4)
    assert float(sqnr(x, x)) == math.inf
    assert sqnr(x.half(), x.half()).dtype == torch.float16


def test_sqnr_is_differentiable_and_survives_half_precision_sums() -> None:
    x = torch.full((70_000,), 200.0, dtype=torch.float16)  # squares and their sum overflow float16
    assert float(sqnr(x, x * 0.5)) == pytest.approx(6.02, abs=0.01)
    theta = torch.tensor(0.9, requires_grad=True)
    sqnr(torch.rand(100), theta * torch.rand(100)).backward()
    assert theta.grad.isfinite()


def test_error_bounds_are_the_errors_where_no_input_lies_on_an_edge() -> None:
    sample = torch.rand(200, dtype=torch.float64).sort().values
    edges = (torch.arange(1, 5, dtype=torch.float64) - 0.5) / 4
    grid = torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64)
    found = quantization._error_bounds(sample, edges, grid)
    for bound, number in zip(found, grid, strict=True):
        count = (sample[:, None] >= number * edges).sum(1)
        error = (sample - number * count / 4).square().sum()
        assert bound <= error and bound == pytest.approx(float(error), rel=1e-9)  # or the search would find it, slowly
