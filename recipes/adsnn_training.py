"""Training nets of AANs (or of ReLUs, to compare) on images and on small tables of numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snn_ext import AAN

from .data.image_folder import FolderImages, check_classes, folder_name, image_folder
from .data.images import Batches, ImageData, data_folder, load_images
from .data.tables import digits
from .lib.checkpoints import load_weights
from .lib.files import intact, load_tensors
from .lib.trainer import Trainer
from .lib.training import seed_everything, train
from .models.adaptive import LAYOUTS, NARROW, layout_net, preact_resnet18

__all__ = ["PRESETS", "TABLES", "TrainedNet", "load_data", "preset_of", "train_fold", "trained"]

TABLES = ("iris", "sonar")
_COMMON: dict[str, Any] = {
    "epochs": 10, "batch_size": 64, "opt": "adam", "lr": 2e-3, "momentum": 0.9, "weight_decay": 0.0,
    "lr_scheduler": "cosa", "lr_step_size": 30, "lr_gamma": 0.1, "crop": 0, "flip": False, "mixup_alpha": 0.0,
    "dropout": 0.0, "last_dropout": 0.0,
}  # fmt: skip
# Adam and cross entropy are the paper's; its epochs, rates and dropout are not known. ImageNet: SGD of the authors'
# later run.
_PAPER = _COMMON | {"epochs": 100, "lr": 1e-3, "dropout": 0.3, "last_dropout": 0.1}
_IMAGENET = _PAPER | {
    "epochs": 90, "opt": "sgd", "lr": 0.1, "weight_decay": 1e-4, "lr_scheduler": "step", "batch_size": 240,
    "dropout": 0.0, "last_dropout": 0.0,
}  # fmt: skip
_TABLE = _COMMON | {"epochs": 60, "batch_size": 16, "lr": 5e-3}
_CIFAR = {"crop": 4, "flip": True}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "narrow": {
        "iris": _TABLE, "sonar": _TABLE | {"dropout": 0.3}, "digits": _COMMON | {"epochs": 20, "batch_size": 32},
        **dict.fromkeys(("mnist", "fashion-mnist", "fashion-mnist-subset"), _COMMON),
        **dict.fromkeys(("cifar10", "cifar10-jpeg", "cifar100"), _COMMON | _CIFAR), "imagenet": _IMAGENET,
    },
    "paper": {
        "iris": _TABLE, "sonar": _TABLE | {"dropout": 0.3}, "digits": _PAPER,
        **dict.fromkeys(("mnist", "fashion-mnist", "fashion-mnist-subset"), _PAPER),
        **dict.fromkeys(("cifar10", "cifar10-jpeg", "cifar100"), _PAPER | _CIFAR), "imagenet": _IMAGENET,
    },
}  # fmt: skip
_SAME = {"fashion-mnist": "mnist", "fashion-mnist-subset": "mnist", "cifar10-jpeg": "cifar10", "digits": "mnist"}
LAST_EPOCHS = 0.2
"""Share of the epochs, at the end, that have the last rate of dropout."""


def preset_of(args: argparse.Namespace) -> None:
    """Fill in what the command line has not given."""
    for name, value in PRESETS[args.preset][args.data].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.layout is None:
        layouts = NARROW if args.preset == "narrow" else LAYOUTS
        args.layout = layouts.get(args.data) or layouts.get(_SAME.get(args.data, "")) or NARROW.get(args.data)
    if args.data == "imagenet":
        args.layout = "resnet18"


def load_data(args: argparse.Namespace) -> ImageData:
    """Load the images; those in colour as luminance and two chrominances, as in the paper."""
    if args.data == "imagenet":
        return _image_folder(args)
    data = digits() if args.data == "digits" else load_images(args.data, args.data_dir)
    data = data.first(args.train_images, args.test_images)
    if data.channels != 3:
        return data
    parts = [(_luminance_and_chrominance(images), labels) for images, labels in (data.train, data.test)]
    return ImageData(data.name, *parts, data.classes)


def _image_folder(args: argparse.Namespace) -> ImageData:
    """Return a folder with ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``; images are read when they are needed."""
    folder = args.data_dir or data_folder()
    parts = [image_folder(folder / name) for name in ("train", "val")]
    check_classes(folder, *(part.classes for part in parts))
    images: list[Any] = [(FolderImages(part, args.image_size), torch.tensor(part.targets)) for part in parts]
    data = ImageData(folder_name(parts[1]), *images, tuple(parts[1].classes))
    return data.first(args.train_images, args.test_images)


def _luminance_and_chrominance(images: Tensor) -> Tensor:
    n, _, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(n * height, width, 3).contiguous()
    converted = Image.fromarray(rows.numpy()).convert("YCbCr")
    pixels = torch.frombuffer(bytearray(converted.tobytes()), dtype=torch.uint8)
    return pixels.reshape(n, height, width, 3).permute(0, 3, 1, 2).contiguous()


def _build(args: argparse.Namespace, inputs: tuple[int, ...], classes: int) -> nn.Sequential:
    activation: Callable[[], nn.Module] = nn.ReLU if args.activation == "relu" else AAN
    if args.layout == "resnet18":
        return preact_resnet18(classes, inputs[0], width=args.width, size=inputs[-1], activation=activation)
    return layout_net(args.layout, inputs, classes, dropout=args.dropout, activation=activation)


class AdSNNTrainer(Trainer):
    """Builds the net; pixels are in [0, 1], the BN-AAN layer does the rest."""

    def load_data(self, args: argparse.Namespace) -> ImageData:
        return load_data(args)

    def input_statistics(self, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
        return torch.zeros(self.data.channels), torch.ones(self.data.channels)

    def load_model(self, args: argparse.Namespace, num_classes: int) -> nn.Module:
        return _build(args, tuple(self.data.train[0].shape[1:]), num_classes)

    def set_optimizer(self, args: argparse.Namespace, parameters: Any) -> torch.optim.Optimizer:
        if args.opt == "adam":  # which the host does not offer
            return torch.optim.Adam(self.model.parameters(), args.lr, weight_decay=args.weight_decay)
        return super().set_optimizer(args, parameters)

    def train_one_epoch(self, model, criterion, optimizer, data_loader, device, epoch, args, **options):  # noqa: D102
        set_dropout(model, args, epoch)
        return super().train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, **options)


def set_dropout(net: nn.Module, args: argparse.Namespace, epoch: int) -> None:
    """Give dropout the rate of the first or of the last epochs."""
    last = epoch >= round((1 - LAST_EPOCHS) * args.epochs)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = args.last_dropout if last else args.dropout


class TrainedNet:
    """A trained net in eval mode with its data, and batches of them in their order."""

    def __init__(self, args: argparse.Namespace, net: nn.Module, data: ImageData) -> None:
        self.net, self.data, self.device = net.eval(), data, args.device

    def loader(self, part: str, images: int | None = None, batch_size: int = 100) -> Batches:
        """Return batches of "train" or "test" images, all or a sample of a size."""
        sample = self.data.first(*((images, None) if part == "train" else (None, images)))
        zero, one = torch.zeros(self.data.channels), torch.ones(self.data.channels)
        return Batches(getattr(sample, part), batch_size, zero, one, device=self.device)


TRAINING = (
    "preset", "device", "amp", "log_every", "data", "data_dir", "train_images", "test_images", "layout", "width",
    "image_size", "dropout", "last_dropout", "epochs", "batch_size", "opt", "lr", "threshold_lr", "momentum",
    "weight_decay",
    "lr_scheduler", "lr_step_size", "lr_gamma", "lr_warmup_epochs", "lr_warmup_method", "lr_warmup_decay",
    "clip_grad_norm", "label_smoothing", "crop", "flip", "mixup_alpha",
)  # fmt: skip
"""Names of the options that the training reads."""


def trained(args: argparse.Namespace, seed: int, activation: str, folder: Path) -> TrainedNet:
    """Train a net in a folder, continue there, or load what is finished."""
    options = {name: getattr(args, name) for name in TRAINING}
    training = argparse.Namespace(**options, activation=activation, seed=seed, out=folder, resume=True)
    AdSNNTrainer().main(training)
    data = load_data(args)
    net = _build(training, tuple(data.train[0].shape[1:]), len(data.classes))
    path, kind = folder / "last.pt", "a checkpoint of such a net"
    checkpoint = load_tensors(path, kind)
    with intact(path, kind, "remove its folder to train again"):
        load_weights(net, checkpoint["model"])
    return TrainedNet(args, net.to(args.device), data)


def train_fold(args: argparse.Namespace, part: tuple[Tensor, Tensor], classes: int, seed: int, name: str) -> nn.Module:
    """Train a net on the training part of a fold."""
    generator = seed_everything(seed)
    training = argparse.Namespace(**vars(args) | {"activation": "aan"})
    net = _build(training, (part[0].shape[1],), classes)
    loader = DataLoader(TensorDataset(*part), args.batch_size, shuffle=True, drop_last=True, generator=generator)
    train(net, loader, torch.optim.Adam(net.parameters(), args.lr), args.epochs, name=name)
    return net.eval()
