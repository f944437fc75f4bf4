"""Train VGG-16 or ResNet-18 with trainable thresholds on images, in one process or several.

``python -m recipes.train_images --data cifar10 --model resnet18 --neuron atif-nu --preset paper --out runs/nu``

The same command goes under ``torchrun --nproc-per-node N -m recipes.train_images ...``, and with ``--resume`` it
continues an interrupted run exactly. ``--batch-size`` counts the images of a step over all processes. With ``--host
snntorch`` the same net does the same job in snnTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from .data.images import Batches
from .lib.checkpoints import A_CHECKPOINT, REMEDY, load_checkpoint, load_weights, spikingjelly_weights
from .lib.cli import Positive, defaults, fill
from .lib.command import command, run_main
from .lib.files import intact
from .lib.neurons import make_spiking
from .lib.options import DataOptions, ImageOptions, RunOptions, TrainingOptions
from .lib.snntorch_trainer import SnnTorchTrainer
from .lib.spiking_trainer import SpikingOptions, SpikingTrainer, run
from .models.classifier import Classifier
from .models.resnet import resnet18
from .models.vgg import POOLING, vgg16

__all__ = ["HOSTS", "MODELS", "ImageTrainer", "Options", "build_net", "load_net", "main"]

MODELS = {"vgg16": vgg16, "resnet18": resnet18}

# Castagnetti et al. 2023 state: SGD of rate 0.08, times 0.9 every 30 epochs, 900 epochs, crop, flip, mixup of alpha 1.
# Momentum, weight decay and batch size are not stated; these are those of the authors' later configurations.
PAPER: dict[str, Any] = {
    "epochs": 900, "opt": "sgd", "lr": 0.08, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 64,
    "lr_scheduler": "step", "lr_step_size": 30, "lr_gamma": 0.9, "lr_milestones": None, "crop": 4, "flip": True,
    "mixup_alpha": 1.0,
}  # fmt: skip
SHORT: dict[str, Any] = {
    "epochs": 10, "opt": "adamw", "lr": 2e-3, "momentum": 0.9, "weight_decay": 1e-2, "batch_size": 64,
    "lr_scheduler": "cosa", "lr_step_size": 30, "lr_gamma": 0.1, "lr_milestones": None, "crop": 2, "flip": True,
    "mixup_alpha": 0.0,
}  # fmt: skip
PRESETS = {"short": SHORT, "paper": PAPER}


@dataclass(kw_only=True)
class Options(SpikingOptions, RunOptions, DataOptions, TrainingOptions, ImageOptions):
    """Net."""

    preset: Annotated[str, PRESETS, "defaults of the options of the training"] = "short"
    model: Annotated[str, MODELS, "net"] = "vgg16"
    width: Annotated[Positive, "factor on all widths; 0.125 for a CPU"] = 1.0
    norm: Annotated[bool, "batch norm"] = True
    pool: Annotated[str, POOLING, "of vgg16; avg is better with --from"] = "max"

    def __post_init__(self) -> None:
        fill(self, PRESETS[self.preset])
        super().__post_init__()
        if self.pool != "max" and self.model != "vgg16":
            raise ValueError(f"--pool: got {self.pool} with --model {self.model}, want it with vgg16 only")


class ImageTrainer(SpikingTrainer):
    """Trains the net that the options ask for, on images."""

    same_net = ("data", "train_images", "model", "width", "norm", "pool")  # other images are normalised otherwise

    def build_net(self, options: Options, classes: int) -> Classifier:
        return build_net(options, classes, self.data.channels)

    def measured_loader(self) -> Iterable[Any]:
        return Batches(self.data.test, 100, *self.statistics, device=self.device)


class SnnTorchImageTrainer(SnnTorchTrainer, ImageTrainer):
    """The same with snnTorch's neurons and training loop."""


HOSTS = {"spikingjelly": ImageTrainer, "snntorch": SnnTorchImageTrainer}


def build_net(options: Any, classes: int, channels: int) -> Classifier:
    """Build the analog net that the options describe."""
    pool = {"pool": options.pool} if options.model == "vgg16" else {}
    return MODELS[options.model](classes, channels, width=options.width, norm=options.norm, **pool)


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
    with intact(path, A_CHECKPOINT.format("recipes.train_images"), REMEDY):
        options = argparse.Namespace(**defaults(Options) | checkpoint["settings"])
        weights = spikingjelly_weights(checkpoint["model"])
        net = build_net(options, list(weights.values())[-1].shape[0], weights["stem.0.weight"].shape[1])
        if options.neuron != "relu":
            make_spiking(net, options)
        load_weights(net, spikingjelly_weights(checkpoint["model"], net))
    return net.to(device).eval()


@command
def main(options: Options) -> dict[str, Any]:
    """Train, and print and return the result."""
    return run(HOSTS[options.host](), options)


if __name__ == "__main__":
    run_main(main, "--resume continues")
