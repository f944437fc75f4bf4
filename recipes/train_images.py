"""Train VGG-16 or ResNet-18 with trainable thresholds on images, in one process or several.

``python -m recipes.train_images --data cifar10 --model resnet18 --neuron atif-nu --preset paper --out runs/nu``

The same command goes under ``torchrun --nproc-per-node N -m recipes.train_images ...``, and with ``--resume`` it
continues an interrupted run exactly. ``--batch-size`` counts the images of a step over all processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.speed.step import benchmark_step, report

from .data.images import Batches, channel_statistics, load_images
from .lib.command import command, run_main
from .lib.files import intact, load_tensors
from .lib.neurons import add_neuron_arguments, check_neuron_arguments, make_spiking
from .lib.options import (
    add_data_arguments,
    add_image_arguments,
    add_run_arguments,
    add_training_arguments,
    check_run_arguments,
    check_training_arguments,
    defaults,
    integer,
    number,
)
from .lib.trainer import Trainer
from .lib.training import load_weights, measure
from .models.classifier import Classifier
from .models.resnet import resnet18
from .models.vgg import POOLING, vgg16

__all__ = [
    "ImageTrainer", "argument_parser", "load_checkpoint", "load_net", "main", "parse_arguments", "run",
    "spikingjelly_weights",
]  # fmt: skip

MODELS = {"vgg16": vgg16, "resnet18": resnet18}

# Castagnetti et al. 2023 state: SGD of rate 0.08, times 0.9 every 30 epochs, 900 epochs, crop, flip, mixup of alpha 1.
# Momentum, weight decay and batch size are not stated; these are those of the authors' later configurations.
PAPER: dict[str, Any] = {
    "epochs": 900, "opt": "sgd", "lr": 0.08, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 64,
    "lr_scheduler": "step", "lr_step_size": 30, "lr_gamma": 0.9, "crop": 4, "flip": True, "mixup_alpha": 1.0,
}  # fmt: skip
SHORT: dict[str, Any] = {
    "epochs": 10, "opt": "adamw", "lr": 2e-3, "momentum": 0.9, "weight_decay": 1e-2, "batch_size": 64,
    "lr_scheduler": "cosa", "lr_step_size": 30, "lr_gamma": 0.1, "crop": 2, "flip": True, "mixup_alpha": 0.0,
}  # fmt: skip
PRESETS = {"short": SHORT, "paper": PAPER}

SAME_NET = ("data", "train_images", "model", "width", "norm", "pool")
"""What a net has to have in common with the one it starts from; other images are normalised otherwise."""


class ImageTrainer(Trainer):
    """Builds the net that the options ask for and measures it at the end."""

    neurons: list[nn.Module]
    same_net: tuple[str, ...] = SAME_NET

    def load_model(self, args: argparse.Namespace, num_classes: int) -> nn.Module:
        net, calibration = self.analog_net(args, num_classes)
        self.neurons = [] if args.neuron == "relu" else make_spiking(net, args, calibration)
        return net

    def analog_net(self, args: argparse.Namespace, num_classes: int) -> tuple[Classifier, list[torch.Tensor] | None]:
        """Build the ReLU net; with ``--from`` it is the trained one, and images come along to calibrate thresholds.

        A run that goes on from its checkpoint needs neither.
        """
        net = self.build_net(args, num_classes)
        if args.start is None or self.checkpoint is not None:
            return net, None
        weights = trained_relu_net(args, self.same_net)
        with intact(args.start, A_CHECKPOINT.format("such a net"), REMEDY):
            load_weights(net, weights)
        batches = zip(self.calibration_loader, range(-(-args.calibration_images // 100)), strict=False)
        return net.to(self.device), [images for (images, _), _ in batches]

    def build_net(self, args: argparse.Namespace, num_classes: int) -> Classifier:
        """Build the analog net that the options describe."""
        return build_net(args, num_classes, self.data.channels)

    def defaults(self, args: argparse.Namespace) -> dict[str, Any]:
        return vars(parse_arguments(["--out", str(args.out), "--preset", args.preset]))

    def threshold_modules(self) -> list[nn.Module]:
        return self.neurons

    def measure(self, args: argparse.Namespace) -> dict[str, Any]:
        """Accuracy, activity and SQNR of the last epoch's net, over the whole test set.

        ``theta`` is equation 20 of Castagnetti et al. 2023: the share of neurons and steps with a spike, of each layer,
        then the mean over the layers; ``spikes_per_neuron`` is pooled over all neurons of the net. The SQNR is ``None``
        of a layer without any error (a neuron at an identity shortcut may repeat its spikes) or without any signal.
        """
        measured = measure(self.model, self.measured_loader(), self.neurons, limit=2_000)
        result: dict[str, Any] = {"accuracy": measured.accuracy, "time_steps": args.time_steps}
        if self.neurons:
            activity = [m.spikes_per_neuron / args.time_steps for m in measured.layers]
            result |= {
                "theta": sum(activity) / len(activity),
                "spikes_per_neuron": measured.spikes_per_neuron,
                "layers": [
                    {"neurons": m.neurons, "theta": theta, "sqnr_db": m.sqnr_db if isfinite(m.sqnr_db) else None}
                    for m, theta in zip(measured.layers, activity, strict=True)
                ],
            }
        return result

    def measured_loader(self) -> Iterable[Any]:
        """Return batches of the whole test set, for the first process alone."""
        return Batches(self.data.test, 100, *self.statistics, device=self.device)


def build_net(args: argparse.Namespace, classes: int, channels: int) -> Classifier:
    """Build the analog net that the options describe."""
    pool = {"pool": args.pool} if args.model == "vgg16" else {}
    return MODELS[args.model](classes, channels, width=args.width, norm=args.norm, **pool)


def load_net(path: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Rebuild the trained net of a checkpoint, ``last.pt`` or ``best.pt``, in evaluation mode.

    Images ``[N, C, H, W]`` are to be normalised as in training: in [0, 1], by ``channel_statistics`` of its images.
    Reset the net after each batch: ``functional.reset_net(net)``.

    Examples
    --------
    >>> net = load_net("runs/u/best.pt")  # doctest: +SKIP
    >>> net(images).argmax(1)  # doctest: +SKIP
    """
    checkpoint = load_checkpoint("path", Path(path))
    younger = defaults(argument_parser())  # options that the checkpoint does not know
    with intact(path, A_CHECKPOINT.format("recipes.train_images"), REMEDY):
        args = argparse.Namespace(**younger | checkpoint["settings"])
        weights = spikingjelly_weights(checkpoint["model"])
        net = build_net(args, list(weights.values())[-1].shape[0], weights["stem.0.weight"].shape[1])
        if args.neuron != "relu":
            make_spiking(net, args)
        load_weights(net, spikingjelly_weights(checkpoint["model"], net))
    return net.to(device).eval()


A_CHECKPOINT = "a checkpoint of {}"
REMEDY = "restore a copy of it, or name another"


def load_checkpoint(name: str, path: Path, recipe: str = "recipes.train_images") -> dict[str, Any]:
    """Load the checkpoint that an argument of that name points to, or say what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"{name}: got {path}, want a checkpoint that exists")
    checkpoint = load_tensors(path, A_CHECKPOINT.format(recipe), REMEDY)
    with intact(path, A_CHECKPOINT.format(recipe), REMEDY):
        if not all(isinstance(checkpoint[part], dict) for part in ("settings", "model")):
            raise TypeError("settings and model are no dictionaries")
    return checkpoint


def spikingjelly_weights(weights: dict[str, torch.Tensor], net: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint as SpikingJelly's net has them; one of snnTorch's trainer has other names.

    Neurons of snnTorch hold more than those of SpikingJelly: if the net is given, what it does not have is left out.
    """
    if "readout.threshold" not in weights:
        return weights
    found = {
        name.removeprefix("classifier.").replace(".threshold", ".v_threshold"): value
        for name, value in weights.items()
        if name.startswith("classifier.")
    }
    return found if net is None else {name: found[name] for name in net.state_dict()}


def trained_relu_net(args: argparse.Namespace, same: Sequence[str] = SAME_NET) -> dict[str, torch.Tensor]:
    """Return the weights of ``--from``, whose net has to have those settings in common."""
    checkpoint = load_checkpoint("--from", args.start)
    there = checkpoint["settings"]
    for name, want in {"neuron": "relu", **{name: getattr(args, name) for name in same}}.items():
        if there.get(name) != want:
            raise ValueError(f"--from: got {args.start} with {name}={there.get(name)!r}, want {want!r}")
    return checkpoint["model"]


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser; where the host's trainer has an option, it has the same name here."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.train_images", description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add_run_arguments(parser, PRESETS)
    add_data_arguments(parser)
    net = parser.add_argument_group("net")
    net.add_argument("--model", choices=MODELS, default="vgg16")
    net.add_argument("--width", type=number(above=0.0), default=1.0, help="factor on all widths; 0.125 for a CPU")
    net.add_argument("--norm", action=argparse.BooleanOptionalAction, default=True, help="batch norm")
    net.add_argument("--pool", choices=POOLING, default="max", help="of vgg16; avg is better with --from")
    net.add_argument("--from", dest="start", type=Path, metavar="CHECKPOINT", help="start from this trained ReLU net")
    net.add_argument("--calibration-images", type=integer(), default=1000, help="for the thresholds, with --from")
    add_neuron_arguments(parser)
    group = add_training_arguments(parser)
    add_image_arguments(group)
    group.add_argument("--threshold-lr", type=number(0.0), help="of the thresholds (default: --lr)")
    parser.add_argument("--benchmark-step", action="store_true", help="only time a step, against the host's IF neuron")
    parser.add_argument("--table", action="store_true", help="all neurons: benchmarks.results.images, with its options")
    return parser


def parse_arguments(
    argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """Parse and check the command line; what is wrong is named before anything starts."""
    parser = parser or argument_parser()
    preset = parser.parse_known_args(argv)[0].preset
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(argv)
    check_neuron_arguments(parser, args)
    check_training_arguments(parser, args)
    check_run_arguments(args)
    if args.pool != "max" and args.model != "vgg16":
        parser.error(f"argument --pool: got {args.pool} with --model {args.model}, want it with vgg16 only")
    if args.start is not None and not args.resume and not args.start.is_file():
        parser.error(f"argument --from: got {args.start}, want a checkpoint that exists")
    return args


def time_step(args: argparse.Namespace) -> dict[str, Any]:
    """Time a training step of the net with the host's IF neuron, then with the chosen one, on one batch."""
    data = load_images(args.data, args.data_dir)
    mean, std = channel_statistics(data.train[0])
    images, labels = next(iter(Batches(data.train, args.batch_size, mean, std, device=args.device)))
    nets = {}
    for name in dict.fromkeys(("if", args.neuron)):
        chosen = argparse.Namespace(**{**vars(args), "neuron": name})
        nets[name] = build_net(args, len(data.classes), data.channels)
        if name != "relu":
            make_spiking(nets[name], chosen)
        nets[name].to(args.device)
    return report(benchmark_step(nets, images, labels), args)


def run(trainer: Trainer, args: argparse.Namespace) -> dict[str, Any]:
    """Train, and print and return the result."""
    result = trainer.main(args)
    if trainer.rank == 0:
        spikes = "" if args.neuron == "relu" else f", {result['spikes_per_neuron']:.3f} spikes per neuron"
        print(f"{args.out}: {100 * result['accuracy']:.2f} %{spikes}; {result['data']}")
    return result


@command
def main(argv: Sequence[str] | None = None) -> Any:
    """Parse the command line and run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--table" in arguments:
        from benchmarks.results.images import main as table  # it imports this module, for the cells are runs of it

        return table([argument for argument in arguments if argument != "--table"])
    args = parse_arguments(arguments)
    return time_step(args) if args.benchmark_step else run(ImageTrainer(), args)


if __name__ == "__main__":
    run_main(main, "--resume continues")
