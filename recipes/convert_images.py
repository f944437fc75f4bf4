"""Conversion of VGG and residual nets, after Sengupta et al. 2019, and against SpikingJelly's converter.

``python -m recipes.convert_images --model vgg16 --out runs/vgg16`` trains the analog net under the paper's constraints
(or loads ``--checkpoint``) and runs these experiments on it:

normalisation   data-based normalisation against Spike-Norm, Poisson input over five seeds, 256 images against all
constraints     residual nets without and with each constraint
methods         every way to convert, SpikingJelly's too, on one net: accuracy, latency, operations

``--preset small`` (the default) is a narrow net that takes minutes on a CPU; ``--preset paper`` is the paper's. With
``--data imagenet`` the net is torchvision's, with its weights. What is finished is kept: started again, the command
goes on.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.results import conversion_plots as plots
from benchmarks.results.pages import command_line, latency, mean_and_deviation, provenance, table, write_report
from benchmarks.results.plots import save
from snn_ext import convert
from snn_ext.evaluation import Evaluation, best_delay

from .data.image_folder import ImageFolders
from .lib.checkpoints import load_weights
from .lib.command import command, run_main
from .lib.conversions import OURS, RIVALS, Evaluations, digest, set_poisson_seed
from .lib.files import has_hash_in_name, intact, load_tensors
from .lib.options import SEED, Different, integer
from .lib.run_folder import own_folder
from .models.convertible import with_projections
from .train_analog import (
    RESNETS,
    Trained,
    add_analog_arguments,
    check_analog_arguments,
    preset_of,
    trained,
)

__all__ = ["EXPERIMENTS", "constraints", "main", "methods", "normalisation", "parse_arguments"]

EXPERIMENTS = ("normalisation", "constraints", "methods")
METHODS = {**RIVALS, **OURS}
MODELS = ("vgg16", *RESNETS)
# Horizon and images of the evaluations, and steps of the thresholds' search.
HORIZONS: dict[str, dict[str, Any]] = {
    "small": {
        "poisson_steps": 1000,
        "norm_steps": 250,
        "poisson_images": 50,
        "time_steps": 128,
        "eval_images": 500,
        "resets": ["zero"],
    },
    "paper": {
        "poisson_steps": 2500,
        "norm_steps": 2500,
        "poisson_images": None,
        "time_steps": 512,
        "eval_images": None,
        "resets": ["zero", "subtract"],
    },
}
# Errors in percent on CIFAR-10 as Sengupta et al. 2019 give them: analog, spiking.
PAPER_CIFAR10 = {
    ("vgg16", "data-norm"): (8.3, 8.54),
    ("vgg16", "Spike-Norm"): (8.3, 8.45),
    ("resnet20", "Spike-Norm"): (10.9, 12.54),
    ("resnet20", "data-norm"): (10.9, 12.87),
}
# On ImageNet: top-1 and top-5 errors of the spiking net.
PAPER_IMAGENET = {
    ("vgg16", "data-norm"): (30.61, None),
    ("vgg16", "Spike-Norm"): (30.04, 10.99),
    ("resnet34", "Spike-Norm"): (34.53, 13.67),
}
CIFAR10 = ("cifar10", "cifar10-jpeg")


class Pretrained:
    """A net of torchvision with its weights, and a folder of images; the same interface as ``Trained``."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torchvision

        weights = torchvision.models.get_model_weights(args.model).DEFAULT
        if args.checkpoint is None:
            check_published(Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name)
            net = torchvision.models.get_model(args.model, weights=weights)
        else:
            kind = f"weights of torchvision's {args.model}", "restore a copy of it, or name another"
            state = load_tensors(args.checkpoint, *kind)
            with intact(args.checkpoint, *kind):
                classes = next(value for name, value in reversed(state.items()) if name.endswith("bias")).numel()
                net = torchvision.models.get_model(args.model, weights=None, num_classes=classes)
                load_weights(net, state)
        self.net, self.args = net.to(args.device).eval(), args
        size = {} if args.image_size is None else {"crop_size": args.image_size, "resize_size": args.image_size}
        transform = functools.partial(weights.transforms.func, **{**weights.transforms.keywords, **size})()
        self.data = ImageFolders(args.data_dir, transform, args.device)
        self.title = f"{args.model}, torchvision"

    def loader(self, part: str, images: int | None = None, batch_size: int = 50) -> Iterable[Any]:
        return self.data.loader(part, images, batch_size)

    def fingerprint(self) -> str:
        return self.data.fingerprint()


def check_published(path: Path) -> None:
    """Raise if weights that were downloaded before are not what the hash in their name says; torch does not look."""
    if path.is_file():
        with open(path, "rb") as file, intact(path, "the published weights", "remove it to have it downloaded again"):
            if not has_hash_in_name(path, file):
                raise ValueError("another hash")


def normalisation(analog: Trained | Pretrained, evaluations: Evaluations, args: argparse.Namespace) -> str:
    """Compare thresholds from analog maxima with Spike-Norm, under Poisson input; return a section of the page."""
    few, many = args.calibration_images, None
    rows = {
        f"data-norm, {few} images": ("data-norm", few, {"method": "data-norm"}),
        "data-norm, all images": ("data-norm", many, {"method": "data-norm"}),
        f"Spike-Norm, {few} images": ("Spike-Norm", few, {"method": "spike-norm", "time_steps": args.norm_steps}),
    }
    # As in the paper: in a residual net only the layers before the first unit are normalised.
    units = isinstance(analog, Trained) and args.model in RESNETS and args.constraint >= 2
    residual = {"residual": "unit-threshold"} if units else {}
    lines, kept, thresholds = [], {}, {}
    lost: dict[str, dict[str, float]] = {}
    for reset in args.resets:
        for name, (kind, images, options) in rows.items():
            options = {**options, **residual, "reset": reset, "encoder": "poisson", "readout": "spikes"}
            runs, notes = _poisson_runs(analog, evaluations, args, f"{name}, reset {reset}", images, options)
            ratio = f"{float(runs[0].ac_mac_ratio[-1]):.2f}"
            lines.append([name, reset, *_errors(runs), ratio, *_paper(args, kind)])
            lost.setdefault(reset, {})[name] = _increment(runs)
            if reset == args.resets[0]:
                kept[name] = runs[0]
                thresholds[name] = [layer["relative_threshold"] or layer["threshold"] for layer in notes["layers"]]
    title = f"{analog.title}, {analog.data.name}"
    save(plots.accuracy_over_time(kept, title), args.out / "normalisation.png")
    save(plots.by_depth(kept, thresholds, title), args.out / "depth.png")
    header = ["thresholds", "reset", *_error_header(args), "AC/MAC", *_paper_header(args)]
    return (
        f"### Normalisation: {title}\n\nPoisson input, counted output spikes, T = {args.poisson_steps}, "
        f"{next(iter(kept.values())).samples:,} test images, {_runs(args)}. "
        f"{'Neurons inside residual units have the threshold of what enters them. ' if units else ''}"
        f"Errors in %: mean ± standard deviation over several runs.\n\n{table(lines, header)}\n\n{_verdict(lost)}\n"
    )


def _verdict(lost: dict[str, dict[str, float]]) -> str:
    """Say which thresholds lose less, for each reset."""
    lines = []
    for reset, increments in lost.items():
        best = min(increments, key=increments.__getitem__)
        others = "; ".join(f"{name} {value:+.2f}" for name, value in increments.items() if name != best)
        lines.append(f"- Reset {reset}: {best} loses least, {increments[best]:+.2f} percentage points; {others}.")
    return "\n".join(lines)


def constraints(args: argparse.Namespace, evaluations: Evaluations) -> str:
    """Train and convert a residual net without and with each constraint; return a section of the page."""
    lines, kept, errors = [], {}, {}
    for constraint in (0, 1, 2, 3):
        own = copy.copy(args)
        own.constraint = 1 if constraint == 2 else constraint  # 2 is a rule of the conversion, on the net of 1
        folder = "analog" if own.constraint == args.constraint else f"analog-constraint-{own.constraint}"
        analog = trained(own, args.out / folder)
        residual = {"residual": "unit-threshold"} if constraint >= 2 else {}
        options = {
            "method": "spike-norm", "time_steps": args.norm_steps, "reset": args.resets[0], "encoder": "poisson",
            "readout": "spikes", **residual,
        }  # fmt: skip
        name = f"constraint {constraint}" if constraint else "none (basic)"
        runs, _ = _poisson_runs(analog, evaluations, args, f"{args.model}, {name}", args.calibration_images, options)
        lines.append([name, *_errors(runs)])
        kept[name], errors[name] = runs[0], 100 * (1 - _mean_accuracy(runs))
    title = f"{args.model}, width {args.width:g}, {analog.data.name}"
    save(plots.accuracy_over_time(kept, title), args.out / "constraints.png")
    return (
        f"### Constraints of residual nets: {title}\n\nSpike-Norm on {args.calibration_images} images, reset "
        f"{args.resets[0]}, Poisson input, T = {args.poisson_steps}, {kept[name].samples:,} test images, "
        f"{_runs(args)}. Each constraint includes those before it; 2 is the analog net of 1. The "
        f"paper finds 3 the best.\n\n{table(lines, ['constraint', *_error_header(args)])}\n\n"
        f"Smallest error of the spiking net: {min(errors, key=errors.__getitem__)}.\n"
    )


def methods(analog: Trained | Pretrained, evaluations: Evaluations, args: argparse.Namespace) -> str:
    """Convert one net in every way, with a constant input and a linear read-out; return a section of the page."""
    residual = isinstance(analog, Trained) and args.model in RESNETS
    net = with_projections(analog.net) if residual else analog.net
    found: dict[str, Evaluation] = {}
    lines, levels = [], (99.0, 99.5, 99.9)
    delays = tuple(range(0, min(33, args.time_steps), 4))
    for name in args.methods:
        conversion = METHODS[name]
        calibration = list(analog.loader("train", args.calibration_images))
        settings = _settings(analog, args) | {
            "method": name, "conversion": repr(conversion), "eval_images": args.eval_images,
        }  # fmt: skip
        evaluation, _ = evaluations.get(
            f"{analog.title} {name}", settings, lambda c=conversion, b=calibration: c(net, b),
            analog.loader("test", args.eval_images), args.time_steps, ann=net, top=args.top,
            **({"delay": delays} if name in OURS else {}),
        )  # fmt: skip
        found[name] = evaluation
        first, last = evaluation.latency_at(levels=levels), evaluation.latency_at(levels=levels, last=True)
        accuracies = [f"{100 * float(evaluation.accuracy_at(0, k)[-1]):.2f}" for k in args.top]
        arrived = first[99.0]
        spent = [arrived and float(of[arrived - 1]) for of in (evaluation.spikes, evaluation.synops)]
        lines.append([
            name, *accuracies, *(latency(first[level], last[level]) for level in levels),
            _best_delay(evaluation), spent[0] and f"{spent[0] / 1e3:,.1f}", spent[1] and f"{spent[1] / 1e6:.2f}",
        ])  # fmt: skip
    title = f"{analog.title}, {analog.data.name}"
    save(plots.accuracy_latency_synops(found, title), args.out / "methods.png")
    names = ["accuracy (%)" if k == 1 else f"top-{k} (%)" for k in args.top]
    header = ["conversion", *names, "99.0 %", "99.5 %", "99.9 %", "99.0 % with the best delay"]
    header += ["10^3 spikes at 99.0 %", "10^6 SynOps at 99.0 %"]
    any_one = found[name]
    return (
        f"### Methods: {title}\n\nConstant input, linear read-out, every step counted; T = {args.time_steps}, "
        f"{any_one.samples:,} test images, {args.calibration_images} for calibration. Analog net: "
        f"{100 * any_one.analog_accuracy:.2f} %, {any_one.macs / 1e6:.2f} million MACs. Latency: first step that "
        f"reaches that share of the analog accuracy (in brackets: step from which on it is kept)."
        f"{' Shortcuts that change the shape are fixed convolutions of one pixel here.' if residual else ''}\n\n"
        f"{table(lines, header)}\n\n{_comparison(found)}\n"
    )


def _comparison(found: dict[str, Evaluation], level: float = 99.0) -> str:
    """Say what the best of ours needs to a level, and every rival; the best is chosen on the same test images."""
    lines = []
    for kind, last in (("First step at", False), ("Step from which on the accuracy stays at", True)):
        steps = {name: e.latency_at(levels=(level,), last=last)[level] for name, e in found.items()}
        ours = {name: step for name, step in steps.items() if name in OURS and step is not None}
        if not ours:
            lines.append(f"- {kind} {level:g} %: none of ours reaches it.")
            continue
        best = min(ours, key=lambda name: ours[name])
        rivals = [
            f"{name} " + ("does not get there" if step is None else f"{step} (ratio {ours[best] / step:.2f})")
            for name, step in steps.items() if name in RIVALS
        ]  # fmt: skip
        lines.append(f"- {kind} {level:g} %: {ours[best]} for the best of ours, {best}; {'; '.join(rivals)}.")
    return "\n".join(lines) + "\n\nThe best of ours is chosen on the same test images as it is measured on."


def _best_delay(evaluation: Evaluation) -> str | None:
    """Return the latency with the best delay of the read-out, where there is a grid of delays."""
    if len(evaluation.delays) == 1:
        return None
    try:
        delay = best_delay(evaluation)
    except ValueError:
        return None
    return f"{evaluation.latency_at(delay, (99.0,))[99.0]} (delay {delay})"


def _poisson_runs(
    analog: Trained | Pretrained, evaluations: Evaluations, args: argparse.Namespace, name: str, images: int | None,
    options: dict[str, Any],
) -> tuple[list[Evaluation], dict[str, Any]]:  # fmt: skip
    """Convert once, and evaluate under several seeds of the input."""
    made: list[nn.Module] = []

    def make(seed: int) -> nn.Module:
        if not made:
            made.append(convert(analog.net, analog.loader("train", images), seed=args.seed, **options))
        return set_poisson_seed(made[0], seed)

    runs, notes = [], {}
    for seed in args.poisson_seeds:
        settings = _settings(analog, args) | {"options": options, "images": images, "poisson_seed": seed}
        settings["eval_images"] = args.poisson_images
        run, notes = evaluations.get(
            f"{analog.title} {name} seed {seed}", settings, lambda seed=seed: make(seed),
            analog.loader("test", args.poisson_images), args.poisson_steps, ann=analog.net, top=args.top,
        )  # fmt: skip
        runs.append(run)
    return runs, notes


def _settings(analog: Trained | Pretrained, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "net": digest(analog.net), "data": analog.data.name, "contents": analog.fingerprint(), "seed": args.seed,
        "calibration_images": args.calibration_images,
    }  # fmt: skip


def _errors(runs: Sequence[Evaluation]) -> list[str]:
    """Return analog error, spiking error and increment, of every ``top``."""
    cells = []
    for i, k in enumerate(runs[0].top):
        assert runs[0].analog_correct is not None
        analog = 100 * (1 - runs[0].analog_correct[i])
        errors = [100 * (1 - float(run.accuracy_at(0, k)[-1])) for run in runs]
        cells += [f"{analog:.2f}", mean_and_deviation(errors), f"{sum(errors) / len(errors) - analog:+.2f}"]
    return cells


def _runs(args: argparse.Namespace) -> str:
    count = len(args.poisson_seeds)
    return "one run" if count == 1 else f"{count} runs"


def _mean_accuracy(runs: Sequence[Evaluation]) -> float:
    return sum(float(run.accuracy[-1]) for run in runs) / len(runs)


def _increment(runs: Sequence[Evaluation]) -> float:
    """Return by how many percentage points the error is larger than that of the analog net."""
    return 100 * (runs[0].analog_accuracy - _mean_accuracy(runs))


def _error_header(args: argparse.Namespace) -> list[str]:
    names = ["" if k == 1 else f" top-{k}" for k in args.top]
    return [f"{part}{name}" for name in names for part in ("analog", "spiking", "increment")]


def _paper(args: argparse.Namespace, kind: str) -> list[str | None]:
    if args.data == "imagenet":
        top1, top5 = PAPER_IMAGENET.get((args.model, kind), (None, None))
        return [top1 and f"{top1:.2f}", top5 and f"{top5:.2f}"]
    if args.data in CIFAR10:
        figures = PAPER_CIFAR10.get((args.model, kind))
        return [None, None] if figures is None else [f"{figures[0]}", f"{figures[1]}"]
    return []


def _paper_header(args: argparse.Namespace) -> list[str]:
    if args.data == "imagenet":
        return ["paper: spiking top-1", "paper: spiking top-5"]
    return ["paper: analog", "paper: spiking"] if args.data in CIFAR10 else []


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.convert_images", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_analog_arguments(parser, MODELS, more_data=("imagenet",))
    group = parser.add_argument_group("conversion (defaults: the preset)")
    group.add_argument("--experiments", choices=EXPERIMENTS, nargs="+", help="default: all that the net has")
    group.add_argument("--calibration-images", type=integer(), default=256, help="the paper says 256 are enough")
    group.add_argument("--eval-images", type=integer(), help="test on a sample of the test images")
    group.add_argument("--time-steps", type=integer(), help="T under constant input")
    group.add_argument("--poisson-steps", type=integer(), help="T under Poisson input")
    group.add_argument("--poisson-images", type=integer(), help="test images under Poisson input")
    group.add_argument(
        "--poisson-seeds", type=SEED, nargs="+", action=Different, default=[0, 1, 2, 3, 4],
        help="runs with other events",
    )  # fmt: skip
    group.add_argument("--norm-steps", type=integer(), help="T of Spike-Norm's search for thresholds")
    group.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS), metavar="NAME", help="by name")
    group.add_argument("--image-size", type=integer(32), help="of --data imagenet (default: that of the weights)")
    group.add_argument("--resets", choices=("zero", "subtract"), nargs="+", help="under Poisson input")
    args = parser.parse_args(argv)
    preset_of(args)
    for name, value in HORIZONS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_analog_arguments(parser, args)
    possible = [e for e in EXPERIMENTS if e != "constraints" or (args.model in RESNETS and args.data != "imagenet")]
    if args.experiments is None:
        args.experiments = possible
    elif missing := [e for e in args.experiments if e not in possible]:
        parser.error(
            f"argument --experiments: got {missing[0]} with {args.model} on {args.data}, want some of {possible}"
        )
    if args.data == "imagenet" and args.data_dir is None:
        parser.error("argument --data-dir: got none with --data imagenet, want a folder that holds train/ and val/")
    args.top = (1, 5) if args.data == "imagenet" else (1,)
    return args


@command
def main(argv: Sequence[str] | None = None) -> str:
    """Run the experiments, write figures and ``report.md``, and return the report."""
    args = parse_arguments(argv)
    evaluations = Evaluations(args.out / "evaluations")
    with own_folder(args.out, "convert_images"):
        analog = Pretrained(args) if args.data == "imagenet" else None
        sections = []
        if args.experiments != ["constraints"] and analog is None:
            analog = trained(args, args.out / "analog")
        if "normalisation" in args.experiments:
            sections.append(normalisation(analog, evaluations, args))
        if "constraints" in args.experiments:
            sections.append(constraints(args, evaluations))
        if "methods" in args.experiments:
            sections.append(methods(analog, evaluations, args))
        report = "\n".join([*sections, provenance(command_line("convert_images", argv), args.seed)])
        return write_report(args.out, report)


if __name__ == "__main__":
    run_main(main, "the same command continues")
