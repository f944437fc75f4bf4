"""The report of a conversion: threshold, pre-charge, scale and errors of each layer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, SupportsIndex

__all__ = ["LayerReport", "Notes", "Report"]

Numbers = float | list[float]


@dataclass
class LayerReport:
    """One layer of neurons.

    Attributes
    ----------
    name : str
        Name of the neuron in the converted net.
    threshold : float or list of float
        In the units of the current that arrives: those of the analog net, unless spikes arrive without weights.
        One for each channel where thresholds are per channel (their neurons then have threshold 1, and the weights
        before them are divided).
    precharge : float or list of float
        Potential before the first step, in units of the threshold.
    scale : float or list of float
        Value of a neuron that fires at every step, in the units of the analog net.
    rate_error : float or None
        Root mean square of rate minus normalised activation after ``steps`` steps, on samples of the calibration.
    rule : str
        Where the threshold comes from.
    relative_threshold : float or None
        Threshold in units of the spikes that arrive, as the paper on Spike-Norm gives it; ``None`` where no spikes
        arrive, or spikes of several values.
    steps : int or None
        Steps after which ``rate_error`` and ``value_error`` were measured.
    start_error, found_error : float or None
        Root mean square error of the decoded values on the calibration data, relative to that of the activations,
        where the search of ``method="calibrated"`` starts and ends: under the current that arrives from the layers
        before, as they are calibrated.
    value_error : float or None
        Root mean square of decoded value minus activation, relative to that of the activation: it compares methods,
        whatever their thresholds are. ``None`` for a layer that is silent on those samples.
    notes : list of str
        What was warned of during conversion.
    """

    name: str
    threshold: Numbers
    precharge: Numbers
    scale: Numbers
    rate_error: float | None
    rule: str
    relative_threshold: float | None = None
    steps: int | None = None
    start_error: float | None = None
    found_error: float | None = None
    value_error: float | None = None
    notes: list[str] = field(default_factory=list)

    def describe(self, neuron: Any) -> None:
        """Take over threshold at rest and height of a spike from an adaptive neuron."""
        self.threshold = float(neuron.theta_0 * neuron.v_threshold)
        self.scale = float(neuron.h)


class Report(list[LayerReport]):
    """A list of :class:`LayerReport` in the order of the forward pass.

    Examples
    --------
    >>> report = Report([LayerReport("relu", 0.5, 0.0, 0.5, None, "maximum")])
    >>> Report.from_json(report.to_json()) == report
    True
    >>> report["relu"].threshold
    0.5
    """

    def __init__(self, layers: Iterable[LayerReport] = ()) -> None:
        super().__init__(layers)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        found = [layer for layer in self if layer.name == key]
        if not found:
            raise KeyError(f"{key}: want one of {', '.join(layer.name for layer in self)}")
        return found[0]

    def to_json(self, indent: SupportsIndex | None = None) -> str:
        """Return the report as a JSON list."""
        return json.dumps([asdict(layer) for layer in self], indent=None if indent is None else int(indent))

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that :meth:`to_json` wrote."""
        return cls(LayerReport(**layer) for layer in json.loads(text))

    def __str__(self) -> str:
        rows = [["layer", "threshold", "pre-charge", "scale", "error", "rule"]]
        for layer in self:
            error = "-" if layer.value_error is None else f"{layer.value_error:.4f}"
            rows.append([layer.name, *map(_show, (layer.threshold, layer.precharge, layer.scale)), error, layer.rule])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, *numbers, rule in rows:
            shown = (f"  {number:>{width}}" for number, width in zip(numbers, widths[1:-1], strict=True))
            lines.append(f"{name:<{widths[0]}}{''.join(shown)}  {rule}")
        notes: dict[str, list[str]] = {}
        for layer in self:
            for note in layer.notes:
                notes.setdefault(note, []).append(layer.name)
        return "\n".join([*lines, *(f"{', '.join(names)}: {note}" for note, names in notes.items())])


class Notes(dict[str, list[str]]):
    """What the report of each layer has to say, which is warned of as well."""

    def add(self, name: str, text: str) -> None:
        """Note something about a layer, and warn of it."""
        self.setdefault(name, []).append(text)
        warnings.warn(f"calibration: {name} {text}", stacklevel=3)


def _show(value: Numbers) -> str:
    if isinstance(value, list):
        return f"{min(value):.3g}..{max(value):.3g}"
    return f"{value:.4g}"
