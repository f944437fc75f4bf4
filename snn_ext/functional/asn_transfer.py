r"""The transfer function of the adaptive spiking neuron: from the signal S to the mean normalised current it causes.

In equilibrium a constant S gives spikes at intervals :math:`t_e`, and with these decays over an interval,
:math:`E = e^{-t_e/\tau_\eta}` and :math:`G = e^{-t_e/\tau_\gamma}`,

.. math::
    2 S (1 - E)(1 - (1 + m_f) G) = \theta_0 (1 - G)(1 + E) \qquad (10)

Expanded to second order in :math:`t_e` this is :math:`t_e / \tau_\eta = u(S) = (c_1 S + c_2) / (c_3 S + c_4)`. Between
two spikes the current falls from :math:`h + I_l` to :math:`I_l = h / (e^{t_e/\tau_\beta} - 1)`; its mean is taken as
:math:`I_l + h/2 = \frac h2 \coth \frac{t_e}{2 \tau_\beta}`, which is the form used here: it does not cancel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._errors import bad_type, bad_value, check_bool, check_choice, check_real
from .asn import SpikeHeight, check_constant, check_constant_values, may_be_looked_at
from .integrate_and_fire import broadcasts, check_device, state_dtype

__all__ = ["asn_ceiling", "asn_interval", "asn_spike_height", "asn_transfer"]

Constant = Tensor | float


def asn_transfer(
    s: Tensor,
    m_f: Constant = 0.1,
    theta_0: Constant | None = None,
    *,
    tau_gamma: Constant = 15.0,
    tau_eta: Constant = 50.0,
    tau_beta: Constant = 50.0,
    exact: bool | None = None,
    cut: float = 0.0,
) -> Tensor:
    r"""Return f(S), the activation of which the spikes of an adaptive neuron are the code; f(1) = 1.

    .. math::
        f(S) = \max\left(0,\ \frac{h}{e^{u(S)} - 1} - c_0 + \frac h2\right) \text{ for } S > 0, \qquad
        c_0 = \frac{h}{e^{u(\theta_0/2)} - 1}, \qquad f(S) = 0 \text{ for } S \le 0

    with u(S) as in the module's head. Differentiable, in the constants too. With ``exact`` equation 10 is solved for
    the interval; where the neuron never fires, :math:`S \le \theta_0 / 2`, f goes on linearly to f(0) = 0.

    Parameters
    ----------
    s : Tensor
        Signal S, any shape and floating dtype.
    m_f : Tensor or float
        Adaptation of the threshold a spike, > 0.
    theta_0 : Tensor or float, optional
        Threshold at rest, > 0 and < 2; ``m_f`` by default.
    tau_gamma, tau_eta, tau_beta : Tensor or float
        Time constants in ms, > 0; see :func:`adaptive_spiking`.
    exact : bool, optional
        Solve equation 10 in place of its expansion; by default only where ``tau_beta`` differs from ``tau_eta``, as the
        expansion is made for equal ones.
    cut : float
        f is 0 up to here, >= 0. With ``theta_0 / 2`` it is the piecewise form, which jumps by h/2.

    Returns
    -------
    Tensor
        f(S) in the shape and dtype of ``s``. NaN stays.

    Notes
    -----
    Source: Zambrano et al. 2017, equations 8-11.

    Examples
    --------
    >>> import torch
    >>> asn_transfer(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]))
    tensor([0.0000, 0.0000, 0.5636, 1.0000, 1.6278])
    """
    check_signal(s)
    check_real("cut", cut, "a finite number >= 0", 0.0)
    c = check_transfer_constants(s, m_f, theta_0, tau_gamma, tau_eta, tau_beta)
    wide = s.to(state_dtype(s.dtype))
    if is_exact(c, exact):
        f = _exact_transfer(s.double(), c)
    else:
        r, a, b, half_height, offset = _as(wide.dtype, transfer_coefficients(c))
        y = 0.5 * (r + a / (wide.clamp_min(0.0) + b))
        f = (half_height / torch.tanh(y) + offset).clamp_min(0.0)
    return f.masked_fill(wide <= cut, 0.0).to(s.dtype)  # a comparison in 16 bits would round the cut first


def asn_spike_height(
    m_f: Constant = 0.1,
    theta_0: Constant | None = None,
    *,
    tau_gamma: Constant = 15.0,
    tau_eta: Constant = 50.0,
    tau_beta: Constant = 50.0,
    exact: bool | None = None,
) -> Any:
    r"""Return the height h of a spike that makes f(1) = 1: what the weights that receive spikes are multiplied by.

    Parameters
    ----------
    m_f, theta_0, tau_gamma, tau_eta, tau_beta, exact
        As in :func:`asn_transfer`.

    Returns
    -------
    float, or Tensor if a constant is one
        h > 0. A spike of adaptive height needs none: its height is 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or a neuron with this threshold never fires at S = 1.

    Examples
    --------
    >>> round(asn_spike_height(0.1), 5)
    0.12443
    """
    c = check_transfer_constants(None, m_f, theta_0, tau_gamma, tau_eta, tau_beta)
    return _height(c, is_exact(c, exact))


def asn_ceiling(
    m_f: Constant = 0.1,
    theta_0: Constant | None = None,
    *,
    tau_gamma: Constant = 15.0,
    tau_eta: Constant = 50.0,
    tau_beta: Constant = 50.0,
    dt: float = 1.0,
    spike_height: SpikeHeight = "fixed",
) -> Any:
    r"""Return the largest activation that one spike a step can carry.

    :math:`h / (1 - e^{-dt/\tau_\beta})`; with adaptive height the threshold of a neuron that fires at every step,
    :math:`\theta_0 (1 - G) / (1 - (1 + m_f) G)`, in the place of h, which is without limit where
    :math:`(1 + m_f)\,e^{-dt/\tau_\gamma} \ge 1`.

    Parameters
    ----------
    m_f, theta_0, tau_gamma, tau_eta, tau_beta
        As in :func:`asn_transfer`.
    dt : float
        Length of a step in ms, > 0.
    spike_height : {"fixed", "adaptive"}
        Of the neuron.

    Returns
    -------
    float, or Tensor if a constant is one

    Examples
    --------
    >>> round(asn_ceiling(0.03), 2)
    1.94
    """
    c = check_transfer_constants(None, m_f, theta_0, tau_gamma, tau_eta, tau_beta)
    dt = check_constant("dt", dt)
    check_choice("spike_height", spike_height, ("fixed", "adaptive"))
    gain = -_expm1(-dt / c.tau_beta)
    if spike_height == "fixed":
        return _height(c, is_exact(c, None)) / gain
    per_step = -_expm1(_log1p(c.m_f) - dt / c.tau_gamma)  # 1 - (1 + m_f) G
    height = c.theta_0 * -_expm1(-dt / c.tau_gamma) / gain
    if isinstance(per_step, Tensor):
        return torch.where(per_step > 0, height / per_step, math.inf)
    return height / per_step if per_step > 0 else math.inf


def asn_interval(
    s: Tensor,
    m_f: Constant = 0.1,
    theta_0: Constant | None = None,
    *,
    tau_gamma: Constant = 15.0,
    tau_eta: Constant = 50.0,
) -> Tensor:
    r"""Return the inter-spike interval :math:`t_e` in ms at a constant signal: equation 10, solved in float64.

    Differentiable. Steps of finite length fire at whole multiples of ``dt``, on average at this.

    Parameters
    ----------
    s : Tensor
        Signal S, any shape and floating dtype.
    m_f, theta_0, tau_gamma, tau_eta
        As in :func:`asn_transfer`.

    Returns
    -------
    Tensor
        ``t_e`` in the shape and dtype of ``s``; infinite where the neuron never fires, :math:`S \le \theta_0 / 2`, and
        never below :math:`\tau_\gamma \ln(1 + m_f)`.

    Examples
    --------
    >>> import torch
    >>> asn_interval(torch.tensor([0.05, 0.5, 1.0]))
    tensor([    inf, 11.0552,  6.2170])
    """
    check_signal(s)
    c = check_transfer_constants(s, m_f, theta_0, tau_gamma, tau_eta, tau_eta)
    fires = s.to(state_dtype(s.dtype)) > c.theta_0 / 2
    return torch.where(fires, _interval(s.double(), c), torch.inf).to(s.dtype)


# -- the expansion -----------------------------------------------------------------------------------------------------


class TransferConstants(NamedTuple):
    """The constants, numbers or float64 tensors."""

    m_f: Any
    theta_0: Any
    tau_gamma: Any
    tau_eta: Any
    tau_beta: Any


class Coefficients(NamedTuple):
    """f(S) = max(0, half_height * coth(y) + offset) with y = (r + a / (S + b)) / 2, which is in (0, 1) for S >= 0."""

    r: Any
    a: Any
    b: Any
    half_height: Any
    offset: Any


def transfer_coefficients(c: TransferConstants) -> Coefficients:
    """Return equation 11 with its fraction divided out, so that it holds for an infinite signal too."""
    r, a, b = _fraction(c)
    half_height = _height(c, False) / 2
    return Coefficients(r, a, b, half_height, half_height * (1.0 - _coth((r + a / (c.theta_0 / 2 + b)) / 2)))


def _fraction(c: TransferConstants) -> tuple[Any, Any, Any]:
    c1 = 2 * c.m_f * c.tau_gamma**2
    c2 = 2 * c.theta_0 * c.tau_eta * c.tau_gamma
    c3 = c.tau_gamma * (c.m_f * c.tau_gamma + 2 * (c.m_f + 1) * c.tau_eta)
    c4 = c.theta_0 * c.tau_eta * (c.tau_gamma + c.tau_eta)
    return c1 / c3, (c2 - c1 * c4 / c3) / c3, c4 / c3


def _height(c: TransferConstants, exact: bool) -> Any:
    if exact:
        one = torch.ones((), dtype=torch.float64, device="cpu")
        h = 2.0 * torch.tanh(_interval(one, c) / (2.0 * c.tau_beta))
        return h if any(isinstance(value, Tensor) for value in c) else float(h)
    r, a, b = _fraction(c)
    return 2.0 / (_coth((r + a / (1.0 + b)) / 2) - _coth((r + a / (c.theta_0 / 2 + b)) / 2) + 1.0)


# -- the exact equilibrium ---------------------------------------------------------------------------------------------


def _exact_transfer(s: Tensor, c: TransferConstants) -> Tensor:
    height, fires = _height(c, True), s > c.theta_0 / 2
    t = _interval(torch.where(fires, s, 1.0), c)
    mean = 0.5 * height / torch.tanh(t / (2.0 * c.tau_beta))
    return torch.where(fires, mean, (height / c.theta_0) * s)


def _interval(s: Tensor, c: TransferConstants) -> Tensor:
    """Solve equation 10 where S > theta_0 / 2: bisection, then Newton steps, which carry the derivatives.

    The first step gives the first derivatives, the second those up to the third.
    """
    s = s.clamp_max(1e9)  # as good as infinite: the interval is the shortest one
    with torch.no_grad():
        fixed = TransferConstants(*(v.detach() if isinstance(v, Tensor) else v for v in c))
        shortest = fixed.tau_gamma * _log1p(fixed.m_f)
        low = torch.zeros_like(s) + shortest
        high = low + 40.0 * (fixed.tau_gamma + fixed.tau_eta)  # exp(-40) is less than an ulp
        for _ in range(64):
            middle = 0.5 * (low + high)
            later = _signal_of(middle, fixed) > s
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        slope = _slope_of(high, fixed)
    t = _newton(high, s, c, slope)
    return _newton(t, s, c, _slope_of(t, c))


def _newton(t: Tensor, s: Tensor, c: TransferConstants, slope: Tensor) -> Tensor:
    step = (_signal_of(t, c) - s) / slope
    return t - torch.where(step.isfinite(), step, 0.0)


def _signal_of(t: Tensor, c: TransferConstants) -> Tensor:
    """Equation 10, solved for S."""
    g, e, m = _falls(t, c)
    return c.theta_0 * g * (2.0 - e) / (2.0 * e * m)


def _slope_of(t: Tensor, c: TransferConstants) -> Tensor:
    """Return the derivative of that, which is negative."""
    g, e, m = _falls(t, c)
    relative = ((1.0 - g) / g - (1.0 - m) / m) / c.tau_gamma - (1.0 - e) * (1.0 / (2.0 - e) + 1.0 / e) / c.tau_eta
    return _signal_of(t, c) * relative


def _falls(t: Tensor, c: TransferConstants) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1 - G, 1 - E and 1 - (1 + m_f) G without cancellation."""
    return (
        -torch.expm1(-t / c.tau_gamma),
        -torch.expm1(-t / c.tau_eta),
        -torch.expm1(_log1p(c.m_f) - t / c.tau_gamma),
    )


# -- numbers or tensors ------------------------------------------------------------------------------------------------


def _coth(y: Any) -> Any:
    return 1.0 / (torch.tanh(y) if isinstance(y, Tensor) else math.tanh(y))


def _expm1(x: Any) -> Any:
    return torch.expm1(x) if isinstance(x, Tensor) else math.expm1(x)


def _log1p(x: Any) -> Any:
    return torch.log1p(x) if isinstance(x, Tensor) else math.log1p(x)


def _as(dtype: torch.dtype, coefficients: Coefficients) -> Coefficients:
    return Coefficients(*(v.to(dtype) if isinstance(v, Tensor) else v for v in coefficients))


# -- checks ------------------------------------------------------------------------------------------------------------


def check_signal(s: Tensor) -> None:
    """Raise unless a signal is a floating tensor."""
    if not isinstance(s, Tensor) or not s.is_floating_point():
        bad_type("s", s, "a tensor of a floating dtype")


def check_transfer_constants(
    s: Tensor | None,
    m_f: Constant,
    theta_0: Constant | None,
    tau_gamma: Constant,
    tau_eta: Constant,
    tau_beta: Constant,
) -> TransferConstants:
    """Check the constants, against the signal if there is one."""
    theta_0 = m_f if theta_0 is None else theta_0
    named = {"m_f": m_f, "theta_0": theta_0, "tau_gamma": tau_gamma, "tau_eta": tau_eta, "tau_beta": tau_beta}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            check_constant(name, value)
            continue
        if not value.is_floating_point():
            bad_type(name, value, "a number or a tensor of a floating dtype")
        if s is not None and not broadcasts(value.shape, s.shape):
            bad_value(name, value, f"a shape that broadcasts to that of s, {list(s.shape)}")
        if s is not None:
            check_device(name, value, "s", s)
        check_constant_values(name, value)
    _check_fires_at_one(theta_0)
    return TransferConstants(*(v.double() if isinstance(v, Tensor) else float(v) for v in named.values()))


def _check_fires_at_one(theta_0: Constant) -> None:
    if isinstance(theta_0, Tensor):
        if not may_be_looked_at(theta_0) or bool((theta_0 < 2.0).all()):
            return
        theta_0 = float(theta_0.max())
    if theta_0 >= 2.0:
        bad_value("theta_0", theta_0, "< 2 (it is m_f if not given): a signal of 1 never fires, and f(1) = 1 cannot be")


def is_exact(c: TransferConstants, exact: bool | None) -> bool:
    """Return whether equation 10 is to be solved: as told, or where the two time constants differ."""
    if exact is not None:
        return check_bool("exact", exact)
    if isinstance(c.tau_beta, Tensor) or isinstance(c.tau_eta, Tensor):
        return not (
            isinstance(c.tau_beta, Tensor) and isinstance(c.tau_eta, Tensor) and torch.equal(c.tau_beta, c.tau_eta)
        )
    return bool(c.tau_beta != c.tau_eta)
