"""AdSNN on images as Zambrano et al. 2017 show it: all tables and figures of one data set, over several seeds.

``python -m benchmarks.results.adsnn_images --data digits --seeds 0 1 2 --out runs/digits`` measures what
``recipes.adsnn`` does, converts a plain ReLU net beside it, and deploys the net with other time constants.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Annotated, Any

import torch
from torch import nn

from recipes import adsnn
from recipes.adsnn import Experiment
from recipes.lib.cli import Argument, Positive, Seed
from recipes.lib.command import command, run_main
from recipes.lib.files import save_figure
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from snn_ext import AAN
from snn_ext.evaluation import Evaluation

from . import adsnn_figures
from .pages import mean_and_deviation, reduction, table, write_report

TAUS = (10.0, 20.0, 35.0, 50.0, 75.0, 100.0)
# Accuracy in %, firing rate in Hz, matching time in ms, as later sources give them for the paper's tables 1 and 2; the
# ANNs' accuracies, IRIS, SONAR and the figures of table 3 are not known.
PAPER = {
    "mnist": {"table 1": "99.56 / 67 / 291", "table 2": "99.12 / 10 / 209"},
    "cifar10": {"table 1": "89.86 / 68 / 372", "table 2": "88.52 / 22 / 304"},
    "cifar100": {"table 1": "64.21 / - / -", "table 2": "-"},
    "imagenet": {"table 1": "62.97 / 66 / 347", "table 2": "53.77 / 12 / 338"},
}
SAME_DATA = {"cifar10-jpeg": "cifar10"}


@dataclass(kw_only=True)
class Options(adsnn.Options):
    """Tables and figures."""

    seeds: Annotated[list[Seed] | None, Different, "default: --seed"] = None
    relu_m_f: Annotated[list[Positive], Different, "precisions of the ReLU net"] = field(
        default_factory=lambda: [0.05, 0.1, 0.2, 0.4]
    )
    relu_seeds: Annotated[list[Seed] | None, Argument(nargs="*"), Different, "default: all seeds"] = None
    taus: Annotated[list[Positive], Argument(nargs="*"), Different, "tau_beta = tau_eta in ms, table SI1"] = field(
        default_factory=lambda: list(TAUS)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seeds = self.seeds or [self.seed]
        self.relu_seeds = self.seeds if self.relu_seeds is None else self.relu_seeds


@command
def main(options: Options) -> str:
    """Run everything for one data set, write the figures and the report, and return the report."""
    with own_folder(options.out, "adsnn"):
        results = [measure(replace(options, seed=seed)) for seed in options.seeds]
        name = results[0]["data"]
        samples = next(iter(results[0]["sweep"].values())).samples
        about = f"{name}: {samples:,} test images, of which one is {100 / samples:.2g} points"
        title = textwrap.fill(about, 60)  # the width of a figure
        for stem, figure in adsnn_figures.of_data_set(results, title):
            save_figure(figure, options.out / f"{stem}.png")
        return write_report(options.out, section(results, options))


def measure(options: Options) -> dict[str, Any]:
    """Return the evaluations of one seed by what is varied: sweep, relu, arousal, windows, taus."""
    experiment = Experiment(options)
    sweep = experiment.sweep()
    high, low = experiment.precisions(sweep)
    result: dict[str, Any] = {
        "data": experiment.analog.data.name, "seed": options.seed, "sweep": sweep, "high": high, "low": low,
    }  # fmt: skip
    if options.seed in options.relu_seeds:
        result["relu"] = Experiment(replace(options, activation="relu", m_f=options.relu_m_f)).sweep()
    if low is not None:
        result |= {"arousal": experiment.arousal(low, high), "windows": by_window(experiment, low)}
    if options.seed == options.seeds[0] and options.taus:
        result["taus"] = {tau: with_tau(experiment, high, tau) for tau in options.taus}
    return result


def by_window(experiment: Experiment, low: float) -> dict[float, tuple[float, float]]:
    """Return threshold and share of switched training images for several windows of arousal."""
    options = {"windows": list(range(10, 160, 10)), "errors": 95.0}
    found = experiment.estimate(low, "windows", lambda m, **o: list(m.by_window(**o).items()), **options)
    return {window: (threshold, share) for window, (threshold, share) in found}


def with_tau(experiment: Experiment, m_f: float, tau: float) -> Evaluation:
    """Deploy the net without retraining with other time constants tau_beta = tau_eta; f(1) stays 1."""
    net: nn.Module = copy.deepcopy(experiment.analog.net)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, AAN):
                setattr(parent, name, AAN(m_f=child.m_f, tau_gamma=child.tau_gamma, tau_eta=tau, tau_beta=tau))
    return experiment.evaluate(f"tau {tau:g}", m_f, analog=replace(experiment.analog, net=net))


def section(results: Sequence[Mapping[str, Any]], options: Options) -> str:
    """Return the section of one data set; every figure is the mean over the seeds with its standard deviation."""
    paper = PAPER.get(SAME_DATA.get(options.data, options.data), {})
    evaluation = next(iter(results[0]["sweep"].values()))
    neurons = sum(layer.neurons for layer in evaluation.layers)
    head = (
        f"### {results[0]['data']}\n\nNet {options.layout}, {neurons:,} neurons, trained {options.epochs} epochs at "
        f"m_f = 0.1; seeds {', '.join(map(str, options.seeds))}; {evaluation.samples:,} test images, "
        f"{options.time_steps} ms each. Precision is chosen on the test images, as the paper does; every precision "
        f"stands in the last table.\n"
    )
    if options.data == "cifar10-jpeg":
        head += "The paper's figures are of CIFAR-10 itself, not of its JPEG copy.\n"
    parts = [head, _first_tables(results, options, paper), _arousal(results), _heights(results), _sweep(results)]
    return "\n".join(part for part in [*parts, _taus(results[0])] if part)


def _first_tables(results: Sequence[Mapping[str, Any]], options: Options, paper: Mapping[str, str]) -> str:
    header = [
        "", "m_f", "ANN (%)", "AdSNN (%)", "difference, points", "rate (Hz)", "matching time (ms)", "stability, points",
        *["paper: % / Hz / ms"] * bool(paper),
    ]  # fmt: skip
    chosen = {
        "trained precision, 0.1": [0.1 for _ in results],
        f"table 1: lowest rate within {options.within:g} points": [r["high"] for r in results],
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
    found = [result["relu"] for result in results if "relu" in result]
    nets = f"{len(found)} of the seeds" if len(found) < len(results) else "all seeds"
    about = f"Plain ReLU net ({nets}), converted without retraining, with adaptive spike heights"
    return _precisions(about, "ReLU net", found) if found else ""


def _sweep(results: Sequence[Mapping[str, Any]]) -> str:
    return _precisions("Every precision, fixed spike heights", "ANN", [result["sweep"] for result in results])


def _precisions(about: str, analog: str, sweeps: Sequence[Mapping[float, Evaluation]]) -> str:
    header = ["m_f", f"{analog} (%)", "AdSNN (%)", "difference, points", "rate (Hz)", "matching time (ms)", "stability"]
    rows = [[f"{m:g}", *_cells([sweep[m] for sweep in sweeps])] for m in sweeps[0]]
    return f"{about}:\n\n{table(rows, header)}\n"


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


if __name__ == "__main__":
    run_main(main, "the same command continues")
