"""Convert a trained net to spikes, measure it at every step, and save it: ``snn-ext convert NET DATA --out FOLDER``.

The net is one of torchvision or timm, or what a function of a file returns: ``nets.py:resnet --weights resnet.pt``.
``FOLDER/net.pt`` is for ``snn_ext.load`` and ``snn-ext evaluate``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from .. import convert, evaluate, save
from .._files import building, replacing, write_json
from ..conversion.methods import METHODS
from ..recipes.lib.cli import Argument, Count, NewFolder, OldFile, Seed
from ..recipes.lib.command import command
from ..recipes.lib.options import device
from .images import Batches, Images, Scaling, load
from .measured import ImageOptions, new, text, write
from .nets import TrainedNet, keywords, trained_net

__all__ = ["Options", "main"]


@dataclass(kw_only=True)
class Options(ImageOptions):
    """Conversion."""

    net: Annotated[str, Argument("net"), "a net of torchvision or timm, or FILE.py:FUNCTION, which is executed"]
    data: Annotated[str, Argument("data"), "a folder of images, an .npz of images and labels, or a data set's name"]
    out: Annotated[NewFolder, "new folder for the net, its report, figures and plot"]
    weights: Annotated[OldFile | None, "weights of the net, .pt or .safetensors; nothing in it is executed"] = None
    pretrained: Annotated[bool, "weights that torchvision or timm have published, which are downloaded"] = False
    net_args: Annotated[list[str], Argument(metavar="NAME=VALUE"), "arguments of the net's function"] = field(
        default_factory=list
    )
    method: Annotated[str, METHODS, "how thresholds are found"] = "calibrated"
    time_steps: Annotated[Count, Argument(metavar="T"), "steps that the net is made for, and measured at"] = 8
    set: Annotated[
        list[str], Argument(metavar="NAME=VALUE"), "more options of the method, as percentile=99.9 precharge=0.5"
    ] = field(default_factory=list)
    calibration_images: Annotated[Count, "images to find thresholds with"] = 256
    seed: Annotated[Seed, "of random numbers, and of the choice of images"] = 0
    device: Annotated[str, device, "where the work is done"] = "cpu"


@command
def main(options: Options) -> dict[str, Any]:
    """Convert, measure, write, and return the figures; the folder is there whole or not at all."""
    new(options.out)
    method = keywords("--set", options.set)
    torch.manual_seed(options.seed)
    ann = trained_net(options.net, options.weights, options.pretrained, keywords("--net-args", options.net_args))
    scaling = options.scaling(Scaling(ann.size, ann.mean, ann.std))
    images = load(options.data, scaling, ann.categories)
    calibration, test = _split(images, scaling, options)
    net = ann.net.to(options.device)
    _check(net, ann, images, calibration, options)

    if "time_steps" in {option.name for option in fields(METHODS[options.method])}:
        method = {"time_steps": options.time_steps} | method
    try:
        snn = convert(net, [batch[0] for batch in calibration], method=options.method, **method)
    except TypeError as error:
        raise ValueError(f"--set: {error}") from error
    evaluation = evaluate(snn, test, getattr(snn, "latency", None) or options.time_steps, ann=net)
    notes = {
        "net": ann.name, "data": images.name, "method": options.method, "options": method,
        "scaling": scaling.as_json(), "classes": None if images.classes is None else list(images.classes),
        "time_steps": evaluation.time_steps,
    }  # fmt: skip
    with building(options.out) as folder:
        save(snn.cpu(), folder / "net.pt", notes=notes)
        for name, content in (("report.json", snn.report.to_json(indent=1)), ("report.txt", str(snn.report))):
            with replacing(folder / name) as temporary:
                temporary.write_text(content + "\n", encoding="utf-8")
        result = write(evaluation, folder) | {"net": ann.name, "data": images.name, "images": evaluation.samples}
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "out"}
        write_json(folder / "settings.json", settings)
    print(text(evaluation, f"{ann.name}, {options.method}, {images.name}"))
    print(f"written to {options.out}")
    return {**result, "out": str(options.out)}


def _split(images: Images, scaling: Scaling, options: Options) -> tuple[Batches, Batches]:
    """Return the images to calibrate with and those to measure, which are others."""
    chosen = images.calibration.sample(options.calibration_images, options.seed)
    rest = images.test.sample(options.images, options.seed, len(chosen) if images.shared else 0)
    if not rest:
        raise ValueError(
            f"--calibration-images: got {options.calibration_images}, want fewer than the {images.test.count} images "
            f"of {images.name}: the others are measured"
        )
    return (
        Batches(images.calibration, chosen, scaling, options.batch_size, options.device),
        Batches(images.test, rest, scaling, options.batch_size, options.device),
    )


def _check(net: nn.Module, ann: TrainedNet, images: Images, batches: Batches, options: Options) -> None:
    """Refuse images that the net does not take, and classes that are not its own, before the work begins."""
    first = next(iter(batches))[0]
    try:
        with torch.no_grad():
            outputs = net(first[:2])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"data: got images {list(first.shape[1:])}, which {ann.name} does not take: {reason}"
        ) from error
    scores = outputs if isinstance(outputs, torch.Tensor) else None
    if scores is not None and images.classes is not None and scores.shape[1:] != (len(images.classes),):
        raise ValueError(
            f"data: got {len(images.classes)} classes for a net of {list(scores.shape[1:])} outputs, want a net of "
            "these classes, or images without folders of classes"
        )
