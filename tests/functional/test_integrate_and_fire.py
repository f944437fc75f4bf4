"""The operator against a naive reference: every bit of its spikes and potential, and its gradients against float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snn_ext.functional import Sigmoid, Surrogate, integrate_and_fire, nonuniform_thresholds, state_dtype
from tests.reference import (
    DERIVATIVES,
    INPUTS,
    RECURSIONS,
    RESETS,
    SURROGATES,
    TIES,
    assert_close_to_peak,
    awkward_inputs,
    each_input,
    each_reset,
    each_tie,
    gradients,
    simulate,
)

each_kind_of_thresholds = pytest.mark.parametrize(
    "thresholds", [[1.0], [0.75], [0.3], [1.0, 0.75, 1.25, 0.5, 2.0]], ids=["1", "0.75", "0.3", "T"]
)


# -- spikes and potential ---------------------------------------------------------------------------------------------


@each_input
@each_reset
@each_tie
@each_kind_of_thresholds
@pytest.mark.parametrize("v", [0.0, 0.375, -0.5])
def test_every_bit_equals_the_naive_neuron(kind: str, reset: str, tie: bool, thresholds: list[float], v: float) -> None:
    x_seq = awkward_inputs(5, (7, 11), thresholds[0])[kind]
    want = simulate(x_seq, v, thresholds, reset=reset, tie=tie)
    got = integrate_and_fire(x_seq, v, torch.tensor(thresholds), reset=reset, fire_at_threshold=tie)  # type: ignore[arg-type]
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@each_input
@each_reset
@each_tie
def test_chunks_of_time_equal_the_whole(kind: str, reset: Any, tie: bool) -> None:
    x_seq = awkward_inputs(6, (64,))[kind]
    thresholds = torch.tensor([1.0, 0.5, 0.75, 1.25, 1.0, 0.875])
    want = integrate_and_fire(x_seq, 0.25, thresholds, reset=reset, fire_at_threshold=tie)
    v: Any = 0.25
    spikes = []
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        spike, v = integrate_and_fire(x_seq[start:stop], v, thresholds[start:stop], reset=reset, fire_at_threshold=tie)
        spikes.append(spike)
    assert torch.equal(torch.cat(spikes), want[0])
    assert torch.equal(v, want[1])


@pytest.mark.parametrize("threshold", [0.3, 0.75, 1.0, 1.7])
def test_threshold_and_its_neighbours_fire_by_the_tie_rule(threshold: float) -> None:
    centre = torch.tensor([threshold])
    x = torch.cat((torch.nextafter(centre, -centre), centre, torch.nextafter(centre, 2 * centre)))
    assert integrate_and_fire(x[None], 0.0, centre)[0].tolist() == [[0.0, 1.0, 1.0]]
    assert integrate_and_fire(x[None], 0.0, centre, fire_at_threshold=False)[0].tolist() == [[0.0, 0.0, 1.0]]


@each_input
def test_above_is_at_the_next_float(kind: str) -> None:
    # What lets a kernel do with one comparison; on the first step, before the two thresholds change the potential.
    x_seq = awkward_inputs(1, (1000,))[kind]
    threshold = torch.tensor([1.0])
    above = integrate_and_fire(x_seq, 0.0, threshold, fire_at_threshold=False)[0]
    assert torch.equal(above, integrate_and_fire(x_seq, 0.0, torch.nextafter(threshold, 2 * threshold))[0])


@each_tie
def test_a_million_neuron_steps_without_one_mismatch(tie: bool) -> None:
    for kind, x_seq in awkward_inputs(16, (25_000,), 0.75).items():
        got = integrate_and_fire(x_seq, 0.375, torch.tensor([0.75]), fire_at_threshold=tie)
        want = simulate(x_seq, 0.375, 0.75, tie=tie)
        assert int((got[0] != want[0]).sum()) == 0, kind
        assert torch.equal(got[1], want[1]), kind


# -- shapes, layouts, dtypes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (4,), (4, 0, 3), (1, 2, 3), (3, 2, 1, 4, 5)])
@each_reset
def test_any_shape_from_a_scalar_step_to_an_empty_batch(shape: tuple[int, ...], reset: Any) -> None:
    x_seq = torch.rand(shape)
    spikes, v = integrate_and_fire(x_seq, 0.5, torch.ones(1), reset=reset)
    assert spikes.shape == shape and v.shape == shape[1:]
    assert torch.equal(spikes, simulate(x_seq, 0.5, 1.0, reset=reset)[0])


def test_a_thousand_steps_keep_the_charge() -> None:
    x_seq = torch.full((1000, 3), 0.0625)
    spikes, v = integrate_and_fire(x_seq, 0.0, torch.tensor([0.75]))
    assert torch.equal(spikes.sum(0) * 0.75 + v, x_seq.sum(0))
    want = simulate(awkward_inputs(1000, (50,))["random"], 0.0, 1.0)
    got = integrate_and_fire(awkward_inputs(1000, (50,))["random"], 0.0, torch.ones(1))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def layouts(x_seq: Tensor) -> dict[str, Tensor]:
    step = x_seq[:1]
    return {
        "transposed": x_seq.transpose(0, -1).contiguous().transpose(0, -1),
        "sliced": torch.cat((x_seq, x_seq), -1)[..., : x_seq.shape[-1]],
        "expanded": step.expand_as(x_seq),
        "channels last": x_seq.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    }


def test_memory_layout_changes_nothing_and_channels_last_survives() -> None:
    x_seq = awkward_inputs(3, (2, 4, 5, 6))["grid"]
    for name, x in layouts(x_seq).items():
        spikes, v = integrate_and_fire(x, 0.0, torch.ones(1))
        want = integrate_and_fire(x.contiguous(), 0.0, torch.ones(1))
        assert torch.equal(spikes, want[0]) and torch.equal(v, want[1]), name
    spikes, v = integrate_and_fire(layouts(x_seq)["channels last"], 0.0, torch.ones(1))
    assert spikes[0].is_contiguous(memory_format=torch.channels_last)
    assert v.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_input
@each_reset
def test_half_input_runs_as_float32_on_the_same_values(dtype: torch.dtype, kind: str, reset: Any) -> None:
    x_seq = awkward_inputs(8, (500,))[kind].to(dtype)
    spikes, v = integrate_and_fire(x_seq, 0.1, torch.tensor([0.7]), reset=reset)
    want = integrate_and_fire(x_seq.float(), 0.1, torch.tensor([0.7]), reset=reset)
    assert spikes.dtype == dtype and v.dtype == torch.float32
    assert torch.equal(spikes.float(), want[0]) and torch.equal(v, want[1])


def test_double_stays_double() -> None:
    spikes, v = integrate_and_fire(torch.rand(4, 3, dtype=torch.float64), 0.0, torch.ones(1, dtype=torch.float64))
    assert spikes.dtype == v.dtype == torch.float64 == state_dtype(torch.float64)


def test_potential_broadcasts_over_batch_and_space() -> None:
    x_seq = awkward_inputs(4, (3, 2, 5))["grid"]
    per_channel = torch.tensor([0.25, 0.5]).reshape(1, 2, 1)
    want = integrate_and_fire(x_seq, per_channel.expand(3, 2, 5).contiguous(), torch.ones(1))
    got = integrate_and_fire(x_seq, per_channel, torch.ones(1))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("name", ["x_seq", "v", "thresholds"])
def test_arguments_are_not_written_to(name: str) -> None:
    arguments = {"x_seq": torch.rand(4, 3), "v": torch.rand(3), "thresholds": torch.rand(4) + 0.2}
    before = arguments[name].clone()
    integrate_and_fire(**arguments)
    assert torch.equal(arguments[name], before)


# -- values that are no numbers ---------------------------------------------------------------------------------------


@each_reset
@each_tie
def test_nan_is_silent_and_stays(reset: Any, tie: bool) -> None:
    spikes, v = integrate_and_fire(
        torch.tensor([[0.5], [math.nan], [9.0]]), 0.0, torch.ones(1), reset=reset, fire_at_threshold=tie
    )
    assert spikes.flatten().tolist() == [0.0, 0.0, 0.0]
    assert v.isnan().all()


@each_tie
def test_plus_infinity_fires_for_ever_unless_reset_to_zero(tie: bool) -> None:
    x_seq = torch.tensor([[math.inf], [0.0], [0.0]])
    for reset, want in (("subtract", [1.0, 1.0, 1.0]), ("none", [1.0, 1.0, 1.0]), ("zero", [1.0, 0.0, 0.0])):
        spikes, v = integrate_and_fire(x_seq, 0.0, torch.ones(1), reset=reset, fire_at_threshold=tie)  # type: ignore[arg-type]
        assert spikes.flatten().tolist() == want, reset
        assert v.item() == (0.0 if reset == "zero" else math.inf), reset
    # held at +inf, it fires at every step, whatever the reset
    assert integrate_and_fire(torch.full((3, 1), math.inf), 0.0, torch.ones(1), reset="zero")[0].all()


@each_reset
def test_minus_infinity_is_silent_for_ever(reset: Any) -> None:
    spikes, v = integrate_and_fire(torch.tensor([[-math.inf], [1e30], [9.0]]), 0.0, torch.ones(1), reset=reset)
    assert spikes.flatten().tolist() == [0.0, 0.0, 0.0] and v.item() == -math.inf


@each_reset
def test_one_bad_neuron_does_not_spread(reset: Any) -> None:
    x_seq = awkward_inputs(4, (6,))["grid"]
    want = integrate_and_fire(x_seq, 0.0, torch.ones(1), reset=reset)
    for bad in (math.nan, math.inf, -math.inf):
        spoiled = x_seq.clone()
        spoiled[1, 2] = bad
        got = integrate_and_fire(spoiled, 0.0, torch.ones(1), reset=reset)
        others = [0, 1, 3, 4, 5]
        assert torch.equal(got[0][:, others], want[0][:, others]) and torch.equal(got[1][others], want[1][others])


# -- gradients --------------------------------------------------------------------------------------------------------


def agreeing_samples(
    thresholds: Tensor, v: float, reset: Any, tie: bool, time_steps: int = 6, size: int = 400
) -> Tensor:
    """Return awkward input ``[T, N]`` without the neurons whose spikes differ between float32 and float64."""
    inputs = awkward_inputs(time_steps, (size,), float(thresholds[0]))
    x_seq = torch.cat([inputs[kind] for kind in INPUTS], 1)
    single, _ = integrate_and_fire(x_seq, v, thresholds, reset=reset, fire_at_threshold=tie)
    double, _ = integrate_and_fire(x_seq.double(), v, thresholds.double(), reset=reset, fire_at_threshold=tie)
    agree = (single == double).all(0)
    assert agree.float().mean() > 0.6, "the comparison would be about nothing"
    return x_seq[:, agree]


@pytest.mark.parametrize("cls", SURROGATES, ids=lambda cls: cls.__name__)
@each_reset
@each_tie
@pytest.mark.parametrize("detach", [False, True], ids=["through", "detached"])
@pytest.mark.parametrize("count", [1, 6], ids=["[1]", "[T]"])
def test_gradients_are_those_of_float64(cls: type[Surrogate], reset: Any, tie: bool, detach: bool, count: int) -> None:
    thresholds = torch.tensor([0.9, 1.1, 0.7, 1.3, 0.5, 0.8][:count])
    x_seq = agreeing_samples(thresholds, 0.3125, reset, tie)
    x = x_seq.clone().requires_grad_()
    v = torch.full(x_seq.shape[1:], 0.3125, requires_grad=True)
    theta = thresholds.clone().requires_grad_()
    spikes, last = integrate_and_fire(
        x, v, theta, surrogate=cls(2.5), reset=reset, fire_at_threshold=tie, detach_reset=detach
    )
    weight, weight_v = torch.randn_like(spikes), torch.randn_like(last)  # a gradient on the final potential as well
    ((spikes * weight).sum() + (last * weight_v).sum()).backward()
    want = gradients(
        x_seq,
        v.detach().double().numpy(),
        thresholds.double().numpy(),
        lambda u: DERIVATIVES[cls](2.5, u),
        weight,
        weight_v,
        detach=detach,
        reset=reset,
        tie=tie,
    )
    assert_close_to_peak(x.grad, want.x)
    assert_close_to_peak(v.grad, want.v)
    terms = want.thresholds.sum(1) if count > 1 else want.thresholds.sum(keepdims=True).reshape(1)
    sizes = np.abs(want.thresholds).sum(1) if count > 1 else np.abs(want.thresholds).sum()
    assert_close_to_peak(theta.grad / torch.as_tensor(sizes), terms / sizes, peak=1.0)


@each_reset
@each_tie
@pytest.mark.parametrize("detach", [False, True], ids=["through", "detached"])
def test_the_oracle_is_the_recursion_by_hand(reset: Any, tie: bool, detach: bool) -> None:
    # float64 autograd and the recursion written out agree to the last digits: nothing of the gradient is approximate.
    x_seq = awkward_inputs(7, (90,))["grid"].double().requires_grad_()
    v = torch.zeros(90, dtype=torch.float64, requires_grad=True)
    theta = torch.linspace(0.5, 1.5, 7, dtype=torch.float64, requires_grad=True)
    spikes, last = integrate_and_fire(x_seq, v, theta, reset=reset, fire_at_threshold=tie, detach_reset=detach)
    weight, weight_v = torch.randn_like(spikes), torch.randn_like(last)
    ((spikes * weight).sum() + (last * weight_v).sum()).backward()
    want = gradients(
        x_seq, 0.0, theta.detach().numpy(), lambda u: DERIVATIVES[Sigmoid](4.0, u), weight, weight_v,
        detach=detach, reset=reset, tie=tie,
    )  # fmt: skip
    assert_close_to_peak(x_seq.grad, want.x, tolerance=1e-12)
    assert_close_to_peak(v.grad, want.v, tolerance=1e-12)
    assert_close_to_peak(theta.grad, want.thresholds.sum(1), tolerance=1e-12)


def test_gradient_on_the_final_potential_alone_reaches_everything() -> None:
    x_seq = torch.rand(4, 5, requires_grad=True)
    v = torch.rand(5, requires_grad=True)
    theta = torch.tensor([0.7], requires_grad=True)
    integrate_and_fire(x_seq, v, theta)[1].sum().backward()
    for leaf in (x_seq, v, theta):
        assert leaf.grad is not None and leaf.grad.isfinite().all() and (leaf.grad != 0).any()


@pytest.mark.parametrize("recursion", RECURSIONS)
@pytest.mark.parametrize("detach", [False, True], ids=["through", "detached"])
@each_tie
def test_points_get_their_gradient_through_the_recursion(recursion: Any, detach: bool, tie: bool) -> None:
    p = torch.tensor([2.16, 1.35, 0.88, 0.27])
    reset: Any = "none" if recursion == "cumulative" else "subtract"
    x_seq = agreeing_samples(nonuniform_thresholds(p, recursion), 0.1875, reset, tie, time_steps=4)
    weight, weight_v = torch.randn_like(x_seq), torch.randn_like(x_seq[0])
    found = []
    for dtype in (torch.float32, torch.float64):
        points = p.to(dtype, copy=True).requires_grad_()
        spikes, last = integrate_and_fire(
            x_seq.to(dtype), 0.1875, nonuniform_thresholds(points, recursion),
            reset=reset, detach_reset=detach, fire_at_threshold=tie,
        )  # fmt: skip
        ((spikes * weight).sum() + (last * weight_v).sum()).backward()
        found.append(points.grad)
    jacobian = torch.autograd.functional.jacobian(lambda q: nonuniform_thresholds(q, recursion), p.double())
    thresholds = nonuniform_thresholds(p.double(), recursion)
    terms = gradients(
        x_seq, 0.1875, thresholds.numpy(), lambda u: DERIVATIVES[Sigmoid](4.0, u), weight, weight_v,
        detach=detach, reset=reset, tie=tie,
    ).thresholds  # fmt: skip
    assert_close_to_peak(found[1], jacobian.numpy().T @ terms.sum(1), tolerance=1e-12)
    sizes = np.abs(jacobian.numpy()).T @ np.abs(terms).sum(1)
    assert_close_to_peak(found[0] / torch.from_numpy(sizes), found[1].numpy() / sizes, peak=1.0)


@pytest.mark.parametrize("tied_to_threshold", [False, True])
def test_scale_gets_its_gradient(tied_to_threshold: bool) -> None:
    x_seq = agreeing_samples(torch.tensor([0.75]), 0.0, "subtract", True)
    weight = torch.randn_like(x_seq)
    found = []
    for dtype in (torch.float32, torch.float64):
        theta = torch.tensor([0.75], dtype=dtype, requires_grad=True)
        scale = theta if tied_to_threshold else torch.tensor(0.75, dtype=dtype, requires_grad=True)
        spikes, _ = integrate_and_fire(x_seq.to(dtype), 0.0, theta, scale=scale)
        assert set(spikes.detach().unique().tolist()) <= {0.0, 0.75}
        (spikes * weight).sum().backward()
        found.append([theta.grad, scale.grad])
    spikes, _ = integrate_and_fire(x_seq, 0.0, torch.tensor([0.75]))
    if not tied_to_threshold:
        torch.testing.assert_close(found[1][1], (spikes * weight).double().sum())
    size = float(weight.abs().sum())
    for single, double in zip(*found, strict=True):
        assert_close_to_peak(single, double.numpy(), peak=size)


def test_per_channel_potential_collects_the_gradient_of_its_neurons() -> None:
    x_seq = awkward_inputs(4, (3, 2, 5))["grid"].double()
    whole = torch.zeros(3, 2, 5, dtype=torch.float64, requires_grad=True)
    channel = torch.zeros(1, 2, 1, dtype=torch.float64, requires_grad=True)
    for v in (whole, channel):
        integrate_and_fire(x_seq, v, torch.ones(1, dtype=torch.float64))[0].square().sum().backward()
    torch.testing.assert_close(channel.grad, whole.grad.sum((0, 2), keepdim=True))


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("tie", TIES)
def test_half_precision_gradients_arrive_in_the_inputs_dtype(reset: Any, tie: bool) -> None:
    x_seq = torch.randn(4, 30).to(torch.bfloat16).requires_grad_()
    theta = torch.tensor([0.7], requires_grad=True)
    spikes, _ = integrate_and_fire(x_seq, 0.0, theta, reset=reset, fire_at_threshold=tie)
    spikes.float().square().sum().backward()
    assert x_seq.grad.dtype == torch.bfloat16 and x_seq.grad.isfinite().all()
    assert theta.grad.dtype == torch.float32 and theta.grad.isfinite().all()
