"""The search of threshold, pre-charge and bias of every channel by the squared error of the decoded value."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LARGEST_PRECHARGE", "START", "ChannelSearch", "least_squares_threshold"]

START = 0.5
"""Pre-charge that rounds to the nearest count under constant current."""
_FRACTIONS = torch.linspace(0.15, 1.05, 40)
# Each round: factors of the threshold, pre-charges, and biases in units of threshold / T. The first round looks at
# the whole range of thresholds and pre-charges, the second around what the first has found.
_COARSE = torch.linspace(0.1, 1.05, 30), torch.linspace(0.0, 0.95, 12), torch.linspace(-0.6, 0.6, 13)
_FINE = torch.linspace(0.8, 1.25, 16), torch.linspace(-0.08, 0.08, 7), torch.linspace(-0.12, 0.12, 13)
LARGEST_PRECHARGE = 0.99
# Candidates times positions that are advanced at a time: the state stays in the second-level cache.
_BLOCK = 49_152


def least_squares_threshold(
    current: Tensor, target: Tensor, time_steps: int, *, precharge: float = START, shared: bool = False
) -> Tensor:
    r"""Return the threshold of each channel whose staircase of T steps has the least squared error.

    .. math:: \theta_c = \arg\min_\theta \left\langle \left[\frac{\theta}{T}\,
        \mathrm{clip}\left(\left\lfloor \frac{T z}{\theta} + v \right\rfloor, 0, T\right) - a\right]^2 \right\rangle

    Parameters
    ----------
    current, target : Tensor
        z and a of the analog net, ``[C, M]`` for M positions.
    time_steps : int
        T.
    precharge : float
        v, in units of the threshold.
    shared : bool
        One threshold for all channels.

    Returns
    -------
    Tensor
        ``[C]``; 1 where no channel is ever active.

    Examples
    --------
    >>> import torch
    >>> z = torch.tensor([[-1.0, 0.25, 0.5, 0.75, 1.0]])
    >>> least_squares_threshold(z, z.relu(), time_steps=4).round(decimals=1)
    tensor([1.])
    """
    top, best = _top(target, shared), torch.full_like(target[:, 0], torch.inf)
    found = top.clone()
    for fraction in _FRACTIONS.tolist():
        theta = (top * fraction).unsqueeze(1)
        level = (current * time_steps / theta + precharge).floor_().clamp_(0.0, time_steps)
        error = _mean(level.mul_(theta / time_steps), target, shared)
        better = error < best
        found, best = torch.where(better, theta.squeeze(1), found), torch.where(better, error, best)
    return found


class ChannelSearch:
    r"""Coordinate search of threshold, pre-charge and bias for the current that really arrives.

    The error of a channel is

    .. math:: E(\theta, v, b) = \left\langle \left[\frac{\theta}{T}\,n(I + b; \theta, v) - a\right]^2 \right\rangle

    with the count n of an exact simulation of T steps of the neuron with soft reset. Two rounds, one parameter at a
    time, all candidates at once; a candidate is taken only where it is better.

    Parameters
    ----------
    current : Tensor
        I, ``[T, C, M]`` for M positions: what each of T decisions takes in.
    target : Tensor
        Analog activations a, ``[C, M]``.
    threshold : Tensor
        ``[C]`` or ``[1]``, where the search starts, without a bias.
    precharge : float
        Where the search starts, in units of the threshold.
    limit : float or None
        Largest threshold.
    shared : bool
        One threshold for all channels.
    fire_at_threshold : bool
        Fire when the potential reaches the threshold; else when it exceeds it.
    biased : bool
        Search for a bias too.
    wait : int
        The first decision takes in one input and so many more, and the last ones none; each input has the bias.
    profile : Tensor or None
        Thresholds of the T steps in units of the threshold, which is the value of a spike; 1 by default.
    resets : bool
        Spikes subtract the threshold of their step.

    Attributes
    ----------
    threshold, precharge, bias : Tensor
        ``[C]``: in the units of the current, of the threshold, and of the current of one step.
    error : Tensor
        The mean squared error of each channel, ``[C]``.

    Examples
    --------
    >>> import torch
    >>> current = torch.linspace(-1.0, 2.0, 64).expand(4, 1, 64)
    >>> search = ChannelSearch(current, current[0].relu(), torch.tensor([1.0]))
    >>> before = search.error
    >>> search.run()
    >>> bool(search.error < before)
    True
    """

    def __init__(
        self,
        current: Tensor,
        target: Tensor,
        threshold: Tensor,
        precharge: float = START,
        *,
        limit: float | None = None,
        shared: bool = False,
        fire_at_threshold: bool = True,
        biased: bool = True,
        wait: int = 0,
        profile: Tensor | None = None,
        resets: bool = True,
    ) -> None:
        self._current, self._target, self._shared, self._biased = current, target, shared, biased
        self._limit = torch.inf if limit is None else limit
        self._fires = torch.ge if fire_at_threshold else torch.gt
        self._profile, self._resets = profile, resets
        self._inputs = [1 + wait, *[1] * (len(current) - 1 - wait), *[0] * wait]
        self.threshold = threshold.to(target).clamp(max=self._limit).expand(len(target))
        self.precharge, self.bias = torch.full_like(target[:, 0], precharge), torch.zeros_like(target[:, 0])
        self.error = self._errors(self.threshold[None], self.precharge[None], self.bias[None])[0]

    def run(self) -> None:
        """Search in two rounds."""
        reference, center = _top(self._target, self._shared), 0.0
        for factors, precharges, biases in (_COARSE, _FINE):
            theta, v, b = (grid.to(self.threshold).unsqueeze(1) for grid in (factors, precharges, biases))
            self._try(threshold=(theta * reference).clamp(max=self._limit))
            self._try(precharge=(center * self.precharge + v).clamp(0.0, LARGEST_PRECHARGE))
            if self._biased:
                self._try(bias=self.bias + b * self.threshold / len(self._current))
            reference, center = self.threshold, 1.0

    def _try(self, **candidates: Tensor) -> None:
        """Take the best of some values ``[K, C]`` of one parameter where it is better."""
        ((name, values),) = candidates.items()
        now = {"threshold": self.threshold[None], "precharge": self.precharge[None], "bias": self.bias[None]}
        errors = self._errors(**(now | candidates))
        if self._shared and name == "threshold":
            mean = errors.mean(1)
            taken = (mean.min() < self.error.mean()).expand(errors.shape[1])
            index = mean.argmin().expand(1, errors.shape[1])
        else:
            taken, index = errors.amin(0) < self.error, errors.argmin(0, keepdim=True)
        setattr(self, name, torch.where(taken, values.gather(0, index)[0], getattr(self, name)))
        self.error = torch.where(taken, errors.gather(0, index)[0], self.error)

    def _errors(self, threshold: Tensor, precharge: Tensor, bias: Tensor) -> Tensor:
        """Return the errors ``[K, C]`` of candidates ``[K or 1, C]``, by simulation."""
        time_steps, channels, positions = self._current.shape
        rows = max(map(len, (threshold, precharge, bias)))
        errors = self._target.new_empty(rows, channels)
        width = max(1, _BLOCK // (rows * positions))
        for start in range(0, channels, width):
            block = slice(start, start + width)
            theta, v_init, b = (p[:, block].unsqueeze(2) for p in (threshold, precharge, bias))
            target = self._target[block]
            of_steps = [theta] * time_steps if self._profile is None else [theta * share for share in self._profile]
            v = (v_init * of_steps[0]).expand(rows, *target.shape).clone()
            count, spike = torch.zeros_like(v), torch.empty_like(v)
            for x, inputs, threshold_now in zip(self._current[:, block], self._inputs, of_steps, strict=True):
                v += x + inputs * b
                self._fires(v, threshold_now, out=spike)
                if self._resets:
                    v.addcmul_(spike, threshold_now, value=-1.0)
                count += spike
            gap = count.mul_(theta / time_steps).sub_(target)
            errors[:, block] = torch.linalg.vector_norm(gap, dim=2).square() / positions
        return errors


def _top(target: Tensor, shared: bool) -> Tensor:
    """Return the largest activation of each channel; of the layer for a channel that is never active."""
    top, layer = target.amax(1), target.amax()
    top = torch.where((top > 0) & (not shared), top, layer)
    return torch.where(top > 0, top, torch.ones_like(top))


def _mean(decoded: Tensor, target: Tensor, shared: bool) -> Tensor:
    error = (decoded - target).square().mean(1)
    return error.mean().expand_as(error) if shared else error
