"""Thresholds under Poisson input, after Sengupta et al. 2019: data-based normalisation against Spike-Norm.

``python -m benchmarks.results.normalisation --model vgg16 --out runs/vgg16`` trains a net as ``recipes.convert`` does
and compares the thresholds, from 256 images and from all. ``--experiment constraints`` trains residual nets without and
with each constraint of the paper, and converts them by Spike-Norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from statistics import fmean
from typing import Annotated, Any, Literal

from torch import nn

import snn_ext
from recipes import convert
from recipes.convert import analog_net
from recipes.lib.analog import RESNETS, Analog, trained
from recipes.lib.cli import PRESET, Count, Seed, fill
from recipes.lib.command import command, run_main
from recipes.lib.evaluations import Evaluations
from recipes.lib.files import save_figure
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from snn_ext.evaluation import Evaluation

from .conversion_plots import accuracy_over_time, by_depth
from .pages import command_line, mean_and_deviation, provenance, table, write_report

HORIZONS: dict[str, dict[str, Any]] = {
    "small": {"poisson_steps": 1000, "norm_steps": 250, "poisson_images": 50, "resets": ["zero"]},
    "paper": {"poisson_steps": 2500, "norm_steps": 2500, "poisson_images": None, "resets": ["zero", "subtract"]},
}
# Errors in percent as Sengupta et al. 2019 give them.
_CIFAR10 = ["paper: analog", "paper: spiking"], {
    ("vgg16", "data-norm"): ["8.3", "8.54"], ("vgg16", "Spike-Norm"): ["8.3", "8.45"],
    ("resnet20", "Spike-Norm"): ["10.9", "12.54"], ("resnet20", "data-norm"): ["10.9", "12.87"],
}  # fmt: skip
_IMAGENET = ["paper: spiking top-1", "paper: spiking top-5"], {
    ("vgg16", "data-norm"): ["30.61", None], ("vgg16", "Spike-Norm"): ["30.04", "10.99"],
    ("resnet34", "Spike-Norm"): ["34.53", "13.67"],
}  # fmt: skip
PAPER: dict[str, tuple[list[str], dict[tuple[str, str], list[str | None]]]] = {
    "cifar10": _CIFAR10, "cifar10-jpeg": _CIFAR10, "imagenet": _IMAGENET,
}  # fmt: skip
"""Header and cells of the paper's figures, by data."""


@dataclass(kw_only=True)
class Options(convert.Options):
    """Poisson input (defaults: the preset)."""

    experiment: Annotated[Literal["normalisation", "constraints"], "constraints: of the residual nets"] = (
        "normalisation"
    )
    poisson_steps: Annotated[Count, "T under Poisson input"] = PRESET
    poisson_images: Annotated[Count | None, "test images under Poisson input"] = PRESET
    poisson_seeds: Annotated[list[Seed], Different, "runs with other events"] = field(
        default_factory=lambda: [0, 1, 2, 3, 4]
    )
    norm_steps: Annotated[Count, "T of Spike-Norm's search for thresholds"] = PRESET
    resets: Annotated[list[Literal["zero", "subtract"]], "of the neurons"] = PRESET

    def __post_init__(self) -> None:
        fill(self, HORIZONS[self.preset])
        super().__post_init__()
        if self.experiment == "constraints" and (self.model not in RESNETS or self.data == "imagenet"):
            raise ValueError(
                f"--experiment: got constraints with {self.model} on {self.data}, want one of {', '.join(RESNETS)}, "
                "trained here"
            )

    @property
    def runs(self) -> str:
        count = len(self.poisson_seeds)
        return "one run" if count == 1 else f"{count} runs"


@command
def main(options: Options) -> str:
    """Run the experiment, write figures and the report, and return the report."""
    with own_folder(options.out, "convert"):
        text = (constraints if options.experiment == "constraints" else normalisation)(options)
        return write_report(options.out, text + "\n" + provenance(command_line(options), options.seed))


def normalisation(options: Options) -> str:
    """Compare thresholds from analog maxima with Spike-Norm; return a section of the page."""
    analog = analog_net(options)
    few, norm = options.calibration_images, {"method": "spike-norm", "time_steps": options.norm_steps}
    ways = {
        f"data-norm, {few} images": ("data-norm", few, {"method": "data-norm"}),
        "data-norm, all images": ("data-norm", None, {"method": "data-norm"}),
        f"Spike-Norm, {few} images": ("Spike-Norm", few, norm),
    }
    # As in the paper: in a residual net only the layers before the first unit are normalised.
    units = options.model in RESNETS and options.data != "imagenet" and options.constraint >= 2
    rows, lost, kept, thresholds = [], [], {}, {}
    for reset in options.resets:
        increments = {}
        for name, (kind, images, method) in ways.items():
            method = method | ({"residual": "unit-threshold"} if units else {}) | {"reset": reset}
            runs, layers = poisson_runs(analog, options, f"{name}, reset {reset}", images, method)
            ratio = f"{float(runs[0].ac_mac_ratio[-1]):.2f}"
            rows.append([name, reset, *_errors(runs), ratio, *_paper(options, kind)])
            increments[name] = 100 * (runs[0].analog_accuracy - _accuracy(runs))
            if reset == options.resets[0]:
                kept[name] = runs[0]
                thresholds[name] = [layer["relative_threshold"] or layer["threshold"] for layer in layers]
        best = min(increments, key=increments.__getitem__)
        others = "; ".join(f"{name} {value:+.2f}" for name, value in increments.items() if name != best)
        lost.append(f"- Reset {reset}: {best} loses least, {increments[best]:+.2f} percentage points; {others}.")
    title = f"{analog.title}, {analog.data.name}"
    save_figure(accuracy_over_time(kept, title), options.out / "normalisation.png")
    save_figure(by_depth(kept, thresholds, title), options.out / "depth.png")
    header = ["thresholds", "reset", *_error_header(options), "AC/MAC", *PAPER.get(options.data, ([], {}))[0]]
    verdict = "\n".join(lost)
    return (
        f"### Normalisation: {title}\n\nPoisson input, counted output spikes, T = {options.poisson_steps}, "
        f"{next(iter(kept.values())).samples:,} test images, {options.runs}. "
        f"{'Neurons inside residual units have the threshold of what enters them. ' if units else ''}"
        f"Errors in %: mean ± standard deviation over several runs.\n\n{table(rows, header)}\n\n{verdict}\n"
    )


def constraints(options: Options) -> str:
    """Train and convert a residual net without and with each constraint; return a section of the page."""
    rows, kept, errors = [], {}, {}
    earlier = [t for t in (options.poisson_steps // 4, options.poisson_steps // 2) if t]
    for constraint in (0, 1, 2, 3):
        own = replace(options, constraint=1 if constraint == 2 else constraint)  # 2 is a rule of the conversion
        folder = "analog" if own.constraint == options.constraint else f"analog-constraint-{own.constraint}"
        analog = trained(own, options.out / folder)
        method = {"method": "spike-norm", "time_steps": options.norm_steps, "reset": options.resets[0]}
        method |= {"residual": "unit-threshold"} if constraint >= 2 else {}
        name = f"constraint {constraint}" if constraint else "none (basic)"
        runs, _ = poisson_runs(analog, options, name, options.calibration_images, method)
        sooner = [f"{100 * (1 - fmean(_accuracies(runs, t))):.2f}" for t in earlier]
        rate = 100 * runs[0].layers[-2].spikes_per_neuron / options.poisson_steps
        rows.append([name, *_errors(runs), *sooner, f"{rate:.2f}"])
        kept[name], errors[name] = runs[0], 1 - _accuracy(runs)
    title = f"{options.model}, width {options.width:g}, {analog.data.name}"
    save_figure(accuracy_over_time(kept, title), options.out / "constraints.png")
    best = min(errors, key=errors.__getitem__)
    header = ["constraint", *_error_header(options), *(f"spiking, T = {t}" for t in earlier), "rate"]
    images = kept[best].samples
    standard = 100 * max(sqrt(error * (1 - error) / images) for error in errors.values())
    return (
        f"### Constraints of residual nets: {title}\n\nSpike-Norm on {options.calibration_images} images, reset "
        f"{options.resets[0]}, Poisson input, T = {options.poisson_steps}, {images:,} test images, {options.runs}. "
        f"Errors in %, of standard errors up to {standard:.1f} points from the number of images. Each constraint "
        f"includes those before it; 2 is the analog net of 1. The paper finds 3 the best. Rate: steps in which a "
        f"neuron of the last unit fires, in %.\n\n{table(rows, header)}\n\n"
        f"Smallest error of the spiking net: {best}.\n"
    )


def poisson_runs(
    analog: Analog, options: Options, name: str, images: int | None, method: Mapping[str, Any]
) -> tuple[list[Evaluation], list[dict[str, Any]]]:
    """Convert once, evaluate under several seeds of the input; return the evaluations and the layers of the report."""
    kept, made = Evaluations(options.out / "evaluations"), list[nn.Module]()
    method = {**method, "encoder": "poisson", "readout": "spikes", "seed": options.seed}

    def make(seed: int) -> nn.Module:
        if not made:
            made.append(snn_ext.convert(analog.net, analog.loader("train", images), **method))
        return set_poisson_seed(made[0], seed)

    found = [
        analog.evaluate(
            kept, f"{name} seed {seed}", lambda seed=seed: make(seed), options.poisson_steps, top=options.top,
            images=options.poisson_images, settings={"method": method, "calibration": images, "poisson_seed": seed},
        )
        for seed in options.poisson_seeds
    ]  # fmt: skip
    return [run for run, _ in found], found[0][1]


def set_poisson_seed(snn: nn.Module, seed: int) -> nn.Module:
    """Give the Poisson encoder of a converted net another seed, and return the net."""
    encoders = [module for module in snn.modules() if type(module).__name__.startswith("Poisson")]
    if not encoders:
        raise ValueError(f"snn: got {type(snn).__name__} without a Poisson encoder, want encoder='poisson'")
    for encoder in encoders:
        encoder.seed = seed
    return snn


def _errors(runs: Sequence[Evaluation]) -> list[str]:
    """Return analog error, spiking error and increment, of every ``top``."""
    cells = []
    for i, k in enumerate(runs[0].top):
        assert runs[0].analog_correct is not None
        analog = 100 * (1 - runs[0].analog_correct[i])
        errors = [100 * (1 - float(run.accuracy_at(0, k)[-1])) for run in runs]
        cells += [f"{analog:.2f}", mean_and_deviation(errors), f"{fmean(errors) - analog:+.2f}"]
    return cells


def _error_header(options: Options) -> list[str]:
    names = ["" if k == 1 else f" top-{k}" for k in options.top]
    return [f"{part}{name}" for name in names for part in ("analog", "spiking", "increment")]


def _accuracy(runs: Sequence[Evaluation]) -> float:
    return fmean(_accuracies(runs))


def _accuracies(runs: Sequence[Evaluation], time_steps: int = 0) -> list[float]:
    """Return the accuracy of each run after some steps, or after all."""
    return [float(run.accuracy[time_steps - 1]) for run in runs]


def _paper(options: Options, kind: str) -> list[str | None]:
    header, figures = PAPER.get(options.data, ([], {}))
    return figures.get((options.model, kind), [None] * len(header))


if __name__ == "__main__":
    run_main(main, "the same command continues")
