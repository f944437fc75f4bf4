"""Spiking neurons as quantisers: staircases, thresholds from quantisation points, decoding, SQNR, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .._errors import bad_type, bad_value, check_bool, check_choice, check_count, check_real
from .integrate_and_fire import state_dtype

__all__ = [
    "best_points",
    "best_threshold",
    "decode",
    "nonuniform_staircase",
    "nonuniform_thresholds",
    "sqnr",
    "staircase",
    "uniform_points",
]

Recursion = Literal["min", "paper", "cumulative"]


def staircase(
    x: Tensor, threshold: Tensor | float, time_steps: int, *, v: Tensor | float = 0.0, fire_at_threshold: bool = True
) -> Tensor:
    r"""Spike count of a soft-reset neuron after T steps of constant input, in closed form.

    .. math:: n = \min\{T, \max\{0, \lfloor (x T + v) / \theta \rfloor\}\}

    A potential of 0, theta/2 or theta before the first step makes it floor, round half up, or (with
    ``fire_at_threshold=False``) ceiling. It is exact for input that is constant over the steps, up to the rounding
    of the arithmetic; with input that varies the count differs wherever the final potential lies outside
    ``[0, theta)``.

    Parameters
    ----------
    x : Tensor
        Constant input current, any shape and floating dtype.
    threshold : Tensor or float
        > 0, broadcastable to ``x``.
    time_steps : int
        T.
    v : Tensor or float
        Potential before the first step.
    fire_at_threshold : bool
        ``True`` fires at ``h >= threshold``, ``False`` at ``h > threshold``.

    Returns
    -------
    Tensor
        Counts 0..T in the dtype of ``x``.

    Notes
    -----
    Source: Castagnetti et al. 2023, equation 7.

    Examples
    --------
    >>> import torch
    >>> staircase(torch.tensor([-0.2, 0.3, 0.5, 2.0]), 1.0, 4)
    tensor([0., 1., 2., 4.])
    """
    check_count("time_steps", time_steps)
    check_bool("fire_at_threshold", fire_at_threshold)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        bad_type("x", x, "a floating tensor")
    _check_scale("threshold", threshold)
    if not isinstance(v, Tensor):
        check_real("v", v, "a tensor or a finite number")
    level = (x.to(state_dtype(x.dtype)) * time_steps + v) / threshold  # in 16 bits it would be another staircase
    count = torch.floor(level) if fire_at_threshold else torch.ceil(level) - 1.0
    return count.clamp(0, time_steps).to(x.dtype)


def nonuniform_staircase(x: Tensor, p: Tensor) -> Tensor:
    r"""Count of the quantisation points that an input reaches, :math:`n = \#\{k : x \ge p_k\}`: what ATIF-nu aims at.

    Parameters
    ----------
    x : Tensor
        Input, any shape.
    p : Tensor
        ``[T]``, non-increasing.

    Returns
    -------
    Tensor
        Counts 0..T in the dtype of ``x``.

    Notes
    -----
    Source: Castagnetti et al. 2023, equation 18.

    Examples
    --------
    >>> import torch
    >>> nonuniform_staircase(torch.tensor([0.1, 0.5, 3.0]), torch.tensor([2.0, 1.0, 0.5]))
    tensor([0., 1., 3.])
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        bad_type("x", x, "a floating tensor")
    _check_points(p)
    return (x.unsqueeze(-1) >= p).sum(-1).to(x.dtype)


def decode(count: Tensor, scale: Tensor | float, time_steps: int) -> Tensor:
    """Decode a spike count: ``count / T * scale``, with the threshold (ATIF-u, PCMP) or p_1 (ATIF-nu) as scale.

    The levels are uniform for both; only the edges of the staircase move in ATIF-nu.

    Parameters
    ----------
    count : Tensor
        Number of spikes.
    scale : Tensor or float
        Threshold, or the first quantisation point.
    time_steps : int
        T.

    Returns
    -------
    Tensor
        In the units of the input current.

    Notes
    -----
    Source: Castagnetti et al. 2023, equation 6, with the decode that reproduces its figures 3 and 5.

    Examples
    --------
    >>> import torch
    >>> decode(torch.tensor([0.0, 2.0, 4.0]), 0.5, 4)
    tensor([0.0000, 0.2500, 0.5000])
    """
    check_count("time_steps", time_steps)
    if not isinstance(count, Tensor):
        bad_type("count", count, "a tensor")
    _check_scale("scale", scale)
    return count / time_steps * scale


def nonuniform_thresholds(p: Tensor, recursion: Recursion = "min") -> Tensor:
    r"""Thresholds of the T steps of ATIF-nu from its quantisation points.

    With ``p`` non-increasing, an input of ``p_k <= x < p_{k-1}`` is to give ``T - k + 1`` spikes, at the last steps.

    * ``"min"`` (k = T..1): :math:`V_k = \min_{m=k..T} [\, m p_k - \sum_{j=k+1}^{m} V_j \,]`, the largest threshold at
      which a neuron that was silent before step k and is driven by ``p_k`` fires at every step k..T.
    * ``"paper"``: :math:`V_T = T p_T`, :math:`V_k = (k+1) p_k - V_{k+1}`, :math:`V_1 = p_1`: the printed equations,
      continued to any T.
    * ``"cumulative"``: :math:`V_k = k p_k`, to be used with ``reset="none"``.

    **Where the staircase is exact** (the count is that of :func:`nonuniform_staircase`, by brute force for
    T = 2..8). ``"cumulative"``: for every non-increasing p. ``"min"``: for uniform p at any T (it then returns one
    and the same threshold T times); at T = 2 if and only if ``p_1 >= 1.5 p_2``; at T = 3 and 4 for convex steps
    (``p_k - p_{k+1}`` non-increasing in k, the last one being ``p_T`` itself); at T = 5 for the quantiles
    ``(k - 1/2) / T`` of a half Gaussian. At T = 6, 7, 8 such quantiles miscount 1 to 5 % of the inputs by one spike.
    At no T can it do without ``p_1 >= p_T (T + 1) / 2``.
    **Nearly equal points break it down**: p = (1, 0.9, 0.8, 0.7) spends the threshold of the first steps on the later
    ones, and an input of 0.3 fires twice instead of never; equal points give a threshold of 0. Use "cumulative" where
    points may meet.
    ``"paper"``: for those quantiles at T = 2 and 4; it miscounts for uniform p at T >= 4 and can give thresholds <= 0.

    Parameters
    ----------
    p : Tensor
        ``[T]`` quantisation points, non-increasing, > 0.
    recursion : {"min", "paper", "cumulative"}
        See above.

    Returns
    -------
    Tensor
        ``[T]``, differentiable in ``p``, in its dtype.

    Raises
    ------
    TypeError, ValueError
        If ``p`` is not a non-empty floating vector, not positive or increases somewhere, or the recursion is unknown.

    Notes
    -----
    Source: Castagnetti et al. 2023, equations 14-19; "min" and "cumulative" correct equation 19, which violates the
    third condition of equation 18 and does not reduce to the uniform neuron.

    Examples
    --------
    >>> import torch
    >>> nonuniform_thresholds(torch.tensor([1.0, 0.75, 0.5, 0.25]))
    tensor([1., 1., 1., 1.])
    >>> nonuniform_thresholds(torch.tensor([1.0, 0.75, 0.5, 0.25]), "paper")
    tensor([1.0000, 1.2500, 1.0000, 1.0000])
    """
    _check_points(p)
    check_choice("recursion", recursion, ("min", "paper", "cumulative"))
    if not (p.detach() > 0).all() or (p.detach().diff() > 0).any():
        bad_value("p", p.tolist(), "non-increasing quantisation points > 0")
    return thresholds_of_points(p, recursion)


def thresholds_of_points(p: Tensor, recursion: Recursion) -> Tensor:
    """Do what :func:`nonuniform_thresholds` does, without looking at the values, which would wait for the device."""
    time_steps = len(p)
    steps = torch.arange(1, time_steps + 1, dtype=p.dtype, device=p.device)
    if recursion == "cumulative":
        return steps * p
    if recursion == "paper":
        return _paper_recursion(p, time_steps)
    thresholds: list[Tensor] = []
    spent = p.new_zeros(1)  # spent[m - k] = V_{k+1} + ... + V_m
    for k in range(time_steps, 0, -1):
        threshold = (steps[k - 1 :] * p[k - 1] - spent).amin(0)
        thresholds.append(threshold)
        spent = torch.cat((p.new_zeros(1), spent + threshold))
    return torch.stack(thresholds[::-1])


def _paper_recursion(p: Tensor, time_steps: int) -> Tensor:
    thresholds = [time_steps * p[-1]]
    for k in range(time_steps - 1, 1, -1):
        thresholds.append((k + 1) * p[k - 1] - thresholds[-1])
    if time_steps > 1:
        thresholds.append(p[0])
    return torch.stack(thresholds[::-1])


def uniform_points(threshold: float | Tensor, time_steps: int) -> Tensor:
    """Quantisation points of the uniform neuron: ``p_k = (T - k + 1) / T * threshold``.

    Parameters
    ----------
    threshold : float or Tensor
        One element; the clip level p_1.
    time_steps : int
        T.

    Returns
    -------
    Tensor
        ``[T]`` float32.

    Examples
    --------
    >>> uniform_points(1.0, 4)
    tensor([1.0000, 0.7500, 0.5000, 0.2500])
    """
    check_count("time_steps", time_steps)
    _check_scale("threshold", threshold)
    if isinstance(threshold, Tensor) and threshold.numel() != 1:
        bad_value("threshold", threshold, "one element")
    threshold = torch.as_tensor(threshold).detach().double().reshape(())
    levels = torch.arange(time_steps, 0, -1, dtype=torch.float64, device=threshold.device)
    return (levels / time_steps * threshold).float()


def sqnr(x: Tensor, x_hat: Tensor) -> Tensor:
    r"""Signal to quantisation noise ratio in dB, :math:`10 \log_{10} (E[x^2] / E[(x - \hat x)^2])`, over all elements.

    Parameters
    ----------
    x, x_hat : Tensor
        Signal and its quantised estimate, of one shape.

    Returns
    -------
    Tensor
        0-dim, differentiable; ``inf`` without noise. Computed in float64 and returned in the dtype of ``x``.

    Raises
    ------
    ValueError
        If the shapes differ or there is no element.

    Notes
    -----
    Source: Castagnetti et al. 2023, equation 8. With a ReLU in front, evaluate it on the non-negative inputs: negative
    ones all decode to 0 and would limit it to 3 dB for a symmetric input.

    Examples
    --------
    >>> import torch
    >>> sqnr(torch.tensor([1.0, 1.0]), torch.tensor([0.9, 1.1]))
    tensor(20.0000)
    """
    if not isinstance(x, Tensor) or not isinstance(x_hat, Tensor):
        bad_type("x, x_hat", (type(x).__name__, type(x_hat).__name__), "two tensors")
    if not (x.is_floating_point() and x_hat.is_floating_point()):
        bad_type("x, x_hat", (x.dtype, x_hat.dtype), "floating dtypes")
    if x.shape != x_hat.shape or x.numel() == 0:
        bad_value("x, x_hat", (list(x.shape), list(x_hat.shape)), "one and the same shape, not empty")
    signal, noise = x.double(), x.double() - x_hat.double()
    ratio = 10.0 * torch.log10(signal.square().mean() / noise.square().mean())
    return ratio.to(x.dtype)


def best_threshold(x: Tensor, time_steps: int, *, v_init: float = 0.0) -> float:
    """Find the threshold of the uniform neuron that quantises recorded inputs with the best SQNR.

    Parameters
    ----------
    x : Tensor
        Recorded inputs, any shape; only the positive ones count.
    time_steps : int
        T.
    v_init : float
        Potential before the first step, in units of the threshold.

    Returns
    -------
    float
        The threshold: the best one of a grid of 0.2 % between 1e-3 and 2 times the largest input.

    Raises
    ------
    ValueError
        If no input is positive and finite.

    Examples
    --------
    >>> import torch
    >>> x = 0.1 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    >>> round(best_threshold(x, 4) / 0.1, 1)          # 1.73 sigma in theory
    1.7
    """
    check_count("time_steps", time_steps)
    check_real("v_init", v_init, "a finite number")
    sample = _positive_sample(x)
    edges = torch.arange(1, time_steps + 1, dtype=torch.float64, device=sample.device) - v_init

    def quantised(threshold: Tensor) -> Tensor:
        return decode(staircase(sample, threshold, time_steps, v=v_init * threshold), threshold, time_steps)

    return _best_on_grid(sample, edges / time_steps, quantised)


def best_points(x: Tensor, time_steps: int) -> Tensor:
    """Find quantisation points that quantise recorded inputs with the best SQNR, among edges half way between levels.

    The decoded levels are ``n p_1 / T``. For given levels the best edges lie half way between them, except for
    ``p_1``, which is both the highest level and its own edge; so ``p_k = (T - k + 1/2) / T * p_1`` for k >= 2 and
    one number is searched, on the grid of :func:`best_threshold`.

    Parameters
    ----------
    x : Tensor
        Recorded inputs, any shape; only the positive ones count.
    time_steps : int
        T.

    Returns
    -------
    Tensor
        ``[T]`` float32, non-increasing.

    Raises
    ------
    ValueError
        If no input is positive and finite.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    >>> best_points(x, 4)[0] > 2.0
    tensor(True)
    """
    check_count("time_steps", time_steps)
    sample = _positive_sample(x)
    edges = torch.arange(1, time_steps + 1, dtype=torch.float64, device=sample.device) - 0.5
    edges[-1] = time_steps
    edges /= time_steps

    def quantised(p_1: Tensor) -> Tensor:
        count = torch.searchsorted(p_1 * edges, sample, right=True)
        return decode(count, p_1, time_steps)

    return (edges.flip(0) * _best_on_grid(sample, edges, quantised)).float()


def _positive_sample(x: Tensor) -> Tensor:
    """Return the positive finite inputs in ascending order, all of them: the tail decides on the best threshold."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        bad_type("x", x, "a floating tensor of recorded inputs")
    sample = x.detach().flatten()
    sample = sample[(sample > 0) & sample.isfinite()].sort().values.double()
    if sample.numel() == 0:
        bad_value("x", x, "at least one positive finite input; a layer that is always silent has no best threshold")
    return sample


_STEP, _LOW, _HIGH = 1.002, 1e-3, 2.0
_CHUNK = 1 << 20  # edges at a time


def _best_on_grid(sample: Tensor, edges: Tensor, quantised: Callable[[Tensor], Tensor]) -> float:
    """Return the number of the grid with the least squared error of a quantiser that scales with it.

    At 1 the quantiser goes up to level k / T at the k-th of T ascending ``edges``. Sums over the sorted sample give the
    errors at all numbers of the grid, except for inputs that lie on an edge, give or take rounding. The better side is
    the same at all edges, so the smaller error of edges that are all a little lower, or all a little higher, is a lower
    bound. Only numbers whose bound is below the best error found are evaluated, by ``quantised``.
    """
    count = math.floor(math.log(_HIGH / _LOW) / math.log(_STEP)) + 1
    powers = torch.arange(count, dtype=torch.float64, device=sample.device)
    grid = _LOW * sample[-1] * torch.pow(_STEP, powers)
    rows = max(1, _CHUNK // len(edges))
    bounds = torch.cat([_error_bounds(sample, edges, part) for part in grid.split(rows)])
    best, error = grid[0], math.inf
    for k in bounds.argsort().tolist():
        if float(bounds[k]) > error:
            break
        found = float((sample - quantised(grid[k])).square().sum())
        if found < error:
            best, error = grid[k], found
    return float(best)


def _error_bounds(sample: Tensor, edges: Tensor, grid: Tensor) -> Tensor:
    """Return a lower bound of the sum of squared errors at each number of a part of the grid."""
    sums = torch.cat((sample.new_zeros(1), sample.cumsum(0)))
    energy = sample.square().sum()
    level = grid / len(edges)
    weights = 2.0 * torch.arange(len(edges), dtype=sample.dtype, device=sample.device) + 1.0  # k^2 - (k - 1)^2
    errors = []
    rounding = 1e-12 * (1.0 + edges.abs().amax())
    for nudged in (edges - rounding, edges + rounding):
        below = torch.searchsorted(sample, grid[:, None] * nudged)
        reached, carried = len(sample) - below, sums[-1] - sums[below]
        errors.append(energy - 2.0 * level * carried.sum(1) + level.square() * (reached * weights).sum(1))
    return torch.minimum(*errors) - 1e-15 * (len(sample) + 100) * energy


def _check_scale(name: str, value: Tensor | float) -> None:
    """Check a threshold or scale; the values of a tensor are not looked at, which would wait for the device."""
    if not isinstance(value, Tensor) and check_real(name, value, "a tensor or a finite number > 0") <= 0:
        bad_value(name, value, "a tensor or a finite number > 0")


def _check_points(p: Tensor) -> None:
    if not isinstance(p, Tensor) or not p.is_floating_point():
        bad_type("p", p, "a floating tensor [T] of quantisation points")
    if p.ndim != 1 or len(p) < 1:
        bad_value("p", p, "shape [T] with T >= 1")
