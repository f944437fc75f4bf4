"""Write a trained net to come along: ``python -m recipes.makers.shipped_net --run runs/resnet20 --target FILE``.

The run is one of ``python -m recipes.train_analog --inputs channels``. Weights are kept in half precision, and the
accuracy that the file states is measured with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from ..data.images import Batches, load_images
from ..lib.analog import SAME_NET
from ..lib.checkpoints import load_checkpoint
from ..lib.cli import NewFile
from ..lib.command import command, run_main
from ..lib.files import save_tensors
from ..lib.training import accuracy
from ..models.trained import rebuilt

__all__ = ["pack"]

TRAINING = (
    "seed",
    "epochs",
    "batch_size",
    "opt",
    "lr",
    "momentum",
    "weight_decay",
    "lr_scheduler",
    "crop",
    "flip",
    "amp",
)


def pack(run: Path, target: Path, data_dir: Path | None = None) -> float:
    """Write the net of a finished run, and return its accuracy with weights of half precision.

    Raises
    ------
    ValueError
        If the run has no checkpoint, or its inputs are not less the mean of each channel.
    """
    checkpoint = load_checkpoint("run", run / "last.pt", "recipes.train_analog")
    settings = {name: checkpoint["settings"][name] for name in (*SAME_NET, *TRAINING)}
    if settings["inputs"] != "channels":
        raise ValueError(f"run: got one with --inputs {settings['inputs']}, want --inputs channels")
    data = load_images(settings["data"], data_dir)
    mean = (data.train[0].float().mean(0) / 255.0).mean((1, 2))
    content = {
        "model": {name: _half(value) for name, value in checkpoint["model"].items()}, "settings": settings,
        "mean": mean, "classes": list(data.classes), "size": data.train[0].shape[-1], "accuracy": None,
    }  # fmt: skip
    net = rebuilt(content, target.stem).net
    content["accuracy"] = accuracy(net, Batches(data.test, 100, mean, torch.ones_like(mean)))
    save_tensors(content, target)
    return content["accuracy"]


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


@dataclass(kw_only=True)
class Options:
    """Options."""

    run: Annotated[Path, "folder of a finished run of recipes.train_analog"]
    target: Annotated[NewFile, "file to write"]
    data_dir: Annotated[Path | None, "folder of the data"] = None


@command
def main(options: Options) -> None:
    """Write the file, and print the accuracy that it states."""
    found = pack(options.run, options.target, options.data_dir)
    print(f"{options.target}: {100 * found:.2f} %")


if __name__ == "__main__":
    run_main(main)
