"""What the field's results at few steps owe to the neuron, and what to the start and the loss, on trained nets.

``python -m benchmarks ablation --data-dir FOLDER --out runs/ablation --markdown docs/ablation-results.md``

The activations of a net that comes along are swapped for each neuron in turn, or the net begins with new weights. Every
net is then trained on the same images for the same number of steps, and measured on the same test images. Finished runs
are kept: the same command goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import snn_ext
from recipes.data.images import Batches, ImageData, load_images
from recipes.lib.cli import Argument, Count, NewFile, NewFolder, Positive, Rate, Seed
from recipes.lib.command import command, run_main
from recipes.lib.evaluations import Evaluations, versions
from recipes.lib.files import replacing, save_figure
from recipes.lib.fine_tuning import thresholds
from recipes.lib.neurons import NeuronOptions, make_spiking, spikingjelly_neuron
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from recipes.lib.training import right, seed_everything, train
from recipes.models import over_time
from recipes.models.trained import SHIPPED, ShippedNet, load_shipped, untrained
from snn_ext import ConstantInputNet
from snn_ext.evaluation import measure_activity
from snn_ext.plots.style import finish, look, new_figure

from .pages import command_line, provenance, spread, table


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
    grad_scale: str = "none"
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
REFERENCE = "ATIF-u"


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
    calibration_images: Annotated[Count, "the first of the training images"] = 256
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
        with replacing(options.markdown) as temporary:
            temporary.write_text(page, encoding="utf-8")
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
    first = tuple(part[: options.calibration_images] for part in data.train)
    net = over_time(shipped.net if row.start != "scratch" else untrained(shipped))
    neurons = spiking(net, row, [x for x, _ in Batches(first, 64, shipped.mean, ones)], options.time_steps)

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
    if row.start == "calibrated":
        neurons = snn_ext.calibrate(net, images, lambda relu: spikingjelly_neuron(of_neuron), time_steps)
        functional.set_step_mode(net, "m")
        net.time_steps = time_steps
        return neurons
    neurons = make_spiking(net, of_neuron, images if row.start == "swap" else None)
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
    channels = torch.cat([each.channels for each in fired]) if fired else torch.ones(1, dtype=torch.bool)
    return {
        "right": "".join("01"[int(answer)] for answer in torch.cat(answers)),
        "spikes_per_neuron": activity.spikes_per_neuron,
        "spikes": [layer.spikes_per_neuron for layer in activity.layers],
        "sqnr_db": [layer.sqnr_db if isfinite(layer.sqnr_db) else None for layer in activity.layers],
        "silent_channels": float((~channels).double().mean()),
        "thresholds": thresholds(list(neurons)),
    }


class _Fired:
    """Forward hook: which channels of a neuron have fired at all."""

    channels: Tensor | None = None

    def __call__(self, neuron: nn.Module, arguments: Any, spikes: Tensor) -> None:
        found = (spikes != 0).flatten(0, 1).transpose(0, 1).flatten(1).any(1)
        self.channels = found if self.channels is None else self.channels | found


# -- the page ----------------------------------------------------------------------------------------------------------

NOTES = """\
swap: thresholds are fitted to the inputs of the ReLUs, V(0) = 0; pre-charged: V(0) is half a threshold; calibrated:
thresholds, pre-charges, biases and weights are fitted to the current that arrives (`snn_ext.calibrate`). "IF" has a
fixed threshold. difference: to ATIF-u on the same test images, mean over the seeds, ± its standard error over the
images. Spikes: of a neuron in all T steps of an image. SQNR: median over the layers. silent: share of channels that
never fire on the test images. moved: median relative change of the thresholds by the training. Means over the seeds,
with (smallest..largest)."""


def section(title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the tables of a net: a line for each row, and what its layers do."""
    rows, layers = [], []
    for name, seeds in runs.items():
        after = [run["after"] for run in seeds]
        rows.append([
            name,
            None if ROWS[name].start == "scratch" else f"{100 * fmean(map(_share, (r['before'] for r in seeds))):.2f}",
            spread([100 * _share(each) for each in after], 2),
            difference(seeds, runs.get(REFERENCE, ())),
        ])  # fmt: skip
        if ROWS[name].neuron == "relu":
            continue
        rows[-1] += [
            f"{fmean(each['spikes_per_neuron'] for each in after):.3f}",
            f"{fmean(_median(each['sqnr_db']) for each in after):.1f}",
            f"{100 * fmean(each['silent_channels'] for each in after):.1f}",
            f"{100 * fmean(map(_moved, seeds)):.1f}",
        ]
        layers.append([
            name,
            *(
                " ".join(_mean(values, form) for values in zip(*(each[key] for each in after), strict=True))
                for key, form in (("spikes", ".2f"), ("sqnr_db", ".1f"))
            ),
        ])  # fmt: skip
    header = [
        "net", "before, %", "trained, %", "difference, points", "spikes per neuron", "SQNR, dB",
        "silent, %", "moved, %",
    ]  # fmt: skip
    wide = [row + [None] * (len(header) - len(row)) for row in rows]
    by_layer = table(layers, ["net", "spikes per neuron by layer", "SQNR by layer, dB"])
    return f"## {title}\n\n{table(wide, header)}\n\n{by_layer}"


def difference(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> str | None:
    """Return by how many points runs are better than others on the same images, with the standard error over these."""
    if len(runs) != len(reference) or runs is reference:
        return None
    each = torch.stack([_right(a["after"]) - _right(b["after"]) for a, b in zip(runs, reference, strict=True)]).mean(0)
    return f"{100 * each.mean():+.2f} ± {100 * each.std() / len(each) ** 0.5:.2f}"


def accuracy_over_spikes(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Plot accuracy over spikes of the trained nets, a marker each, bars from the smallest to the largest."""
    figure = new_figure(9, 5.2, title)
    axes = figure.subplots()
    for place, (name, seeds) in enumerate(runs.items()):
        values = [100 * _share(run["after"]) for run in seeds]
        style = look(place) | {"ls": "none"}
        if ROWS[name].neuron == "relu":
            axes.axhline(
                fmean(values), color=style["color"], ls=":" if ROWS[name].start == "scratch" else "--", label=name
            )
            continue
        mean = fmean(values)
        bars = [[mean - min(values)], [max(values) - mean]]
        axes.errorbar(fmean(r["after"]["spikes_per_neuron"] for r in seeds), mean, bars, label=name, capsize=2, **style)
    axes.set(xlabel="spikes per neuron and image", ylabel="test accuracy (%)")
    finish(axes, legend=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _right(activity: Mapping[str, Any]) -> Tensor:
    return torch.tensor([float(answer) for answer in activity["right"]])


def _share(activity: Mapping[str, Any]) -> float:
    return float(_right(activity).mean())


def _median(values: Sequence[float | None]) -> float:
    """Return the median of what is known: a layer without signal or error has no SQNR."""
    return median(value for value in values if value is not None)


def _mean(values: Sequence[float | None], form: str) -> str:
    return "-" if None in values else f"{fmean(value for value in values if value is not None):{form}}"


def _moved(run: Mapping[str, Any]) -> float:
    pairs = zip(run["before"]["thresholds"], run["after"]["thresholds"], strict=True)
    return median(abs(b / a - 1) for old, new in pairs for a, b in zip(old, new, strict=True))


if __name__ == "__main__":
    run_main(main, "the same command continues")
