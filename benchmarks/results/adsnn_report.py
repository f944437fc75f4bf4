"""The tables of the AdSNN recipe, with the paper's figures beside ours where the data are the same."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from recipes.adsnn_training import TrainedNet
from snn_ext.evaluation import Evaluation

from .pages import mean_and_deviation, reduction, table

__all__ = ["PAPER", "section"]

# Accuracy in %, firing rate in Hz, matching time in ms, as later sources give them for the paper's tables 1 and 2; the
# ANNs' accuracies, IRIS, SONAR and the figures of table 3 are not known.
PAPER = {
    "mnist": {"table 1": "99.56 / 67 / 291", "table 2": "99.12 / 10 / 209"},
    "cifar10": {"table 1": "89.86 / 68 / 372", "table 2": "88.52 / 22 / 304"},
    "cifar100": {"table 1": "64.21 / - / -", "table 2": "-"},
    "imagenet": {"table 1": "62.97 / 66 / 347", "table 2": "53.77 / 12 / 338"},
}
SAME_DATA = {"cifar10-jpeg": "cifar10"}


def section(results: Sequence[Mapping[str, Any]], args: argparse.Namespace, analog: TrainedNet) -> str:
    """Return the section of one data set; every figure is the mean over the seeds with its standard deviation."""
    paper = PAPER.get(SAME_DATA.get(args.data, args.data), {})
    evaluation = next(iter(results[0]["sweep"].values()))
    neurons = sum(layer.neurons for layer in evaluation.layers)
    head = (
        f"### {analog.data.name}\n\nNet {args.layout}, {neurons:,} neurons, trained {args.epochs} epochs at m_f = 0.1; "
        f"seeds {', '.join(map(str, args.seeds))}; {evaluation.samples:,} test images, {args.time_steps} ms each. "
        f"Precision is chosen on the test images, as the paper does; every precision stands in the last table.\n"
    )
    if args.data == "cifar10-jpeg":
        head += "The paper's figures are of CIFAR-10 itself, not of its JPEG copy.\n"
    parts = [head, _first_tables(results, args, paper), _arousal(results), _heights(results), _sweep(results)]
    return "\n".join(part for part in [*parts, _taus(results[0])] if part)


def _first_tables(results: Sequence[Mapping[str, Any]], args: argparse.Namespace, paper: Mapping[str, str]) -> str:
    header = [
        "", "m_f", "ANN (%)", "AdSNN (%)", "difference, points", "rate (Hz)", "matching time (ms)", "stability, points",
        *["paper: % / Hz / ms"] * bool(paper),
    ]  # fmt: skip
    chosen = {
        "trained precision, 0.1": [0.1 for _ in results],
        f"table 1: lowest rate within {args.within:g} points": [r["high"] for r in results],
        "table 2: low rate, within 2 points": [_low_rate(r["sweep"]) for r in results],
    }
    rows = []
    for name, m_fs in chosen.items():
        picked = [r["sweep"][m] for r, m in zip(results, m_fs, strict=True) if m in r["sweep"]]
        if len(picked) == len(results):
            figure = next((value for key, value in paper.items() if name.startswith(key)), None)
            rows.append(
                [name, ", ".join(f"{m:g}" for m in dict.fromkeys(m_fs)), *_cells(picked), *[figure] * bool(paper)]
            )
    return f"{table(rows, header)}\n"


def _cells(evaluations: Sequence[Evaluation]) -> list[str]:
    ours = [100 * float(e.accuracy[-1]) for e in evaluations]
    analog = [100 * e.analog_accuracy for e in evaluations]
    return [
        mean_and_deviation(analog), mean_and_deviation(ours),
        mean_and_deviation([a - b for a, b in zip(ours, analog, strict=True)]),
        mean_and_deviation([e.firing_rate for e in evaluations], 1),
        mean_and_deviation([e.matching_time() or torch.nan for e in evaluations], 0),
        mean_and_deviation([100 * e.stability() for e in evaluations]),
    ]  # fmt: skip


def _low_rate(sweep: Mapping[float, Evaluation]) -> float:
    """Return the precision of the lowest rate within two points of the ANN; the paper's criterion is not known."""
    good = [m for m, e in sweep.items() if float(e.accuracy[-1]) >= e.analog_accuracy - 0.02]
    return min(good or sweep, key=lambda m: sweep[m].firing_rate)


def _arousal(results: Sequence[Mapping[str, Any]]) -> str:
    results = [result for result in results if "arousal" in result]
    if not results:
        return ""
    header = ["table 3", "AdSNN (%)", "rate (Hz)", "spikes less than high", "selectivity (%)", "matching time (ms)"]
    kinds: dict[str, list[Evaluation]] = {
        "low precision": [r["sweep"][r["low"]] for r in results],
        "high precision": [r["sweep"][r["high"]] for r in results],
    }
    for share in results[0]["arousal"]:
        kinds[f"arousal, {share:g} % of the errors"] = [r["arousal"][share] for r in results]
    high = fmean(e.firing_rate for e in kinds["high precision"])
    rows = []
    for name, evaluations in kinds.items():
        switched = [100 * e.selectivity for e in evaluations if e.selectivity is not None]
        rows.append([
            name, mean_and_deviation([100 * float(e.accuracy[-1]) for e in evaluations]),
            mean_and_deviation([e.firing_rate for e in evaluations], 1),
            reduction(fmean(e.firing_rate for e in evaluations), high),
            mean_and_deviation(switched, 1) if switched else None,
            mean_and_deviation([e.matching_time() or torch.nan for e in evaluations], 0),
        ])  # fmt: skip
    pairs = ", ".join(dict.fromkeys(f"{r['low']:g} to {r['high']:g}" for r in results))
    return (
        f"Arousal, m_f from {pairs}; waiting time, window and threshold from training images. The paper: about half "
        f"the rate at equal accuracy, at a longer latency.\n\n{table(rows, header)}\n"
    )


def _heights(results: Sequence[Mapping[str, Any]]) -> str:
    header = ["m_f", "ReLU net (%)", "AdSNN (%)", "difference, points", "rate (Hz)", "matching time (ms)", "stability"]
    found = [result["relu"] for result in results if "relu" in result]
    if not found:
        return ""
    rows = [[f"{m:g}", *_cells([relu[m] for relu in found])] for m in found[0]]
    nets = f"{len(found)} of the seeds" if len(found) < len(results) else "all seeds"
    return (
        f"Plain ReLU net ({nets}), converted without retraining, with adaptive spike heights:\n\n"
        f"{table(rows, header)}\n"
    )


def _sweep(results: Sequence[Mapping[str, Any]]) -> str:
    header = ["m_f", "ANN (%)", "AdSNN (%)", "difference, points", "rate (Hz)", "matching time (ms)", "stability"]
    rows = [[f"{m:g}", *_cells([r["sweep"][m] for r in results])] for m in results[0]["sweep"]]
    return f"Every precision, fixed spike heights:\n\n{table(rows, header)}\n"


def _taus(result: Mapping[str, Any]) -> str:
    if "taus" not in result:
        return ""
    header = ["table SI1: tau_beta = tau_eta (ms)", "AdSNN (%)", "rate (Hz)", "matching time (ms)"]
    rows = [
        [f"{tau:g}", f"{100 * float(e.accuracy[-1]):.2f}", f"{e.firing_rate:.1f}", f"{e.matching_time():.0f}"]
        for tau, e in result["taus"].items()
    ]
    return (
        f"Other time constants, deployed without retraining at m_f = {result['high']:g}, first seed:\n\n"
        f"{table(rows, header)}\n"
    )
