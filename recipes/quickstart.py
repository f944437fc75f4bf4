"""From a ReLU net to spiking nets with trainable thresholds, in minutes on a CPU: ``python -m recipes.quickstart``.

A small convolutional net learns the embedded images. Four times its activations are swapped for spiking neurons,
calibrated on what the ReLU net has seen, and the spiking net is fine-tuned at T steps. The same ReLU net is converted
without any training, by this package and by SpikingJelly. Tables are printed; four figures and ``results.json`` are
written.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from benchmarks.results import conversion_plots, plots
from benchmarks.results.quickstart_report import (
    CONVERSION_NOTES,
    NOTES,
    Row,
    Thresholds,
    as_json,
    conversion_table,
    environment,
    markdown,
    table,
)  # fmt: skip
from snn_ext import evaluate, record_inputs, replace_neurons
from snn_ext.evaluation import ENERGY_45NM, Evaluation
from snn_ext.functional import best_points, best_threshold
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode

from .data import FASHION_MNIST_SUBSET, LabelledImages, fashion_mnist_subset
from .lib.command import command, run_main
from .lib.conversions import OURS, RIVALS
from .lib.files import replacing
from .lib.options import SEED, Different, integer, new_file, new_folder
from .lib.run_folder import own_folder
from .lib.training import measure, parameter_groups, seed_everything, train
from .models import SmallCNN

BATCH_SIZE = 64
LEARNING_RATE = 4e-3
FINE_TUNING_RATE = 1e-3
THRESHOLD_RATE = 3e-3
WEIGHT_DECAY = 1e-2
CALIBRATION_IMAGES = 800
NEURONS = (ATIFuNode, ATIFnuNode, PCMPIFNode)
CONVERSIONS = (
    "RateCoding Max", "RateCoding 99.9 %, channel-wise, half threshold", "LocalThresholdBalancing, 40 passes",
    "data-norm, maximum", "data-norm 99.9 %, pre-charge 0.5", "Spike-Norm, pre-charge 0.5",
)  # fmt: skip
CONVERSION_STEPS = 64
CONVERSION_IMAGES = 500


def spiking_variants(time_steps: int) -> dict[str, Callable[[Tensor], nn.Module]]:
    """Return for each variant a function from the recorded inputs of a layer to its calibrated neuron.

    Parameters
    ----------
    time_steps : int
        T.
    """
    # alpha = 4 is SpikingJelly's default. The reset stays in the graph: detached, accuracies were the same within their
    # standard error, but ATIF-nu lost 2 dB of SQNR in two layers of three.
    # With a scaled output the firing rate is the decoded value, in the units of the ReLU.
    common: dict[str, Any] = {
        "surrogate_function": surrogate.Sigmoid(alpha=4.0), "detach_reset": False, "scale_output": True,
    }  # fmt: skip
    return {
        "IF, threshold 1": lambda x: PCMPIFNode(1.0, precharge=0.0, **common),
        "ATIF-u": lambda x: ATIFuNode(best_threshold(x, time_steps), **common),
        "ATIF-nu": lambda x: ATIFnuNode(best_points(x, time_steps), T=time_steps, **common),
        "ATIF-u, pre-charged": lambda x: ATIFuNode(best_threshold(x, time_steps, v_init=0.5), v_init=0.5, **common),
    }


def spiking_copy(
    relu_net: SmallCNN, relu_inputs: dict[nn.Module, Tensor], neuron_for: Callable[[Tensor], nn.Module], time_steps: int
) -> SmallCNN:
    """Copy an analog net and swap its activations for neurons made from their recorded inputs.

    Parameters
    ----------
    relu_net : SmallCNN
        Stays as it is.
    relu_inputs : dict of nn.Module to Tensor
        What :func:`snn_ext.record_inputs` has recorded of it.
    neuron_for : callable
        From the inputs of a layer to its neuron.
    time_steps : int
        T.
    """
    net, inputs = copy.deepcopy((relu_net, relu_inputs))  # together: the records belong to the copy's modules
    replace_neurons(net, lambda relu: neuron_for(inputs[relu]))
    functional.set_step_mode(net, "m")
    net.time_steps = time_steps
    return net


@dataclass
class Quickstart:
    """What one seed gives: a row for ReLU, then for each variant; and the ReLU net before its fine-tuning."""

    rows: list[Row]
    relu_net: SmallCNN


def quickstart(
    train_set: LabelledImages,
    test_set: LabelledImages,
    *,
    seed: int,
    time_steps: int,
    epochs: int,
    fine_tune_epochs: int,
) -> Quickstart:
    """Train the ReLU net; then swap, calibrate, fine-tune and measure each variant.

    Parameters
    ----------
    train_set, test_set : LabelledImages
        Images ``[N, 1, 28, 28]``.
    seed : int
        The same seed gives the same rows, on one machine with one number of threads.
    time_steps : int
        T.
    epochs, fine_tune_epochs : int
        Passes over ``train_set``: of the ReLU net, and of every net, the ReLU net included, after that.

    Returns
    -------
    Quickstart
    """
    generator = seed_everything(seed)
    train_loader = DataLoader(train_set, BATCH_SIZE, shuffle=True, generator=generator)
    test_loader = DataLoader(test_set, 100)
    calibration = DataLoader(Subset(train_set, range(min(CALIBRATION_IMAGES, len(train_set)))), 100)

    relu_net = SmallCNN()
    optimizer = torch.optim.AdamW(relu_net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    train(relu_net, train_loader, optimizer, epochs, name="ReLU")
    relu_inputs = record_inputs(relu_net, calibration)

    def fine_tune(name: str, net: SmallCNN) -> Row:
        neurons: list[nn.Module] = [module for module in net.modules() if isinstance(module, NEURONS)]
        generator.manual_seed(seed)  # every net sees the same batches
        before = measure(net, test_loader, neurons)
        history = [thresholds(neurons)]
        optimizer = torch.optim.AdamW(
            parameter_groups(net, neurons, lr=FINE_TUNING_RATE, threshold_lr=THRESHOLD_RATE, weight_decay=WEIGHT_DECAY)
        )
        train(
            net, train_loader, optimizer, fine_tune_epochs,
            name=f"{name}, fine-tuning", on_step=lambda: history.append(thresholds(neurons)),
        )  # fmt: skip
        return Row(name, before, measure(net, test_loader, neurons), neurons, history if neurons else [], net)

    rows = [fine_tune("ReLU", copy.deepcopy(relu_net))]
    for name, neuron_for in spiking_variants(time_steps).items():
        rows.append(fine_tune(name, spiking_copy(relu_net, relu_inputs, neuron_for, time_steps)))
    return Quickstart(rows, relu_net)


def conversions(run: Quickstart, train_set: LabelledImages, test_set: LabelledImages) -> dict[str, Evaluation]:
    """Evaluate the fine-tuned spiking nets of a run, and its ReLU net converted in several ways, at every step.

    Parameters
    ----------
    run : Quickstart
        Of one seed.
    train_set, test_set : LabelledImages
        The conversion is calibrated on the first images of the one, and evaluated on the first images of the other.
    """
    ann = run.relu_net.plain()
    calibration = list(DataLoader(Subset(train_set, range(min(CALIBRATION_IMAGES, len(train_set)))), 100))
    loader = DataLoader(Subset(test_set, range(min(CONVERSION_IMAGES, len(test_set)))), 50)
    found = {}
    for row in run.rows[1:]:
        net = copy.deepcopy(row.net)
        assert isinstance(net, SmallCNN)
        time_steps, net.time_steps = net.time_steps, None  # one step a call
        functional.set_step_mode(net, "s")
        found[f"{row.name}, fine-tuned"] = evaluate(net, loader, time_steps, ann=ann)
    for name in CONVERSIONS:
        snn = {**RIVALS, **OURS}[name](ann, calibration)
        found[name] = evaluate(snn, loader, CONVERSION_STEPS, ann=ann)
    return found


def thresholds(neurons: Sequence[nn.Module]) -> Thresholds:
    """Return the present thresholds of the layers, of ATIF-nu its points as they are used."""
    return [
        (neuron.quantization_points() if isinstance(neuron, ATIFnuNode) else neuron.v_threshold).tolist()
        for neuron in neurons
    ]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; no result is written before all of it is done."""
    arguments = parse_arguments(argv)
    with own_folder(arguments.out, "quickstart"):
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    started, cpu_started = time.perf_counter(), time.process_time()
    train_set, test_set = fashion_mnist_subset()
    title = f"{FASHION_MNIST_SUBSET}, T = {arguments.time_steps}"
    setting = {name: getattr(arguments, name) for name in ("seeds", "time_steps", "epochs", "fine_tune_epochs")}
    runs: list[list[Row]] = []
    converted: dict[str, Evaluation] = {}
    for seed in arguments.seeds:
        options = {name: value for name, value in setting.items() if name != "seeds"}
        run = quickstart(train_set, test_set, seed=seed, **options)
        runs.append(run.rows)
        print(f"\n{title}, seed {seed}\n{table(run.rows)}")
        converted = converted or conversions(run, train_set, test_set)
    print(NOTES)
    any_one = next(iter(converted.values()))
    page = (
        conversion_table(converted, (arguments.time_steps, 16, CONVERSION_STEPS))
        + "\n\n"
        + CONVERSION_NOTES.format(
            samples=any_one.samples,
            accuracy=100 * any_one.analog_accuracy,
            macs=any_one.macs / 1e6,
            model=ENERGY_45NM.name,
        )
    )
    print(f"\n{page}")

    setting |= environment()
    setting |= {"data": FASHION_MNIST_SUBSET, "train_images": len(train_set), "test_images": len(test_set)}
    setting |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
    results = [
        {"seed": seed, "rows": [as_json(row) for row in rows]} for seed, rows in zip(arguments.seeds, runs, strict=True)
    ]

    out: Path = arguments.out
    plots.save(plots.accuracy_against_spikes(runs, len(test_set), title), out / "accuracy_against_spikes.png")
    plots.save(plots.staircases(runs[0], arguments.time_steps, title), out / "staircases.png")
    plots.save(plots.threshold_history(runs[0], title), out / "threshold_history.png")
    figure = conversion_plots.accuracy_latency_synops(converted, f"one ReLU net, {FASHION_MNIST_SUBSET}")
    plots.save(figure, out / "accuracy_latency_synops.png")
    evaluations = {name: json.loads(evaluation.to_json()) for name, evaluation in converted.items()}
    content = {"setting": setting, "runs": results, "conversions": evaluations}
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown is not None:
        with replacing(arguments.markdown) as temporary:
            temporary.write_text(markdown(runs, setting, f"Seed {arguments.seeds[0]}:\n\n{page}\n"), encoding="utf-8")
    print(f"{setting['seconds']:.0f} s; written to {out}")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and exit with the name of the argument that can not be used."""
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart", description=__doc__.split("\n\n")[1])
    parser.add_argument(
        "--seed", "--seeds", dest="seeds", metavar="SEED", type=SEED, nargs="+", action=Different, default=[0],
        help="one, or several for the table of --markdown; figures 2 and 3 show the first (default: 0)",
    )  # fmt: skip
    parser.add_argument("--time-steps", type=integer(), default=4, help="T, steps of the spiking nets (default: 4)")
    parser.add_argument("--epochs", type=integer(), default=8, help="training of the ReLU net (default: 8)")
    parser.add_argument("--fine-tune-epochs", type=integer(), default=2, help="of each net after that (default: 2)")
    parser.add_argument(
        "--out", type=new_folder, default=Path("runs/quickstart"), help="folder (default: runs/quickstart)"
    )
    parser.add_argument("--markdown", type=new_file, help="file for a page with mean and spread over the seeds")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main, "nothing more is written")
