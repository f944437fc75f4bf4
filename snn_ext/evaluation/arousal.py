"""Arousal: samples of which a net of adaptive neurons is not certain get a higher precision while they are shown."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_count, check_real
from ..neurons.precision import set_precision
from ..simulation.engine import Simulation
from ..simulation.graph import as_graph, smoothed_readout, step_length
from ..simulation.plan import Observer
from .batches import check_finite, check_finite_weights, check_labels, numbered
from .metrics import rank_of_label
from .result import first_crossing

__all__ = ["Arousal", "ArousedSimulation", "Margins", "estimate_arousal", "observe_margins"]

WINDOWS = (10.0, 20.0, 30.0, 50.0, 75.0, 100.0)
"""In ms, of which one is taken."""


@dataclass(frozen=True)
class Arousal:
    """When a sample is switched to a higher precision, and to which.

    All samples begin with ``m_f_low``. In the window after the waiting time the difference of the two largest outputs
    is averaged; where it is not above the threshold the sample gets ``m_f_high`` for the rest of the stimulus. State
    is carried over; the others go on as they are.

    Attributes
    ----------
    m_f_low, m_f_high : float
        Low precision, which all samples begin with, and high precision.
    wait, window : float
        In ms.
    threshold : float
        Of the mean difference of the two largest outputs.

    Notes
    -----
    Source: Zambrano et al. 2017, on arousal. :func:`estimate_arousal` finds waiting time, window and threshold.

    Examples
    --------
    >>> arousal = Arousal(m_f_low=0.3, m_f_high=0.1, wait=150.0, window=50.0, threshold=1.2)
    """

    m_f_low: float
    m_f_high: float
    wait: float
    window: float
    threshold: float

    def __post_init__(self) -> None:
        for name in ("m_f_low", "m_f_high"):
            if check_real(name, getattr(self, name), "a finite number > 0", 0.0) == 0:
                bad_value(name, getattr(self, name), "a finite number > 0")
        if self.m_f_high >= self.m_f_low:
            bad_value("m_f_high", self.m_f_high, f"less than m_f_low, {self.m_f_low}: smaller is more precise")
        check_real("wait", self.wait, "a time in ms, >= 0", 0.0)
        if check_real("window", self.window, "a time in ms, > 0", 0.0) == 0:
            bad_value("window", self.window, "a time in ms, > 0")
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            bad_type("threshold", self.threshold, "a number")
        if math.isnan(self.threshold):
            bad_value("threshold", self.threshold, "a number")


class ArousedSimulation:
    """Run a net of adaptive neurons under a constant input, uncertain samples with a higher precision from then on.

    Two copies of the net, one of each precision, take turns: samples are handed over with the states of all neurons.
    A sample gets exactly what it gets alone, as sums of spikes are exact; see :func:`snn_ext.set_precision`.

    Parameters
    ----------
    net : nn.Module
        A converted net; it is not changed.
    arousal : Arousal
        When and to what.
    chunk, memory
        As in :class:`snn_ext.evaluation.Simulation`.

    Attributes
    ----------
    aroused : Tensor
        Which samples of the last run were switched, ``[N]``, bool.

    Examples
    --------
    >>> import torch
    >>> from snn_ext import AAN, BNAAN, convert
    >>> ann = nn.Sequential(BNAAN(4, dims=0), nn.Linear(4, 2)).eval()
    >>> x = torch.rand(8, 4)
    >>> simulation = ArousedSimulation(convert(ann, x, method="adsnn"), Arousal(0.3, 0.1, 20.0, 10.0, threshold=0.1))
    >>> torch.cat(list(simulation.run(x, 100))).shape
    torch.Size([100, 8, 2])
    """

    def __init__(self, net: nn.Module, arousal: Arousal, *, chunk: int | None = None, memory: int = 1 << 30) -> None:
        self.arousal = arousal
        self.low, self.high = _at(net, arousal.m_f_low), _at(net, arousal.m_f_high)
        if not smoothed_readout(self.low):
            bad_value("net", type(net).__name__, "a net with a smoothed read-out: convert(..., method='adsnn')")
        self._simulations = tuple(Simulation(graph, chunk=chunk, memory=memory) for graph in (self.low, self.high))
        dt = step_length(self.low) or 1.0
        self._first, self._steps = round(arousal.wait / dt), max(1, round(arousal.window / dt))
        self.aroused = torch.zeros(0, dtype=torch.bool)

    def run(self, x: Tensor, time_steps: int, observe: Observer | None = None) -> Iterator[Tensor]:
        """Yield the output ``[T', N, K]`` of chunk after chunk under a constant ``x``; see ``Simulation.run``."""
        check_count("time_steps", time_steps)
        low, high = self._simulations
        output, decision = low.output(), self._first + self._steps
        if time_steps <= decision:
            bad_value("time_steps", time_steps, f"more than the {decision} of waiting time and window")
        states: dict[fx.Node, tuple[Any, ...]] = {}
        self.aroused = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        margin, t = torch.zeros(len(x), dtype=torch.float64, device=x.device), 0
        for values in low.stream(x, decision, [output], observe=observe, states=states):
            y = values[output]
            margin += _margins(y[max(0, self._first - t) :]).sum(0)
            t += len(y)
            yield y
        self.aroused = ~(margin / self._steps > self.arousal.threshold)  # NaN is not certain
        yield from self._in_groups(x, time_steps - t, states, observe)

    def _in_groups(
        self, x: Tensor, time_steps: int, states: dict[fx.Node, tuple[Any, ...]], observe: Observer | None
    ) -> Iterator[Tensor]:
        """Go on with both groups of samples, each by itself, and put their results together again."""
        groups: list[tuple[Simulation, Tensor]] = []
        for simulation, mask in zip(self._simulations, (~self.aroused, self.aroused), strict=True):
            if bool(mask.any()):
                groups.append((simulation, mask.nonzero().flatten()))
        order = torch.cat([index for _, index in groups]).argsort()
        steps = min(simulation.steps(x) for simulation, _ in groups)
        seen: dict[str, tuple[nn.Module, list[Tensor]]] = {}

        def keep(name: str, module: nn.Module, spikes: Tensor) -> None:
            seen.setdefault(name, (module, []))[1].append(spikes)

        streams = [
            Simulation(simulation.graph, chunk=steps).stream(
                x[index], time_steps, [simulation.output()], observe=None if observe is None else keep,
                states=_handed_over(states, simulation.graph, index),
            )
            for simulation, index in groups
        ]  # fmt: skip
        for chunk in zip(*streams, strict=True):
            if observe is not None:
                for name, (module, parts) in seen.items():
                    observe(name, module, torch.cat(parts, dim=1)[:, order])
                seen.clear()
            yield torch.cat([next(iter(values.values())) for values in chunk], dim=1)[:, order]


def _margins(output: Tensor) -> Tensor:
    """Return the difference of the two largest outputs, ``[T, N, K]`` to ``[T, N]``."""
    if output.ndim != 3 or output.shape[2] < 2:
        bad_value("net", f"an output {list(output.shape[1:])}", "scores [N, K] of at least two classes")
    two = output.double().topk(2, dim=2).values
    return two[..., 0] - two[..., 1]


def _handed_over(
    states: dict[fx.Node, tuple[Any, ...]], graph: fx.GraphModule, index: Tensor
) -> dict[fx.Node, tuple[Any, ...]]:
    """Return the states of some samples for another copy of the net."""
    nodes = {node.name: node for node in graph.graph.nodes}
    return {nodes[node.name]: tuple(part[index] for part in state) for node, state in states.items()}


def _at(net: nn.Module, m_f: float) -> fx.GraphModule:
    """Return a copy of a net at another precision."""
    graph = copy.deepcopy(as_graph(net))
    set_precision(graph, m_f)
    return graph


# -- estimation ------------------------------------------------------------------------------------------------------


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

    The net is simulated at low precision. The waiting time is its matching time: when its accuracy reaches 99 % of its
    maximum. For each window the threshold is the largest difference of outputs of the given share of the samples that
    it decides wrongly at the end, so that as many are switched. Of several windows the one is taken with which the
    switched samples spend the least time at high precision.

    Parameters
    ----------
    snn : nn.Module
        From :func:`snn_ext.convert` with ``method="adsnn"``; it is not changed.
    loader : iterable
        Batches ``(inputs, labels)``.
    time_steps : int
        Of the stimulus.
    m_f_low, m_f_high : float
        The two precisions.
    wait, window : float, optional
        In ms, where they are not to be estimated.
    errors : float
        Percentage of the errors at low precision that is to be switched.
    chunk, memory
        As in :class:`snn_ext.evaluation.Simulation`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what is wanted.

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
    """How certain a net of low precision is of each training sample; from :func:`observe_margins`.

    Attributes
    ----------
    m_f_low, dt : float
        The precision, and the length of a step in ms.
    margins : Tensor
        Difference of the two largest outputs at every step, ``[T, N]``.
    accuracy : Tensor
        At every step, ``[T]``.
    wrong : Tensor
        Which samples are decided wrongly at the end, ``[N]``.
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
            # a simulation averages unrounded margins, in another order: that sample is to be switched there too
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
    """Simulate a net at low precision and keep how certain it is of each sample at every step.

    Parameters
    ----------
    snn, loader, time_steps, m_f_low, chunk, memory
        As in :func:`estimate_arousal`.
    """
    check_count("time_steps", time_steps)
    low = _at(snn, m_f_low)
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
            margin.append(_margins(output).float().cpu())
            right.append((rank_of_label(output, check_labels(labels, output[0])) == 0).cpu())
        margins.append(torch.cat(margin))
        whole = torch.cat(right)
        correct += whole.double().sum(1)
        wrong.append(~whole[-1])
    if not margins:
        bad_value("loader", "no batch", "at least one")
    decided = torch.cat(wrong)
    return Margins(m_f_low, step_length(low) or 1.0, torch.cat(margins, 1), correct / len(decided), decided)
