"""Sweep of the precision of adaptive spiking neurons: accuracy against firing rate, and the lowest sufficient rate."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_real
from ..neurons.precision import set_precision
from ..simulation.analog import AnalogTwin
from ..simulation.graph import as_graph
from .evaluate import evaluate
from .result import Evaluation

__all__ = ["lowest_rate", "sweep_precision"]

PRECISIONS = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def sweep_precision(
    snn: nn.Module,
    loader: Iterable[Any],
    time_steps: int = 500,
    *,
    m_f: Sequence[float] = PRECISIONS,
    resume: Path | str | None = None,
    **options: Any,
) -> dict[float, Evaluation]:
    """Evaluate a net of adaptive spiking neurons at several precisions, without training.

    Parameters
    ----------
    snn : nn.Module
        From :func:`snn_ext.convert` with ``method="adsnn"``; it is not changed.
    loader : iterable
        Batches ``(inputs, labels)``, gone through once for each precision.
    time_steps : int
        Steps of the stimulus.
    m_f : sequence of float
        The precisions.
    resume : Path or str, optional
        A file as in :func:`snn_ext.evaluate`, with the precision added to its name.
    **options
        Options of :func:`snn_ext.evaluate`. Without ``ann`` the reference of all evaluations is the analog net at the
        precision that ``snn`` has.

    Returns
    -------
    dict of float to Evaluation
        By ``m_f``.

    Notes
    -----
    Source: Zambrano et al. 2017, accuracy against firing rate and precision.

    Examples
    --------
    >>> import torch
    >>> from snn_ext import AAN, BNAAN, convert
    >>> ann = nn.Sequential(BNAAN(4, dims=0), nn.Linear(4, 2)).eval()
    >>> batch = torch.rand(8, 4), torch.arange(8) % 2
    >>> snn = convert(ann, batch[0], method="adsnn")
    >>> sweep = sweep_precision(snn, [batch], 100, m_f=(0.1, 0.3), ann=ann, progress=False)
    >>> sweep[0.1].firing_rate > sweep[0.3].firing_rate
    True
    """
    if not isinstance(m_f, Sequence) or not m_f:
        bad_type("m_f", m_f, "a sequence of precisions")
    net = copy.deepcopy(as_graph(snn))
    if options.get("ann") is None:
        options["ann"] = _Analog(copy.deepcopy(net))
    found: dict[float, Evaluation] = {}
    for value in m_f:
        set_precision(net, value)
        path = None if resume is None else Path(resume).with_stem(f"{Path(resume).stem}-{value:g}")
        found[value] = evaluate(net, loader, time_steps, resume=path, **options)
    return found


class _Analog(nn.Module):
    """Module around the :class:`AnalogTwin` of a net."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Any:
        return AnalogTwin(self.graph, keep=False)(x)


def lowest_rate(sweep: Mapping[float, Evaluation], within: float = 0.5) -> float:
    """Return the precision ``m_f`` of the lowest firing rate that still matches the analog net.

    Parameters
    ----------
    sweep : mapping of float to Evaluation
        From :func:`sweep_precision`.
    within : float
        Percentage points by which the accuracy at the end of the stimulus may be below that of the analog net.

    Raises
    ------
    ValueError
        If no precision matches.

    Examples
    --------
    >>> lowest_rate(sweep_precision(snn, loader, ann=ann))  # doctest: +SKIP
    0.3
    """
    check_real("within", within, "points of percent, >= 0", 0.0)
    matching = {
        m_f: e.firing_rate for m_f, e in sweep.items() if float(e.accuracy[-1]) >= e.analog_accuracy - within / 100
    }
    if not matching:
        best = max((float(e.accuracy[-1]) for e in sweep.values()), default=float("nan"))
        bad_value("sweep", f"a best accuracy of {best:.2%}", f"one within {within:g} points of the analog net")
    return min(matching, key=matching.__getitem__)
