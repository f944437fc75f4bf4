"""What the properties hold the package against: loops written from the equations; nothing here calls the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Derivative = Callable[[Tensor], Tensor]

DERIVATIVES: dict[str, Callable[[float, Tensor], Tensor]] = {
    "Sigmoid": lambda a, u: a / ((1 + torch.exp(-a * u)) * (1 + torch.exp(a * u))),
    "ATan": lambda a, u: a / 2 / (1 + (math.pi / 2 * a * u) ** 2),
    "PiecewiseQuadratic": lambda a, u: (a - a * a * u.abs()).clamp(min=0),
    "PiecewiseExp": lambda a, u: a / 2 * torch.exp(-a * u.abs()),
    "SoftSign": lambda a, u: a / 2 / (1 + a * u.abs()) ** 2,
    "SuperSpike": lambda a, u: a / (1 + u.abs()) ** 2,
    "Erf": lambda a, u: a / math.sqrt(math.pi) * torch.exp(-((a * u) ** 2)),
}
"""The derivatives as the documentation gives them."""


def as_array(x: Tensor) -> Array:
    """Return the values in the dtype of the state: float64 for float64, else float32."""
    return x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32).numpy()


def assert_same(got: Tensor, want: Any) -> None:
    """Compare shape and every value; NaN equals NaN."""
    want = want if isinstance(want, Tensor) else torch.from_numpy(np.array(want))
    assert got.shape == want.shape, f"got shape {list(got.shape)}, want {list(want.shape)}"
    got, want = got.detach().double(), want.detach().double()
    wrong = ~((got == want) | (got.isnan() & want.isnan()))
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} differ: got {got[wrong][:4]}, want {want[wrong][:4]}"
    )


def assert_close(got: Tensor, want: Tensor, tolerance: float, terms: float = 0.0) -> None:
    """Compare within the rounding of the dtype of ``got``, and ``tolerance`` of the largest magnitude.

    ``terms`` is the magnitude of what was summed up: a sum may cancel, its rounding does not.
    """
    assert got.shape == want.shape, f"got shape {list(got.shape)}, want {list(want.shape)}"
    if want.numel() == 0:
        return
    peak = max(float(want.abs().max()), terms)
    limit = torch.finfo(got.dtype).eps * want.abs() + tolerance * peak + torch.finfo(got.dtype).tiny
    error = (got.double() - want).abs()
    assert bool((error <= limit).all()), f"error {float((error - limit).max()):.3g} above the limit, peak {peak:.3g}"


def assert_gradients(
    got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float, incoming: Sequence[Tensor]
) -> None:
    """Compare the gradient of a sequence, then those that are sums over steps, or over neurons and steps."""
    assert_close(got[0], want[0], tolerance)
    of_steps = want[0].abs().sum(0) + sum(gradient.double().abs().sum(0) for gradient in incoming[:1])
    for one, other in zip(got[1:], want[1:], strict=True):
        of_neurons = other.numel() < of_steps.numel()
        terms = of_steps.sum() / 20 if of_neurons else of_steps.max() if of_steps.numel() else 0.0
        assert_close(one, other, tolerance, float(terms))


# -- integrate and fire ------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    spikes: Array  # [T, N, ...] of 0 and 1
    before_reset: Array  # h, [T, N, ...]
    after_reset: Array  # v, [T, N, ...]


def integrate_and_fire(x_seq: Array, v: Any, thresholds: Any, reset: str, fire_at_threshold: bool) -> Run:
    """Equations 2, 4 and 5 of Castagnetti et al. 2023, in the dtype of the input."""
    dtype = x_seq.dtype.type
    thresholds = np.broadcast_to(np.asarray(thresholds, dtype), (len(x_seq),))
    v = np.broadcast_to(np.asarray(v, dtype), x_seq.shape[1:])
    spikes, before, after = [], [], []
    with np.errstate(all="ignore"):
        for x, theta in zip(x_seq, thresholds, strict=True):
            h = v + x
            fires = h >= theta if fire_at_threshold else h > theta
            v = {"subtract": np.where(fires, h - theta, h), "zero": np.where(fires, dtype(0), h), "none": h}[reset]
            spikes.append(fires.astype(dtype))
            before.append(h)
            after.append(v)
    return Run(np.stack(spikes), np.stack(before), np.stack(after))


class _Spike(torch.autograd.Function):
    """Given spikes with a given derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, spikes: Tensor, derivative: Derivative) -> Tensor:
        ctx.save_for_backward(derivative(u))
        return spikes.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


def differentiable_integrate_and_fire(
    x_seq: Tensor, v: Tensor, thresholds: Tensor, spikes: Tensor, derivative: Derivative, detach: bool, reset: str
) -> tuple[Tensor, Tensor]:
    """Run in float64 with the spikes that are given: all else is left to autograd."""
    found = []
    for x, theta, fired in zip(x_seq, thresholds.expand(len(x_seq)), spikes, strict=True):
        h = v + x
        s = _Spike.apply(h - theta, fired, derivative)
        r = s.detach() if detach else s
        v = {"subtract": h - r * theta, "zero": (1 - r) * h, "none": h}[reset]
        found.append(s)
    return torch.stack(found), v


# -- quantisation ------------------------------------------------------------------------------------------------------


def count_of_constant_input(
    x: Fraction, v: Fraction, thresholds: Sequence[Fraction], fire_at_threshold: bool, resets: bool = True
) -> int:
    """Simulate one neuron with exact numbers."""
    count = 0
    for theta in thresholds:
        v += x
        if v >= theta if fire_at_threshold else v > theta:
            count += 1
            v -= theta if resets else 0
    return count


def nonuniform_thresholds(p: Sequence[Any], recursion: str) -> list[Any]:
    """Thresholds of the steps from quantisation points, of any kind of number; the index of the equations is from 1."""
    last = len(p)
    if recursion == "cumulative":
        return [k * p[k - 1] for k in range(1, last + 1)]
    found: dict[int, Any] = {last: last * p[last - 1]}
    for k in range(last - 1, 0, -1):
        if recursion == "paper":
            found[k] = p[0] if k == 1 else (k + 1) * p[k - 1] - found[k + 1]
        else:
            found[k] = min(m * p[k - 1] - sum(found[j] for j in range(k + 1, m + 1)) for m in range(k, last + 1))
    return [found[k] for k in range(1, last + 1)]


# -- adaptive neurons --------------------------------------------------------------------------------------------------


class AdaptiveConstants(NamedTuple):
    m_f: Any = 0.1
    theta_0: Any = 0.1
    tau_gamma: float = 15.0
    tau_eta: float = 50.0
    tau_beta: float = 50.0
    tau_phi: float = 5.0
    dt: float = 1.0

    def decay(self, name: str) -> float:
        tau = getattr(self, f"tau_{name}")
        return math.exp(-self.dt / tau) if tau else 0.0


def adaptive_spiking(
    x_seq: Any,
    state: Sequence[Any],
    bias: Any,
    constants: AdaptiveConstants,
    analog: bool,
    number: Callable[[Any], Any],
) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Section 4.2 of the specification, an operation at a time; ``number`` rounds a constant to the dtype of the state.

    Returns the spikes, the thresholds, the signal S of every step and the four states at the end.
    """
    d_beta, d_eta, d_gamma, d_phi = (number(constants.decay(name)) for name in ("beta", "eta", "gamma", "phi"))
    m_f, theta_0 = number(constants.m_f), number(constants.theta_0)
    current, s, s_hat, adaptation = state
    spikes, thetas, signals = [], [], []
    for x in x_seq:
        current = x if analog else current * d_beta + x
        s = (number(1.0) - d_phi) * current + d_phi * s
        signal = s if bias is None else bias + s
        theta = theta_0 + adaptation
        s_hat = s_hat * d_eta
        fires = signal - s_hat > number(0.5) * theta
        jump = theta * fires
        s_hat = s_hat + jump
        adaptation = (adaptation + m_f * jump) * d_gamma
        spikes.append(fires)
        thetas.append(theta)
        signals.append(signal)
    return spikes, thetas, signals, [current, s, s_hat, adaptation]


def differentiable_adaptive_spiking(
    x_seq: Tensor,
    state: Sequence[Tensor],
    bias: Tensor,
    constants: AdaptiveConstants,
    analog: bool,
    spikes: Tensor,
    derivative: Derivative,
    detach: bool,
    heights: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Run in float64 with the spikes that are given."""
    d_beta, d_eta, d_gamma, d_phi = (constants.decay(name) for name in ("beta", "eta", "gamma", "phi"))
    current, s, s_hat, adaptation = state
    out = []
    for x, fired in zip(x_seq, spikes, strict=True):
        current = x if analog else current * d_beta + x
        s = (1 - d_phi) * current + d_phi * s
        theta = constants.theta_0 + adaptation
        s_hat = s_hat * d_eta
        z = _Spike.apply(bias + s - s_hat - theta / 2, fired, derivative)
        jump = theta * (z.detach() if detach else z)
        s_hat = s_hat + jump
        adaptation = (adaptation + constants.m_f * jump) * d_gamma
        out.append(theta * z if heights else z)
    return torch.stack(out), [current, s, s_hat, adaptation]


def transfer(s: float, c: AdaptiveConstants) -> float:
    """Equation 11 of Zambrano et al. 2017, as it is printed in section 4.3 of the specification."""

    def unscaled(signal: float) -> float:
        return half(signal) - half(c.theta_0 / 2) + 0.5

    def half(signal: float) -> float:
        c1 = 2 * c.m_f * c.tau_gamma**2
        c2 = 2 * c.theta_0 * c.tau_eta * c.tau_gamma
        c3 = c.tau_gamma * (c.m_f * c.tau_gamma + 2 * (c.m_f + 1) * c.tau_eta)
        c4 = c.theta_0 * c.tau_eta * (c.tau_gamma + c.tau_eta)
        return 1 / math.expm1((c1 * signal + c2) / (c3 * signal + c4))

    return max(0.0, unscaled(s) / unscaled(1.0)) if s > 0 else 0.0


def interval(s: float, c: AdaptiveConstants) -> float:
    """Solve equation 10 for the interval between spikes by bisection."""
    low, high = c.tau_gamma * math.log1p(c.m_f), 1e7

    def excess(t: float) -> float:
        e, g = math.exp(-t / c.tau_eta), math.exp(-t / c.tau_gamma)
        return 2 * s * -math.expm1(-t / c.tau_eta) * (1 - (1 + c.m_f) * g) - c.theta_0 * (1 - g) * (1 + e)

    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return (low + high) / 2
