"""The transfer function against the paper's equations, evaluated as they stand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from snn_ext.functional import asn_ceiling, asn_interval, asn_spike_height, asn_transfer

# m_f: h, f at infinity, ceiling of the mean current at 1 ms; evaluated independently
TABLE = {
    0.03: (0.03847, 4.34, 1.94),
    0.05: (0.06356, 4.34, 3.21),
    0.10: (0.12443, 4.35, 6.28),
    0.20: (0.23929, 4.37, 12.1),
    0.30: (0.34672, 4.40, 17.5),
    0.50: (0.54592, 4.49, 27.6),
    1.00: (1.00278, 4.84, 50.6),
}


def equation_11(s: np.ndarray, m_f: float, theta_0: float, gamma: float, eta: float, h: float) -> np.ndarray:
    c1, c2 = 2 * m_f * gamma**2, 2 * theta_0 * eta * gamma
    c3, c4 = gamma * (m_f * gamma + 2 * (m_f + 1) * eta), theta_0 * eta * (gamma + eta)

    def psc(s: Any) -> Any:
        return h / (np.exp((c1 * s + c2) / (c3 * s + c4)) - 1)

    return np.where(s > 0, np.maximum(0, psc(np.maximum(s, 0.0)) - psc(theta_0 / 2) + h / 2), 0.0)


@pytest.mark.parametrize("m_f", TABLE)
def test_the_table(m_f: float) -> None:
    h, saturation, ceiling = TABLE[m_f]
    assert asn_spike_height(m_f) == pytest.approx(h, abs=5.1e-6)
    assert asn_transfer(torch.tensor(torch.inf), m_f).item() == pytest.approx(saturation, abs=5.1e-3)
    assert asn_ceiling(m_f) == pytest.approx(ceiling, rel=3e-3)


@pytest.mark.parametrize(("m_f", "theta_0"), [(0.03, 0.03), (0.1, 0.1), (0.3, 0.1), (1.0, 0.5)])
@pytest.mark.parametrize("times", [(15.0, 50.0), (50.0, 20.0)])
def test_it_is_equation_11(m_f: float, theta_0: float, times: tuple[float, float]) -> None:
    s = torch.linspace(-1, 5, 601, dtype=torch.float64)
    constants = {"tau_gamma": times[0], "tau_eta": times[1], "tau_beta": times[1]}
    h = asn_spike_height(m_f, theta_0, **constants)
    found = asn_transfer(s, m_f, theta_0, **constants)
    assert found.numpy() == pytest.approx(equation_11(s.numpy(), m_f, theta_0, *times, h), abs=1e-12)
    for dtype in (torch.float32, torch.bfloat16):
        near = asn_transfer(s.to(dtype), m_f, theta_0, **constants)
        rounded = asn_transfer(s.to(dtype).double(), m_f, theta_0, **constants)
        assert near.dtype == dtype
        torch.testing.assert_close(near.double(), rounded, rtol=torch.finfo(dtype).eps * 8, atol=1e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_fixed_points(exact: bool) -> None:
    for m_f in TABLE:
        h = asn_spike_height(m_f, exact=exact)
        s = torch.tensor([-torch.inf, -1.0, 0.0, m_f / 2, 1.0], dtype=torch.float64)
        f = asn_transfer(s, m_f, exact=exact)
        assert f.tolist() == pytest.approx([0, 0, 0, h / 2, 1], abs=1e-12)
        small = asn_transfer(torch.tensor([1e-12], dtype=torch.float64), m_f, exact=exact)
        assert 0 <= small.item() <= 0.0021 * h
        grid = asn_transfer(torch.linspace(0.0, 20.0, 2001, dtype=torch.float64), m_f, exact=exact)
        assert (grid.diff() >= 0).all()


def test_the_expansion_is_close_to_the_exact_equilibrium() -> None:
    for m_f, distance in ((0.03, 0.0011), (0.1, 0.0026), (0.3, 0.0028)):
        s = torch.linspace(m_f / 2 + 1e-6, 4.0, 400, dtype=torch.float64)
        exact = asn_transfer(s, m_f, exact=True) * asn_spike_height(m_f) / asn_spike_height(m_f, exact=True)
        assert (exact - asn_transfer(s, m_f)).abs().max() <= distance


@pytest.mark.parametrize("m_f", [0.03, 0.1, 1.0])
def test_the_interval_solves_equation_10(m_f: float) -> None:
    s = torch.cat((torch.linspace(m_f / 2 + 1e-3, 5.0, 200), torch.tensor([1e3]))).double()
    t = asn_interval(s, m_f)
    e, g = torch.exp(-t / 50), torch.exp(-t / 15)
    left, right = 2 * s * (1 - e) * (1 - (1 + m_f) * g), m_f * (1 - g) * (1 + e)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=0)
    edge = asn_interval(torch.tensor([m_f / 2, 1e30, torch.inf], dtype=torch.float64), m_f)
    assert edge[0] == torch.inf and edge[1:].tolist() == pytest.approx([15 * math.log1p(m_f)] * 2)


def test_another_synapse_is_solved_exactly() -> None:
    s = torch.linspace(0.06, 4, 100, dtype=torch.float64)
    t, h = asn_interval(s), asn_spike_height(tau_beta=30.0)
    want = h / torch.expm1(t / 30.0) + h / 2
    assert asn_transfer(s, tau_beta=30.0).numpy() == pytest.approx(want.numpy(), rel=1e-12)
    assert asn_transfer(torch.ones(1, dtype=torch.float64), tau_beta=30.0).item() == pytest.approx(1.0)


@pytest.mark.parametrize("exact", [False, True])
def test_gradients_are_correct_in_the_signal_and_the_constants(exact: bool) -> None:
    def leaf(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, requires_grad=True)

    def run(s, m_f, theta_0, tau_gamma, tau_eta, tau_beta):
        times = {"tau_gamma": tau_gamma, "tau_eta": tau_eta, "tau_beta": tau_beta}
        return asn_transfer(s, m_f, theta_0, **times, exact=exact)

    constants = (leaf(0.1), leaf(0.12), leaf(14.0), leaf(45.0), leaf(55.0))
    assert torch.autograd.gradcheck(run, (leaf(-0.5, 0.03, 0.09, 0.4, 1.0, 3.0), *constants))
    s = leaf(-torch.inf, -1.0, 0.0, torch.inf)
    assert not torch.autograd.grad(run(s, *constants).sum(), s)[0].any()


def test_the_derivative_is_the_papers() -> None:
    s = torch.linspace(0.01, 5, 300, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(asn_transfer(s, 0.1).sum(), s)
    c1, c2, c3, c4 = 45.0, 150.0, 15 * (1.5 + 110.0), 0.1 * 50 * 65
    q = c3 * s.detach() + c4
    u = (c1 * s.detach() + c2) / q
    want = -asn_spike_height(0.1) * u.exp() / torch.expm1(u) ** 2 * (c1 * c4 - c2 * c3) / q**2
    assert found.numpy() == pytest.approx(want.numpy(), rel=1e-10)


def test_the_cut_gives_the_piecewise_form() -> None:
    s = torch.tensor([0.02, 0.05, 0.0501, 1.0])
    assert asn_transfer(s, cut=0.05).tolist()[:2] == [0.0, 0.0]
    assert torch.equal(asn_transfer(s, cut=0.05)[2:], asn_transfer(s)[2:]) and asn_transfer(s)[0] > 0


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_signals_are_compared_with_what_was_asked_for(dtype: torch.dtype, exact: bool) -> None:
    s = torch.linspace(0.01, 0.9, 200).to(dtype)
    for number in s[::20].tolist():
        for edge in (number * (1 - 1e-4), number, number * (1 + 1e-4)):
            want = s.double() <= edge
            assert torch.equal(asn_transfer(s, 2 * edge, cut=edge, exact=exact) == 0, want)
            assert torch.equal(asn_interval(s, 2 * edge) == torch.inf, want)


def test_constants_by_channel() -> None:
    s, m_f = torch.rand(5, 3) * 3, torch.tensor([0.05, 0.1, 0.3])
    found, heights = asn_transfer(s, m_f), asn_spike_height(m_f)
    for k, value in enumerate(m_f.tolist()):
        torch.testing.assert_close(found[:, k], asn_transfer(s[:, k], value))
        assert heights[k].item() == pytest.approx(asn_spike_height(value))
        assert asn_ceiling(m_f)[k].item() == pytest.approx(asn_ceiling(value))


def test_the_ceiling_of_adaptive_heights() -> None:
    assert asn_ceiling(0.1, spike_height="adaptive") == math.inf
    g = math.exp(-1 / 15)
    want = 0.03 * (1 - g) / (1 - 1.03 * g) / (1 - math.exp(-1 / 50))
    assert asn_ceiling(0.03, spike_height="adaptive") == pytest.approx(want)
    both = asn_ceiling(torch.tensor([0.03, 0.1], dtype=torch.float64), spike_height="adaptive")
    assert both.tolist() == pytest.approx([want, math.inf])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0],), {}, "s: got"),
        ((torch.ones(2, dtype=torch.int),), {}, "s: got"),
        ((torch.ones(2), 0.0), {}, "m_f: got 0.0, want a finite number > 0: each spike"),
        ((torch.ones(2), torch.tensor([0.1, -0.1])), {}, "m_f: got"),
        ((torch.ones(2), torch.ones(3)), {}, "m_f: got"),
        ((torch.ones(2), 2.5), {}, "theta_0: got 2.5, want < 2"),
        ((torch.ones(2), 0.1, torch.tensor([0.1, 2.0])), {}, "theta_0: got 2.0, want < 2"),
        ((torch.ones(2),), {"tau_beta": -1.0}, "tau_beta: got"),
        ((torch.ones(2),), {"cut": -1.0}, "cut: got"),
        ((torch.ones(2),), {"exact": 1}, "exact: got"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        asn_transfer(*arguments, **options)
    assert str(caught.value).startswith(message) and "want" in str(caught.value)
