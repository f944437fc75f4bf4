"""Options that recipes have in common; :mod:`recipes.lib.cli` makes a command line of them.

Where the host's trainer has an option, it has the same name.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch

from ..data.images import DATA_SETS
from .cli import PRESET, Argument, Count, NewFolder, Positive, Rate, Seed, Whole
from .ranges import Increasing, number

__all__ = [
    "DataOptions", "ImageOptions", "Options", "RunOptions", "TrainingOptions", "device", "known_device",
]  # fmt: skip


def known_device(text: str) -> str:
    """Take the name of a device that torch knows, whether it is there or not."""
    try:
        torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"got {text}, want the name of a device, such as cpu or cuda:1") from None
    return text


def device(text: str) -> str:
    """Take the name of a device that is there and holds numbers."""
    try:
        wanted = torch.device(text)
        if wanted.type == "cuda":  # without a context on it: several processes may share it
            there = torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count()
        else:
            # Sums are float64, which MPS does not have.
            there = torch.ones(1, device=wanted, dtype=torch.float64).cpu().item() == 1
    except (RuntimeError, AssertionError, ImportError, TypeError):  # torch has several for what is not there
        there = False
    if not there:
        raise argparse.ArgumentTypeError(
            f"got {text}, want cpu or another device that torch finds here and that has float64"
        )
    return text


# -- options that recipes share --------------------------------------------------------------------------------------


class Options:
    """Base of what follows: each checks its options in ``__post_init__``, and then lets the next one do so."""

    def __post_init__(self) -> None:
        pass


@dataclass(kw_only=True)
class RunOptions(Options):
    """Run."""

    out: Annotated[NewFolder, "folder of this run"]
    resume: Annotated[bool, "continue the run in --out, if there is one"] = False
    preset: Annotated[str, "defaults of the options of the training"] = "short"
    seed: Annotated[Seed, "of all random numbers: the same seed gives the same net"] = 0
    device: Annotated[str, device, "cpu, cuda:N or another that torch finds here"] = field(
        default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu"
    )
    amp: Annotated[bool | None, "mixed precision: float16 (default on a GPU), on a CPU bfloat16"] = None
    log_every: Annotated[
        Whole | None, Argument(metavar="STEPS"), "log the loss of a step (default: 50); 0 for never"
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        if self.amp is None:
            self.amp = torch.device(self.device).type == "cuda"
        if self.log_every is None:
            self.log_every = 50
        super().__post_init__()


@dataclass(kw_only=True)
class DataOptions(Options):
    """Data."""

    data: Annotated[str, DATA_SETS, "images by name; those of torchvision are downloaded"] = "fashion-mnist-subset"
    data_dir: Annotated[Path | None, "default: SNN_EXT_DATA, or snn_ext in the user's cache folder"] = None
    train_images: Annotated[Count | None, "train on a sample"] = None
    test_images: Annotated[Count | None, "test on a sample"] = None


@dataclass(kw_only=True)
class TrainingOptions(Options):
    """Training (defaults: the preset)."""

    epochs: Annotated[Count, "passes over the training data"] = PRESET
    batch_size: Annotated[Count, Argument("--batch-size", "-b"), "samples in a step, over all processes"] = PRESET
    opt: Annotated[Literal["sgd", "adam", "adamw", "rmsprop"], "optimizer"] = PRESET
    lr: Annotated[Rate, "learning rate at the start"] = PRESET
    momentum: Annotated[float, number(0.0, below=1.0), "of sgd and rmsprop"] = PRESET
    weight_decay: Annotated[Rate, Argument("--wd", "--weight-decay"), "of the weights, not of the thresholds"] = PRESET
    lr_scheduler: Annotated[
        Literal["cosa", "step", "exp"], "how the rate falls: by a cosine, in steps, by a factor"
    ] = PRESET
    lr_step_size: Annotated[Count, "epochs of a step, of --lr-scheduler step"] = PRESET
    lr_gamma: Annotated[Positive, "factor on the rate at each step, or each epoch of exp"] = PRESET
    lr_milestones: Annotated[
        list[Count] | None, Argument(nargs="*"), Increasing, "epochs after which the rate drops by --lr-gamma"
    ] = PRESET  # fmt: skip
    lr_warmup_epochs: Annotated[Whole, "epochs at the start with a lower rate"] = 0
    lr_warmup_method: Annotated[Literal["linear", "constant"], "how the rate is lower"] = "linear"
    lr_warmup_decay: Annotated[float, number(above=0.0, high=1.0), "factor on the rate at its start"] = 0.01
    clip_grad_norm: Annotated[Positive | None, "largest norm of a gradient (default: any)"] = None
    label_smoothing: Annotated[float, number(0.0, below=1.0), "share of a label that goes to all classes"] = 0.0
    mixup_alpha: Annotated[Rate, "alpha of the weights of two mixed samples; 0 for none"] = PRESET

    def __post_init__(self) -> None:
        if self.lr_warmup_epochs >= self.epochs:
            raise ValueError(
                f"--lr-warmup-epochs: got {self.lr_warmup_epochs}, want fewer than --epochs, {self.epochs}"
            )
        super().__post_init__()


@dataclass(kw_only=True)
class ImageOptions(Options):
    """Augmentation of images (defaults: the preset)."""

    crop: Annotated[Whole, Argument(metavar="PIXELS"), "random crop from a border of this width"] = PRESET
    flip: Annotated[bool, "mirror every second image"] = PRESET
