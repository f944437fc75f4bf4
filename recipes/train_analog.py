"""Train an analog net that is to be converted: under the constraints of the papers, or with batch norm.

``python -m recipes.train_analog --model vgg16 --out runs/vgg16``

The small preset is a narrow net for a CPU; ``--preset paper`` is the net and the training of its paper.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data.images import Batches, ImageData, load_images
from .lib.checkpoints import load_weights
from .lib.command import command, run_main
from .lib.files import fingerprint, intact, load_tensors
from .lib.options import (
    Increasing,
    add_data_arguments,
    add_image_arguments,
    add_run_arguments,
    add_training_arguments,
    check_run_arguments,
    check_training_arguments,
    integer,
    number,
    old_file,
)
from .lib.trainer import Trainer
from .models import cifar, convertible

__all__ = [
    "MODELS", "RESNETS", "AnalogTrainer", "Trained", "add_analog_arguments", "check_analog_arguments", "main",
    "preset_of", "trained",
]  # fmt: skip

MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": convertible.vgg16,
    "resnet20": convertible.resnet20,
    "resnet18": convertible.resnet18,
    "resnet34": convertible.resnet34,
    "net1": convertible.net1,
    "net2": convertible.net2,
    "resnet20-bn": cifar.resnet20,
    "vgg16-bn": cifar.vgg16,
}
RESNETS = ("resnet18", "resnet20", "resnet34")

_PLAIN: dict[str, Any] = {
    "momentum": 0.9, "lr_scheduler": "step", "lr_step_size": 30, "lr_gamma": 0.1, "lr_milestones": None, "crop": 0,
    "flip": False, "mixup_alpha": 0.0, "width": 1.0, "inputs": "centred", "dropout": 1.0,
}  # fmt: skip
# Sengupta et al. 2019 state batch, epochs, rate, steps; momentum and decay are those of the training they cite.
_SENGUPTA = _PLAIN | {
    "epochs": 200, "batch_size": 256, "opt": "sgd", "lr": 0.05, "weight_decay": 1e-4, "lr_milestones": [81, 122],
    "crop": 4, "flip": True,
}  # fmt: skip
# Hwang et al. 2021 state optimiser, rates and steps; epochs and batch sizes are ours, and Net 2's momentum.
_HWANG = _PLAIN | {"batch_size": 128, "inputs": "unit"}
# He et al. 2016, section 4.2; the epochs are their 64,000 steps. VGG-16 with batch norm is trained likewise.
_HE = _PLAIN | {
    "epochs": 164, "batch_size": 128, "opt": "sgd", "lr": 0.1, "weight_decay": 1e-4, "lr_milestones": [82, 123],
    "crop": 4, "flip": True,
}  # fmt: skip
PAPER: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("resnet20-bn", "vgg16-bn"), _HE),
    **dict.fromkeys(("vgg16", *RESNETS), _SENGUPTA),
    "net1": _HWANG | {"epochs": 200, "opt": "adam", "lr": 1e-3, "weight_decay": 1e-4, "lr_milestones": [60, 120, 180]},
    "net2": _HWANG | {
        "epochs": 250, "opt": "sgd", "lr": 1e-3, "weight_decay": 0.0, "lr_milestones": [50, 100, 200], "lr_gamma": 0.5,
    },
}  # fmt: skip
HWANG_RESNET20 = _HWANG | {
    "epochs": 200, "opt": "sgd", "lr": 0.1, "weight_decay": 1e-4, "lr_milestones": [82, 123, 164], "crop": 4,
    "flip": True,
}  # fmt: skip
_SMALL = _PLAIN | {
    "epochs": 12, "batch_size": 64, "opt": "adamw", "lr": 2e-3, "weight_decay": 1e-2, "lr_scheduler": "cosa",
    "dropout": 0.2,  # a narrow net has no neurons to spare
}  # fmt: skip
# The epochs are what two cores do in some hours; short trainings want a larger decay, which is ours.
_SHORT = _HE | {"epochs": 30, "lr_milestones": None, "lr_scheduler": "cosa", "weight_decay": 5e-4}
SMALL: dict[str, dict[str, Any]] = {
    "vgg16": _SMALL | {"width": 0.125},
    "resnet20": _SMALL | {"width": 0.25},
    "resnet18": _SMALL | {"width": 0.0625},
    "resnet34": _SMALL | {"width": 0.0625},
    "net1": _SMALL | {"width": 0.5, "inputs": "unit", "epochs": 6},
    "net2": _SMALL | {"width": 0.125, "inputs": "unit"},
    "resnet20-bn": _SHORT,
    "vgg16-bn": _SHORT | {"width": 0.25, "lr": 0.05},
}
PRESETS = {"small": SMALL, "paper": PAPER}
SAME_NET = ("data", "model", "width", "constraint", "inputs")
"""What a checkpoint has to have in common with the net it is loaded into."""


class AnalogTrainer(Trainer):
    """Builds the net that the options ask for; pixels are centred by their mean, or left in [0, 1]."""

    def input_statistics(self, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
        mean = _mean_image(self.data)
        return (mean if args.inputs == "centred" else torch.zeros_like(mean)), torch.ones(self.data.channels)

    def load_model(self, args: argparse.Namespace, num_classes: int) -> nn.Module:
        return build_net(args, self.data)

    def set_optimizer(self, args: argparse.Namespace, parameters: Any) -> torch.optim.Optimizer:
        if args.opt == "adam":  # which the host does not offer; the decay is part of the gradient, as in the paper
            return torch.optim.Adam(self.model.parameters(), args.lr, weight_decay=args.weight_decay)
        return super().set_optimizer(args, parameters)

    def set_lr_scheduler(self, args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> Any:
        if args.lr_milestones:
            return torch.optim.lr_scheduler.MultiStepLR(optimizer, args.lr_milestones, args.lr_gamma)
        return super().set_lr_scheduler(args, optimizer)


class Trained:
    """A trained analog net with its data.

    Attributes
    ----------
    net : nn.Module
        In eval mode.
    data : ImageData
        With the name that results have.
    title : str
        The net in words, with its width.
    """

    def __init__(self, args: argparse.Namespace, net: nn.Module, data: ImageData) -> None:
        self.net, self.data, self.args = net.eval(), data, args
        self._fingerprint: str | None = None
        width = f", width {args.width:g}" if args.width != 1 else ""
        constraint = f", constraint {args.constraint}" if args.model in RESNETS else ""
        self.title = f"{args.model}{constraint}{width}"
        mean = _mean_image(data)
        self._mean = mean if args.inputs == "centred" else torch.zeros_like(mean)

    def loader(self, part: str, images: int | None = None, batch_size: int = 50) -> Batches:
        """Return batches of "train" or "test" images in their order, all of them or an unbiased sample of a size."""
        sample = self.data.first(*((images, None) if part == "train" else (None, images)))
        std = torch.ones(self.data.channels)
        return Batches(getattr(sample, part), batch_size, self._mean, std, device=self.args.device)

    def fingerprint(self) -> str:
        """Return what tells the images of two data sets apart."""
        self._fingerprint = self._fingerprint or fingerprint(*self.data.train, *self.data.test)
        return self._fingerprint


def build_net(args: argparse.Namespace, data: ImageData) -> nn.Module:
    """Build the untrained net that the options describe."""
    options = {"constraint": args.constraint} if args.model in RESNETS else {}
    size = data.train[0].shape[-1]
    net = MODELS[args.model](len(data.classes), data.channels, width=args.width, size=size, **options)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p *= args.dropout
    return net


def trained(args: argparse.Namespace, folder: Path) -> Trained:
    """Train the net in a folder, continue there, or load what is finished; with ``--checkpoint`` load that."""
    if args.checkpoint is None:
        training = argparse.Namespace(**{name: getattr(args, name) for name in TRAINING}, out=folder, resume=True)
        AnalogTrainer().main(training)
    data = load_images(args.data, args.data_dir).first(args.train_images, args.test_images)
    net = build_net(args, data)
    path = args.checkpoint or folder / "last.pt"
    weights = _state_dict(args, path)
    with intact(path, *A_NET):
        load_weights(net, weights)
    return Trained(args, net.to(args.device), data)


A_NET = "a checkpoint of such a net", "restore a copy of it, or name another"


def _state_dict(args: argparse.Namespace, path: Path) -> dict[str, Tensor]:
    checkpoint = load_tensors(path, *A_NET)
    with intact(path, *A_NET):
        if "settings" not in checkpoint:
            return checkpoint
        weights, settings = checkpoint["model"], checkpoint["settings"]
        there = {name: settings.get(name) for name in SAME_NET}
    for name, value in there.items():
        if value != getattr(args, name):
            raise ValueError(f"--checkpoint: got {path} with {name}={value!r}, want {getattr(args, name)!r}")
    return weights


def _mean_image(data: ImageData) -> Tensor:
    return data.train[0].float().mean(0) / 255.0


def add_analog_arguments(
    parser: argparse.ArgumentParser, models: Sequence[str] = tuple(MODELS), more_data: Sequence[str] = ()
) -> None:
    """Add the options of net and training; :func:`preset_of` fills in what is not given."""
    add_run_arguments(parser, PRESETS, default="small")
    add_data_arguments(parser, more_data)
    net = parser.add_argument_group("net")
    net.add_argument("--model", choices=models, default=models[0])
    net.add_argument("--width", type=number(above=0.0), help="factor on all widths (default: the preset)")
    net.add_argument("--constraint", type=int, choices=(0, 1, 2, 3), default=3, help="of the residual nets")
    net.add_argument("--inputs", choices=("centred", "unit"), help="pixels less their mean, or in [0, 1]")
    net.add_argument("--dropout", type=number(0.0, 1.5), help="factor on the rates of dropout (default: the preset)")
    net.add_argument("--checkpoint", type=old_file, help="load this trained net in place of training one")
    group = add_training_arguments(parser, ("sgd", "adam", "adamw", "rmsprop"))
    add_image_arguments(group)
    group.add_argument(
        "--lr-milestones", type=integer(), nargs="*", action=Increasing,
        help="epochs after which the rate drops by --lr-gamma",
    )  # fmt: skip


TRAINING = (
    "preset", "seed", "device", "amp", "log_every", "data", "data_dir", "train_images", "test_images", "model", "width",
    "constraint", "inputs", "dropout", "epochs", "batch_size", "opt", "lr", "threshold_lr", "momentum", "weight_decay",
    "lr_scheduler", "lr_step_size", "lr_gamma", "lr_milestones", "lr_warmup_epochs", "lr_warmup_method",
    "lr_warmup_decay", "clip_grad_norm", "label_smoothing", "crop", "flip", "mixup_alpha",
)  # fmt: skip
"""Names of the options that the training reads."""


def preset_of(args: argparse.Namespace, papers: dict[str, dict[str, Any]] | None = None) -> None:
    """Fill in what the command line has not given, from the preset of the net."""
    presets = PRESETS | ({} if papers is None else {"paper": PAPER | papers})
    for name, value in presets[args.preset][args.model].items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def check_analog_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Name what can not be used before anything starts."""
    args.threshold_lr = None
    check_training_arguments(parser, args)
    check_run_arguments(args)


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line, train, and print the accuracy."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.train_analog", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    add_analog_arguments(parser)
    args = parser.parse_args(argv)
    preset_of(args)
    check_analog_arguments(parser, args)
    trainer = AnalogTrainer()
    training = argparse.Namespace(**{name: getattr(args, name) for name in TRAINING}, out=args.out, resume=args.resume)
    result = trainer.main(training)
    if trainer.rank == 0:
        print(f"{args.out}: {args.model}, {100 * result['test_acc1']:.2f} %; {result['data']}")
    return result


if __name__ == "__main__":
    run_main(main, "--resume continues")
