"""A spiking autoencoder with pre-charge and delayed evaluation: Net 3 of Hwang et al. 2021.

``python -m recipes.autoencoder --out runs/autoencoder`` trains the net on images padded to 32x32, converts it with
spiking input and output layers, and lets it rebuild a picture of 32x32 tiles: scikit-image's astronaut if that package
is there, else tiles of test images. It draws the error over time with and without pre-charge and with a delay.
Finished trainings and evaluations are kept: started again, the command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor, nn

from snn_ext import convert
from snn_ext.conversion import optimize_precharge
from snn_ext.evaluation import Evaluation
from snn_ext.plots.style import finish, look, new_figure

from .data.images import load_images
from .data.pictures import padded, picture, tiles
from .lib.cli import PRESET, Argument, Count, Positive, Rate, fill
from .lib.command import command, run_main
from .lib.evaluations import Evaluations
from .lib.files import fingerprint, save_figure
from .lib.options import DataOptions, RunOptions
from .lib.ranges import Increasing, integer
from .lib.reconstruction import train_autoencoder
from .lib.run_folder import own_folder

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "width": 0.25, "epochs": 8, "batch_size": 64, "lr": 2e-3, "milestones": [6], "search_images": 32,
        "search_steps": 64, "eval_tiles": 64,
    },
    "paper": {
        "width": 1.0, "epochs": 400, "batch_size": 128, "lr": 1e-3, "milestones": [120, 240, 360],
        "search_images": 1000, "search_steps": 255, "eval_tiles": None,
    },
}  # fmt: skip


@dataclass(kw_only=True)
class Options(RunOptions, DataOptions):
    """Net, training and conversion (defaults: the preset)."""

    preset: Annotated[str, PRESETS, "defaults of net and training"] = "small"
    width: Annotated[Positive, "factor on all widths"] = PRESET
    epochs: Annotated[Count, "passes over the training data"] = PRESET
    batch_size: Annotated[Count, "images in a step"] = PRESET
    lr: Annotated[Rate, "learning rate"] = PRESET
    milestones: Annotated[
        list[Count], Argument(nargs="*"), Increasing, "epochs after which the rate drops to a tenth"
    ] = PRESET  # fmt: skip
    time_steps: Annotated[int, integer(101), "T, more than the longest delay of 100"] = 255
    search_images: Annotated[Count, "training images of the search by layer"] = PRESET
    search_steps: Annotated[Count, "steps over which the search sums the error"] = PRESET
    eval_tiles: Annotated[Count | None, "tiles of the picture over which errors are taken"] = PRESET

    def __post_init__(self) -> None:
        fill(self, PRESETS[self.preset])
        super().__post_init__()


@dataclass(frozen=True)
class Rebuilt:
    """A trained autoencoder, the picture that it rebuilds, and evaluations of its conversions with their layers."""

    net: nn.Module
    title: str
    image: Tensor
    conversions: dict[str, Callable[[], nn.Module]]
    evaluations: dict[str, Evaluation]
    layers: dict[str, list[dict[str, Any]]]


def rebuild(options: Options) -> Rebuilt:
    """Train, convert without pre-charge, with one for all and with one by layer, and evaluate on the tiles."""
    data = load_images(options.data, options.data_dir).first(options.train_images, options.test_images)
    images = padded(data, "train").to(options.device)
    net = train_autoencoder(padded(data, "train"), options, options.out / "autoencoder.pt")
    name, image = picture(data)
    x = tiles(image).to(options.device)[: options.eval_tiles]

    def converted(precharge: float = 0.0) -> nn.Module:
        calibration = list(images.split(100))
        return convert(net, calibration, method="data-norm", encoder="if", readout="spikes", precharge=precharge)

    def by_layer() -> nn.Module:
        snn, search = converted(), list(images[: options.search_images].split(16))
        optimize_precharge(snn, net, search, time_steps=options.search_steps, candidates=51)
        return snn

    makers = {"no pre-charge": converted, "pre-charge 0.3": lambda: converted(0.3), "by layer": by_layer}
    kept, found, layers = Evaluations(options.out / "evaluations"), {}, {}
    settings = {"contents": fingerprint(images, x), "search": [options.search_images, options.search_steps]}
    for label, make in makers.items():
        found[label], layers[label] = kept.get(
            label, {"net": net, **settings}, make, x.split(16), options.time_steps, delay=range(0, 101, 10)
        )
    title = f"Net 3, width {options.width:g}, trained on {data.name}; {name}"
    return Rebuilt(net, title, image, makers, found, layers)


def smallest_delay(evaluation: Evaluation) -> int:
    """Return the delay with the smallest error at the end."""
    return min(evaluation.delays, key=lambda d: (float(evaluation.mse_at(d)[-1]), d))


@command
def main(options: Options) -> dict[str, Evaluation]:
    """Rebuild the picture, print the errors, and draw ``error.png``."""
    with own_folder(options.out, "autoencoder"):
        rebuilt = rebuild(options)
        figure = new_figure(6.4, 4.2)
        axes = figure.subplots()
        for label, evaluation in rebuilt.evaluations.items():
            delay = smallest_delay(evaluation)
            for d in sorted({0, delay}):
                curve = look(len(axes.lines)) | {"markevery": max(1, evaluation.time_steps // 8)}
                axes.semilogy(
                    range(1, evaluation.time_steps + 1), evaluation.mse_at(d), label=f"{label}, delay {d}", **curve
                )
            ends = [f"{float(evaluation.mse_at(d)[-1]):.2e}" for d in (0, delay)]
            print(f"{label:<15} squared error {ends[0]}, with a delay of {delay} {ends[1]}")
        axes.set(xlabel="time step", ylabel="mean squared error", title=rebuilt.title)
        finish(axes)
        save_figure(figure, options.out / "error.png")
    return rebuilt.evaluations


if __name__ == "__main__":
    run_main(main, "the same command continues")
