"""Pre-charged membrane potential and delayed evaluation, after Hwang et al. 2021.

``python -m recipes.precharge --model net2 --out runs/net2`` trains Net 1, Net 2 or ResNet-20 (or loads
``--checkpoint``), converts it by data-based normalisation with spiking input and output layers, and measures

- what pre-charge does to one neuron, and a lowered threshold beside it;
- global pre-charge 0 to 0.5: rates, correlation with the activations, accuracy, latency, operations;
- pre-charge by layer (Algorithm 1), its error over time, and the delay of the read-out on top.

``--preset small`` (the default) is a narrow net that takes minutes on a CPU; ``--preset paper`` is the paper's. What is
finished is kept: started again, the command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.results import conversion_plots as plots
from benchmarks.results.pages import command_line, latency, provenance, reduction, table, write_report
from benchmarks.results.plots import save
from snn_ext import convert
from snn_ext.conversion import lower_thresholds, optimize_precharge
from snn_ext.evaluation import Evaluation, best_delay, delay_regimes
from snn_ext.evaluation import plots as evaluation_plots
from snn_ext.functional import integrate_and_fire

from .lib.command import command, run_main
from .lib.conversions import Evaluations, digest
from .lib.options import integer
from .lib.run_folder import own_folder
from .train_analog import HWANG_RESNET20, Trained, add_analog_arguments, check_analog_arguments, preset_of, trained

__all__ = ["main", "one_neuron", "parse_arguments", "report"]

MODELS = ("net1", "net2", "resnet20")
LEVELS = (99.0, 99.5, 99.9)
GLOBAL = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
LOWERED = (0.5, 0.75)
SNAPSHOTS = {"net1": (50, 100, 150), "net2": (100, 250, 750), "resnet20": (100, 250, 750)}
# Smaller latency in percent, and at which pre-charge, as Hwang et al. 2021 state them (MNIST for Net 1, else CIFAR-10).
PAPER_LATENCY = {
    "net1": {99.0: "59 % @0.5", 99.5: "43 % @0.5", 99.9: "25 % @0.3"},
    "net2": {99.0: "19 % @0.3", 99.5: "13 % @0.2", 99.9: "13 % @0.3"},
    "resnet20": {},
}
# Fewer operations in percent: pre-charge by layer (Net 1), and with the delay (Net 2).
PAPER_SPIKES = {
    "net1": {99.0: "46 %", 99.5: "35 %", 99.9: "32 %"},
    "net2": {99.0: "37 % (with delay)", 99.5: "36 % (with delay)", 99.9: "38 % (with delay)"},
    "resnet20": {},
}
PAPER_TREND = {
    "net1": "a longer delay does not help",
    "net2": "the latency falls up to 0.3 and rises above",
    "resnet20": "the latency falls up to 0.4 and rises at 0.5",
}
DATA_OF_THE_PAPER = {"net1": ("mnist",), "net2": ("cifar10", "cifar10-jpeg"), "resnet20": ("cifar10", "cifar10-jpeg")}


def report(analog: Trained, evaluations: Evaluations, args: argparse.Namespace) -> str:
    """Run all evaluations of one net, write the figures, and return its section of the page."""
    title = f"{analog.title}, {analog.data.name}"
    snapshots = tuple(t for t in SNAPSHOTS[args.model] if t <= args.time_steps)
    delays = range(0, min(args.max_delay, args.time_steps - 1) + 1, args.delay_step)

    def measure(name: str, make: Any, **settings: Any) -> tuple[Evaluation, dict[str, Any]]:
        depends = {
            "net": digest(analog.net), "data": analog.data.name, "contents": analog.fingerprint(),
            "eval_images": args.eval_images, "calibration_images": args.calibration_images, **settings,
        }  # fmt: skip
        return evaluations.get(
            f"{analog.title} {name}", depends, make, analog.loader("test", args.eval_images), args.time_steps,
            ann=analog.net, delay=delays, correlation_steps=snapshots,
        )  # fmt: skip

    def converted(precharge: float = 0.0, factor: float = 1.0) -> nn.Module:
        snn = convert(
            analog.net, analog.loader("train", args.calibration_images), method="data-norm", encoder="if",
            readout="spikes", precharge=precharge,
        )  # fmt: skip
        if factor != 1:
            lower_thresholds(snn, factor)
        return snn

    def optimised() -> nn.Module:
        snn = converted()
        images = analog.loader("train", args.search_images)
        optimize_precharge(snn, analog.net, images, time_steps=args.search_steps, candidates=51)
        return snn

    swept = {f"pre-charge {v:g}": measure(f"precharge {v:g}", lambda v=v: converted(v), precharge=v)[0] for v in GLOBAL}
    lowered = {
        f"threshold x {f:g}": measure(f"threshold {f:g}", lambda f=f: converted(factor=f), threshold=f)[0]
        for f in LOWERED
    }
    layerwise, notes = measure("by layer", optimised, search=[args.search_images, args.search_steps])
    by_layer = [layer["precharge"] for layer in notes["layers"]]
    none, half = swept["pre-charge 0"], swept["pre-charge 0.5"]
    _figures(args.out, title, swept, lowered, layerwise, snapshots)
    found = {"Algorithm 1": (range(len(by_layer)), by_layer)}
    figure = plots.curves(found, "layer (0: input)", "pre-charge", title)
    figure.axes[0].set(ylim=(0.0, 0.52), xticks=range(len(by_layer)))
    save(figure, args.out / "precharge_by_layer.png")

    lines = []
    for name, evaluation in {**swept, "by layer": layerwise, **lowered}.items():
        lines.append(_line(name, evaluation, none, 0))
    reached = {name: e.latency_at(0, (99.0,))[99.0] for name, e in swept.items()}
    best = min(swept, key=lambda name: reached[name] or float("inf"))
    for name, evaluation in {"no pre-charge": none, best: swept[best], "by layer": layerwise}.items():
        try:
            delay = best_delay(evaluation)
        except ValueError:
            continue
        lines.append(_line(f"{name}, delay {delay}", evaluation, none, delay))
    if analog.args.data in DATA_OF_THE_PAPER[args.model]:
        paper, spikes = PAPER_LATENCY[args.model], PAPER_SPIKES[args.model]
        lines.append(["paper: best, less than without", *[None] * 2, *(
            f"{paper.get(level, '-')}; spikes {spikes.get(level, '-')}" for level in LEVELS
        )])  # fmt: skip
    header = ["", "accuracy (%)", "MSE at T", *(f"{level} %: step, 10^3 spikes, less by" for level in LEVELS)]
    regimes = {
        name: ", ".join(f"{r.name} {r.first}..{r.last}" for r in delay_regimes(evaluation))
        for name, evaluation in (("without pre-charge", none), ("pre-charge 0.5", half), ("by layer", layerwise))
    }
    delayed = "\n".join(f"- {name}: {text}" for name, text in regimes.items())
    agreement = _mse_and_latency({**swept, "by layer": layerwise})
    calibration = args.calibration_images or "all training"
    return (
        f"### Pre-charge: {title}\n\nData-based normalisation on {calibration} images, spiking input "
        f"and output layers, T = {args.time_steps}, {none.samples:,} test images; analog net: "
        f"{100 * none.analog_accuracy:.2f} %. Step that first reaches a share of the analog accuracy, thousands of "
        f"spikes up to it, and by how much both are below those without pre-charge. By layer: Algorithm 1 on "
        f"{args.search_images} images, {args.search_steps} steps. The paper: {PAPER_TREND[args.model]}.\n\n"
        f"{table(lines, header)}\n\nPre-charge by layer: {', '.join(f'{v:.2f}' for v in by_layer)}. Regimes of the "
        f"delay (99.0 %):\n\n{delayed}\n\n{agreement}\n"
    )


def one_neuron(time_steps: int = 255, activations: int = 512) -> Figure:
    """Draw the error of one neuron, summed over time, against its pre-charge: simulated and by theory.

    With a residual potential that is uniform in [0, theta) the mean squared error at step t is
    ``(1/12 + (1/2 - V)^2) / t^2``: smallest at half the threshold, and a quarter of that without pre-charge.
    """
    a = (torch.arange(activations, dtype=torch.float64) + 0.5) / activations
    t = torch.arange(1, time_steps + 1, dtype=torch.float64)[:, None]
    values = [v / 20 for v in range(21)]
    simulated, lowered = [], []
    for value in values:
        spikes, _ = integrate_and_fire(a.expand(time_steps, -1), value, torch.ones(1, dtype=torch.float64))
        simulated.append(float(((spikes.cumsum(0) / t - a) ** 2).mean(1).sum()))
        threshold = torch.tensor([1.0 - value / 2], dtype=torch.float64)
        spikes, _ = integrate_and_fire(a.expand(time_steps, -1), 0.0, threshold)
        lowered.append(float(((spikes.cumsum(0) / t - a) ** 2).mean(1).sum()))
    total = float((1 / t**2).sum())
    theory = [(1 / 12 + (0.5 - value) ** 2) * total for value in values]
    curves = {"pre-charge, simulated": (values, simulated), "pre-charge, theory": (values, theory)}
    curves["threshold 1 - x/2"] = (values, lowered)
    title = "one neuron, activations uniform in [0, 1]"
    ylabel = f"squared error, sum over {time_steps} steps"
    return plots.curves(curves, "pre-charge x, in thresholds", ylabel, title, log=True, dashed=["pre-charge, theory"])


def _line(name: str, evaluation: Evaluation, none: Evaluation, delay: int) -> list[str]:
    first, last = (evaluation.latency_at(delay, LEVELS, last=last) for last in (False, True))
    reference = none.latency_at(0, LEVELS)
    cells = [
        name,
        f"{100 * float(evaluation.accuracy_at(delay)[-1]):.2f}",
        f"{float(evaluation.mse_at(delay)[-1]):.2e}",
    ]
    for level in LEVELS:
        step, before = first[level], reference[level]
        if step is None:
            cells.append("-")
            continue
        spikes = float(evaluation.spikes[step - 1])
        less = reduction(spikes, None if before is None else float(none.spikes[before - 1]))
        cells.append(f"{latency(step, last[level])}; {spikes / 1e3:,.1f}; {reduction(step, before)}, {less}")
    return cells


def _mse_and_latency(evaluations: dict[str, Evaluation]) -> str:
    """Say where the smallest error of the output and the shortest latency are not the same."""
    steps = next(iter(evaluations.values())).time_steps
    error = {name: float(e.mse_at(0)[: min(255, steps)].sum()) for name, e in evaluations.items()}
    reached = {name: e.latency_at(0, (99.0,))[99.0] for name, e in evaluations.items()}
    reached = {name: step for name, step in reached.items() if step is not None}
    by_error = min(error, key=error.__getitem__)
    if not reached:
        return f"Smallest squared error of the output, summed over time: {by_error}; 99.0 % is never reached."
    by_latency = min(reached, key=reached.__getitem__)
    verdict = "agree" if reached.get(by_error) == reached[by_latency] else "disagree"
    return (
        f"Error and latency {verdict}: the squared error of the output, summed over time, is smallest with {by_error} "
        f"(99.0 % at step {reached.get(by_error, '-')}), the latency with {by_latency} (step {reached[by_latency]})."
    )


def _figures(
    out: Path, title: str, swept: dict[str, Evaluation], lowered: dict[str, Evaluation], layerwise: Evaluation,
    snapshots: Sequence[int],
) -> None:  # fmt: skip
    """Write the figures of one net; the order is that of the paper's."""
    none = swept["pre-charge 0"]
    save(one_neuron(), out / "one_neuron.png")
    save(plots.rates({name: swept[name] for name in list(swept)[::2] + ["pre-charge 0.5"]}, title), out / "rates.png")
    if snapshots:
        for name in ("pre-charge 0", "pre-charge 0.3"):
            figure = evaluation_plots.correlations(swept[name])
            figure.suptitle(f"{name}: {title}")
            save(figure, out / f"correlation_{name.replace(' ', '_')}.png")
    save(plots.accuracy_over_time(swept, title), out / "accuracy.png")
    steps = {level: [e.latency_at(0, (level,))[level] for e in swept.values()] for level in LEVELS}
    save(plots.latencies(steps, GLOBAL, "pre-charge of all layers, in thresholds", title), out / "latency.png")
    against = {"none": none, "pre-charge 0.5": swept["pre-charge 0.5"], **lowered}
    save(plots.accuracy_over_time(against, title), out / "lowered_threshold.png")
    time = range(1, none.time_steps + 1)
    errors = {name: (time, e.mse_at(0)) for name, e in {**swept, "by layer": layerwise}.items()}
    save(plots.curves(errors, "time step", "squared error of the output", title, log=True), out / "error.png")
    best = {"pre-charge 0": none, "pre-charge 0.3": swept["pre-charge 0.3"], "by layer": layerwise}
    save(plots.accuracy_over_time(best, title), out / "accuracy_by_layer.png")
    save(evaluation_plots.delays(best), out / "delay.png")

    def spent(evaluation: Evaluation, delay: int) -> list[float | None]:
        found = evaluation.latency_at(delay, LEVELS)
        return [None if found[level] is None else float(evaluation.spikes[found[level] - 1]) / 1e3 for level in LEVELS]

    operations = {name: spent(evaluation, 0) for name, evaluation in best.items()}
    try:
        operations["by layer, delayed"] = spent(layerwise, best_delay(layerwise))
    except ValueError:
        pass
    groups = [f"{level} %" for level in LEVELS]
    save(plots.bars(operations, groups, "10^3 spikes for an image", title), out / "operations.png")


HORIZONS: dict[str, dict[str, Any]] = {
    "small": {"time_steps": 255, "eval_images": 200, "search_images": 32, "search_steps": 64},
    "paper": {"time_steps": 1000, "eval_images": None, "search_images": 1000, "search_steps": 255},
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.precharge", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_analog_arguments(parser, MODELS)
    group = parser.add_argument_group("conversion (defaults: the preset)")
    group.add_argument("--calibration-images", type=integer(), help="default: all training images")
    group.add_argument("--eval-images", type=integer(), help="test on a sample of the test images")
    group.add_argument("--time-steps", type=integer(), help="T")
    group.add_argument("--search-images", type=integer(), help="training images of the search by layer")
    group.add_argument("--search-steps", type=integer(), help="steps over which the search sums the error")
    group.add_argument("--max-delay", type=integer(0), default=100, help="longest delay of the read-out")
    group.add_argument("--delay-step", type=integer(), default=5, help="step of the grid of delays")
    args = parser.parse_args(argv)
    if args.inputs == "centred":
        parser.error("argument --inputs: got centred, want unit: the input neurons can not fire for negative pixels")
    args.inputs = "unit"
    preset_of(args, {"resnet20": HWANG_RESNET20})
    if args.model == "resnet20":
        args.constraint = 1  # a ReLU at every junction, and no convolutions in front
    for name, value in HORIZONS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_analog_arguments(parser, args)
    return args


@command
def main(argv: Sequence[str] | None = None) -> str:
    """Run the recipe, write figures and ``report.md``, and return the report."""
    args = parse_arguments(argv)
    with own_folder(args.out, "precharge"):
        analog = trained(args, args.out / "analog")
        text = report(analog, Evaluations(args.out / "evaluations"), args)
        return write_report(args.out, text + "\n" + provenance(command_line("precharge", argv), args.seed))


if __name__ == "__main__":
    run_main(main, "the same command continues")
