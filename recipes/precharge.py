"""Pre-charged membrane potential and delayed evaluation, after Hwang et al. 2021.

``python -m recipes.precharge --model net2 --out runs/net2`` trains Net 1, Net 2 or ResNet-20 (or loads
``--checkpoint``), converts it by data-based normalisation with spiking input and output layers, and shows what helps it
to an early answer: one pre-charge for all neurons, one for each layer (Algorithm 1), a delay of the read-out; beside
them the baseline, a lowered threshold.

``--preset small`` (the default) is a narrow net that takes minutes on a CPU; ``--preset paper`` is the paper's.
Finished trainings and evaluations are kept: started again, the command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, ClassVar

from torch import nn

from snn_ext import convert, plots
from snn_ext.conversion import lower_thresholds, optimize_precharge
from snn_ext.evaluation import Evaluation

from .lib.analog import HWANG_RESNET20, PAPER, SMALL, Analog, ConversionOptions, trained
from .lib.cli import PRESET, Count, Whole, fill
from .lib.command import command, run_main
from .lib.evaluations import Evaluations
from .lib.files import save_figure
from .lib.run_folder import own_folder

HORIZONS: dict[str, dict[str, Any]] = {
    "small": {"time_steps": 255, "eval_images": 200, "search_images": 32, "search_steps": 64},
    "paper": {"time_steps": 1000, "eval_images": None, "search_images": 1000, "search_steps": 255},
}


@dataclass(kw_only=True)
class Options(ConversionOptions):
    """Conversion (defaults: the preset)."""

    presets: ClassVar[Any] = {"small": SMALL, "paper": PAPER | {"resnet20": HWANG_RESNET20}}

    model: Annotated[str, ("net1", "net2", "resnet20"), "net of the paper"] = "net1"
    calibration_images: Annotated[Count | None, "default: all training images"] = None
    eval_images: Annotated[Count | None, "test on a sample of the test images"] = PRESET
    time_steps: Annotated[Count, "T"] = PRESET
    search_images: Annotated[Count, "training images of the search by layer"] = PRESET
    search_steps: Annotated[Count, "steps over which the search sums the error"] = PRESET
    max_delay: Annotated[Whole, "longest delay of the read-out"] = 100
    delay_step: Annotated[Count, "step of the grid of delays"] = 5

    def __post_init__(self) -> None:
        if self.inputs in ("centred", "channels"):
            raise ValueError(
                f"--inputs: got {self.inputs}, want unit: the input neurons cannot fire for negative pixels"
            )
        self.inputs = "unit"
        if self.model == "resnet20":
            self.constraint = 1  # a ReLU at every junction, and no convolutions in front
        fill(self, HORIZONS[self.preset])
        super().__post_init__()


def conversions(analog: Analog, options: Options) -> dict[str, Callable[[], nn.Module]]:
    """Return the conversions to be compared, each a function that makes the spiking net."""

    def converted(precharge: float = 0.0) -> nn.Module:
        images = analog.loader("train", options.calibration_images)
        return convert(analog.net, images, method="data-norm", encoder="if", readout="spikes", precharge=precharge)

    def by_layer() -> nn.Module:
        snn, images = converted(), analog.loader("train", options.search_images)
        optimize_precharge(snn, analog.net, images, time_steps=options.search_steps, candidates=51)
        return snn

    def lowered(factor: float) -> nn.Module:
        snn = converted()
        lower_thresholds(snn, factor)
        return snn

    charges, factors = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.75)
    return {
        **{f"pre-charge {v:g}": lambda v=v: converted(v) for v in charges},
        "by layer": by_layer,
        **{f"threshold x {f:g}": lambda f=f: lowered(f) for f in factors},
    }


def compare(analog: Analog, options: Options, **measured: Any) -> tuple[dict[str, Evaluation], list[dict[str, Any]]]:
    """Evaluate every conversion, and return the evaluations with the layers of the search by layer."""
    kept, found, layers = Evaluations(options.out / "evaluations"), {}, {}
    delays = range(0, min(options.max_delay, options.time_steps - 1) + 1, options.delay_step)
    for name, make in conversions(analog, options).items():
        settings = {
            "calibration_images": options.calibration_images,
            "search": [options.search_images, options.search_steps] if name == "by layer" else None,
        }
        found[name], layers[name] = analog.evaluate(
            kept,
            name,
            make,
            options.time_steps,
            images=options.eval_images,
            settings=settings,
            delay=delays,
            **measured,
        )
    return found, layers["by layer"]


@command
def main(options: Options) -> dict[str, Evaluation]:
    """Compare the conversions, print a line for each, and draw ``delay.png``."""
    with own_folder(options.out, "precharge"):
        found, layers = compare(trained(options, options.out / "analog"), options)
        best = {name: found[name] for name in ("pre-charge 0", "pre-charge 0.3", "by layer")}
        save_figure(plots.delays(best), options.out / "delay.png")
    for name, evaluation in found.items():
        step, delay = min((evaluation.latency_at(d)[99.0] or inf, d) for d in evaluation.delays)
        print(
            f"{name:<16} {float(evaluation.accuracy[-1]):.2%} of {evaluation.analog_accuracy:.2%}; 99 % of that at "
            f"step {evaluation.latency[99.0]}, with a delay of {delay} at {step}"
        )
    print("pre-charge by layer:", ", ".join(f"{layer['precharge']:.2f}" for layer in layers))
    return found


if __name__ == "__main__":
    run_main(main, "the same command continues")
