"""The quickstart over several seeds, with every conversion of its ReLU net, and its page.

``python -m benchmarks quickstart --seeds 0 1 2 --markdown docs/quickstart-results.md``
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
from torch.utils.data import DataLoader

import snn_ext
from recipes import quickstart
from recipes.convert import METHODS
from recipes.data import FASHION_MNIST_SUBSET, LabelledImages, fashion_mnist_subset
from recipes.lib.cli import NewFile, NewFolder, Seed
from recipes.lib.command import command, run_main
from recipes.lib.files import save_figure, save_text, write_json
from recipes.lib.fine_tuning import NOTES, Row, accuracy_against_spikes, table, thresholds
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from recipes.lib.training import seed_everything, train
from recipes.models import plain, small_cnn
from snn_ext.evaluation import ENERGY_45NM, Evaluation, measure_activity

from .pages import command_line, environment, spread
from .pages import table as markdown_table
from .rivals import RIVALS, convert

CONVERSIONS = (
    "RateCoding Max", "RateCoding 99.9 %, channel-wise, half threshold", "LocalThresholdBalancing, 40 passes",
    "data-norm, maximum", "data-norm 99.9 %, pre-charge 0.5", "Spike-Norm, pre-charge 0.5",
)  # fmt: skip

CONVERSION_NOTES = """\
- Nets of the first table after fine-tuning, and the ReLU net (before its fine-tuning) converted without any training;
  on the same {samples:,} test images, analog {accuracy:.2f} %, {macs:.2f} million multiply-accumulates.
- step of 99 %: first time step whose accuracy is 99 % of the analog net's; SynOps and energy are those up to it. Energy
  by the model "{model}": 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate."""


@dataclass(kw_only=True)
class Options(quickstart.Options):
    """Study."""

    seed: int = field(default=0, init=False)
    seeds: Annotated[list[Seed], Different, "the first one is converted"] = field(default_factory=lambda: [0])
    out: Annotated[NewFolder, "folder"] = Path("runs/quickstart_study")
    markdown: Annotated[NewFile | None, "file for a page with mean and spread over the seeds"] = None


@command
def main(options: Options) -> None:
    """Run the quickstart for each seed, and write results, figures and the page when all of it is done."""
    started = time.perf_counter()
    with own_folder(options.out, "quickstart_study"):
        train_set, test_set = fashion_mnist_subset()
        train_set, test_set = train_set.first(options.train_images), test_set.first(options.test_images)
        title, runs, scratch = f"{FASHION_MNIST_SUBSET}, T = {options.time_steps}", list[list[Row]](), list[Row]()
        found: dict[str, Evaluation] = {}
        for seed in options.seeds:
            each = copy.copy(options)
            each.seed = seed
            relu_net, rows = quickstart.quickstart(train_set, test_set, each)
            scratch.append(from_scratch(train_set, test_set, each))
            print(f"\n{title}, seed {seed}\n{table([*rows, scratch[-1]])}")
            runs.append(rows)
            if not found:
                ann, calibration = plain(relu_net), list(quickstart.first(train_set, options.calibration_images))
                converted = {name: convert(ann, calibration, **{**RIVALS, **METHODS}[name]) for name in CONVERSIONS}
                converted |= quickstart.calibrated(ann, calibration, options.time_steps)
                found = quickstart.evaluate(rows, converted, ann, test_set, options)
        setting = vars(options) | {"out": None, "markdown": None, "data": FASHION_MNIST_SUBSET} | environment()
        setting |= {"train_images": len(train_set), "test_images": len(test_set)}
        setting |= {"seconds": time.perf_counter() - started}
        quickstart.draw(runs[0], found, len(test_set), options)
        figure = accuracy_against_spikes(runs, len(test_set), title)
        save_figure(figure, options.out / "accuracy_against_spikes.png")
        evaluations = {name: json.loads(evaluation.to_json()) for name, evaluation in found.items()}
        every = [[*rows, row] for rows, row in zip(runs, scratch, strict=True)]
        results = [
            {"seed": seed, "rows": [row.as_json() for row in rows]}
            for seed, rows in zip(options.seeds, every, strict=True)
        ]
        content = {"setting": setting, "runs": results, "conversions": evaluations}
        write_json(options.out / "results.json", content)
    text = page(every, found, setting, options)
    print(f"\n{text}\nwritten to {options.out}")
    if options.markdown is not None:
        save_text(text, options.markdown)


def from_scratch(train_set: LabelledImages, test_set: LabelledImages, options: Options) -> Row:
    """Train a net of pre-charged ATIF-u from its first weights on, for as many epochs as the ReLU net."""
    generator = seed_everything(options.seed)
    batches, test = DataLoader(train_set, 64, shuffle=True, generator=generator), DataLoader(test_set, 100)
    net, swap = small_cnn(), quickstart.swaps(options.time_steps)["ATIF-u, pre-charged"]
    layers = quickstart.swapped(net, swap, train_set, options)
    before, name = measure_activity(net, test), f"ATIF-u, pre-charged, {options.epochs} epochs from scratch"
    groups = snn_ext.parameter_groups(net, lr=4e-3, weight_decay=1e-2)
    train(net, batches, torch.optim.AdamW(groups), options.epochs, name=name)
    return Row(name, net, layers, before, measure_activity(net, test), [thresholds(layers)])


def page(
    runs: Sequence[Sequence[Row]], found: Mapping[str, Evaluation], setting: Mapping[str, Any], options: Options
) -> str:
    """Return a table over the seeds, and the table of the conversions for the first of them."""
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
            spread([100 * row.before.accuracy for row in rows], 2),
            spread([100 * row.after.accuracy for row in rows], 2),
            spread(spikes, 3) if spikes else None,
            "<br>".join(" ".join(f"{fmean(v):.2f}" for v in zip(*layer, strict=True)) for layer in thresholds) or None,
            "<br>".join(spread([measured.sqnr_db for measured in layer], 1) for layer in layers) or None,
        ])  # fmt: skip
    seeds, shown = " ".join(map(str, options.seeds)), copy.copy(options)
    shown.markdown = None
    machine, versions = setting["machine"], setting["versions"]
    numbers = f"Mean over the seeds {seeds}, with (smallest..largest)." if len(runs) > 1 else f"Seed {seeds}."
    any_one = next(iter(found.values()))
    notes = CONVERSION_NOTES.format(
        samples=any_one.samples, accuracy=100 * any_one.analog_accuracy, macs=any_one.macs / 1e6, model=ENERGY_45NM.name
    )
    return f"""# Quickstart: results

{FASHION_MNIST_SUBSET}, T = {options.time_steps}. Epochs: {options.epochs} of the ReLU net, then
{options.fine_tune_epochs} of fine-tuning for every row, ReLU included; the last row is another net, trained with
neurons from its first weights on. {numbers}

{markdown_table(lines, header)}

{NOTES}

Seed {options.seeds[0]}:

{conversion_table(found, (options.time_steps, 16, options.conversion_steps))}

{notes}

Made in {setting["seconds"]:.0f} s on {machine["cpus"]} CPU cores ({machine["architecture"]}), with
torch {versions["torch"]} and spikingjelly {versions["spikingjelly"]}, by

    {command_line(shown)}
"""


def conversion_table(evaluations: Mapping[str, Evaluation], steps: Sequence[int]) -> str:
    """Return accuracies at some steps, and the cost of the way to 99 % of the analog accuracy, as Markdown."""
    lines = []
    for name, evaluation in evaluations.items():
        arrived = evaluation.latency_at(levels=(99.0,))[99.0]
        lines.append([
            name,
            *(f"{100 * float(evaluation.accuracy[t - 1]):.2f}" if t <= evaluation.time_steps else None for t in steps),
            f"{100 * float(evaluation.accuracy[-1]):.2f} ({evaluation.time_steps})",
            arrived,
            f"{float(evaluation.synops[arrived - 1]) / 1e6:.2f}" if arrived else None,
            f"{float(evaluation.energy()[arrived - 1]) / evaluation.analog_energy():.2f}" if arrived else None,
        ])  # fmt: skip
    accuracies = *(f"accuracy at {t} (%)" for t in steps), "at the last step"
    header = ["net", *accuracies, "step of 99 %", "10^6 SynOps", "energy / analog"]
    return markdown_table(lines, header)


if __name__ == "__main__":
    run_main(main, "nothing more is written")
