"""The definition of the adaptive spiking neuron against an independent loop, and against its mathematics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snn_ext.functional import (
    ASNState,
    Sigmoid,
    adaptive_spiking,
    asn_spike_height,
    asn_transfer,
    postsynaptic_potential,
)


def simulate(
    x_seq: np.ndarray,
    *,
    m_f: Any = 0.1,
    theta_0: Any = None,
    bias: Any = 0.0,
    tau: tuple[float, float, float, float] = (15.0, 50.0, 50.0, 5.0),
    dt: float = 1.0,
    analog: bool = False,
    adaptive: bool = False,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Simulate in numpy, in the dtype of the input, step by step; ``tau`` is gamma, eta, beta, phi."""
    kind = x_seq.dtype.type
    d_g, d_e, d_b, d_p = (kind(math.exp(-dt / t)) if t else kind(0) for t in tau)
    m_f = np.asarray(m_f, kind)
    theta_0 = m_f if theta_0 is None else np.asarray(theta_0, kind)
    current, s_dyn, s_hat, adaptation = (np.zeros(x_seq.shape[1:], kind) for _ in range(4))
    theta = theta_0 + adaptation
    out = []
    for x in x_seq:
        current = x if analog else current * d_b + x
        s_dyn = (kind(1) - d_p) * current + d_p * s_dyn
        s = np.asarray(bias, kind) + s_dyn
        s_hat = s_hat * d_e
        z = (s - s_hat > kind(0.5) * theta).astype(kind)
        out.append(theta * z if adaptive else z)
        s_hat = s_hat + theta * z
        adaptation = (adaptation + m_f * theta * z) * d_g
        theta = theta_0 + adaptation
    return np.stack(out), [current, s_dyn, s_hat, adaptation]


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "analog": {"analog": True},
    "precise": {"m_f": 0.03, "dt": 0.5},
    "rest": {"m_f": 0.3, "theta_0": 0.1, "bias": 0.2},
    "adaptive": {"adaptive": True, "tau": (10.0, 30.0, 20.0, 2.5)},
    "no filter": {"tau": (15.0, 50.0, 50.0, 0.0), "analog": True},
    "by channel": {"m_f": np.array([[0.05], [0.1], [0.4]]), "bias": np.array([[0.0], [0.5], [-0.5]])},
}


def arguments(settings: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    settings = {k: torch.from_numpy(v).to(dtype) if isinstance(v, np.ndarray) else v for k, v in settings.items()}
    names = ("tau_gamma", "tau_eta", "tau_beta", "tau_phi")
    out = dict(zip(names, settings.pop("tau", ()), strict=False))
    height = "adaptive" if settings.pop("adaptive", False) else "fixed"
    return {**out, "spike_height": height, "analog_input": settings.pop("analog", False), **settings}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_definition_is_the_independent_loop(name: str, grid: bool, dtype: torch.dtype) -> None:
    x_seq = torch.randint(-6, 9, (200, 3, 40)) / 16 if grid else torch.randn(200, 3, 40) * 0.3 + 0.1
    x_seq = x_seq.to(dtype)
    want, want_state = simulate(x_seq.numpy(), **SETTINGS[name])
    found, state = adaptive_spiking(x_seq, **arguments(SETTINGS[name], dtype))
    assert np.array_equal(found.numpy(), want)
    for part, want_part in zip(state, want_state, strict=True):
        assert part.dtype == dtype and np.array_equal(part.numpy(), want_part)


def test_a_spike_needs_more_than_half_the_threshold() -> None:
    x_seq = torch.tensor([[0.25, np.nextafter(np.float32(0.25), 1, dtype=np.float32)]])
    spikes, state = adaptive_spiking(x_seq, analog_input=True, tau_phi=0.0, m_f=0.5)
    assert spikes.tolist() == [[0.0, 1.0]] and state.s_hat.tolist() == [0.0, 0.5]


def test_the_order_of_one_spike() -> None:
    # Decays of one half: everything is exact.
    half = 1 / math.log(2)
    times = {name: half for name in ("tau_gamma", "tau_eta", "tau_beta", "tau_phi")}
    spikes, state = adaptive_spiking(torch.tensor([[4.0], [0.0]]), m_f=0.5, theta_0=1.0, bias=0.25, **times)
    # step 1: I 4, s 2, S 2.25 > 0.5: S_hat 1, adaptation (0 + 0.5) / 2; step 2: I 2, s 2, S 2.25 - 0.5 > 0.625
    assert spikes.flatten().tolist() == [1.0, 1.0]
    assert [part.item() for part in state] == [2.0, 2.0, 0.5 + 1.25, (0.25 + 0.5 * 1.25) / 2]


def test_state_carries_over_and_precision_may_change() -> None:
    x_seq = torch.full((400, 2), 0.6)
    whole, _ = adaptive_spiking(x_seq, analog_input=True, m_f=0.3)
    first, state = adaptive_spiking(x_seq[:200], analog_input=True, m_f=0.3)
    same, _ = adaptive_spiking(x_seq[200:], state, analog_input=True, m_f=torch.tensor([0.3, 0.1]))
    assert torch.equal(torch.cat((first, same))[:, 0], whole[:, 0])
    assert same[:, 1].sum() > 2 * same[:, 0].sum()
    narrow, tail = state._replace(s_hat=state.s_hat.double()), x_seq[200:]
    assert torch.equal(adaptive_spiking(tail, narrow, analog_input=True, m_f=0.3)[0], whole[200:])


def test_each_sample_gets_what_it_gets_alone() -> None:
    x_seq, m_f = torch.rand(100, 4, 3), torch.tensor([0.05, 0.1, 0.2, 0.4]).reshape(4, 1)
    together, _ = adaptive_spiking(x_seq, m_f=m_f)
    for n in range(4):
        alone, _ = adaptive_spiking(x_seq[:, n], m_f=float(m_f[n]))
        assert torch.equal(together[:, n], alone)


# -- what the neuron is for --------------------------------------------------------------------------------------------


def mean_psc(signal: Tensor, *, dt: float = 1.0, first: int = 1000, last: int = 4000, **constants: Any) -> Tensor:
    """Return the time-mean of the current that spikes of unit height cause, over 1..4 s of a constant signal."""
    x_seq = signal.expand(int(last / dt), *signal.shape)
    spikes, _ = adaptive_spiking(x_seq, analog_input=True, dt=dt, **constants)
    psc, _ = postsynaptic_potential(spikes, tau_phi=0.0, dt=dt, tau_beta=constants.get("tau_beta", 50.0))
    return psc[int(first / dt) :].mean(0)


@pytest.mark.parametrize("m_f", [0.1, 0.05, 0.3])
def test_the_mean_current_is_the_transfer_function(m_f: float) -> None:
    signal = torch.linspace(max(0.2, 2 * m_f), min(4.0, 3.0 if m_f < 0.1 else 4.0), 77, dtype=torch.float64)
    error = (asn_spike_height(m_f) * mean_psc(signal, m_f=m_f) - asn_transfer(signal, m_f)).abs().max()
    assert error <= 0.02


@pytest.mark.parametrize(("tau_beta", "tolerance"), [(25.0, 0.03), (100.0, 0.01)])
def test_the_mean_current_is_the_exact_equilibrium_with_another_synapse(tau_beta: float, tolerance: float) -> None:
    signal = torch.linspace(0.2, 3.0, 57, dtype=torch.float64)
    mean = mean_psc(signal, m_f=0.1, tau_beta=tau_beta)
    error = (asn_spike_height(tau_beta=tau_beta) * mean - asn_transfer(signal, tau_beta=tau_beta)).abs().max()
    assert error <= tolerance  # the mean between two spikes is that of their ends: worse for a fast synapse
    assert (asn_spike_height() * mean - asn_transfer(signal)).abs().max() > 1.0


def test_adaptive_height_is_a_rectified_line() -> None:
    signal = torch.linspace(-1.0, 3.0, 81, dtype=torch.float64)
    mean = mean_psc(signal, spike_height="adaptive")
    assert ((mean - signal)[signal > 0.1].abs() <= 0.06).all() and not mean[signal <= 0.05].any()


@pytest.mark.parametrize("height", ["fixed", "adaptive"])
def test_float32_has_the_rate_of_float64(height: Any) -> None:
    x_seq = torch.rand(500, 2000) * torch.linspace(0, 0.08, 2000)
    rates = [(adaptive_spiking(x, spike_height=height)[0] != 0).double().mean(0) for x in (x_seq, x_seq.double())]
    assert (rates[0] - rates[1]).abs().max() <= 0.01 and rates[0].mean() > 0.05


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradients_of_one_step() -> None:
    x, s_hat, adaptation = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.4, 0.1, 0.05))
    m_f = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    state = (torch.zeros(1), torch.zeros(1), s_hat, adaptation)
    for detach in (True, False):
        spikes, end = adaptive_spiking(
            x.reshape(1, 1), state, m_f=m_f, tau_phi=0.0, analog_input=True, detach_adaptation=detach,
            surrogate=Sigmoid(2.0),
        )  # fmt: skip
        theta, d_e, d_g = 0.25, math.exp(-1 / 50), math.exp(-1 / 15)
        e = math.exp(-2.0 * (0.4 - 0.1 * d_e - theta / 2))
        slope = 2.0 * e / (1 + e) ** 2
        through = 0.0 if detach else theta * slope  # of the jump by the difference
        for output, want in (
            (spikes, (slope, -d_e * slope, -slope / 2)),
            (end.s_hat, (through, d_e - d_e * through, 1.0 - through / 2)),
            (end.adaptation, (0.2 * d_g * through, -0.2 * d_g * d_e * through, d_g * (1 + 0.2 * (1 - through / 2)))),
        ):
            found = torch.autograd.grad(output.sum(), (x, s_hat, adaptation), retain_graph=True, materialize_grads=True)
            assert [g.item() for g in found] == pytest.approx(want)
        (of_m_f,) = torch.autograd.grad(end.adaptation.sum(), m_f)
        assert of_m_f.item() == pytest.approx(d_g * (theta + 0.2 * (1 - through / 2)))


def test_the_filter_alone_is_differentiated_exactly() -> None:
    x_seq = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.rand(3, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)

    def run(x_seq: Tensor, bias: Tensor, tau: Tensor) -> Tensor:
        return postsynaptic_potential(x_seq, bias=bias, tau_phi=tau)[0]

    assert torch.autograd.gradcheck(run, (x_seq, bias, tau))


# -- values and arguments ----------------------------------------------------------------------------------------------


def test_nan_never_fires_and_stays() -> None:
    x_seq = torch.full((50, 3), 0.5)
    x_seq[3, 1], x_seq[5:, 2] = torch.nan, -torch.inf
    spikes, state = adaptive_spiking(x_seq)
    assert not spikes[3:, 1].any() and not spikes[5:, 2].any() and state.s[1].isnan() and spikes[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_keep_a_wide_state(dtype: torch.dtype) -> None:
    x_seq = (torch.randn(100, 200) * 0.3).to(dtype)
    spikes, state = adaptive_spiking(x_seq)
    assert spikes.dtype == dtype and state.s.dtype == torch.float32
    assert torch.equal(spikes.float(), adaptive_spiking(x_seq.float())[0])


@pytest.mark.parametrize("name", ["m_f", "theta_0", "tau_gamma", "tau_eta", "tau_beta", "tau_phi", "dt"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 0.0])
def test_bad_constants_raise_with_the_reason(name: str, value: float) -> None:
    x_seq = torch.zeros(2, 3)
    if name == "tau_phi" and value == 0.0:
        adaptive_spiking(x_seq, tau_phi=value)
        return
    values: list[Any] = [value] if name == "dt" else [value, torch.tensor([0.1, value, 0.1])]
    for bad in values:
        with pytest.raises(ValueError, match=rf"^{name}: got .*, want a finite number >=? 0: \w+"):
            adaptive_spiking(x_seq, **{name: bad})


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"current_seq": [1.0]}, TypeError, "current_seq: got"),
        ({"current_seq": torch.zeros(2, 3, dtype=torch.int)}, TypeError, "current_seq: got"),
        ({"state": torch.zeros(4, 3)}, TypeError, "state: got"),
        ({"state": (0.0, 0.0)}, TypeError, "state: got"),
        ({"state": (0.0, 0.0, torch.zeros(2), 0.0)}, ValueError, "state.s_hat: got"),
        ({"bias": torch.zeros(2)}, ValueError, "bias: got"),
        ({"bias": "0"}, TypeError, "bias: got"),
        ({"m_f": torch.ones(2)}, ValueError, "m_f: got"),
        ({"m_f": "0.1"}, TypeError, "m_f: got"),
        ({"m_f": True}, TypeError, "m_f: got"),
        ({"tau_eta": torch.ones(3, dtype=torch.int)}, TypeError, "tau_eta: got"),
        ({"dt": torch.ones(())}, TypeError, "dt: got"),
        ({"analog_input": 1}, TypeError, "analog_input: got"),
        ({"spike_height": "none"}, ValueError, "spike_height: got"),
        ({"detach_adaptation": None}, TypeError, "detach_adaptation: got"),
        ({"surrogate": 3}, TypeError, "surrogate: got"),
    ],
)
def test_wrong_arguments_are_named(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        adaptive_spiking(**{"current_seq": torch.zeros(2, 3), **changed})
    assert str(caught.value).startswith(message) and "want" in str(caught.value)


def test_state_is_a_named_tuple_in_the_papers_order() -> None:
    assert ASNState._fields == ("psc", "s", "s_hat", "adaptation")
