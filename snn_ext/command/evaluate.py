"""Measure a saved net on images, at every step: ``snn-ext evaluate NET.pt DATA``.

Images are scaled as ``snn-ext convert`` has noted in the file, unless options say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from .. import evaluate
from .. import load as load_net
from .._files import building
from ..recipes.lib.cli import Argument, Count, NewFolder, OldFile
from ..recipes.lib.command import command
from .images import Batches, Scaling, load
from .measured import ImageOptions, figures, new, text, write

__all__ = ["Options", "main"]


@dataclass(kw_only=True)
class Options(ImageOptions):
    """Evaluation."""

    net: Annotated[OldFile, Argument("net"), "a file of snn_ext.save, as of snn-ext convert"]
    data: Annotated[str, Argument("data"), "a folder of images, an .npz of images and labels, or a data set's name"]
    time_steps: Annotated[Count | None, Argument(metavar="T"), "steps (default: those that the net was made for)"] = (
        None
    )
    out: Annotated[NewFolder | None, "new folder for all figures and a plot (default: they are only printed)"] = None


@command
def main(options: Options) -> dict[str, Any]:
    """Measure, print and return the figures, and write them if a folder is named."""
    if options.out is not None:
        new(options.out)
    snn = load_net(options.net)
    notes: dict[str, Any] = getattr(snn, "notes", {})
    scaling = options.scaling(Scaling(**notes.get("scaling", {})))
    images = load(options.data, scaling, notes.get("classes"))
    batches = Batches(images.test, images.test.sample(options.images), scaling, options.batch_size)
    steps = options.time_steps or getattr(snn, "latency", None) or notes.get("time_steps")
    evaluation = evaluate(snn, batches, steps)
    print(text(evaluation, f"{Path(options.net).name}, {images.name}"))
    found = figures(evaluation) | {"data": images.name, "images": evaluation.samples}
    if options.out is not None:
        with building(options.out) as folder:
            write(evaluation, folder)
        print(f"written to {options.out}")
    return found
