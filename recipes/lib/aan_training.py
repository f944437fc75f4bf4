"""Training nets of AANs, or of ReLUs to compare with: nets and presets of Zambrano et al. 2017 by data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from snn_ext import AAN

from ..data.image_folder import FolderImages, check_classes, folder_name, image_folder
from ..data.images import ImageData, data_folder, load_images
from ..data.tables import digits
from ..models.adaptive import check_layout, layout_net, preact_resnet18
from .analog import Analog, Images
from .checkpoints import load_weights
from .cli import PRESET, Positive, fill
from .files import intact, load_tensors
from .options import DataOptions, ImageOptions, RunOptions, TrainingOptions
from .ranges import integer, number
from .trainer import Trainer

__all__ = ["DATA_SETS", "TABLES", "AANOptions", "build_net", "load_data", "trained"]

_COMMON: dict[str, Any] = {
    "epochs": 10, "batch_size": 64, "opt": "adam", "lr": 2e-3, "momentum": 0.9, "weight_decay": 0.0,
    "lr_scheduler": "cosa", "lr_step_size": 30, "lr_gamma": 0.1, "lr_milestones": None, "crop": 0, "flip": False,
    "mixup_alpha": 0.0, "dropout": 0.0, "last_dropout": 0.0,
}  # fmt: skip
# Adam and cross entropy are the paper's; its epochs, rates and dropout are not known. ImageNet: SGD of the authors'
# later run.
_PAPER = _COMMON | {"epochs": 100, "lr": 1e-3, "dropout": 0.3, "last_dropout": 0.1}
_IMAGENET = _COMMON | {
    "epochs": 90, "opt": "sgd", "lr": 0.1, "weight_decay": 1e-4, "lr_scheduler": "step", "batch_size": 240,
}  # fmt: skip
_TABLE = {"epochs": 60, "batch_size": 16, "lr": 5e-3}
_CIFAR = {"crop": 4, "flip": True}
# The layouts of the paper, without the last layer.
_MNIST = "64c3-m2-128c3-128c3-m2-d256-d50"
_CIFAR10 = "2x64c3-m2-2x128c3-m2-3x256c3-m2-3x512c3-m2-d512"
_CIFAR100 = "2x64c3-m2-2x128c3-m2-3x256c3-m2-3x1024c3-m2-d1024"


def _data_set(
    layout: str, paper: str | None = None, both: dict[str, Any] | None = None, narrow: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the presets of a data set: the narrow layout and the paper's, and what differs from the usual training.

    Without a layout of the paper its preset is the narrow one.
    """
    small = _COMMON | (both or {}) | (narrow or {}) | {"layout": layout}
    return {"narrow": small, "paper": small if paper is None else _PAPER | (both or {}) | {"layout": paper}}


DATA_SETS = {
    "iris": _data_set("d20-d20", both=_TABLE),
    "sonar": _data_set("d64-d64", both=_TABLE | {"dropout": 0.3}),
    "digits": _data_set("8c3-m2-16c3-m2-d32", _MNIST, narrow={"epochs": 20, "batch_size": 32}),
    "mnist": _data_set("12c3-m2-24c3-24c3-m2-d64", _MNIST),
    "fashion-mnist": _data_set("12c3-m2-24c3-24c3-m2-d64", _MNIST),
    "fashion-mnist-subset": _data_set("8c3-m2-16c3-16c3-m2-d64", _MNIST),
    "cifar10": _data_set("2x16c3-m2-2x24c3-m2-2x32c3-m2-d64", _CIFAR10, _CIFAR),
    "cifar10-jpeg": _data_set("2x16c3-m2-2x24c3-m2-2x32c3-m2-d64", _CIFAR10, _CIFAR),
    "cifar100": _data_set("2x16c3-m2-2x24c3-m2-2x32c3-m2-d128", _CIFAR100, _CIFAR),
    "imagenet": _data_set("resnet18", both=_IMAGENET),
}
"""Presets of each data set; a new one that :func:`recipes.data.images.load_images` knows is one line here."""
TABLES = ("iris", "sonar")
"""Data sets without images, which are cross-validated."""
IMAGES = [name for name in DATA_SETS if name not in TABLES]
LAST_EPOCHS = 0.2
"""Share of the epochs, at the end, that have the last rate of dropout."""


def _layout(text: str) -> str:
    try:
        check_layout(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("layout: ")) from None
    return text


@dataclass(kw_only=True)
class AANOptions(RunOptions, DataOptions, TrainingOptions, ImageOptions):
    """Net (defaults: the preset)."""

    preset: Annotated[Literal["narrow", "paper"], "defaults of net and training; narrow: for a CPU"] = "narrow"
    data: Annotated[str, IMAGES, "data by name"] = "fashion-mnist-subset"
    activation: Annotated[Literal["aan", "relu"], "relu: converted with adaptive spike heights"] = "aan"
    layout: Annotated[str, _layout, "such as 64c3-m2-d256"] = PRESET
    width: Annotated[Positive, "factor on the widths of ResNet-18 (imagenet)"] = 1.0
    image_size: Annotated[int, integer(8), "of an image folder (imagenet)"] = 224
    dropout: Annotated[float, number(0.0, below=1.0), "rate in the first epochs"] = PRESET
    last_dropout: Annotated[float, number(0.0, below=1.0), "rate in the last epochs"] = PRESET

    def __post_init__(self) -> None:
        fill(self, DATA_SETS[self.data][self.preset])
        if self.data == "imagenet":
            self.layout = "resnet18"
        super().__post_init__()


def load_data(options: AANOptions) -> ImageData:
    """Load the images; those in colour as luminance and two chrominances, as in the paper."""
    if options.data == "imagenet":
        return _image_folder(options)
    data = digits() if options.data == "digits" else load_images(options.data, options.data_dir)
    data = data.first(options.train_images, options.test_images)
    if data.channels != 3:
        return data
    parts = [(_luminance_and_chrominance(images), labels) for images, labels in (data.train, data.test)]
    return ImageData(data.name, *parts, data.classes)


def _image_folder(options: AANOptions) -> ImageData:
    """Return a folder with ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``; images are read when they are needed."""
    folder = options.data_dir or data_folder()
    parts = [image_folder(folder / name) for name in ("train", "val")]
    check_classes(folder, *(part.classes for part in parts))
    images: list[Any] = [(FolderImages(part, options.image_size), torch.tensor(part.targets)) for part in parts]
    data = ImageData(folder_name(parts[1]), *images, tuple(parts[1].classes))
    return data.first(options.train_images, options.test_images)


def _luminance_and_chrominance(images: Tensor) -> Tensor:
    n, _, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(n * height, width, 3).contiguous()
    converted = Image.fromarray(rows.numpy()).convert("YCbCr")
    pixels = torch.frombuffer(bytearray(converted.tobytes()), dtype=torch.uint8)
    return pixels.reshape(n, height, width, 3).permute(0, 3, 1, 2).contiguous()


def build_net(options: AANOptions, inputs: tuple[int, ...], classes: int) -> nn.Sequential:
    """Build the untrained net that the options describe, for samples ``(C, H, W)`` or ``(F,)``."""
    activation: Callable[[], nn.Module] = nn.ReLU if options.activation == "relu" else AAN
    if options.layout == "resnet18":
        return preact_resnet18(classes, inputs[0], width=options.width, size=inputs[-1], activation=activation)
    return layout_net(options.layout, inputs, classes, dropout=options.dropout, activation=activation)


class AANTrainer(Trainer):
    """Builds the net; pixels are in [0, 1], the BN-AAN layer does the rest."""

    def load_data(self, args: AANOptions) -> ImageData:
        return load_data(args)

    def input_statistics(self, args: AANOptions) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.data.channels), torch.ones(self.data.channels)

    def load_model(self, args: AANOptions, num_classes: int) -> nn.Module:
        return build_net(args, tuple(self.data.train[0].shape[1:]), num_classes)

    def train_one_epoch(self, model, criterion, optimizer, data_loader, device, epoch, args, **options):  # noqa: D102
        last = epoch >= round((1 - LAST_EPOCHS) * args.epochs)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = args.last_dropout if last else args.dropout
        return super().train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, **options)


def trained(options: AANOptions, folder: Path) -> Analog:
    """Train the net in a folder, continue there, or load the finished net."""
    own = {field.name: getattr(options, field.name) for field in fields(AANOptions)}
    AANTrainer().main(AANOptions(**own | {"out": folder, "resume": True}))
    data = load_data(options)
    net = build_net(options, tuple(data.train[0].shape[1:]), len(data.classes))
    path, kind = folder / "last.pt", "a checkpoint of such a net"
    checkpoint = load_tensors(path, kind)
    with intact(path, kind, "remove its folder to train again"):
        load_weights(net, checkpoint["model"])
    images = Images(data, torch.zeros(data.channels), options.device)
    return Analog(net.to(options.device).eval(), f"{options.activation} {options.layout}", images)
