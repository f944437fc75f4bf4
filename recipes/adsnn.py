"""Adaptive spiking neural networks (AdSNN), after Zambrano et al. 2017: train, convert, sweep the precision, arouse.

``python -m recipes.adsnn --data digits --out runs/digits`` trains a net of AANs (or continues), converts it to adaptive
spiking neurons, and shows it each test image for 500 ms at several precisions, and with arousal: images whose decision
is uncertain go on at a higher precision. ``--activation relu`` converts a plain ReLU net, with adaptive spike heights.

``--preset narrow`` (the default) is a net for a CPU; ``--preset paper`` is the paper's. Finished trainings and
evaluations are kept: started again, the command goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from torch import nn

from snn_ext import convert, set_precision
from snn_ext.evaluation import Arousal, Evaluation, Margins, lowest_rate, observe_margins

from .lib.aan_training import AANOptions, trained
from .lib.analog import Analog
from .lib.cli import Count, Percent, Positive, Rate
from .lib.command import command, run_main
from .lib.evaluations import Evaluations
from .lib.ranges import Different, number
from .lib.run_folder import own_folder

Share = Annotated[float, number(above=0.0, high=100.0)]
M_F = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 1.0, 1.5)


@dataclass(kw_only=True)
class Options(AANOptions):
    """Simulation."""

    time_steps: Annotated[Count, "stimulus in ms"] = 500
    tau_phi: Annotated[Rate, "membrane filter in ms; 2.5 in the authors' code"] = 5.0
    m_f: Annotated[list[Positive], Different, "precisions of the sweep"] = field(default_factory=lambda: list(M_F))
    within: Annotated[Percent, "points by which AdSNN may be below its ANN to match"] = 0.5
    percentile: Annotated[Share, "unit of ReLU layers with adaptive height"] = 99.0
    calibration_images: Annotated[Count, "training images for the scales of the adaptive neurons"] = 200
    eval_images: Annotated[Count, "test on a sample of the test images"] = 500
    arousal_images: Annotated[Count, "training images for arousal"] = 500
    error_shares: Annotated[list[Share], Different, "percent of errors to switch"] = field(
        default_factory=lambda: [50.0, 80.0, 95.0]
    )


class Experiment:
    """The evaluations of one trained net; each is made once and kept."""

    def __init__(self, options: Options) -> None:
        folder = options.out / f"seed-{options.seed}"
        self.options, self.analog = options, trained(options, folder / options.activation)
        self.kept = Evaluations(folder / "evaluations")
        self.margins: Margins | None = None

    def convert(self, analog: Analog, m_f: float) -> nn.Module:
        """Convert a net, and set its precision: the spikes get fewer and larger with ``m_f``."""
        images = analog.loader("train", self.options.calibration_images, 100)
        relu = {"spike_height": "adaptive", "percentile": self.options.percentile}
        kind = relu if self.options.activation == "relu" else {}
        snn = convert(analog.net, images, method="adsnn", tau_phi=self.options.tau_phi, **kind)
        set_precision(snn, m_f)
        return snn

    def evaluate(
        self, name: str, m_f: float, arousal: Arousal | None = None, analog: Analog | None = None
    ) -> Evaluation:
        """Evaluate the net, or another one, on the test images."""
        analog, settings = analog or self.analog, {"m_f": m_f, **self._settings()}
        return analog.evaluate(
            self.kept, name, lambda: self.convert(analog, m_f), self.options.time_steps, progress=False,
            images=self.options.eval_images, settings=settings, arousal=arousal,
        )[0]  # fmt: skip

    def sweep(self) -> dict[float, Evaluation]:
        """Evaluate every precision; no training in between."""
        return {m_f: self.evaluate(f"m_f {m_f:g}", m_f) for m_f in self.options.m_f}

    def precisions(self, sweep: dict[float, Evaluation]) -> tuple[float, float | None]:
        """Return the precision of the lowest rate that matches the ANN, and a coarser one to begin with, if any."""
        try:
            high = lowest_rate(sweep, self.options.within)
        except ValueError:  # none matches
            high = max(sweep, key=lambda m_f: float(sweep[m_f].accuracy[-1]))
        return high, min((m for m in sweep if m > high), key=lambda m: abs(m - 3 * high), default=None)

    def arousal(self, low: float, high: float) -> dict[float, Evaluation]:
        """Estimate arousal on training images for several shares of the errors, and evaluate it on the test images."""
        found = {}
        for share in self.options.error_shares:
            estimate = {"m_f_high": high, "errors": share}
            made = self.estimate(low, f"{share:g}", lambda m, **options: asdict(m.estimate(**options)), **estimate)
            found[share] = self.evaluate(f"arousal {share:g}", low, Arousal(**made))
        return found

    def estimate(self, low: float, name: str, of: Callable[..., Any], **options: Any) -> Any:
        """Return an estimate from the margins on training images at low precision; one simulation serves all."""

        def make() -> Any:
            if self.margins is None or self.margins.m_f_low != low:
                images = self.analog.loader("train", self.options.arousal_images)
                snn, steps = self.convert(self.analog, low), self.options.time_steps
                self.margins = observe_margins(snn, images, steps, m_f_low=low)
            return of(self.margins, **options)

        net = {"net": self.analog.net, "contents": self.analog.data.fingerprint()}
        key = {"low": low, "name": name, "images": self.options.arousal_images, **options, **net, **self._settings()}
        return self.kept.note(f"{self.analog.title} arousal of {name}", key, make)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in ("calibration_images", "tau_phi", "percentile")}


@command
def main(options: Options) -> dict[float, Evaluation]:
    """Sweep the precision, arouse, and print a line for each."""
    with own_folder(options.out, "adsnn"):
        experiment = Experiment(options)
        sweep = experiment.sweep()
        high, low = experiment.precisions(sweep)
        aroused = {} if low is None or options.activation == "relu" else experiment.arousal(low, high)
    names = {f"m_f {m_f:g}": evaluation for m_f, evaluation in sweep.items()}
    names |= {f"m_f {low} to {high}, {share:g} % of the errors": e for share, e in aroused.items()}
    print(f"{experiment.analog.data.name}: analog {sweep[high].analog_accuracy:.2%}; m_f {high:g} matches")
    for name, evaluation in names.items():
        print(
            f"{name:<36}{float(evaluation.accuracy[-1]):.2%}, {evaluation.firing_rate:.1f} Hz, "
            f"matching time {evaluation.matching_time()} ms"
        )
    return sweep


if __name__ == "__main__":
    run_main(main, "the same command continues")
