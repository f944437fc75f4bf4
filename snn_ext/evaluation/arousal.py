"""Arousal: samples of which a net of adaptive neurons is uncertain get a higher precision while they are shown."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_count, check_real
from ..neurons.precision import set_precision
from ..simulation.engine import Simulation
from ..simulation.graph import as_graph, smoothed_readout, step_length
from ..simulation.plan import Observer

__all__ = ["Arousal", "ArousedSimulation", "at_precision", "margins_of"]


@dataclass(frozen=True)
class Arousal:
    """Rule by which samples are switched to a higher precision.

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

    There are two copies of the net, one of each precision; samples are handed over with the states of all neurons.
    A sample gets exactly what it gets alone, as sums of spikes are exact; see :func:`snn_ext.set_precision`.

    Parameters
    ----------
    net : nn.Module
        A converted net; it is not changed.
    arousal : Arousal
        Which samples are switched, and to which precision.
    chunk, memory
        As in :class:`snn_ext.simulation.Simulation`.

    Attributes
    ----------
    graph, events
        Of the copy of low precision, as in a ``Simulation``.
    aroused : Tensor
        True for the samples that the last run has switched, ``[N]``, bool.

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
        graphs = at_precision(net, arousal.m_f_low), at_precision(net, arousal.m_f_high)
        self.graph = graphs[0]
        if not smoothed_readout(self.graph):
            bad_value("net", type(net).__name__, "a net with a smoothed read-out: convert(..., method='adsnn')")
        self._simulations = tuple(Simulation(graph, chunk=chunk, memory=memory) for graph in graphs)
        self.events = self._simulations[0].events
        dt = step_length(self.graph) or 1.0
        self._first, self._steps = round(arousal.wait / dt), max(1, round(arousal.window / dt))
        self.aroused = torch.zeros(0, dtype=torch.bool)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Prepare both copies in the first of several runs alone; see ``Simulation.unchanged``."""
        low, high = self._simulations
        with low.unchanged(), high.unchanged():
            yield

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
            margin += margins_of(y[max(0, self._first - t) :]).sum(0)
            t += len(y)
            yield y
        self.aroused = ~(margin / self._steps > self.arousal.threshold)  # NaN is not certain
        yield from self._in_groups(x, time_steps - t, states, observe)

    def _in_groups(
        self, x: Tensor, time_steps: int, states: dict[fx.Node, tuple[Any, ...]], observe: Observer | None
    ) -> Iterator[Tensor]:
        """Continue with both groups of samples, each by itself, and put their results together again."""
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
            simulation.stream(
                x[index], time_steps, [simulation.output()], observe=None if observe is None else keep,
                states=_handed_over(states, simulation.graph, index), steps=steps,
            )
            for simulation, index in groups
        ]  # fmt: skip
        for chunk in zip(*streams, strict=True):
            if observe is not None:
                for name, (module, parts) in seen.items():
                    observe(name, module, torch.cat(parts, dim=1)[:, order])
                seen.clear()
            yield torch.cat([next(iter(values.values())) for values in chunk], dim=1)[:, order]


def margins_of(output: Tensor) -> Tensor:
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


def at_precision(net: nn.Module, m_f: float) -> fx.GraphModule:
    """Return a copy of a net at another precision."""
    graph = copy.deepcopy(as_graph(net))
    set_precision(graph, m_f)
    return graph
