"""From a ReLU net to spiking nets with trainable thresholds, in minutes on a CPU: ``python -m recipes.quickstart``.

A small convolutional net learns the embedded images. Five times its activations are swapped for spiking neurons, which
are fitted to the net, and the spiking net is fine-tuned at T steps. The same ReLU net is converted without training, by
this package and by SpikingJelly. Tables are printed; ``results.json`` and four figures are written.
``python -m benchmarks quickstart`` compares more conversions, over several seeds.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
from torch import nn
from torch.utils.data import DataLoader, Subset

import snn_ext
from snn_ext import ConstantInputNet
from snn_ext.evaluation import Evaluation, measure_activity
from snn_ext.plots import accuracy_latency_synops
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode

from .data import FASHION_MNIST_SUBSET, LabelledImages, fashion_mnist_subset
from .lib import fine_tuning
from .lib.cli import Count, NewFolder, Seed
from .lib.command import command, run_main
from .lib.files import save_figure, write_json
from .lib.fine_tuning import Row, thresholds
from .lib.run_folder import own_folder
from .lib.training import seed_everything, train
from .models import plain, small_cnn


@dataclass(kw_only=True)
class Options:
    """Quickstart."""

    seed: Annotated[Seed, "of all random numbers"] = 0
    time_steps: Annotated[Count, "T, steps of the spiking nets"] = 4
    epochs: Annotated[Count, "training of the ReLU net"] = 8
    fine_tune_epochs: Annotated[Count, "of each net after that"] = 2
    train_images: Annotated[Count | None, "only the first ones"] = None
    test_images: Annotated[Count | None, "only the first ones"] = None
    calibration_images: Annotated[Count, "for the thresholds, and for the conversions"] = 800
    conversion_images: Annotated[Count, "test images of the conversions"] = 500
    conversion_steps: Annotated[Count, "steps of the converted nets"] = 64
    out: Annotated[NewFolder, "folder for results and figures"] = Path("runs/quickstart")


def swaps(time_steps: int) -> dict[str, dict[str, Any]]:
    """Return what replaces a ReLU, and how it is fitted; with ``scale_output`` a rate is in the units of the ReLU."""
    # alpha = 4 is SpikingJelly's default. The reset stays in the graph: detached, accuracies were the same within their
    # standard error, but ATIF-nu lost 2 dB of SQNR in two layers of three.
    common: dict[str, Any] = {"surrogate_function": surrogate.Sigmoid(alpha=4.0), "detach_reset": False}
    ours = common | {"scale_output": True}
    return {
        "IF, threshold 1": {"factory": lambda relu: neuron.IFNode(v_reset=None, **common)},
        "ATIF-u": {"factory": lambda relu: ATIFuNode(**ours), "method": "inputs"},
        "ATIF-nu": {"factory": lambda relu: ATIFnuNode(T=time_steps, **ours), "method": "inputs"},
        "ATIF-u, pre-charged": {"factory": lambda relu: ATIFuNode(v_init=0.5, **ours), "method": "inputs"},
        "ATIF-u, calibrated": {"factory": lambda relu: ATIFuNode(**ours)},
    }


def quickstart(train_set: LabelledImages, test_set: LabelledImages, options: Options) -> tuple[nn.Module, list[Row]]:
    """Train the ReLU net; then swap, calibrate, fine-tune and measure each variant. The same seed gives the same."""
    generator = seed_everything(options.seed)
    batches, test = DataLoader(train_set, 64, shuffle=True, generator=generator), DataLoader(test_set, 100)
    relu_net = small_cnn()
    train(relu_net, batches, torch.optim.AdamW(relu_net.parameters(), 4e-3), options.epochs, name="ReLU")

    rows = []
    for name, swap in {"ReLU": None, **swaps(options.time_steps)}.items():
        net, layers = copy.deepcopy(relu_net), []
        if swap is not None:
            layers = swapped(net, swap, train_set, options)
        before, history = measure_activity(net, test), [thresholds(layers)]
        groups = snn_ext.parameter_groups(net, lr=1e-3, threshold_lr=3e-3, weight_decay=1e-2)
        generator.manual_seed(options.seed)  # every net sees the same batches
        train(
            net, batches, torch.optim.AdamW(groups), options.fine_tune_epochs, name=f"{name}, fine-tuning",
            on_step=lambda layers=layers, history=history: history.append(thresholds(layers)),
        )  # fmt: skip
        rows.append(Row(name, net, layers, before, measure_activity(net, test), history))
    return relu_net, rows


def swapped(
    net: ConstantInputNet, swap: dict[str, Any], train_set: LabelledImages, options: Options
) -> list[nn.Module]:
    """Swap and calibrate the activations of a net, in place, for T steps; return the new neurons."""
    images, count = first(train_set, options.calibration_images), options.calibration_images
    layers = snn_ext.calibrate(net, images, time_steps=options.time_steps, limit=100_000, samples=count, **swap)
    functional.set_step_mode(net, "m")
    net.time_steps = options.time_steps
    return layers


def first(images: LabelledImages, count: int, batch_size: int = 100) -> DataLoader[Any]:
    """Return batches of the first images."""
    return DataLoader(Subset(images, range(min(count, len(images)))), batch_size)


def convert(ann: nn.Module, calibration: Any, time_steps: int) -> dict[str, nn.Module]:
    """Convert the ReLU net without any training, by SpikingJelly with its best settings here, and by this package."""
    rate_coding = RateCodingRecipe(calibration, mode="99.9%", channel_wise=True, half_threshold=True)
    return {
        "SpikingJelly, RateCoding 99.9 %": Converter(rate_coding).convert(copy.deepcopy(ann)),
        "data-norm 99.9 %, pre-charge 0.5": snn_ext.convert(
            ann, calibration, method="data-norm", percentile=99.9, precharge=0.5
        ),
        **calibrated(ann, calibration, time_steps),
    }


def calibrated(ann: nn.Module, calibration: Any, time_steps: int) -> dict[str, nn.Module]:
    """Convert the ReLU net for T steps, and for T decisions of layers that wait for one input more."""
    waits = {f"calibrated for T = {time_steps}": 0, f"calibrated for T = {time_steps}, wait 1": 1}
    return {
        name: snn_ext.convert(ann, calibration, time_steps=time_steps, wait=wait)
        for name, wait in waits.items()
        if wait < time_steps
    }


def evaluate(
    rows: list[Row], converted: dict[str, nn.Module], ann: nn.Module, test_set: LabelledImages, options: Options
) -> dict[str, Evaluation]:
    """Evaluate the fine-tuned nets and the converted ones at every step: accuracy, spikes, operations."""
    images, found = first(test_set, options.conversion_images, 50), {}
    for row in rows[1:]:
        found[f"{row.name}, fine-tuned"] = snn_ext.evaluate(row.net, images, options.time_steps, ann=ann)
    for name, snn in converted.items():
        steps = getattr(snn, "latency", None) or options.conversion_steps  # a net that waits has an answer at one step
        found[name] = snn_ext.evaluate(snn, images, steps, ann=ann)
    return found


def draw(rows: list[Row], found: dict[str, Evaluation], images: int, options: Options) -> None:
    """Draw the fine-tuned nets, and all nets at every step."""
    title = f"{FASHION_MNIST_SUBSET}, T = {options.time_steps}"
    samples = next(iter(found.values())).samples
    for name, figure in {
        "accuracy_against_spikes": fine_tuning.accuracy_against_spikes([rows], images, title),
        "staircases": fine_tuning.staircases(rows, options.time_steps, title),
        "threshold_history": fine_tuning.threshold_history(rows, title),
        "accuracy_latency_synops": accuracy_latency_synops(
            found, f"one ReLU net, {FASHION_MNIST_SUBSET}, first {samples:,} test images"
        ),
    }.items():
        save_figure(figure, options.out / f"{name}.png")


@command
def main(options: Options) -> dict[str, Any]:
    """Print the tables and draw the figures; nothing is written before all of it is done."""
    with own_folder(options.out, "quickstart"):
        train_set, test_set = fashion_mnist_subset()
        train_set, test_set = train_set.first(options.train_images), test_set.first(options.test_images)
        relu_net, rows = quickstart(train_set, test_set, options)
        print(f"\n{FASHION_MNIST_SUBSET}, T = {options.time_steps}\n{fine_tuning.table(rows)}\n{fine_tuning.NOTES}\n")
        ann, calibration = plain(relu_net), list(first(train_set, options.calibration_images))
        found = evaluate(rows, convert(ann, calibration, options.time_steps), ann, test_set, options)
        print(f"At every step, on the first {next(iter(found.values())).samples:,} test images:")
        for name, e in found.items():
            steps = sorted({min(options.time_steps, e.time_steps), e.time_steps})
            reached = " ".join(f"{float(e.accuracy[t - 1]):.2%} at step {t}," for t in steps)
            when = f"at step {e.latency[99.0]}" if e.latency[99.0] else "at no step"
            print(f"{name:<36}{reached} 99 % of the ReLU net's {e.analog_accuracy:.2%} {when}")
        draw(rows, found, len(test_set), options)
        evaluations = {name: json.loads(e.to_json()) for name, e in found.items()}
        setting = {**vars(options), "out": None, "data": FASHION_MNIST_SUBSET}
        content = {"setting": setting, "rows": [row.as_json() for row in rows], "conversions": evaluations}
        write_json(options.out / "settings.json", {k: v for k, v in vars(options).items() if k != "out"})
        write_json(options.out / "results.json", content)
    print(f"written to {options.out}")
    return content


if __name__ == "__main__":
    run_main(main, "nothing more is written")
