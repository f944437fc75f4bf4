"""Adaptive spiking neural networks (AdSNN), after Zambrano et al. 2017: train, convert, sweep the precision, arouse.

``python -m recipes.adsnn --data digits --out runs/digits`` trains a net of AANs (or continues), converts it to adaptive
spiking neurons, and shows it each test image for 500 ms at several precisions, and with arousal; beside it a plain ReLU
net is converted as it is, with adaptive spike heights. IRIS and SONAR go through 10-fold cross-validation.

``--preset narrow`` (the default) is a net for a CPU; ``--preset paper`` is the paper's. What is finished is kept:
started again, the command goes on.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from benchmarks.results import adsnn_figures as figures
from benchmarks.results.adsnn_report import section
from benchmarks.results.adsnn_tables import cross_validation
from benchmarks.results.pages import write_report
from benchmarks.results.plots import save
from snn_ext import AAN, convert, set_precision
from snn_ext.evaluation import Arousal, Evaluation, Margins, lowest_rate, observe_margins

from .adsnn_training import PRESETS, TABLES, TrainedNet, preset_of, trained
from .lib.command import command, run_main
from .lib.conversions import Evaluations, digest
from .lib.files import fingerprint
from .lib.options import (
    PERCENT,
    SEED,
    Different,
    add_data_arguments,
    add_image_arguments,
    add_run_arguments,
    add_training_arguments,
    check_run_arguments,
    check_training_arguments,
    integer,
    number,
)
from .lib.run_folder import own_folder
from .models.adaptive import check_layout

__all__ = ["main", "parse_arguments"]

M_F = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 1.0, 1.5)
RELU_M_F = (0.05, 0.1, 0.2, 0.4)
TAUS = (10.0, 20.0, 35.0, 50.0, 75.0, 100.0)
SHARES = (50.0, 80.0, 95.0)


class Run:
    """All evaluations of one trained net."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.folder = args, args.out / f"seed-{seed}"
        self.analog = trained(args, seed, "aan", self.folder / "aan")
        self.evaluations = Evaluations(self.folder / "evaluations")
        self.margins: Margins | None = None
        self.contents = fingerprint(*self.analog.data.train, *self.analog.data.test)

    def sweep(self) -> dict[float, Evaluation]:
        """Evaluate every precision on the test images."""
        return {m_f: self._evaluate(self.analog, f"m_f {m_f:g}", m_f) for m_f in self.args.m_f}

    def adaptive_height(self, seed: int) -> dict[float, Evaluation]:
        """Convert a ReLU net as it is, at every precision."""
        relu = trained(self.args, seed, "relu", self.folder / "relu")
        options = {"spike_height": "adaptive", "percentile": self.args.percentile}
        return {m_f: self._evaluate(relu, f"relu m_f {m_f:g}", m_f, **options) for m_f in self.args.relu_m_f}

    def arousal(self, low: float, high: float) -> dict[float, Evaluation]:
        """Estimate on training images for several shares of the errors, and evaluate on the test images."""
        found = {}
        for share in self.args.error_shares:
            options = {"m_f_high": high, "errors": share}
            estimated = self._estimate(low, f"{share:g}", lambda m, **o: asdict(m.estimate(**o)), **options)
            arousal = Arousal(**estimated)
            found[share] = self._evaluate(self.analog, f"arousal {share:g}", low, arousal=arousal)
        return found

    def windows(self, low: float) -> dict[float, tuple[float, float]]:
        """Return threshold and share of switched training images for several windows."""
        options = {"windows": list(range(10, 160, 10)), "errors": 95.0}
        found = self._estimate(low, "windows", lambda m, **o: list(m.by_window(**o).items()), **options)
        return {window: (threshold, share) for window, (threshold, share) in found}

    def _estimate(self, low: float, name: str, of: Callable[..., Any], **options: Any) -> Any:
        def estimate() -> Any:
            if self.margins is None or self.margins.m_f_low != low:  # one simulation serves all
                train = self.analog.loader("train", self.args.arousal_images, 50)
                self.margins = observe_margins(self._convert(self.analog), train, self.args.time_steps, m_f_low=low)
            return of(self.margins, **options)

        key = {"low": low, "name": name, "images": self.args.arousal_images, **options}
        return self.evaluations.note(f"arousal of {name}", key | self._depends(self.analog), estimate)

    def time_constants(self, m_f: float) -> dict[float, Evaluation]:
        """Deploy the net with other time constants tau_beta = tau_eta."""
        found = {}
        for tau in self.args.taus:
            other = TrainedNet(self.args, with_taus(self.analog.net, tau), self.analog.data)
            found[tau] = self._evaluate(other, f"tau {tau:g}", m_f, tau=tau)
        return found

    def _convert(self, analog: TrainedNet, **options: Any) -> nn.Module:
        calibration = analog.loader("train", self.args.calibration_images)
        return convert(analog.net, calibration, method="adsnn", tau_phi=self.args.tau_phi, **options)

    def _depends(self, analog: TrainedNet) -> dict[str, Any]:
        names = ("eval_images", "calibration_images", "tau_phi", "time_steps")
        about = {"net": digest(analog.net), "data": analog.data.name, "contents": self.contents}
        return about | {name: getattr(self.args, name) for name in names}

    def _evaluate(
        self,
        analog: TrainedNet,
        name: str,
        m_f: float,
        arousal: Arousal | None = None,
        tau: float = 50.0,
        **options: Any,
    ) -> Evaluation:
        def make() -> nn.Module:
            snn = self._convert(analog, **options)
            set_precision(snn, m_f)
            return snn

        settings = {"m_f": m_f, "tau": tau, **options} | self._depends(analog)
        return self.evaluations.get(
            name, settings, make, analog.loader("test", self.args.eval_images, 50), self.args.time_steps,
            ann=analog.net, arousal=arousal,
            progress=False,
        )[0]  # fmt: skip


def with_taus(net: nn.Module, tau: float) -> nn.Module:
    """Return a copy of a net of AANs with other time constants tau_beta = tau_eta; f(1) stays 1."""
    twin = copy.deepcopy(net)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, AAN):
                setattr(parent, name, AAN(m_f=child.m_f, tau_gamma=child.tau_gamma, tau_eta=tau, tau_beta=tau))
    return twin


def report(args: argparse.Namespace) -> str:
    """Run everything for one data set, draw the figures, and return its section of the page."""
    if args.data in TABLES:
        return cross_validation(args)
    runs, results = [], []
    for seed in args.seeds:
        run = Run(args, seed)
        sweep = run.sweep()
        high = lowest_or_best(sweep, args.within)
        low = min((m for m in sweep if m > high), key=lambda m: abs(m - 3 * high), default=None)
        result: dict[str, Any] = {"sweep": sweep, "high": high, "low": low}
        if seed in args.relu_seeds:
            result["relu"] = run.adaptive_height(seed)
        if low is not None:
            result |= {"arousal": run.arousal(low, high), "windows": run.windows(low)}
        if seed == args.seeds[0] and args.taus:
            result["taus"] = run.time_constants(high)
        runs.append(run)
        results.append(result)
    title = f"{args.layout}, {runs[0].analog.data.name}"
    for name, figure in figures.of_data_set(results, title):
        save(figure, args.out / f"{name}.png")
    return section(results, args, runs[0].analog)


def lowest_or_best(sweep: dict[float, Evaluation], within: float) -> float:
    """Return the precision of the lowest rate that matches, or if none does that of the best accuracy."""
    try:
        return lowest_rate(sweep, within)
    except ValueError:
        return max(sweep, key=lambda m_f: float(sweep[m_f].accuracy[-1]))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.adsnn", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_run_arguments(parser, PRESETS, default="narrow")
    add_data_arguments(parser, (*TABLES, "digits", "imagenet"))
    net = parser.add_argument_group("net")
    net.add_argument("--layout", type=_layout, help="such as 64c3-m2-d256 (default: the preset)")
    net.add_argument(
        "--width", type=number(above=0.0), default=1.0, help="factor on the widths of ResNet-18 (imagenet)"
    )
    net.add_argument("--image-size", type=integer(8), default=224, help="of an image folder (imagenet)")
    net.add_argument("--dropout", type=number(0.0, below=1.0), help="rate in the first epochs")
    net.add_argument("--last-dropout", type=number(0.0, below=1.0), help="rate in the last epochs")
    add_image_arguments(add_training_arguments(parser, ("sgd", "adam", "adamw", "rmsprop")))
    group = parser.add_argument_group("simulation")
    group.add_argument("--seeds", type=SEED, nargs="+", action=Different, help="default: --seed")
    group.add_argument("--time-steps", type=integer(), default=500, help="stimulus in ms")
    group.add_argument(
        "--tau-phi", type=number(0.0), default=5.0, help="membrane filter in ms; 2.5 in the authors' code"
    )
    positive, percent = number(above=0.0), number(above=0.0, high=100.0)
    several: dict[str, Any] = {"type": positive, "action": Different}
    group.add_argument("--m-f", **several, nargs="+", default=M_F, help="precisions of the sweep")
    group.add_argument("--relu-m-f", **several, nargs="+", default=RELU_M_F, help="those of the ReLU net")
    group.add_argument("--taus", **several, nargs="*", default=TAUS, help="tau_beta = tau_eta in ms, table SI1")
    group.add_argument("--relu-seeds", type=SEED, nargs="*", action=Different, help="default: all seeds")
    group.add_argument(
        "--within", type=PERCENT, default=0.5, help="points by which AdSNN may be below its ANN to match"
    )
    group.add_argument("--percentile", type=percent, default=99.0, help="unit of ReLU layers with adaptive height")
    group.add_argument("--calibration-images", type=integer(), default=200)
    group.add_argument("--eval-images", type=integer(), default=500, help="test on a sample of the test images")
    group.add_argument("--arousal-images", type=integer(), default=500, help="training images for arousal")
    group.add_argument(
        "--error-shares", type=percent, nargs="+", action=Different, default=SHARES, help="percent of errors to switch"
    )
    group.add_argument("--folds", type=integer(2, 50), default=10, help="of IRIS and SONAR")
    args = parser.parse_args(argv)
    preset_of(args)
    args.seeds = args.seeds or [args.seed]
    args.relu_seeds = args.seeds if args.relu_seeds is None else args.relu_seeds
    args.threshold_lr = None
    check_training_arguments(parser, args)
    check_run_arguments(args)
    return args


def _layout(text: str) -> str:
    try:
        check_layout(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("layout: ")) from None
    return text


@command
def main(argv: Sequence[str] | None = None) -> str:
    """Run and write ``report.md`` into the folder; returns it."""
    args = parse_arguments(argv)
    with own_folder(args.out, "adsnn"):
        return write_report(args.out, report(args))


if __name__ == "__main__":
    run_main(main, "the same command continues")
