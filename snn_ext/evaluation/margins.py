"""Estimation of :class:`~snn_ext.evaluation.Arousal`, from the certainty of a net about each training sample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_count, check_real
from ..simulation.engine import Simulation
from ..simulation.graph import step_length
from .arousal import Arousal, at_precision, margins_of
from .batches import check_finite, check_finite_weights, check_labels, numbered
from .decisions import rank_of_label
from .result import first_crossing

__all__ = ["Margins", "estimate_arousal", "observe_margins"]

WINDOWS = (10.0, 20.0, 30.0, 50.0, 75.0, 100.0)
"""Lengths of the window that are tried, in ms."""


def estimate_arousal(
    snn: nn.Module,
    loader: Iterable[Any],
    time_steps: int = 500,
    *,
    m_f_low: float = 0.3,
    m_f_high: float = 0.1,
    wait: float | None = None,
    window: float | None = None,
    errors: float = 99.0,
    chunk: int | None = None,
    memory: int = 1 << 30,
) -> Arousal:
    """Estimate waiting time, window and threshold of :class:`Arousal` on training data.

    The net is simulated at low precision. The waiting time is its matching time, at which its accuracy reaches 99 % of
    its maximum. For each window, the threshold is such that the given share of the samples that are decided wrongly at
    the end is switched. The window is that with which the switched samples spend the least time at high precision.

    Parameters
    ----------
    snn : nn.Module
        From :func:`snn_ext.convert` with ``method="adsnn"``; it is not changed.
    loader : iterable
        Batches ``(inputs, labels)``.
    time_steps : int
        Steps of the stimulus.
    m_f_low, m_f_high : float
        The two precisions.
    wait, window : float, optional
        In ms; estimated by default.
    errors : float
        Percentage of the errors at low precision that must be switched.
    chunk, memory
        As in :class:`snn_ext.simulation.Simulation`.

    Warns
    -----
    UserWarning
        If no sample is decided wrongly: then no sample is ever switched.

    Notes
    -----
    Source: Zambrano et al. 2017, on arousal; its constants are not stated, the rules for waiting time and window are
    this project's.

    Examples
    --------
    >>> import torch
    >>> from snn_ext import AAN, BNAAN, convert
    >>> ann = nn.Sequential(BNAAN(4, dims=0), nn.Linear(4, 2)).eval()
    >>> x, labels = torch.rand(64, 4), torch.arange(64) % 2
    >>> arousal = estimate_arousal(convert(ann, x, method="adsnn"), [(x, labels)], 300, window=20.0)
    >>> arousal.window
    20.0
    """
    Arousal(m_f_low, m_f_high, 0.0 if wait is None else wait, 1.0 if window is None else window, 0.0)  # checks them
    margins = observe_margins(snn, loader, time_steps, m_f_low=m_f_low, chunk=chunk, memory=memory)
    return margins.estimate(m_f_high=m_f_high, wait=wait, window=window, errors=errors)


@dataclass
class Margins:
    """Certainty of a net of low precision about each training sample; from :func:`observe_margins`.

    Attributes
    ----------
    m_f_low, dt : float
        The precision, and the length of a step in ms.
    margins : Tensor
        Difference of the two largest outputs at every step, ``[T, N]``.
    accuracy : Tensor
        At every step, ``[T]``.
    wrong : Tensor
        True for the samples that are decided wrongly at the end, ``[N]``.
    """

    m_f_low: float
    dt: float
    margins: Tensor
    accuracy: Tensor
    wrong: Tensor

    def estimate(
        self,
        *,
        m_f_high: float = 0.1,
        wait: float | None = None,
        window: float | None = None,
        errors: float = 99.0,
    ) -> Arousal:
        """Return waiting time, window and threshold; see :func:`estimate_arousal`."""
        wait = self.matching_time() if wait is None else wait
        found = self.by_window(WINDOWS if window is None else (window,), wait=wait, errors=errors)
        if not found:
            bad_value(
                "time_steps", len(self.margins), f"more than waiting time and window, {wait:g} ms and a window at least"
            )
        if not bool(self.wrong.any()):
            warnings.warn("loader: no sample is decided wrongly at low precision: none will be switched", stacklevel=2)
        duration = len(self.margins) * self.dt
        best = min(found, key=lambda w: (found[w][1] * (duration - wait - w), w))
        return Arousal(self.m_f_low, m_f_high, wait, best, found[best][0])

    def by_window(
        self, windows: Sequence[float] = WINDOWS, *, wait: float | None = None, errors: float = 99.0
    ) -> dict[float, tuple[float, float]]:
        """Return for each window in ms the threshold, and the share of the samples that it switches."""
        if check_real("errors", errors, "a percentage in (0, 100]", 0.0, 100.0) == 0:
            bad_value("errors", errors, "a percentage in (0, 100]")
        first = round((self.matching_time() if wait is None else wait) / self.dt)
        found = {}
        for window in windows:
            steps = max(1, round(window / self.dt))
            if first + steps >= len(self.margins):
                continue
            margin = self.margins[first : first + steps].double().mean(0)
            failed = margin[self.wrong].sort().values
            last = math.ceil(errors / 100 * len(failed) - 1e-9) - 1
            # These margins are rounded to float32, those of an ArousedSimulation are not: it is to switch this sample
            threshold = float(failed[last]) * (1.0 + 1e-6) if len(failed) else -math.inf
            found[float(window)] = threshold, float((margin <= threshold).double().mean())
        return found

    def matching_time(self) -> float:
        """Return the time in ms at which the accuracy first reaches 99 % of its maximum."""
        return self.dt * (first_crossing(self.accuracy, 0.99 * float(self.accuracy.max())) or 1)


def observe_margins(
    snn: nn.Module,
    loader: Iterable[Any],
    time_steps: int = 500,
    *,
    m_f_low: float = 0.3,
    chunk: int | None = None,
    memory: int = 1 << 30,
) -> Margins:
    """Simulate a net at low precision, and keep its certainty about each sample at every step.

    Parameters
    ----------
    snn, loader, time_steps, m_f_low, chunk, memory
        As in :func:`estimate_arousal`.
    """
    check_count("time_steps", time_steps)
    low = at_precision(snn, m_f_low)
    check_finite_weights("snn", low)
    simulation = Simulation(low, chunk=chunk, memory=memory)
    margins, wrong, correct = [], [], torch.zeros(time_steps, dtype=torch.float64, device="cpu")
    parameter = next(low.parameters(), next(low.buffers()))
    for number, x, labels in numbered(loader):
        if labels is None:
            bad_type("loader", x, "batches (inputs, labels)")
        x, labels = x.to(parameter.device), labels.to(parameter.device)
        right, margin = [], []
        for output in simulation.run(x, time_steps):
            check_finite("snn", output, f"an output in batch {number}")
            margin.append(margins_of(output).float().cpu())
            right.append((rank_of_label(output, check_labels(labels, output[0])) == 0).cpu())
        margins.append(torch.cat(margin))
        whole = torch.cat(right)
        correct += whole.double().sum(1)
        wrong.append(~whole[-1])
    if not margins:
        bad_value("loader", "no batch", "at least one")
    decided = torch.cat(wrong)
    return Margins(m_f_low, step_length(low) or 1.0, torch.cat(margins, 1), correct / len(decided), decided)
