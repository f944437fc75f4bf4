"""Every way to convert one net, SpikingJelly's too: accuracy, latency, operations.

``python -m benchmarks.results.methods --model vgg16 --out runs/vgg16`` trains and converts as ``recipes.convert`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from recipes import convert
from recipes.convert import METHODS
from recipes.lib.analog import RESNETS
from recipes.lib.cli import Argument
from recipes.lib.command import command, run_main
from recipes.lib.files import save_figure
from recipes.lib.run_folder import own_folder
from snn_ext.evaluation import Evaluation
from snn_ext.plots import accuracy_latency_synops

from . import rivals
from .pages import command_line, fastest_delay, latency, provenance, table, write_report
from .rivals import RIVALS

WAYS = {**RIVALS, **METHODS}
LEVELS = (99.0, 99.5, 99.9)


@dataclass(kw_only=True)
class Options(convert.Options):
    """Methods."""

    methods: Annotated[list[str], WAYS, Argument(metavar="NAME"), "by name"] = field(default_factory=lambda: list(WAYS))


@command
def main(options: Options) -> str:
    """Convert one net in every way, write ``methods.png`` and the report, and return the report."""
    with own_folder(options.out, "convert"):
        analog = convert.analog_net(options)
        ways = {name: WAYS[name] for name in options.methods}
        found = convert.compare(analog, ways, options, rivals.convert)
        title = f"{analog.title}, {analog.data.name}"
        save_figure(accuracy_latency_synops(found, title), options.out / "methods.png")
        text = f"### Methods: {title}\n\n{_text(found, options)}\n"
        return write_report(options.out, text + "\n" + provenance(command_line(options), options.seed))


def _text(found: Mapping[str, Evaluation], options: Options) -> str:
    rows = [_row(name, evaluation, options.top) for name, evaluation in found.items()]
    names = ["accuracy (%)" if k == 1 else f"top-{k} (%)" for k in options.top]
    header = ["conversion", *names, *(f"{level} %" for level in LEVELS), "99.0 % with the best delay"]
    header += ["10^3 spikes at 99.0 %", "10^6 SynOps at 99.0 %"]
    any_one = next(iter(found.values()))
    fixed = options.model in RESNETS and options.data != "imagenet"
    return (
        f"Constant input, linear read-out, every step counted; T = {options.time_steps}, "
        f"{any_one.samples:,} test images, {options.calibration_images} for calibration. Analog net: "
        f"{100 * any_one.analog_accuracy:.2f} %, {any_one.macs / 1e6:.2f} million MACs. Latency: first step that "
        f"reaches that share of the analog accuracy (in brackets: step from which on it is kept)."
        f"{' Shortcuts that change the shape are fixed convolutions of one pixel here.' if fixed else ''}\n\n"
        f"{table(rows, header)}\n\n{_comparison(found)}"
    )


def _row(name: str, evaluation: Evaluation, top: tuple[int, ...]) -> list[str | None]:
    first, last = evaluation.latency_at(levels=LEVELS), evaluation.latency_at(levels=LEVELS, last=True)
    arrived, delay = first[99.0], fastest_delay(evaluation)
    return [
        name,
        *(f"{100 * float(evaluation.accuracy_at(0, k)[-1]):.2f}" for k in top),
        *(latency(first[level], last[level]) for level in LEVELS),
        None if delay is None else f"{evaluation.latency_at(delay)[99.0]} (delay {delay})",
        arrived and f"{float(evaluation.spikes[arrived - 1]) / 1e3:,.1f}",
        arrived and f"{float(evaluation.synops[arrived - 1]) / 1e6:.2f}",
    ]


def _comparison(found: Mapping[str, Evaluation], level: float = 99.0) -> str:
    """Say which step the best of ours reaches a level at, and each rival."""
    lines = []
    for kind, last in (("First step at", False), ("Step from which on the accuracy stays at", True)):
        steps = {name: e.latency_at(levels=(level,), last=last)[level] for name, e in found.items()}
        ours = {name: step for name, step in steps.items() if name in METHODS and step is not None}
        if not ours:
            lines.append(f"- {kind} {level:g} %: none of ours reaches it.")
            continue
        best = min(ours, key=lambda name: ours[name])
        others = [
            f"{name} " + ("does not get there" if step is None else f"{step} (ratio {ours[best] / step:.2f})")
            for name, step in steps.items() if name in RIVALS
        ]  # fmt: skip
        lines.append(f"- {kind} {level:g} %: {ours[best]} for the best of ours, {best}; {'; '.join(others)}.")
    return "\n".join(lines) + "\n\nThe best of ours is chosen on the same test images as it is measured on."


if __name__ == "__main__":
    run_main(main, "the same command continues")
