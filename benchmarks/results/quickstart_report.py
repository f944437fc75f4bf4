"""Results of the quickstart as text, as a page and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from tabulate import tabulate
from torch import nn

from recipes.lib.training import Measurement
from snn_ext.evaluation import Evaluation

from .pages import environment

__all__ = [
    "CONVERSION_NOTES", "NOTES", "Row", "Thresholds", "as_json", "conversion_table", "environment", "markdown", "table",
]  # fmt: skip

Thresholds = list[list[float]]
"""For each spiking layer its threshold, or the points p_1..p_T of ATIF-nu."""

NOTES = """\
- swapped: accuracy right after the ReLUs have given way to neurons with calibrated thresholds, without any training.
- spikes per neuron: mean number of spikes of a neuron of the spiking layers in the T steps of one test image.
- thresholds: in the units of the layer's input; of ATIF-nu its points p_1..p_T.
- SQNR: of the layer's decoded value (rate x threshold, or rate x p_1) against its mean input over time, where that is
  not negative; in the fine-tuned net, on the test images.
- The standard error of an accuracy, from the number of test images alone, is 0.7 percentage points at 89 % of 2,000."""

CONVERSION_NOTES = """\
- Nets of the first table after fine-tuning, and the ReLU net (before its fine-tuning) converted without any training;
  on the same {samples:,} test images, analog {accuracy:.2f} %, {macs:.2f} million multiply-accumulates.
- step of 99 %: first time step whose accuracy is 99 % of the analog net's; SynOps and energy are those up to it. Energy
  by the model "{model}": 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate."""


@dataclass
class Row:
    """One line of the table: a net before and after fine-tuning.

    Attributes
    ----------
    name : str
        Of the neuron.
    before, after : Measurement
        Right after the swap, and after fine-tuning.
    neurons : list of nn.Module
        Its spiking layers as they are after fine-tuning; none for ReLU.
    history : list of Thresholds
        Before the first step of fine-tuning and after every one; empty for ReLU.
    net : nn.Module, optional
        The fine-tuned net.
    """

    name: str
    before: Measurement
    after: Measurement
    neurons: list[nn.Module] = field(default_factory=list)
    history: list[Thresholds] = field(default_factory=list)
    net: nn.Module | None = None

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds at the end."""
        return self.history[-1] if self.history else []


def table(rows: Iterable[Row]) -> str:
    """Return the rows of one seed as a text table, with one line in a cell for each spiking layer."""
    header = [
        "", "accuracy\nswapped", "accuracy\nfine-tuned", "spikes per\nneuron", "thresholds\nby layer",
        "SQNR by\nlayer (dB)",
    ]  # fmt: skip
    lines = []
    for row in rows:
        spikes = row.after.spikes_per_neuron
        lines.append([
            row.name,
            f"{row.before.accuracy:.2%}",
            f"{row.after.accuracy:.2%}",
            "-" if spikes is None else f"{spikes:.3f}",
            "\n".join(" ".join(f"{value:.2f}" for value in layer) for layer in row.thresholds) or "-",
            "\n".join(f"{layer.sqnr_db:.1f}" for layer in row.after.layers) or "-",
        ])  # fmt: skip
    return tabulate(lines, header, tablefmt="grid", disable_numparse=True)


def markdown(runs: Sequence[Sequence[Row]], setting: dict[str, Any], conversions: str = "") -> str:
    """Return a page with one table over several seeds, and the table of the conversions.

    Parameters
    ----------
    runs : sequence of sequence of Row
        The rows of each seed.
    setting : dict
        What ``results.json`` holds under "setting".
    conversions : str
        A table with its notes, of the first seed.
    """
    header = [
        "neuron", "accuracy, swapped (%)", "accuracy, fine-tuned (%)", "spikes per neuron",
        "thresholds by layer (means)", "SQNR by layer (dB)",
    ]  # fmt: skip
    lines = []
    for rows in zip(*runs, strict=True):
        spikes = [row.after.spikes_per_neuron for row in rows if row.after.spikes_per_neuron is not None]
        thresholds = zip(*(row.thresholds for row in rows), strict=True)
        layers = zip(*(row.after.layers for row in rows), strict=True)
        lines.append([
            rows[0].name,
            _spread([100 * row.before.accuracy for row in rows], 2),
            _spread([100 * row.after.accuracy for row in rows], 2),
            _spread(spikes, 3),
            "<br>".join(" ".join(f"{fmean(v):.2f}" for v in zip(*layer, strict=True)) for layer in thresholds) or "-",
            "<br>".join(_spread([measured.sqnr_db for measured in layer], 1) for layer in layers) or "-",
        ])  # fmt: skip
    seeds = " ".join(map(str, setting["seeds"]))
    machine, versions = setting["machine"], setting["versions"]
    numbers = f"Mean over the seeds {seeds}, with (smallest..largest)." if len(runs) > 1 else f"Seed {seeds}."
    return f"""# Quickstart: results

{setting["data"]}, T = {setting["time_steps"]}. Epochs: {setting["epochs"]} of the ReLU net, then
{setting["fine_tune_epochs"]} of fine-tuning for every row, ReLU included. {numbers}

{tabulate(lines, header, tablefmt="github", disable_numparse=True)}

{NOTES}

{conversions}
Made in {setting["seconds"]:.0f} s on {machine["cpus"]} CPU cores ({machine["architecture"]}), with
torch {versions["torch"]} and spikingjelly {versions["spikingjelly"]}, by

    python -m recipes.quickstart --seeds {seeds} --time-steps {setting["time_steps"]} \\
        --epochs {setting["epochs"]} --fine-tune-epochs {setting["fine_tune_epochs"]}
"""


def conversion_table(evaluations: Mapping[str, Evaluation], steps: Sequence[int]) -> str:
    """Return accuracies at some steps, and what the way to 99 % of the analog accuracy has cost, as Markdown."""
    lines = []
    for name, evaluation in evaluations.items():
        arrived = evaluation.latency_at(levels=(99.0,))[99.0]
        lines.append([
            name,
            *(f"{100 * float(evaluation.accuracy[t - 1]):.2f}" if t <= evaluation.time_steps else "-" for t in steps),
            arrived or "-",
            f"{float(evaluation.synops[arrived - 1]) / 1e6:.2f}" if arrived else "-",
            f"{float(evaluation.energy()[arrived - 1]) / evaluation.analog_energy():.2f}" if arrived else "-",
        ])  # fmt: skip
    header = ["net", *(f"accuracy at {t} (%)" for t in steps), "step of 99 %", "10^6 SynOps", "energy / analog"]
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def as_json(row: Row) -> dict[str, Any]:
    """Return everything about a row that JSON can hold."""
    return {
        "name": row.name,
        "before": _measurement_as_json(row.before),
        "after": _measurement_as_json(row.after),
        "thresholds": row.thresholds,
        "threshold_history": row.history,
    }


def _measurement_as_json(measurement: Measurement) -> dict[str, Any]:
    layers = [
        {"neurons": layer.neurons, "spikes_per_neuron": layer.spikes_per_neuron, "sqnr_db": layer.sqnr_db}
        for layer in measurement.layers
    ]
    return {"accuracy": measurement.accuracy, "spikes_per_neuron": measurement.spikes_per_neuron, "layers": layers}


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean, low, high = (f"{value:.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low}..{high})"
