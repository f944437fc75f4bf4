"""Options of the command line that recipes have in common, each with its range (:mod:`recipes.lib.ranges`).

Where the host's trainer has an option, it has the same name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from ..data.images import DATA_SETS
from .cli import PRESET, Argument, Count, NewFolder, Positive, Rate, Seed, Whole
from .ranges import (
    FRACTION,
    PERCENT,
    SEED,
    Different,
    Increasing,
    Number,
    integer,
    new_file,
    new_folder,
    number,
    old_file,
)  # fmt: skip

__all__ = [
    "FRACTION", "PERCENT", "SEED", "DataOptions", "Different", "ImageOptions", "Increasing", "Number", "Options",
    "RunOptions", "TrainingOptions", "add_data_arguments", "add_image_arguments",
    "add_run_arguments", "add_training_arguments", "check_run_arguments", "check_training_arguments", "defaults",
    "device", "integer", "known_device", "new_file", "new_folder", "number", "old_file",
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
        if wanted.type == "cuda":  # without a context on it, for there may be a process for each
            there = torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count()
        else:
            there = torch.ones(1, device=wanted).cpu().item() == 1
    except (RuntimeError, AssertionError, ImportError):  # torch has several for what is not there
        there = False
    if not there:
        raise argparse.ArgumentTypeError(f"got {text}, want cpu or another device that torch finds here")
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
    seed: Seed = 0
    device: Annotated[str, device] = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
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

    data: Annotated[str, DATA_SETS] = "fashion-mnist-subset"
    data_dir: Annotated[Path | None, "default: SNN_EXT_DATA, or snn_ext in the user's cache folder"] = None
    train_images: Annotated[Count | None, "train on a sample"] = None
    test_images: Annotated[Count | None, "test on a sample"] = None


@dataclass(kw_only=True)
class TrainingOptions(Options):
    """Training (defaults: the preset)."""

    epochs: Count = PRESET
    batch_size: Annotated[Count, Argument("--batch-size", "-b"), "samples in a step, over all processes"] = PRESET
    opt: Literal["sgd", "adam", "adamw", "rmsprop"] = PRESET
    lr: Rate = PRESET
    momentum: Annotated[float, number(0.0, below=1.0)] = PRESET
    weight_decay: Annotated[Rate, Argument("--wd", "--weight-decay"), "not of the thresholds"] = PRESET
    lr_scheduler: Literal["cosa", "step", "exp"] = PRESET
    lr_step_size: Count = PRESET
    lr_gamma: Positive = PRESET
    lr_milestones: Annotated[
        list[Count] | None, Argument(nargs="*"), Increasing, "epochs after which the rate drops by --lr-gamma"
    ] = PRESET  # fmt: skip
    lr_warmup_epochs: Whole = 0
    lr_warmup_method: Literal["linear", "constant"] = "linear"
    lr_warmup_decay: Annotated[float, number(above=0.0, high=1.0)] = 0.01
    clip_grad_norm: Positive | None = None
    label_smoothing: Annotated[float, number(0.0, below=1.0)] = 0.0
    mixup_alpha: Annotated[Rate, "0 for none"] = PRESET

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
    flip: bool = PRESET


# -- the same as functions of a parser -------------------------------------------------------------------------------


def add_run_arguments(parser: argparse.ArgumentParser, presets: Iterable[str], default: str = "short") -> None:
    """Add where and how a training runs; :func:`check_run_arguments` completes them."""
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=new_folder, required=True, help="folder of this run")
    run.add_argument("--resume", action="store_true", help="continue the run in --out, if there is one")
    run.add_argument("--preset", choices=presets, default=default, help="defaults of the options of the training")
    run.add_argument("--seed", type=SEED, default=0)
    run.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--amp", action=argparse.BooleanOptionalAction, help="mixed precision: float16, on a CPU bfloat16")
    run.add_argument(
        "--log-every", type=integer(0), default=50, metavar="STEPS", help="log the loss of a step; 0 for never"
    )


def check_run_arguments(args: argparse.Namespace) -> None:
    """Fill in what depends on the device."""
    if args.amp is None:
        args.amp = torch.device(args.device).type == "cuda"


def add_data_arguments(parser: argparse.ArgumentParser, more: Iterable[str] = ()) -> None:
    """Add which images are used."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", choices=(*DATA_SETS, *more), default="fashion-mnist-subset")
    data.add_argument("--data-dir", type=Path, help="default: SNN_EXT_DATA, or snn_ext in the user's cache folder")
    data.add_argument("--train-images", type=integer(), help="train on a sample")
    data.add_argument("--test-images", type=integer(), help="test on a sample")


def add_training_arguments(
    parser: argparse.ArgumentParser, optimizers: Iterable[str] = ("sgd", "adamw", "rmsprop")
) -> argparse._ArgumentGroup:
    """Add what the trainer reads; the defaults are those of a preset. :func:`check_training_arguments` checks them."""
    training = parser.add_argument_group("training (defaults: the preset)")
    training.add_argument("--epochs", type=integer())
    training.add_argument("--batch-size", "-b", type=integer(), help="samples in a step, over all processes")
    training.add_argument("--opt", choices=optimizers)
    training.add_argument("--lr", type=number(0.0))
    training.add_argument("--momentum", type=number(0.0, below=1.0))
    training.add_argument("--wd", "--weight-decay", dest="weight_decay", type=number(0.0), help="not of the thresholds")
    training.add_argument("--lr-scheduler", choices=("cosa", "step", "exp"))
    training.add_argument("--lr-step-size", type=integer())
    training.add_argument("--lr-gamma", type=number(above=0.0))
    training.add_argument("--lr-warmup-epochs", type=integer(0), default=0)
    training.add_argument("--lr-warmup-method", choices=("linear", "constant"), default="linear")
    training.add_argument("--lr-warmup-decay", type=number(above=0.0, high=1.0), default=0.01)
    training.add_argument("--clip-grad-norm", type=number(above=0.0))
    training.add_argument("--label-smoothing", type=number(0.0, below=1.0), default=0.0)
    training.add_argument("--mixup-alpha", type=number(0.0), help="0 for none")
    return training


def check_training_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what does not go together, when the preset has filled in what was not given."""
    if args.lr_warmup_epochs >= args.epochs:
        parser.error(
            f"argument --lr-warmup-epochs: got {args.lr_warmup_epochs}, want fewer than --epochs, {args.epochs}"
        )


def add_image_arguments(training: argparse._ArgumentGroup) -> None:
    """Add the augmentation of images to the options of a training."""
    training.add_argument("--crop", type=integer(0), metavar="PIXELS", help="random crop from a border of this width")
    training.add_argument("--flip", action=argparse.BooleanOptionalAction)


def defaults(parser: argparse.ArgumentParser, without: Sequence[str] = ("help",)) -> dict[str, Any]:
    """Return what the options of a parser are when none is given; required ones are ``None``."""
    return {action.dest: action.default for action in parser._actions if action.dest not in without}
