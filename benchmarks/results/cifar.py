"""Every conversion of the nets that come along, on the JPEG copy of CIFAR-10: accuracy by step, latency, operations.

``python -m benchmarks cifar --data-dir FOLDER --out runs/cifar --markdown docs/cifar-results.md``

Finished evaluations are kept: the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from recipes.lib.analog import Analog, ConversionOptions, trained
from recipes.lib.cli import Argument, Count, NewFile, NewFolder, parse
from recipes.lib.command import command, run_main
from recipes.lib.evaluations import Evaluations
from recipes.lib.files import save_figure, save_text
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from recipes.models.trained import SHIPPED
from snn_ext.evaluation import Evaluation
from snn_ext.plots import accuracy_latency_synops

from .pages import command_line, fastest_delay, latency, provenance, table
from .rivals import RIVALS, convert

LEVELS = (99.0, 99.5, 99.9)
_CALIBRATED = {"method": "calibrated", "progress": False}
_DATA_NORM = {"method": "data-norm", "precharge": 0.5}
OURS: dict[str, dict[str, Any]] = {
    "data-norm, maximum": {"method": "data-norm"},
    "data-norm 99.9 %, pre-charge 0.5": _DATA_NORM | {"percentile": 99.9},
    "data-norm 99.9 %, pre-charge by layer": {
        "method": "data-norm", "percentile": 99.9, "precharge": "optimize", "time_steps": 64, "progress": False,
    },
    "data-norm 99 % per channel, pre-charge 0.5": _DATA_NORM | {"percentile": 99.0, "channel_wise": True},
    "Spike-Norm": {"method": "spike-norm", "reset": "subtract", "time_steps": 100, "progress": False},
    **{f"calibrated for T = {steps}": _CALIBRATED | {"time_steps": steps} for steps in (2, 4, 8, 16)},
    **{
        f"calibrated for T = {steps}, weights tuned": _CALIBRATED | {"time_steps": steps, "tune": "weights"}
        for steps in (4, 8)
    },
}  # fmt: skip
OWN_STEPS: dict[str, dict[str, Any]] = {
    f"calibrated for T = {steps}, {name}": _CALIBRATED | {"time_steps": steps} | schedule
    for steps in (4, 8)
    for name, schedule in (("wait 1", {"wait": 1}), ("exact", {"schedule": "phased"}))
}
"""Nets that have their answer later than T: evaluated for the steps that they take."""
PAPERS: dict[str, dict[str, Any]] = {
    "Spike-Norm, hard reset, Poisson input": {
        "method": "spike-norm", "reset": "zero", "encoder": "poisson", "readout": "spikes", "time_steps": 2500,
        "progress": False,
    },
    "AdSNN, adaptive heights": {"method": "adsnn", "spike_height": "adaptive", "percentile": 99.0},
}  # fmt: skip
"""Settings of papers, which take hundreds of steps: evaluated on fewer images."""
PAPER_STEPS = dict(zip(PAPERS, (2500, 500), strict=True))
WAYS = RIVALS | OURS | OWN_STEPS | PAPERS


@dataclass(kw_only=True)
class Options:
    """Study."""

    out: Annotated[NewFolder, "folder of the evaluations"]
    nets: Annotated[list[str], SHIPPED, Different, "by name"] = field(default_factory=lambda: list(SHIPPED))
    ways: Annotated[list[str], WAYS, Argument(metavar="NAME"), "by name"] = field(default_factory=lambda: list(WAYS))
    time_steps: Annotated[Count, "T"] = 128
    calibration_images: Annotated[Count, "the first of the training images"] = 256
    eval_images: Annotated[Count, "a sample of the test images"] = 2000
    paper_images: Annotated[Count, "a sample of them for what takes hundreds of steps"] = 200
    data_dir: Annotated[Path | None, "folder that holds the copy"] = None
    markdown: Annotated[NewFile | None, "file for the page"] = None


@command
def main(options: Options) -> str:
    """Convert and evaluate what is not finished, draw a picture for each net, and write the page."""
    sections = []
    with own_folder(options.out, "cifar"):
        for name in options.nets:
            data_dir = [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
            given = ["--checkpoint", name, "--out", str(options.out / name), "--device", "cpu", *data_dir]
            analog = trained(parse(ConversionOptions, given), options.out / name)
            found = {way: evaluated(analog, way, options, options.out / name) for way in options.ways}
            evaluations = {way: evaluation for way, (evaluation, _) in found.items()}
            save_figure(accuracy_latency_synops(evaluations, name), options.out / f"{name}.png")
            sections.append(section(name, found))
    page = "\n\n".join([*sections, provenance(command_line(options), "0 of the training")])
    if options.markdown is not None:
        save_text(page, options.markdown)
    print(page)
    return page


def evaluated(analog: Analog, way: str, options: Options, folder: Path) -> tuple[Evaluation, float]:
    """Return the evaluation of a net that is converted in one way, and the processor time of the conversion."""
    kept = Evaluations(folder / "evaluations")
    settings = {
        "way": {name: str(value) for name, value in WAYS[way].items()}, "calibration_images": options.calibration_images
    }  # fmt: skip

    def timed() -> tuple[nn.Module, float]:
        images = list(analog.loader("train", options.calibration_images))
        start = time.process_time()
        snn = convert(analog.net, images, **WAYS[way])
        return snn, time.process_time() - start

    def make() -> nn.Module:
        snn, seconds = timed()
        kept.note(f"{way} cost", settings, lambda: seconds)
        return snn

    given: dict[str, Any] = {"time_steps": PAPER_STEPS.get(way, None if way in OWN_STEPS else options.time_steps)}
    if way in RIVALS | OURS:
        given["delay"] = range(0, min(33, options.time_steps), 4)
    images = options.paper_images if way in PAPERS else options.eval_images
    evaluation, _ = analog.evaluate(kept, way, make, images=images, settings=settings, **given)
    return evaluation, kept.note(f"{way} cost", settings, lambda: timed()[1])


def section(name: str, found: dict[str, tuple[Evaluation, float]]) -> str:
    waiting, papers = ({way: found[way] for way in found if way in group} for group in (OWN_STEPS, PAPERS))
    others = {way: found[way] for way in found if way not in waiting | papers}
    one = next(iter((others | found).values()))[0]
    steps = _powers(others)
    error = 100 * (one.analog_accuracy * (1 - one.analog_accuracy) / one.samples) ** 0.5
    parts = [
        f"## {name}",
        f"Analog net: {100 * one.analog_accuracy:.2f} %, {one.macs / 1e6:.1f} million multiply-accumulates; "
        f"{one.samples:,} test images, on which the standard error of an accuracy is {error:.2f} points. Constant "
        "input, linear read-out, every step counted.",
        "Accuracy in % at a step, and seconds of processor time of the conversion:",
        _accuracies(others, steps),
        "First step that reaches a share of the analog accuracy (in brackets: from which on it is kept), that of 99 % "
        "with the delay of the read-out that is best on these images, and what an image costs up to 99 % without:",
        table(
            [[way, *_latencies(e), _delayed(e), *_costs(e, e.latency[99.0])] for way, (e, _) in others.items()],
            ["conversion", *(f"{level} %" for level in LEVELS), "99 %, delayed", *COSTS],
        ),
    ]
    if waiting:
        rows = [
            [way, e.time_steps, _accuracy(e, e.time_steps), *_costs(e, e.time_steps), f"{cost:.1f}"]
            for way, (e, cost) in waiting.items()
        ]
        parts += ["Nets that wait for more inputs:", table(rows, ["conversion", "steps", "accuracy, %", *COSTS, "s"])]
    if papers:
        samples = next(iter(papers.values()))[0].samples
        parts += [f"Settings of papers, on {samples:,} test images:", _accuracies(papers, _powers(papers))]
    return "\n\n".join(parts)


def _powers(found: Mapping[str, tuple[Evaluation, float]]) -> list[int]:
    """Return 1, 2, 4 ... up to the last step, which stands there too."""
    last = max((e.time_steps for e, _ in found.values()), default=0)
    return sorted({1 << i for i in range(last.bit_length())} | {e.time_steps for e, _ in found.values()})


def _accuracies(found: Mapping[str, tuple[Evaluation, float]], steps: Sequence[int]) -> str:
    rows = [[way, *(_accuracy(e, t) for t in steps), f"{cost:.1f}"] for way, (e, cost) in found.items()]
    return table(rows, ["conversion", *map(str, steps), "s"])


COSTS = ("10^3 spikes", "10^6 SynOps", "energy / analog")


def _costs(evaluation: Evaluation, step: int | None) -> list[str | None]:
    if step is None:
        return [None] * len(COSTS)
    energy = float(evaluation.energy()[step - 1]) / evaluation.analog_energy()
    spikes, synops = float(evaluation.spikes[step - 1]), float(evaluation.synops[step - 1])
    return [f"{spikes / 1e3:,.1f}", f"{synops / 1e6:.2f}", f"{energy:.2f}"]


def _delayed(evaluation: Evaluation) -> str | None:
    delay = fastest_delay(evaluation)
    return None if delay is None else f"{evaluation.latency_at(delay)[99.0]} (delay {delay})"


def _latencies(evaluation: Evaluation) -> list[str]:
    first, last = evaluation.latency_at(levels=LEVELS), evaluation.latency_at(levels=LEVELS, last=True)
    return [latency(first[level], last[level]) for level in LEVELS]


def _accuracy(evaluation: Evaluation, step: int) -> str | None:
    return f"{100 * float(evaluation.accuracy[step - 1]):.2f}" if step <= evaluation.time_steps else None


if __name__ == "__main__":
    run_main(main, "the same command continues")
