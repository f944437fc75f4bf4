"""Operators, by every implementation that runs here, against loops: bits of spikes and states, and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snn_ext import functional, ops
from snn_ext.ops.registry import select
from tests.properties import references as ref
from tests.properties.profiles import examples
from tests.properties.strategies import (
    DTYPES,
    KINDS,
    RESETS,
    cut,
    for_a_step,
    moderate_thresholds,
    pieces,
    seeds,
    sequences,
    state_dtype,
    threshold_tensors,
    thresholds_of_any_size,
    values,
)

TAME = ("random", "grid", "ulp")
surrogates = st.builds(
    lambda kind, alpha, gain: getattr(functional, kind)(alpha, gain),
    st.sampled_from(sorted(ref.DERIVATIVES)),
    st.sampled_from((0.5, 1.0, 2.0, 4.0)),
    st.sampled_from((1.0, 0.5, 3.0)),
)


def derivative_of(surrogate: Any) -> ref.Derivative:
    return lambda u: surrogate.gain * ref.DERIVATIVES[type(surrogate).__name__](surrogate.alpha, u)


def executions(op: str, dtype: torch.dtype) -> list[str]:
    unavailable = ops.implementation(op, "cpu", dtype).unavailable
    return ["definition", *(name for name in ("torch", "cpu") if name not in unavailable)]


def run(execution: str, op: str, *args: Any, **options: Any) -> Any:
    if execution == "definition":
        return getattr(functional, op)(*args, **options)
    with ops.use_implementation(execution):
        return getattr(ops, op)(*args, **options)


# -- integrate and fire ------------------------------------------------------------------------------------------------


@examples(80)
@given(st.data())
def test_spikes_and_potential_are_those_of_the_loop(data: Any) -> None:
    unit = data.draw(thresholds_of_any_size)
    x_seq = data.draw(sequences(unit))
    v = data.draw(for_a_step(x_seq, unit))
    wide = state_dtype(x_seq.dtype)
    thresholds = data.draw(threshold_tensors(unit, len(x_seq), data.draw(st.sampled_from((wide, torch.float64)))))
    reset, at = data.draw(st.sampled_from(RESETS)), data.draw(st.booleans())
    scale = data.draw(st.sampled_from((None, 0.3, 2, torch.tensor([0.7]))))
    start = v.numpy() if isinstance(v, Tensor) else v
    want = ref.integrate_and_fire(ref.as_array(x_seq), start, thresholds.to(wide).numpy(), reset, at)
    spikes = torch.from_numpy(want.spikes)
    if scale is not None:
        spikes = spikes * torch.as_tensor(scale, dtype=wide)
    for execution in executions("integrate_and_fire", x_seq.dtype):
        spike_seq, v_end = run(
            execution, "integrate_and_fire", x_seq, v, thresholds, reset=reset, fire_at_threshold=at, scale=scale
        )
        assert (spike_seq.dtype, v_end.dtype) == (x_seq.dtype, wide)
        ref.assert_same(spike_seq, spikes.to(x_seq.dtype))
        ref.assert_same(v_end, want.after_reset[-1])


@examples(80)
@given(st.data())
def test_gradients_are_those_of_the_stated_rule(data: Any) -> None:
    """Gradients of input, initial potential, thresholds and scale against autograd of the loop in float64."""
    unit = data.draw(moderate_thresholds)
    x_seq = data.draw(sequences(unit, kinds=TAME))
    v = data.draw(for_a_step(x_seq, unit, TAME))
    wide = state_dtype(x_seq.dtype)
    thresholds = data.draw(threshold_tensors(unit, len(x_seq), wide))
    reset, at, detach = data.draw(st.sampled_from(RESETS)), data.draw(st.booleans()), data.draw(st.booleans())
    surrogate = data.draw(surrogates)
    v = torch.as_tensor(v, dtype=wide)
    scale = data.draw(st.sampled_from((None, torch.tensor([0.75], dtype=wide))))
    inputs = [x_seq, v, thresholds] + ([] if scale is None else [scale])
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    found = ref.integrate_and_fire(ref.as_array(x_seq), v.numpy(), thresholds.numpy(), reset, at).spikes
    incoming = (
        values(x_seq.shape, "random", 1.0, data.draw(seeds), x_seq.dtype),
        values(x_seq.shape[1:], "random", 1.0, data.draw(seeds), wide),
    )
    which = data.draw(st.sampled_from(((0, 1), (0,), (1,))))

    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    spike_seq, v_end = ref.differentiable_integrate_and_fire(
        *exact[:2], exact[2], torch.from_numpy(found).double(), derivative_of(surrogate), detach, reset
    )
    outputs = (spike_seq if scale is None else spike_seq * exact[3], v_end)
    want = torch.autograd.grad(
        [outputs[k] for k in which], exact, [incoming[k].double() for k in which], materialize_grads=True
    )
    tolerance = 1e-10 if wide == torch.float64 else 5e-5
    for execution in executions("integrate_and_fire", x_seq.dtype):
        outputs = run(
            execution,
            "integrate_and_fire",
            *inputs[:3],
            surrogate=surrogate,
            detach_reset=detach,
            reset=reset,
            fire_at_threshold=at,
            scale=None if scale is None else inputs[3],
        )
        got = torch.autograd.grad(
            [outputs[k] for k in which], inputs, [incoming[k] for k in which], materialize_grads=True
        )
        ref.assert_gradients(got, want, tolerance, incoming)


@examples(40)
@given(st.data())
def test_chunks_of_time_are_the_whole(data: Any) -> None:
    unit = data.draw(thresholds_of_any_size)
    x_seq = data.draw(sequences(unit))
    start = data.draw(for_a_step(x_seq, unit))
    thresholds = data.draw(threshold_tensors(unit, len(x_seq), state_dtype(x_seq.dtype)))
    options = {"reset": data.draw(st.sampled_from(RESETS)), "fire_at_threshold": data.draw(st.booleans())}
    ends = data.draw(pieces(len(x_seq)))
    steps = thresholds.expand(len(x_seq))
    for execution in executions("integrate_and_fire", x_seq.dtype):
        whole, v_end = run(execution, "integrate_and_fire", x_seq, start, thresholds, **options)
        parts, v = [], start
        for x, theta in zip(cut(x_seq, ends), cut(steps, ends), strict=True):
            spikes, v = run(execution, "integrate_and_fire", x, v, theta, **options)
            parts.append(spikes)
        ref.assert_same(torch.cat(parts), whole)
        ref.assert_same(v, v_end)


# -- adaptive neurons --------------------------------------------------------------------------------------------------

constants = st.builds(
    lambda m_f, theta_0, gamma, eta, beta, phi, dt: ref.AdaptiveConstants(
        m_f, m_f if theta_0 is None else theta_0, gamma, eta, beta, phi, dt
    ),
    st.sampled_from((0.1, 0.03, 1.0, 0.25)),
    st.sampled_from((None, 0.1, 0.5)),
    st.sampled_from((15.0, 3.0)),
    st.sampled_from((50.0, 10.0)),
    st.sampled_from((50.0, 20.0)),
    st.sampled_from((5.0, 0.0, 2.5)),
    st.sampled_from((1.0, 0.1, 4.0)),
)


@st.composite
def adaptive_cases(draw: Any, kinds: tuple[str, ...]) -> tuple[Tensor, list[Tensor], Tensor | float | None, Any]:
    """Draw input, state, bias and constants."""
    c = draw(constants)
    x_seq = draw(sequences(draw(st.sampled_from((c.theta_0 / 2, 1.0))), kinds=kinds))
    wide = state_dtype(x_seq.dtype)
    state = [torch.as_tensor(draw(for_a_step(x_seq, 0.5, ("random", "grid"))), dtype=wide).abs() for _ in range(4)]
    bias = draw(st.none() | for_a_step(x_seq, 0.25, ("random", "grid")))
    return x_seq, state, bias, c


@examples(60)
@given(adaptive_cases(KINDS), st.booleans(), st.sampled_from(("fixed", "adaptive")))
def test_adaptive_spikes_and_states_are_those_of_the_loop(case: Any, analog: bool, height: str) -> None:
    x_seq, state, bias, c = case
    wide = state_dtype(x_seq.dtype)
    number = np.float64 if wide == torch.float64 else np.float32
    start = [np.broadcast_to(part.numpy(), x_seq.shape[1:]) for part in state]
    with np.errstate(all="ignore"):
        offset = None if bias is None else number(bias.numpy() if isinstance(bias, Tensor) else bias)
        fired, thetas, signals, end = ref.adaptive_spiking(ref.as_array(x_seq), start, offset, c, analog, number)
    heights = thetas if height == "adaptive" else [1.0] * len(thetas)
    out = np.stack([np.where(z, height_of_spike, 0.0) for z, height_of_spike in zip(fired, heights, strict=True)])
    signals = [np.broadcast_to(s, x_seq.shape[1:]) for s in signals]
    for execution in executions("adaptive_spiking", x_seq.dtype):
        spike_seq, found = run(
            execution, "adaptive_spiking", x_seq, tuple(state), bias=bias, analog_input=analog, spike_height=height,
            **c._asdict(),
        )  # fmt: skip
        ref.assert_same(spike_seq, torch.from_numpy(out).to(x_seq.dtype))
        for got, want in zip(found, end, strict=True):
            ref.assert_same(got, np.broadcast_to(want, x_seq.shape[1:]))
        s_seq, filtered = run(
            execution, "postsynaptic_potential", x_seq, tuple(state[:2]), bias=bias, analog_input=analog,
            tau_beta=c.tau_beta, tau_phi=c.tau_phi, dt=c.dt,
        )  # fmt: skip
        ref.assert_same(s_seq, torch.from_numpy(np.stack(signals)).to(x_seq.dtype))
        for got, want in zip(filtered, end, strict=False):
            ref.assert_same(got, np.broadcast_to(want, x_seq.shape[1:]))


@examples(60)
@given(st.data(), adaptive_cases(TAME), st.booleans(), st.booleans(), st.booleans(), surrogates)
def test_adaptive_gradients_are_those_of_the_stated_rule(
    data: Any, case: Any, analog: bool, detach: bool, heights: bool, surrogate: Any
) -> None:
    x_seq, state, bias, c = case
    wide = state_dtype(x_seq.dtype)
    bias = torch.as_tensor(0.0 if bias is None else bias, dtype=wide)
    number = np.float64 if wide == torch.float64 else np.float32
    start = [np.broadcast_to(part.numpy(), x_seq.shape[1:]) for part in state]
    fired = ref.adaptive_spiking(ref.as_array(x_seq), start, bias.numpy(), c, analog, number)[0]
    inputs = [tensor.detach().requires_grad_() for tensor in (x_seq, bias, *state)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    outputs = ref.differentiable_adaptive_spiking(
        exact[0], exact[2:], exact[1], c, analog, torch.from_numpy(np.stack(fired)).double(), derivative_of(surrogate),
        detach, heights,
    )  # fmt: skip
    incoming = [values(x_seq.shape, "random", 1.0, data.draw(seeds), x_seq.dtype)]
    incoming += [values(x_seq.shape[1:], "random", 1.0, data.draw(seeds), wide) for _ in range(4)]
    flat = [outputs[0], *(part.expand(x_seq.shape[1:]) for part in outputs[1])]
    want = torch.autograd.grad(flat, exact, [gradient.double() for gradient in incoming], materialize_grads=True)
    tolerance = 1e-10 if wide == torch.float64 else 1e-4
    for execution in executions("adaptive_spiking", x_seq.dtype):
        spike_seq, end = run(
            execution, "adaptive_spiking", inputs[0], tuple(inputs[2:]), bias=inputs[1], analog_input=analog,
            surrogate=surrogate, detach_adaptation=detach, spike_height="adaptive" if heights else "fixed",
            **c._asdict(),
        )  # fmt: skip
        got = torch.autograd.grad([spike_seq, *end], inputs, incoming, materialize_grads=True)
        ref.assert_gradients(got, want, tolerance, incoming)


@examples(50)
@given(constants, st.sampled_from(DTYPES), seeds)
def test_transfer_function_is_the_printed_one(c: Any, dtype: torch.dtype, seed: int) -> None:
    s = values((40,), "random", 2.0, seed, torch.float64).to(dtype).requires_grad_()
    signals = s.tolist()
    want = torch.tensor([ref.transfer(v, c) for v in signals], dtype=torch.float64)
    step = 1e-6
    slope = [(ref.transfer(v + step, c) - ref.transfer(v - step, c)) / (2 * step) for v in signals]
    smooth = (want > 0) & (s.detach().double() > 2 * step)
    for execution in executions("asn_transfer", dtype):
        f = run(execution, "asn_transfer", s, c.m_f, c.theta_0, exact=False, tau_gamma=c.tau_gamma, tau_eta=c.tau_eta)
        ref.assert_close(f, want, 1e-9 if dtype == torch.float64 else 1e-5)
        (gradient,) = torch.autograd.grad(f.sum(), s)
        ref.assert_close(gradient[smooth], torch.tensor(slope, dtype=torch.float64)[smooth], 1e-4)


@examples(20)
@given(constants, seeds)
def test_interval_and_exact_transfer_solve_the_equilibrium(c: Any, seed: int) -> None:
    signals = values((20,), "random", 2.0, seed, torch.float64)
    first = c.theta_0 / 2  # the signal that never fires, from which on f goes linearly to 0
    t = [ref.interval(v, c) if v > first else math.inf for v in signals.tolist()]
    per_height = 1 / math.tanh(ref.interval(1.0, c) / (2 * c.tau_beta))
    f = [
        (1 / math.tanh(te / (2 * c.tau_beta)) if te < math.inf else max(0.0, v / first)) / per_height
        for v, te in zip(signals.tolist(), t, strict=True)
    ]
    options = {"tau_gamma": c.tau_gamma, "tau_eta": c.tau_eta}
    found = functional.asn_interval(signals, c.m_f, c.theta_0, **options)
    assert found.isfinite().tolist() == [te < math.inf for te in t]
    ref.assert_close(
        found[found.isfinite()], torch.tensor([te for te in t if te < math.inf], dtype=torch.float64), 1e-9
    )
    found = functional.asn_transfer(signals, c.m_f, c.theta_0, exact=True, tau_beta=c.tau_beta, **options)
    ref.assert_close(found, torch.tensor(f, dtype=torch.float64), 1e-9)


# -- a layer behind spikes ---------------------------------------------------------------------------------------------


@examples(40)
@given(st.data())
def test_layer_that_adds_up_single_spikes_is_the_layer(data: Any) -> None:
    """On exact arithmetic any order of the sum gives the same bits."""
    generator = torch.Generator().manual_seed(data.draw(seeds))
    channels, outputs = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 150))
    if data.draw(st.booleans()):
        layer: nn.Module = nn.Linear(8 * channels, outputs, bias=data.draw(st.booleans()))
        x = torch.randint(0, 2, (data.draw(st.integers(1, 5)), 8 * channels), generator=generator).float()
    else:
        pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
        padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        layer = nn.Conv2d(
            channels, outputs, data.draw(pair), data.draw(pair), padding, data.draw(pair), bias=data.draw(st.booleans())
        )
        size = data.draw(st.tuples(st.integers(7, 9), st.integers(7, 9)))  # a dilated kernel has to fit
        x = torch.randint(0, 2, (data.draw(st.integers(1, 4)), channels, *size), generator=generator).float()
        x = x.contiguous(memory_format=torch.channels_last) if data.draw(st.booleans()) else x
    x = x * (torch.rand(x.shape, generator=generator) < data.draw(st.sampled_from((0.0, 0.05, 0.3, 1.0))))
    x = x * data.draw(st.sampled_from((1.0, -1.0, 0.5)))  # events of an encoder have a sign, those of a neuron a scale
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randint(-16, 17, parameter.shape, generator=generator) / 16)
        found = select("spike_convolution", x.device, x.dtype).prepare(layer)(x)
        ref.assert_same(found, layer.double()(x.double()))
