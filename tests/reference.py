"""What the tests hold the package against: naive references in numpy, and inputs that hide nothing.

Nothing here uses the package's arithmetic. Data that look random hide ties: every comparison of spikes runs on random
values, on a 1/16 grid and on the threshold with its two neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from snn_ext import functional as F

RESETS = ("subtract", "zero", "none")
TIES = (True, False)
SURROGATES = (F.Sigmoid, F.ATan, F.PiecewiseQuadratic, F.PiecewiseExp, F.SoftSign, F.SuperSpike, F.Erf)
RECURSIONS = ("min", "paper", "cumulative")

# The derivatives as the documentation gives them, evaluated in float64 and written without care for overflow.
DERIVATIVES: dict[type[F.Surrogate], Callable[[float, np.ndarray], np.ndarray]] = {
    F.Sigmoid: lambda a, u: a / ((1 + np.exp(-a * u)) * (1 + np.exp(a * u))),
    F.ATan: lambda a, u: a / 2 / (1 + (math.pi * a * u / 2) ** 2),
    F.PiecewiseQuadratic: lambda a, u: np.where(np.abs(u) < 1 / a, a - a * a * np.abs(u), 0.0),
    F.PiecewiseExp: lambda a, u: a / 2 * np.exp(-a * np.abs(u)),
    F.SoftSign: lambda a, u: a / 2 / (1 + a * np.abs(u)) ** 2,
    F.SuperSpike: lambda a, u: a / (1 + np.abs(u)) ** 2,
    F.Erf: lambda a, u: a / math.sqrt(math.pi) * np.exp(-((a * u) ** 2)),
}


# -- inputs -----------------------------------------------------------------------------------------------------------


def awkward_inputs(time_steps: int, shape: tuple[int, ...], threshold: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    """Return random, 1/16-grid and threshold +- 1 ulp inputs ``[T, N, ...]``, float32."""
    generator = torch.Generator().manual_seed(seed)
    size = (time_steps, *shape)
    centre = torch.tensor(threshold)
    up, down = (torch.nextafter(centre, torch.tensor(end)) for end in (math.inf, -math.inf))
    choices = torch.stack([centre, up, down, -up, centre / 2, torch.tensor(0.0)])
    return {
        "random": torch.randn(size, generator=generator) * 0.6 + 0.3,
        "grid": torch.randint(-10, 25, size, generator=generator) / 16,
        "ulp": choices[torch.randint(len(choices), size, generator=generator)],
    }


INPUTS = ("random", "grid", "ulp")


# -- the neuron, naively ----------------------------------------------------------------------------------------------


def simulate(x_seq: Tensor, v: Any, thresholds: Any, *, reset: str = "subtract", tie: bool = True) -> tuple[Any, Any]:
    """Run the neuron in numpy, in the dtype of ``x_seq``; returns spikes ``[T, N, ...]`` and the final potential."""
    x_seq = x_seq.detach().numpy()
    dtype = x_seq.dtype.type
    thresholds = np.broadcast_to(np.asarray(thresholds, dtype), (len(x_seq),))
    v = np.broadcast_to(np.asarray(v, dtype), x_seq.shape[1:])
    spikes = []
    for x, threshold in zip(x_seq, thresholds, strict=True):
        h = v + x
        s = h >= threshold if tie else h > threshold
        v = {"subtract": np.where(s, h - threshold, h), "zero": np.where(s, dtype(0), h), "none": h}[reset]
        spikes.append(s.astype(dtype))
    return torch.from_numpy(np.stack(spikes)), torch.from_numpy(np.array(v))


class Gradients(NamedTuple):
    x: np.ndarray  # [T, N]
    v: np.ndarray  # [N]
    thresholds: np.ndarray  # [T, N]: one term of the sum per neuron and step


def gradients(
    x_seq: Tensor,
    v: Any,
    thresholds: Any,
    derivative: Callable[[np.ndarray], np.ndarray],
    grad_spikes: Tensor,
    grad_v: Tensor,
    *,
    detach: bool,
    reset: str,
    tie: bool,
) -> Gradients:
    """Backpropagate by hand in float64: the formulas in the documentation of ``integrate_and_fire``, for all resets."""
    x_seq, grad_spikes = (a.detach().double().numpy() for a in (x_seq, grad_spikes))
    thresholds = np.broadcast_to(np.asarray(thresholds, np.float64), (len(x_seq),))
    v = np.broadcast_to(np.asarray(v, np.float64), x_seq.shape[1:])
    hs, ss = [], []
    for x, threshold in zip(x_seq, thresholds, strict=True):
        h = v + x
        s = (h >= threshold if tie else h > threshold).astype(np.float64)
        v = {"subtract": h - s * threshold, "zero": (1 - s) * h, "none": h}[reset]
        hs.append(h)
        ss.append(s)
    carry = grad_v.detach().double().numpy()
    grad_x, terms = np.zeros_like(x_seq), np.zeros_like(x_seq)
    for t in reversed(range(len(x_seq))):
        h, s, threshold = hs[t], ss[t], thresholds[t]
        through_spike = {"subtract": -threshold * carry, "zero": -h * carry, "none": 0.0 * carry}[reset]
        keep = {"subtract": 1.0, "zero": 1.0 - s, "none": 1.0}[reset]
        g_s = grad_spikes[t] + (0.0 if detach else through_spike)
        g_u = g_s * derivative(h - threshold)
        terms[t] = -g_u - (s * carry if reset == "subtract" else 0.0)
        grad_x[t] = carry = g_u + keep * carry
    return Gradients(grad_x, carry, terms)


def assert_close_to_peak(got: Tensor, want: Any, peak: float | None = None, tolerance: float = 2e-6) -> None:
    """Compare as the design does: largest error over largest magnitude (or over ``peak``)."""
    want = np.asarray(want, np.float64)
    error = np.abs(got.detach().double().numpy() - want)
    peak = np.abs(want).max() if peak is None else peak
    assert error.max() <= tolerance * peak, f"error {error.max():.3g}, {error.max() / peak:.3g} of the peak {peak:.3g}"


# -- staircases -------------------------------------------------------------------------------------------------------


def constant(x: Tensor, time_steps: int) -> Tensor:
    """Present ``x`` at every step."""
    return x.expand(time_steps, *x.shape)


def dyadic(values: Any, bits: int = 20) -> Tensor:
    """Round to multiples of 2**-bits in float64: sums and multiples are then exact, ties included."""
    return torch.from_numpy(np.round(np.asarray(values, np.float64) * 2**bits) / 2**bits)


def gaussian_points(time_steps: int) -> Tensor:
    """Quantiles of the half Gaussian at (k - 1/2) / T, descending: convex, so the steps are finer near 0."""
    return dyadic(norm.ppf(0.5 + 0.5 * (np.arange(time_steps, 0, -1) - 0.5) / time_steps))


def half_gaussian(size: int = 400_000) -> Tensor:
    """Return a half Gaussian without sampling noise: its quantiles."""
    return torch.from_numpy(norm.ppf(0.5 + 0.5 * (np.arange(size) + 0.5) / size))


# -- nets -------------------------------------------------------------------------------------------------------------


class FrozenNorm(nn.BatchNorm1d):
    """Batch norm that stays in eval mode whatever a trainer does."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


def snapshot(net: nn.Module) -> list[Any]:
    """Return what must not change in a failed call: modules by identity, parameters and buffers by value."""
    return [(name, id(m)) for name, m in net.named_modules()], {k: v.clone() for k, v in net.state_dict().items()}


def assert_unchanged(net: nn.Module, before: list[Any]) -> None:
    modules, state = snapshot(net)
    assert modules == before[0]
    assert state.keys() == before[1].keys()
    assert all(torch.equal(state[name], value) for name, value in before[1].items())


each_input = pytest.mark.parametrize("kind", INPUTS)
each_tie = pytest.mark.parametrize("tie", TIES, ids=["at", "above"])
each_reset = pytest.mark.parametrize("reset", RESETS)
