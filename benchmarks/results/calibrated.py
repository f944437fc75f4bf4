"""Few steps without training: the calibrated conversion beside our other ones and SpikingJelly's recipes, over seeds.

``python -m benchmarks calibrated --model resnet20-bn --width 0.5 --seeds 0 1 2 --out runs/calibrated/resnet20``

A net is trained for each seed, converted for each number of steps, and evaluated at that step; every step counts. All
conversions get the same calibration images, the first of the training images. What is finished is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import nn

from recipes.convert import METHODS
from recipes.lib.analog import Analog, ConversionOptions, trained
from recipes.lib.cli import Argument, Count, Seed
from recipes.lib.command import command, run_main
from recipes.lib.evaluations import Evaluations
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from snn_ext.evaluation import Evaluation

from .pages import command_line, provenance, spread, table, write_report
from .rivals import RIVALS, convert

__all__ = ["CALIBRATED", "DIAL", "WAYS", "main"]

_QUIET = {"method": "calibrated", "progress": False}
CALIBRATED: dict[str, dict[str, Any]] = {
    "calibrated": _QUIET,
    "calibrated, weights as they are": _QUIET | {"correct_weights": False},
    "calibrated on 32 images": _QUIET | {"samples": 32},
    "calibrated, channels tuned": _QUIET | {"tune": "channels"},
    "calibrated, weights tuned": _QUIET | {"tune": "weights"},
    "calibrated, weights tuned, 2,048 images": _QUIET | {"tune": "weights", "samples": 2048},
}
"""A net of these is made for each number of steps; the others are made once."""
DIAL: dict[str, dict[str, Any]] = {
    f"{name}{tuned}": _QUIET | schedule | options
    for tuned, options in (
        ("", {}),
        (", weights tuned", {"tune": "weights"}),
        (", weights tuned, 2,048 images", {"tune": "weights", "samples": 2048}),
    )
    for name, schedule in (("wait 1", {"wait": 1}), ("wait T - 1, exact", {"schedule": "phased"}))
}
"""Nets of these are made for each number of steps too, and have their answer later."""
_BEFORE = "data-norm 99 % per channel, pre-charge 0.5"
WAYS = CALIBRATED | DIAL | {_BEFORE: METHODS[_BEFORE]} | RIVALS


@dataclass(kw_only=True)
class Options(ConversionOptions):
    """Study."""

    seed: int = field(default=0, init=False)
    seeds: Annotated[list[Seed], Different, "of the trainings"] = field(default_factory=lambda: [0])
    steps: Annotated[list[Count], Different, "T"] = field(default_factory=lambda: [2, 4, 8, 16])
    ways: Annotated[list[str], WAYS, Argument(metavar="NAME"), "by name"] = field(
        default_factory=lambda: [w for w in WAYS if "2,048" not in w]
    )
    calibration_images: Annotated[Count, "the first of the training images; ours take 256 of them, or what is said"] = (
        256
    )
    eval_images: Annotated[Count | None, "test on a sample of the test images"] = None


@command
def main(options: Options) -> str:
    """Train what is not trained, convert and evaluate what is not evaluated, and return the report."""
    found: dict[str, list[dict[int, Evaluation]]] = {name: [] for name in options.ways}
    with own_folder(options.out, "calibrated"):
        for seed in options.seeds:
            each, folder = copy.copy(options), options.out / f"seed-{seed}"
            each.seed = seed
            analog = trained(each, folder / "analog")
            for name in options.ways:
                found[name].append(evaluate(analog, name, options, Evaluations(folder / "evaluations")))
        text = f"### Few steps: {analog.title}, {analog.data.name}\n\n{_text(found, options)}\n"
        seeds = " ".join(map(str, options.seeds))
        return write_report(options.out, text + "\n" + provenance(command_line(options), seeds))


def evaluate(analog: Analog, name: str, options: Options, kept: Evaluations) -> dict[int, Evaluation]:
    """Return for each T the evaluation of the net that is converted for it."""
    found: dict[int, Evaluation] = {}
    for steps in sorted(options.steps, reverse=True):
        each_its_own = name in CALIBRATED | DIAL
        way = WAYS[name] | ({"time_steps": steps} if each_its_own else {})
        if not each_its_own and found:  # one net for all
            found[steps] = found[max(found)]
            continue
        if way.get("wait", 0) >= steps:
            continue

        def make(way: Mapping[str, Any] = way) -> nn.Module:
            return convert(analog.net, list(analog.loader("train", options.calibration_images)), **way)

        settings = {"way": {k: str(v) for k, v in way.items()}, "calibration_images": options.calibration_images}
        each = f"{name}, T {steps}"
        time_steps = None if name in DIAL else steps
        found[steps], _ = analog.evaluate(kept, each, make, time_steps, images=options.eval_images, settings=settings)
    return found


def _text(found: Mapping[str, Sequence[Mapping[int, Evaluation]]], options: Options) -> str:
    steps, any_ones = sorted(options.steps), [one[max(options.steps)] for one in next(iter(found.values()))]
    accuracies = spread([100 * e.analog_accuracy for e in any_ones], 2)
    rows = [
        [
            name,
            *(spread([100 * float(one[t].accuracy[t - 1]) for one in runs], 2) for t in steps),
            *(spread([float(one[t].spikes[t - 1]) / 1e3 for one in runs], 1) for t in steps[-1:]),
        ]
        for name, runs in found.items()
        if name not in DIAL
    ]
    header = ["conversion", *(f"T = {t}" for t in steps), f"10^3 spikes at {steps[-1]}"]
    return (
        f"Accuracy in %, constant input, linear read-out, every step counted; {any_ones[0].samples:,} test images, "
        f"{options.calibration_images} for calibration, analog net {accuracies} %. Mean over the seeds "
        f"{' '.join(map(str, options.seeds))}, with (smallest..largest) if there are several.\n\n{table(rows, header)}"
        f"\n\n{_dial(found, steps)}"
    )


def _dial(found: Mapping[str, Sequence[Mapping[int, Evaluation]]], steps: Sequence[int]) -> str:
    """Return accuracy, latency and spikes of the nets that wait, beside those that do not."""
    rows = []
    for t in steps:
        for name in ("calibrated", *DIAL):
            runs = [one[t] for one in found.get(name, []) if t in one]
            if runs:
                accuracies = spread([100 * float(e.accuracy[-1]) for e in runs], 2)
                rows.append([
                    t, name, runs[0].time_steps, accuracies, spread([float(e.spikes[-1]) / 1e3 for e in runs], 1),
                ])  # fmt: skip
    if all(name == "calibrated" for _, name, *_ in rows):
        return ""
    header = ["T", "conversion", "steps to the answer", "accuracy, %", "10^3 spikes"]
    return f"Nets of T decisions a layer that wait for more inputs before the first one:\n\n{table(rows, header)}"


if __name__ == "__main__":
    run_main(main, "the same command continues")
