"""Nets that are to be converted: trained here under the constraints of the papers, or loaded, with their data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from snn_ext.evaluation import Evaluation

from ..data.image_folder import ImageFolders
from ..data.images import Batches, ImageData, load_images
from ..models import cifar, convertible
from ..models.trained import SHIPPED
from .checkpoints import load_checkpoint, load_weights
from .cli import PRESET, Positive, fill
from .evaluations import Evaluations
from .files import fingerprint, has_hash_in_name, intact, load_tensors
from .options import DataOptions, ImageOptions, RunOptions, TrainingOptions
from .ranges import number, old_file
from .trainer import Trainer

__all__ = [
    "BATCH_NORM", "HWANG_RESNET20", "MODELS", "PAPER", "RESNETS", "SMALL", "Analog", "AnalogOptions", "AnalogTrainer",
    "ConversionOptions", "Images", "pretrained", "trained", "trained_net",
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
    "small-cnn": cifar.small_cnn,
}
RESNETS = ("resnet18", "resnet20", "resnet34")
BATCH_NORM = ("resnet20-bn", "vgg16-bn", "small-cnn")

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
    **dict.fromkeys(("resnet20-bn", "vgg16-bn", "small-cnn"), _HE),
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
    "small-cnn": _SMALL | {"epochs": 8, "lr": 4e-3},
}
PRESETS = {"small": SMALL, "paper": PAPER}
SAME_NET = ("data", "model", "width", "constraint", "inputs")
"""Settings that a checkpoint must share with the net it is loaded into."""
A_NET = "a checkpoint of such a net", "restore a copy of it, or name another"


@dataclass(kw_only=True)
class AnalogOptions(RunOptions, DataOptions, TrainingOptions, ImageOptions):
    """Net."""

    presets: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = PRESETS

    preset: Annotated[str, PRESETS, "defaults of the options of net and training"] = "small"
    model: Annotated[str, MODELS, "net"] = "vgg16"
    width: Annotated[Positive, "factor on all widths"] = PRESET
    constraint: Annotated[Literal[0, 1, 2, 3], "of the residual nets"] = 3
    inputs: Annotated[
        Literal["centred", "channels", "unit"], "pixels less the mean image or a channel's mean, or in [0, 1]"
    ] = PRESET  # fmt: skip
    dropout: Annotated[float, number(0.0, 1.5), "factor on the rates of dropout"] = PRESET

    def __post_init__(self) -> None:
        fill(self, self.presets[self.preset][self.model])
        super().__post_init__()


def trained_net(text: str) -> Path:
    """Take the path of a checkpoint that is there, or the name of one that comes along."""
    return SHIPPED[text] if text in SHIPPED else old_file(text)


@dataclass(kw_only=True)
class ConversionOptions(AnalogOptions):
    """Source."""

    checkpoint: Annotated[
        Path | None, trained_net, f"convert this trained net instead of training one; come along: {', '.join(SHIPPED)}"
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        if self.checkpoint in SHIPPED.values():  # which says itself what it is
            settings = load_checkpoint("checkpoint", self.checkpoint)["settings"]
            for name in SAME_NET:
                setattr(self, name, settings[name])
        super().__post_init__()


class AnalogTrainer(Trainer):
    """Builds the net that the options ask for; pixels are less a mean, or left in [0, 1]."""

    def input_statistics(self, args: AnalogOptions) -> tuple[Tensor, Tensor]:
        return _shift(args, self.data), torch.ones(self.data.channels)

    def load_model(self, args: AnalogOptions, num_classes: int) -> nn.Module:
        net = build_net(args, self.data)
        start = getattr(args, "start", None)
        if start is not None and self.checkpoint is None:  # a run that goes on has its own
            _load(net, args, start, "--from")
        # A fifth faster on a CPU, where convolutions otherwise reorder their inputs and outputs. Without AVX-512 the
        # backward pass of a strided one of four channels writes past its memory (oneDNN of torch 2.14).
        narrow = any(m.in_channels < 8 for m in net.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1))
        return net if narrow else net.to(memory_format=torch.channels_last)


class Images:
    """Images in memory as batches for a net: less a mean image, of deviation 1.

    Parameters
    ----------
    data : ImageData
        With the name that results have.
    mean : Tensor
        ``[C]`` or ``[C, H, W]``.
    device : torch.device or str
        Where the batches go.
    """

    def __init__(self, data: ImageData, mean: Tensor, device: torch.device | str) -> None:
        self.data, self.name, self.mean, self.device = data, data.name, mean, device

    def loader(self, part: str, images: int | None = None, batch_size: int = 50) -> Batches:
        """Return batches of "train" or "test" images in their order, all of them or an unbiased sample of a size."""
        sample = self.data.first(*((images, None) if part == "train" else (None, images)))
        return Batches(getattr(sample, part), batch_size, self.mean, torch.ones(self.data.channels), device=self.device)

    @functools.cache  # noqa: B019  # of few objects
    def fingerprint(self) -> str:
        """Return a digest that tells the images of two data sets apart."""
        return fingerprint(*self.data.train, *self.data.test)


@dataclass(frozen=True)
class Analog:
    """A trained net with its data.

    Attributes
    ----------
    net : nn.Module
        In eval mode.
    title : str
        The net in words, with its width.
    data : Images or ImageFolders
        With the name that results have.
    """

    net: nn.Module
    title: str
    data: Images | ImageFolders

    def loader(self, part: str, images: int | None = None, batch_size: int = 50) -> Iterable[Any]:
        """Return batches of "train" or "test" images in an order that is always the same, all of them or a sample."""
        return self.data.loader(part, images, batch_size)

    def evaluate(
        self, kept: Evaluations, name: str, make: Callable[[], nn.Module], time_steps: int | None, *,
        images: int | None = None, settings: Mapping[str, Any] | None = None, **options: Any,
    ) -> tuple[Evaluation, list[dict[str, Any]]]:  # fmt: skip
        """Evaluate a conversion of the net on test images, or read the evaluation that is kept.

        ``name`` names it among those that are ``kept``, ``make`` returns the spiking net, which depends on the JSON
        values ``settings``, and ``images`` is the size of a sample. ``options`` are those of :func:`snn_ext.evaluate`;
        its ``ann`` is the net by default. The layers of the conversion's report come along.
        """
        about = {"data": self.data.name, "contents": self.data.fingerprint(), "images": images, **(settings or {})}
        loader = self.loader("test", images)
        return kept.get(f"{self.title} {name}", about, make, loader, time_steps, **{"ann": self.net, **options})


def trained(options: ConversionOptions, folder: Path) -> Analog:
    """Train the net in a folder, continue there, or load the finished net; with ``--checkpoint`` load that."""
    if options.checkpoint is None:
        training = {field.name: getattr(options, field.name) for field in fields(AnalogOptions)}
        AnalogTrainer().main(AnalogOptions(**training | {"out": folder, "resume": True}))
    data = load_images(options.data, options.data_dir).first(options.train_images, options.test_images)
    net = build_net(options, data)
    _load(net, options, options.checkpoint or folder / "last.pt", "--checkpoint")
    constraint = f", constraint {options.constraint}" if options.model in RESNETS else ""
    width = f", width {options.width:g}" if options.width != 1 else ""
    images = Images(data, _shift(options, data), options.device)
    return Analog(net.to(options.device).eval(), f"{options.model}{constraint}{width}", images)


def pretrained(
    model: str, folder: Path, device: str, checkpoint: Path | None = None, image_size: int | None = None
) -> Analog:
    """Load a net of torchvision with its published weights, or with those of a checkpoint, and a folder of images."""
    import torchvision

    weights = torchvision.models.get_model_weights(model).DEFAULT
    if checkpoint is None:
        _check_published(Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name)
        net = torchvision.models.get_model(model, weights=weights)
    else:
        kind = f"weights of torchvision's {model}", "restore a copy of it, or name another"
        state = load_tensors(checkpoint, *kind)
        with intact(checkpoint, *kind):
            classes = next(value for name, value in reversed(state.items()) if name.endswith("bias")).numel()
            net = torchvision.models.get_model(model, weights=None, num_classes=classes)
            load_weights(net, state)
    size = {} if image_size is None else {"crop_size": image_size, "resize_size": image_size}
    transform = functools.partial(weights.transforms.func, **{**weights.transforms.keywords, **size})()
    return Analog(net.to(device).eval(), f"{model}, torchvision", ImageFolders(folder, transform, device))


def build_net(options: AnalogOptions, data: ImageData) -> nn.Module:
    """Build the untrained net that the options describe."""
    constraint = {"constraint": options.constraint} if options.model in RESNETS else {}
    size = data.train[0].shape[-1]
    net = MODELS[options.model](len(data.classes), data.channels, width=options.width, size=size, **constraint)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p *= options.dropout
    return net


def _shift(options: AnalogOptions, data: ImageData) -> Tensor:
    mean = data.train[0].float().mean(0) / 255.0
    if options.inputs == "channels":
        return mean.mean((1, 2))
    return mean if options.inputs == "centred" else torch.zeros_like(mean)


def _load(net: nn.Module, options: AnalogOptions, path: Path, option: str) -> None:
    """Load the weights of a checkpoint of such a net; ``ValueError`` names the option if it is another's."""
    weights = _weights(options, path, option)
    with intact(path, *A_NET):
        load_weights(net, weights)


def _weights(options: AnalogOptions, path: Path, option: str) -> dict[str, Tensor]:
    checkpoint = load_tensors(path, *A_NET)
    with intact(path, *A_NET):
        if "settings" not in checkpoint:
            return checkpoint
        weights, settings = checkpoint["model"], checkpoint["settings"]
        there = {name: settings.get(name) for name in SAME_NET}
    for name, value in there.items():
        if value != getattr(options, name):
            raise ValueError(f"{option}: got {path} with {name}={value!r}, want {getattr(options, name)!r}")
    return weights


def _check_published(path: Path) -> None:
    """Raise if weights that were downloaded before are not what the hash in their name says; torch does not look."""
    if path.is_file():
        with open(path, "rb") as file, intact(path, "the published weights", "remove it to have it downloaded again"):
            if not has_hash_in_name(path, file):
                raise ValueError("another hash")
