"""Show what the field's results at few steps owe to the neuron, and what to the start and the loss, on trained nets.

``python -m benchmarks ablation --data-dir FOLDER --out runs/ablation --markdown docs/ablation-results.md``

The activations of a net that comes along are swapped for each neuron in turn, or the net begins with new weights. Every
net is then trained on the same images for the same number of steps, and measured on the same test images. Finished runs
are kept: the same command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import snn_ext
from recipes.data.images import Batches, ImageData, load_images
from recipes.lib.cli import Argument, Count, NewFile, NewFolder, Positive, Rate, Seed
from recipes.lib.command import command, run_main
from recipes.lib.evaluations import Evaluations, versions
from recipes.lib.files import save_figure, save_text
from recipes.lib.fine_tuning import thresholds
from recipes.lib.neurons import NeuronOptions, make_spiking, spikingjelly_neuron
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from recipes.lib.training import right, seed_everything, train
from recipes.models import over_time
from recipes.models.trained import SHIPPED, ShippedNet, load_shipped, untrained
from snn_ext import ConstantInputNet
from snn_ext.evaluation import measure_activity

from .ablation_page import NOTES, accuracy_over_spikes, section
from .pages import command_line, provenance


@dataclass(frozen=True)
class Row:
    """One way to a spiking net.

    Attributes
    ----------
    neuron : str
        Of :data:`recipes.lib.neurons.NEURONS`; with ``v_init`` and ``grad_scale`` as there.
    start : str
        "swap": thresholds fitted to the inputs of the ReLUs; "calibrated": all of :func:`snn_ext.calibrate`;
        "scratch": new weights and a threshold of 1.
    factor : float
        On the thresholds of a swap: fewer spikes, or more.
    every_step, distilled, rising_slope : bool
        Loss at every step; the ReLU net as a teacher; the surrogate's slope rises from 1 to 4 while training.
    """

    neuron: str
    start: str = "swap"
    v_init: float | None = None
    grad_scale: Literal["none", "lsq"] = "none"
    factor: float = 1.0
    every_step: bool = False
    distilled: bool = False
    rising_slope: bool = False


ROWS = {
    "ReLU": Row("relu"),
    "IF, threshold 1": Row("if"),
    "IF, fitted threshold": Row("pcmp", v_init=0.0),
    "ATIF-u": Row("atif-u"),
    "ATIF-nu": Row("atif-nu"),
    "IF, fitted threshold, pre-charged": Row("pcmp", v_init=0.5),
    "ATIF-u, pre-charged": Row("atif-u", v_init=0.5),
    "ATIF-nu, pre-charged": Row("atif-nu", v_init=0.5),
    "IF, calibrated": Row("pcmp", "calibrated"),
    "ATIF-u, calibrated": Row("atif-u", "calibrated"),
    "ATIF-nu, calibrated": Row("atif-nu", "calibrated"),
    "ATIF-u, thresholds x 0.7": Row("atif-u", factor=0.7),
    "ATIF-nu, thresholds x 0.7": Row("atif-nu", factor=0.7),
    "ATIF-u, calibrated, loss at every step": Row("atif-u", "calibrated", every_step=True),
    "ATIF-u, calibrated, distilled": Row("atif-u", "calibrated", distilled=True),
    "ATIF-u, calibrated, LSQ scale": Row("atif-u", "calibrated", grad_scale="lsq"),
    "ATIF-u, calibrated, rising slope": Row("atif-u", "calibrated", rising_slope=True),
    "ReLU, from scratch": Row("relu", "scratch"),
    "IF, from scratch": Row("if", "scratch"),
    "ATIF-u, from scratch": Row("atif-u", "scratch"),
    "ATIF-nu, from scratch": Row("atif-nu", "scratch"),
    "ATIF-u, pre-charged, from scratch": Row("atif-u", "scratch", v_init=0.5),
}


@dataclass(kw_only=True)
class Options:
    """Study."""

    out: Annotated[NewFolder, "folder of the runs"]
    nets: Annotated[list[str], SHIPPED, Different, "by name"] = field(default_factory=lambda: list(SHIPPED))
    rows: Annotated[list[str], ROWS, Argument(metavar="NAME"), Different, "by name"] = field(
        default_factory=lambda: list(ROWS)
    )
    seeds: Annotated[list[Seed], Different, "of the order of the images and of new weights"] = field(
        default_factory=lambda: [0, 1, 2]
    )
    time_steps: Annotated[Count, "T"] = 4
    train_images: Annotated[Count, "a sample of the training images"] = 10_000
    epochs: Annotated[Count, "passes over them"] = 1
    lr: Annotated[Rate, "of AdamW, falls by a cosine; three times as much for thresholds"] = 5e-4
    scratch_lr: Annotated[Positive, "the same, of new weights"] = 2e-3
    calibration_images: Annotated[Count, "a sample of the training images"] = 256
    eval_images: Annotated[Count, "a sample of the test images"] = 2000
    data_dir: Annotated[Path | None, "folder of the data"] = None
    markdown: Annotated[NewFile | None, "file for the page"] = None


@command
def main(options: Options) -> str:
    """Make the runs that are missing, draw a picture for each net, and write the page."""
    sections = []
    with own_folder(options.out, "ablation"):
        for name in options.nets:
            shipped = load_shipped(name)
            data = load_images(shipped.settings["data"], options.data_dir)
            runs = {row: [_run(row, seed, shipped, data, options) for seed in options.seeds] for row in options.rows}
            title = f"{name}, T = {options.time_steps}"
            save_figure(accuracy_over_spikes(runs, title), options.out / f"{name}.png")
            sections.append(section(title, runs))
    seeds = " ".join(map(str, options.seeds))
    page = "\n\n".join([*sections, NOTES, provenance(command_line(options), seeds)])
    if options.markdown is not None:
        save_text(page, options.markdown)
    print(page)
    return page


def _run(name: str, seed: int, shipped: ShippedNet, data: ImageData, options: Options) -> dict[str, Any]:
    """Return a run, which is kept in a file."""
    row, left_out = ROWS[name], {"out", "nets", "rows", "seeds", "data_dir", "markdown"}
    training = {option: value for option, value in vars(options).items() if option not in left_out}
    settings = {"row": vars(row), "seed": seed, **training, "versions": versions()}
    kept = Evaluations(options.out / shipped.name)
    return kept.note(f"{name} {seed}", settings, lambda: measured(shipped, data, row, seed, options))


# -- one run -----------------------------------------------------------------------------------------------------------


def measured(shipped: ShippedNet, data: ImageData, row: Row, seed: int, options: Options) -> dict[str, Any]:
    """Return accuracy, spikes, SQNR and thresholds of a net before and after its training."""
    seed_everything(seed)
    ones = torch.ones_like(shipped.mean)
    sample = data.first(options.train_images, options.eval_images)
    images = Batches(sample.train, 64, shipped.mean, ones, train=True, crop=4, flip=True, seed=seed)
    test = Batches(sample.test, 100, shipped.mean, ones)
    calibration = data.first(options.calibration_images, None).train  # of all classes: the data may be in their order
    net = over_time(shipped.net if row.start != "scratch" else untrained(shipped))
    neurons = spiking(net, row, [x for x, _ in Batches(calibration, 64, shipped.mean, ones)], options.time_steps)

    found = {"before": _activity(net, neurons, test)}
    lr = options.scratch_lr if row.start == "scratch" else options.lr
    groups = snn_ext.parameter_groups(net, lr=lr, threshold_lr=3 * lr, weight_decay=1e-2)
    train(
        net, images, torch.optim.AdamW(groups), options.epochs, name=f"{row.neuron}, {row.start}",
        on_step=_Slope(neurons, options.epochs * len(images)) if row.rising_slope else None,
        every_step=row.every_step, teacher=shipped.net if row.distilled else None,
    )  # fmt: skip
    return found | {"after": _activity(net, neurons, test)}


def spiking(net: ConstantInputNet, row: Row, images: Sequence[Tensor], time_steps: int) -> list[nn.Module]:
    """Give a net the neurons of a row, in place, and return them."""
    if row.neuron == "relu":
        return []
    of_neuron = NeuronOptions(neuron=row.neuron, time_steps=time_steps, v_init=row.v_init, grad_scale=row.grad_scale)
    if row.start == "scratch" or row.neuron == "if":  # whose threshold is part of what it is
        return make_spiking(net, of_neuron)
    neurons = snn_ext.calibrate(
        net, images, lambda relu: spikingjelly_neuron(of_neuron), time_steps,
        method="calibrated" if row.start == "calibrated" else "inputs", samples=sum(map(len, images)),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    net.time_steps = time_steps
    with torch.no_grad():
        for threshold in (parameter for neuron in neurons for parameter in neuron.parameters()):
            threshold.mul_(row.factor)
    return neurons


class _Slope:
    """Raises the slope of the surrogates from 1 to 4 over the steps of a training."""

    def __init__(self, neurons: Sequence[Any], steps: int) -> None:
        self.neurons, self.steps, self.step = neurons, steps, 0
        self()

    def __call__(self) -> None:
        for neuron in self.neurons:
            neuron.surrogate_function.alpha = 1.0 + 3.0 * min(1.0, self.step / self.steps)
        self.step += 1


def _activity(net: nn.Module, neurons: Sequence[nn.Module], test: Batches) -> dict[str, Any]:
    """Measure a net; which images are right is kept for paired comparisons."""
    answers: list[Tensor] = []

    def noted(scores: Tensor, labels: Tensor) -> Tensor:
        answers.append(right(scores, labels))
        return answers[-1]

    fired = [_Fired() for _ in neurons]
    hooks = [neuron.register_forward_hook(each) for neuron, each in zip(neurons, fired, strict=True)]
    try:
        activity = measure_activity(net, test, metric=noted, limit=2_000)
    finally:
        for hook in hooks:
            hook.remove()
    channels = [each.channels for each in fired if each.channels is not None]
    return {
        "right": "".join("01"[int(answer)] for answer in torch.cat(answers)),
        "spikes_per_neuron": activity.spikes_per_neuron,
        "spikes": [layer.spikes_per_neuron for layer in activity.layers],
        "sqnr_db": [layer.sqnr_db if isfinite(layer.sqnr_db) else None for layer in activity.layers],
        "silent_channels": float((~torch.cat(channels)).double().mean()) if channels else 0.0,
        "thresholds": thresholds(list(neurons)),
    }


class _Fired:
    """Forward hook: which channels of a neuron have fired at all."""

    channels: Tensor | None = None

    def __call__(self, neuron: nn.Module, arguments: Any, spikes: Tensor) -> None:
        found = (spikes != 0).flatten(0, 1).transpose(0, 1).flatten(1).any(1)
        self.channels = found if self.channels is None else self.channels | found


if __name__ == "__main__":
    run_main(main, "the same command continues")
