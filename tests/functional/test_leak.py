"""The charge rules of ``integrate_and_fire`` against the neurons whose they are: every rounding is the host's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from snn_ext import ops
from snn_ext.functional import ATan, Sigmoid, integrate_and_fire

DTYPES = (torch.float32, torch.float64)
TAUS = (1.1, 2.0, 3.0, 7.3, 100.0)


def inputs(dtype: torch.dtype) -> Iterable[Tensor]:
    """Random input, and input from a grid on which potentials meet the threshold again and again."""
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(33, 200, generator=generator, dtype=dtype) + 0.5
    yield torch.randint(-8, 33, (33, 200), generator=generator).to(dtype) / 8


def assert_same(found: tuple[Tensor, Tensor], spikes: Tensor, v: Tensor) -> None:
    assert torch.equal(found[0], spikes) and torch.equal(found[1], v)
    assert 0.01 < spikes.mean() < 0.99


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", [integrate_and_fire, ops.integrate_and_fire])
def test_lif_is_that_of_spikingjelly(run: Any, dtype: torch.dtype) -> None:
    for tau, of_input, v_reset, x_seq in itertools.product(TAUS, (True, False), (None, 0.0), inputs(dtype)):
        x_seq = x_seq * tau if of_input else x_seq  # it fires
        node = neuron.LIFNode(tau, of_input, 0.25, v_reset, step_mode="m")
        reset = "subtract" if v_reset is None else "zero"
        charge = "tau_input" if of_input else "tau"
        found = run(x_seq, 0.0, torch.tensor([0.25]), decay=tau, charge=charge, reset=reset)
        assert_same(found, node(x_seq), node.v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", [integrate_and_fire, ops.integrate_and_fire])
def test_parametric_lif_is_that_of_spikingjelly(run: Any, dtype: torch.dtype) -> None:
    for tau, of_input, v_reset, x_seq in itertools.product(TAUS, (True, False), (None, 0.0), inputs(dtype)):
        x_seq = x_seq * tau if of_input else x_seq
        node = neuron.ParametricLIFNode(tau, of_input, 0.25, v_reset, step_mode="m").to(dtype)
        reset = "subtract" if v_reset is None else "zero"
        charge = "rate_input" if of_input else "rate"
        with torch.no_grad():
            found = run(x_seq, 0.0, torch.tensor([0.25]), decay=node.w.sigmoid(), charge=charge, reset=reset)
            assert_same(found, node(x_seq), node.v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", [integrate_and_fire, ops.integrate_and_fire])
def test_leaky_is_that_of_snntorch(run: Any, dtype: torch.dtype) -> None:
    for beta, mechanism, x_seq in itertools.product((0.0, 0.3, 0.9, 1.0), ("subtract", "zero", "none"), inputs(dtype)):
        threshold = 1.7 if mechanism == "none" else 0.7
        leaky = snn.Leaky(beta, threshold, reset_mechanism=mechanism).to(dtype)
        mem, spikes = torch.zeros_like(x_seq[0]), []
        for x in x_seq:
            spk, mem = leaky(x, mem)
            spikes.append(spk)
        reset = "delayed" if mechanism == "subtract" else mechanism
        options = {"reset": reset, "detach_reset": True, "fire_at_threshold": False, "charge": "beta"}
        thresholds = leaky.threshold.reshape(1)
        found = run(x_seq, 0.0, thresholds, decay=leaky.beta, **options)
        carried = mem.masked_fill(mem > thresholds, 0.0) if reset == "zero" else mem  # the host resets a step later
        assert_same(found, torch.stack(spikes), carried)


def test_gradients_are_those_of_leaky() -> None:
    x_seq = torch.randn(20, 50, dtype=torch.float64) + 0.5
    for mechanism in ("subtract", "zero", "none"):
        grads = []
        for fused in (False, True):
            leaky = snn.Leaky(0.8, 0.7, reset_mechanism=mechanism, learn_beta=True)
            leaky = leaky.double()
            leaves = [x_seq.clone().requires_grad_(), leaky.beta, torch.tensor([0.7]).double().requires_grad_()]
            if fused:
                reset = "delayed" if mechanism == "subtract" else mechanism
                options = {"detach_reset": True, "fire_at_threshold": False, "surrogate": ATan(2.0), "reset": reset}
                spikes, _ = ops.integrate_and_fire(
                    leaves[0], 0.0, leaves[2], decay=leaves[1].clamp(0, 1), charge="beta", **options
                )
            else:
                del leaky.threshold
                leaky.threshold, mem, found = leaves[2], torch.zeros_like(x_seq[0]), []
                for x in leaves[0]:
                    spk, mem = leaky(x, mem)
                    found.append(spk)
                spikes = torch.stack(found)
            grads.append(torch.autograd.grad((spikes * x_seq).sum(), leaves))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # its spikes are float32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"decay": 0.5}, "decay"),
        ({"charge": "beta"}, "decay"),
        ({"decay": 0.5, "charge": "leak"}, "charge"),
        ({"decay": torch.ones(3), "charge": "beta"}, "decay"),
        ({"decay": "0.5", "charge": "beta"}, "decay"),
        ({"reset": "delayed"}, "reset"),
        ({"decay": 0.5, "charge": "beta", "reset": "delayed"}, "reset"),
        ({"decay": 2.0, "charge": "tau", "reset": "delayed", "detach_reset": True}, "reset"),
    ],
)
def test_a_leak_that_means_nothing_is_refused(options: dict[str, Any], named: str) -> None:
    for run in (integrate_and_fire, ops.integrate_and_fire):
        with pytest.raises((TypeError, ValueError), match=f"^{named}: got .*want"):
            run(torch.zeros(4, 2), 0.0, torch.ones(1), **options)


@pytest.mark.parametrize("charge", ["tau", "tau_input", "rate", "rate_input", "beta"])
def test_second_derivatives_and_one_decay_per_channel(charge: str) -> None:
    x_seq = torch.randn(4, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    decay = torch.tensor([1.5, 0.5, 0.7], dtype=torch.float64, requires_grad=True)
    options = {"decay": decay.reshape(3, 1), "charge": charge, "surrogate": Sigmoid(4.0)}
    _, v = integrate_and_fire(x_seq, 0.0, torch.full((1,), 9.0), **options)  # nothing fires: it is smooth
    (gradient,) = torch.autograd.grad(v.sum(), decay, create_graph=True)
    _, fused = ops.integrate_and_fire(x_seq, 0.0, torch.full((1,), 9.0), **options)
    torch.testing.assert_close(torch.autograd.grad(fused.sum(), decay)[0], gradient)
    assert torch.autograd.grad(gradient.sum(), decay)[0].abs().sum() > 0
