"""Delayed evaluation: the best delay of the read-out, and the effect of a delay on the latency."""

from __future__ import annotations

from dataclasses import dataclass

from .._errors import bad_value
from .result import Evaluation

__all__ = ["Regime", "best_delay", "delay_regimes"]


def best_delay(evaluation: Evaluation, level: float = 99.0) -> int:
    """Return the delay whose read-out reaches a level first; of equal ones the shortest.

    Parameters
    ----------
    evaluation : Evaluation
        With a grid of delays, ``evaluate(..., delay=range(0, 60, 5))``.
    level : float
        Percent of the analog accuracy.

    Raises
    ------
    ValueError
        If no delay of the grid reaches the level.

    Notes
    -----
    The steps of the delay are part of the latency. Source: Hwang et al. 2021, delayed evaluation.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext import evaluate
    >>> from snn_ext.spikingjelly import PCMPIFNode
    >>> net = nn.Sequential(nn.Linear(2, 4), PCMPIFNode(), nn.Linear(4, 2))
    >>> batch = torch.rand(8, 2), torch.randint(2, (8,))
    >>> best_delay(evaluate(net, [batch], 16, delay=range(4), progress=False), level=1.0)
    0
    """
    latencies = _latencies(evaluation, level)
    reached = [(latency, delay) for delay, latency in latencies.items() if latency is not None]
    if not reached:
        bad_value(
            "evaluation", f"one that never reaches {level} % of the analog accuracy in {evaluation.time_steps} steps",
            "more time steps, other delays or a lower level",
        )  # fmt: skip
    return min(reached)[1]


@dataclass(frozen=True)
class Regime:
    """A range of delays with one effect.

    Attributes
    ----------
    name : {"no spike", "error removal", "excessive delay"}
        The delay has no effect, it shortens the latency, it prolongs it.
    first, last : int
        Delays, both included.
    """

    name: str
    first: int
    last: int


def delay_regimes(evaluation: Evaluation, level: float = 99.0) -> list[Regime]:
    """Divide a grid of delays by their effect on the latency.

    "no spike" lasts as long as the latency is that of the shortest delay; "error removal" from there to the last delay
    of the smallest latency, if that is smaller; "excessive delay" follows.

    Parameters
    ----------
    evaluation : Evaluation
        With a grid of delays.
    level : float
        Percent of the analog accuracy.

    Notes
    -----
    Source of the names: Hwang et al. 2021, figure 11; the borders between them are our reading.
    """
    delays = sorted(evaluation.delays)
    latency = _latencies(evaluation, level)
    values = [float("inf") if latency[d] is None else float(latency[d] or 0) for d in delays]
    flat = next((i for i, value in enumerate(values) if value != values[0]), len(values))
    best = max(i for i, value in enumerate(values) if value == min(values))
    regimes = [Regime("no spike", delays[0], delays[flat - 1])]
    if best >= flat:
        regimes.append(Regime("error removal", delays[flat], delays[best]))
    end = max(best + 1, flat)
    if end < len(delays):
        regimes.append(Regime("excessive delay", delays[end], delays[-1]))
    return regimes


def _latencies(evaluation: Evaluation, level: float) -> dict[int, int | None]:
    return {delay: evaluation.latency_at(delay, (level,))[level] for delay in evaluation.delays}
