"""Convert a trained net in every way, and measure what each costs: accuracy, latency, operations.

``python -m recipes.convert --model vgg16 --out runs/vgg16`` trains the analog net under the constraints of Sengupta et
al. 2019 (or loads ``--checkpoint``), converts it, and draws accuracy over time steps and over operations. With
``--data imagenet --data-dir FOLDER`` the net is torchvision's, with its weights.

``--checkpoint resnet20-cifar10-jpeg`` takes a net that comes along.

``--preset small`` (the default) is a narrow net that takes minutes on a CPU; ``--preset paper`` is the paper's.
Finished trainings and evaluations are kept: started again, the command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Annotated, Any

from torch import nn

import snn_ext
from snn_ext.evaluation import Evaluation
from snn_ext.plots import accuracy_latency_synops

from .data.images import DATA_SETS
from .lib.analog import BATCH_NORM, RESNETS, Analog, ConversionOptions, pretrained, trained
from .lib.cli import PRESET, Argument, Count, fill
from .lib.command import command, run_main
from .lib.evaluations import Evaluations
from .lib.files import save_figure
from .lib.ranges import integer
from .lib.run_folder import own_folder
from .models.convertible import with_projections

METHODS: dict[str, dict[str, Any]] = {
    **{f"calibrated for T = {steps}": {"method": "calibrated", "time_steps": steps} for steps in (4, 8, 16)},
    "data-norm, maximum": {"method": "data-norm"},
    "data-norm, maximum, pre-charge 0.5": {"method": "data-norm", "precharge": 0.5},
    "data-norm 99.9 %, pre-charge 0.5": {"method": "data-norm", "percentile": 99.9, "precharge": 0.5},
    "data-norm 99.9 % per channel, pre-charge 0.5": {
        "method": "data-norm", "percentile": 99.9, "channel_wise": True, "precharge": 0.5,
    },
    "data-norm 99.9 %, pre-charge optimised": {
        "method": "data-norm", "percentile": 99.9, "precharge": "optimize", "time_steps": 64,
    },
    "data-norm 99 % per channel, pre-charge 0.5": {
        "method": "data-norm", "percentile": 99.0, "channel_wise": True, "precharge": 0.5,
    },
    "data-norm 99.9 % per channel, pre-charge optimised": {
        "method": "data-norm", "percentile": 99.9, "channel_wise": True, "precharge": "optimize", "time_steps": 64,
    },
    "Spike-Norm": {"method": "spike-norm", "reset": "subtract", "time_steps": 100},
    "Spike-Norm, pre-charge 0.5": {"method": "spike-norm", "reset": "subtract", "time_steps": 100, "precharge": 0.5},
}  # fmt: skip
"""Options of :func:`snn_ext.convert`; the input is constant and the read-out linear."""
HORIZONS: dict[str, dict[str, Any]] = {
    "small": {"time_steps": 128, "eval_images": 500},
    "paper": {"time_steps": 512, "eval_images": None},
}


@dataclass(kw_only=True)
class Options(ConversionOptions):
    """Conversion (defaults: the preset)."""

    model: Annotated[str, ("vgg16", *RESNETS, *BATCH_NORM), "net"] = "vgg16"
    data: Annotated[str, (*DATA_SETS, "imagenet"), "images by name; imagenet is the folder --data-dir"] = (
        "fashion-mnist-subset"
    )
    calibration_images: Annotated[Count, "the paper says 256 are enough"] = 256
    eval_images: Annotated[Count | None, "test on a sample of the test images"] = PRESET
    time_steps: Annotated[Count, "T"] = PRESET
    image_size: Annotated[int | None, integer(32), "of --data imagenet (default: that of the weights)"] = None

    def __post_init__(self) -> None:
        fill(self, HORIZONS[self.preset])
        super().__post_init__()
        if self.data == "imagenet" and self.data_dir is None:
            raise ValueError("--data-dir: got none with --data imagenet, want a folder that holds train/ and val/")

    @property
    def top(self) -> tuple[int, ...]:
        return (1, 5) if self.data == "imagenet" else (1,)


@dataclass(kw_only=True)
class MethodOptions(Options):
    """Methods."""

    methods: Annotated[list[str], METHODS, Argument(metavar="NAME"), "by name"] = field(
        default_factory=lambda: list(METHODS)
    )


def analog_net(options: Options) -> Analog:
    """Return the net to be converted; torchvision's for ImageNet, else one that is trained here."""
    if options.data == "imagenet":
        return pretrained(options.model, options.data_dir, options.device, options.checkpoint, options.image_size)
    return trained(options, options.out / "analog")


def compare(
    analog: Analog, methods: Mapping[str, Mapping[str, Any]], options: Options,
    convert: Callable[..., nn.Module] = snn_ext.convert,
) -> dict[str, Evaluation]:  # fmt: skip
    """Convert the net by each method, and evaluate under constant input with a grid of delays of the read-out."""
    if options.model in RESNETS and options.data != "imagenet":
        analog = replace(analog, net=with_projections(analog.net))
    kept, found = Evaluations(options.out / "evaluations"), {}
    for name, method in methods.items():

        def make(method: Mapping[str, Any] = method) -> nn.Module:
            return convert(analog.net, list(analog.loader("train", options.calibration_images)), **method)

        settings = {"method": method, "calibration_images": options.calibration_images}
        found[name], _ = analog.evaluate(
            kept, name, make, options.time_steps, images=options.eval_images, settings=settings, top=options.top,
            delay=range(0, min(33, options.time_steps), 4),
        )  # fmt: skip
    return found


@command
def main(options: MethodOptions) -> dict[str, Evaluation]:
    """Compare the methods, print a line for each, and draw ``methods.png``."""
    with own_folder(options.out, "convert"):
        analog = analog_net(options)
        found = compare(analog, {name: METHODS[name] for name in options.methods}, options)
        title = f"{analog.title}, {analog.data.name}"
        save_figure(accuracy_latency_synops(found, title), options.out / "methods.png")
    first = next(iter(found.values()))
    print(f"{title}: analog {first.analog_accuracy:.2%}; {first.samples:,} test images, T = {first.time_steps}")
    for name, evaluation in found.items():
        step, delay = min((evaluation.latency_at(d)[99.0] or inf, d) for d in evaluation.delays)
        print(
            f"{name:<52}{float(evaluation.accuracy[-1]):.2%}; 99 % of the analog accuracy at step "
            f"{evaluation.latency[99.0]}, with a delay of {delay} at {step}"
        )
    return found


if __name__ == "__main__":
    run_main(main, "the same command continues")
