"""Options of the command line that trainings have in common; where the host's trainer has one, it has the same name."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch

from .data.images import DATA_SETS

__all__ = ["add_data_arguments", "add_image_arguments", "add_run_arguments", "add_training_arguments"]


def add_run_arguments(parser: argparse.ArgumentParser, presets: Iterable[str], default: str = "short") -> None:
    """Add where and how a training runs."""
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, help="folder of this run")
    run.add_argument("--resume", action="store_true", help="continue the run in --out, if there is one")
    run.add_argument("--preset", choices=presets, default=default, help="defaults of the options of the training")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--amp", action=argparse.BooleanOptionalAction, help="mixed precision: float16, on a CPU bfloat16")
    run.add_argument("--log-every", type=int, default=50, metavar="STEPS", help="log the loss of a step; 0 for never")


def add_data_arguments(parser: argparse.ArgumentParser, more: Iterable[str] = ()) -> None:
    """Add which images are used."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", choices=(*DATA_SETS, *more), default="fashion-mnist-subset")
    data.add_argument("--data-dir", type=Path, help="default: SNN_EXT_DATA, or snn_ext in the user's cache folder")
    data.add_argument("--train-images", type=int, help="train on a sample")
    data.add_argument("--test-images", type=int, help="test on a sample")


def add_training_arguments(
    parser: argparse.ArgumentParser, optimizers: Iterable[str] = ("sgd", "adamw", "rmsprop")
) -> argparse._ArgumentGroup:
    """Add what the trainer reads; the defaults are those of a preset."""
    training = parser.add_argument_group("training (defaults: the preset)")
    training.add_argument("--epochs", type=int)
    training.add_argument("--batch-size", "-b", type=int, help="samples in a step, over all processes")
    training.add_argument("--opt", choices=optimizers)
    training.add_argument("--lr", type=float)
    training.add_argument("--momentum", type=float)
    training.add_argument("--wd", "--weight-decay", dest="weight_decay", type=float, help="not of the thresholds")
    training.add_argument("--lr-scheduler", choices=("cosa", "step", "exp"))
    training.add_argument("--lr-step-size", type=int)
    training.add_argument("--lr-gamma", type=float)
    training.add_argument("--lr-warmup-epochs", type=int, default=0)
    training.add_argument("--lr-warmup-method", choices=("linear", "constant"), default="linear")
    training.add_argument("--lr-warmup-decay", type=float, default=0.01)
    training.add_argument("--clip-grad-norm", type=float)
    training.add_argument("--label-smoothing", type=float, default=0.0)
    training.add_argument("--mixup-alpha", type=float, help="0 for none")
    return training


def add_image_arguments(training: argparse._ArgumentGroup) -> None:
    """Add the augmentation of images to the options of a training."""
    training.add_argument("--crop", type=int, metavar="PIXELS", help="random crop from a border of this width")
    training.add_argument("--flip", action=argparse.BooleanOptionalAction)
