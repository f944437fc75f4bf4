"""The pictures of the guides, which need no training: ``python -m benchmarks pictures --out docs/pictures``.

Those with accuracies are drawn from the results of a study: ``--quickstart runs/quickstart_study/results.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.speed.report import read, speed_ups
from recipes.lib.cli import Argument, NewFolder
from recipes.lib.command import command, run_main
from recipes.lib.files import read_json, save_figure
from snn_ext import convert, evaluate, plots
from snn_ext.evaluation import Evaluation, sweep_precision
from snn_ext.functional import asn_transfer
from snn_ext.plots.style import finish, look, new_figure, step_axis
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode

from .keyword_plots import lines_of_page, pareto_figure

T = 4
_RESULTS = "results of a study", "run python -m benchmarks quickstart again"
POINTS = (2.16, 1.35, 0.88, 0.27)  # of a Gaussian input of standard deviation 1: Castagnetti et al. 2023, T = 4


@dataclass(kw_only=True)
class Options:
    """Pictures."""

    out: Annotated[NewFolder, "folder; files of these names in it are replaced"] = Path("docs/pictures")
    quickstart: Annotated[Path | None, Argument(help="results.json of the study quickstart")] = None


@command
def main(options: Options) -> None:
    """Draw all pictures, and write them when all of them are drawn."""
    figures = dict(neurons())
    page = Path("docs/benchmark-results.md")
    if page.exists():
        figures["benchmarks"] = benchmarks(page.read_text(encoding="utf-8"))
    words = Path("docs/keyword-spotting-results.md")
    if words.exists():
        figures["keyword-spotting-pareto"] = pareto_figure(lines_of_page(words.read_text("utf-8")), "synthetic speech")
    if options.quickstart is not None:
        figures |= accuracies(read_json(options.quickstart, *_RESULTS))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        save_figure(figure, options.out / f"{name}.png")
        print(options.out / f"{name}.png")


def neurons() -> Iterator[tuple[str, Figure]]:
    """Yield the pictures of the neurons' pages: staircases, potentials, and the transfer function."""
    step = {"floor": ATIFuNode(1.0), "rounding: v_init = 0.5": ATIFuNode(1.0, v_init=0.5)}
    yield "atif-u-staircase", plots.staircase(step, T, title="ATIF-u, T = 4")
    points = torch.tensor(POINTS)
    edges = {
        "ATIF-u": ATIFuNode(1.73), "ATIF-u, v_init = 0.5": ATIFuNode(2.14, v_init=0.5), "ATIF-nu": ATIFnuNode(points)
    }  # fmt: skip
    yield "atif-nu-staircase", plots.staircase(edges, T, title="the best thresholds for one Gaussian input, T = 4")
    constant = torch.full((8,), 0.35)
    yield "atif-u-potential", plots.potential(ATIFuNode(1.0), constant, title="ATIF-u, constant input 0.35")
    charged = plots.potential(PCMPIFNode(1.0, precharge=0.5), constant, title="PCMP IF, pre-charge 0.5, input 0.35")
    yield "pcmp-potential", charged
    current = torch.full((T,), 1.0)
    yield "atif-nu-potential", plots.potential(ATIFnuNode(points), current, title="ATIF-nu, constant input 1.0")
    yield "pcmp-error", _precharge_error()
    time = torch.arange(400)
    signal = torch.where(time < 200, 1.0, 0.4)
    node = ASNNode(m_f=0.3, analog_input=True)
    yield "asn-signal", plots.potential(node, signal, title="ASN, m_f = 0.3")
    yield "asn-transfer", _transfer()
    yield "overview", _overview()
    yield from nets()


def nets() -> Iterator[tuple[str, Figure]]:
    """Yield the pictures of a small net whose labels are its own: of the gallery, to show what figures look like."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.rand(1024, 16)
    with torch.no_grad():
        ann[4].bias -= ann(x).mean(0)  # so that all four classes are answers
    loader = [(x, ann(x).argmax(1))]
    snn = convert(ann, x, time_steps=8, progress=False)
    yield "raster", plots.raster(snn, x[:1], 16)
    yield "evaluation", plots.overview(evaluate(snn, loader, 16, ann=ann, delay=(0, 2, 4), progress=False))
    adaptive = convert(ann, x, method="adsnn", spike_height="adaptive", progress=False)
    sweep = sweep_precision(adaptive, loader, 300, m_f=(0.05, 0.1, 0.2, 0.3, 0.5, 1.0), ann=ann, progress=False)
    yield "dial", plots.dial({"ReLU net, adaptive height": sweep}, "a small net: what precision costs")


def benchmarks(page: str) -> Figure:
    """Draw the last of the three runs on the page, that with one thread."""
    return speed_ups(read(page[page.rindex("### inference [4,32,64,32,32]") :]))


def accuracies(study: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the pictures of the quickstart: accuracy at every step, and the energy of an answer."""
    found = {name: Evaluation.from_json(json.dumps(kept)) for name, kept in study["conversions"].items()}
    samples = next(iter(found.values())).samples
    title = f"one ReLU net, first {samples:,} test images of the Fashion-MNIST subset"
    return {
        "quickstart": plots.accuracy_latency_synops(found, title),
        "quickstart-energy": plots.energy(found, "energy up to 99 % of the ReLU net's accuracy, or up to the best"),
    }


def _precharge_error() -> Figure:
    """Draw the squared error of a rate over the steps, for three pre-charges and all inputs in [0, 1]."""
    figure = new_figure(5.6, 3.8, "error of the firing rate, mean over inputs in [0, 1]")
    axes, steps, x = figure.subplots(), 64, torch.linspace(0.0, 1.0, 2001)[:-1]
    for place, precharge in enumerate((0.0, 0.25, 0.5)):
        axes.plot(
            range(1, steps + 1), _squared_error(precharge, x, steps), label=f"pre-charge {precharge:g}",
            markevery=[(1 << i) - 1 for i in range(7)], **look(place),
        )  # fmt: skip
    axes.set(ylabel="mean squared error", xlabel="time step", yscale="log")
    step_axis(axes, steps, log=True)
    finish(axes)
    return figure


@torch.no_grad()
def _squared_error(precharge: float, x: Tensor, steps: int) -> Tensor:
    node = PCMPIFNode(1.0, precharge=precharge, step_mode="m")
    rates = node(x.expand(steps, -1)).cumsum(0) / torch.arange(1, steps + 1).unsqueeze(1)
    return (rates - x).square().mean(1)


def _transfer() -> Figure:
    """Draw f(S) of three precisions, simulated and by its formula."""
    figure = new_figure(5.6, 3.8, "ASN: mean of the filtered spikes (markers), and f(S)")
    axes, signal = figure.subplots(), torch.linspace(0.0, 2.0, 201, dtype=torch.float64)
    for place, m_f in enumerate((0.1, 0.3, 1.0)):
        style = look(place)
        axes.plot(signal, asn_transfer(signal, m_f), color=style["color"], lw=1.4)
        marks = {"ls": "none", "mfc": "none", "color": style["color"], "marker": style["marker"], "ms": 5}
        plots.draw_staircase(axes, ASNNode(m_f=m_f).double(), signal[::8], 1, label=f"m_f = {m_f:g}", **marks)
    axes.set(xlabel="constant signal S", ylabel="decoded value")
    finish(axes)
    return figure


def _overview() -> Figure:
    """Draw the picture of the landing page: a ReLU becomes a neuron, and its spikes count up to the same value."""
    figure = new_figure(10.5, 3.3)
    relu, spikes, stairs = figure.subplots(1, 3)
    x = torch.linspace(-0.4, 1.2, 801)
    relu.plot(x, x.clamp_min(0), color="black", lw=2)
    relu.set(title="a ReLU of your trained net", xlabel="input", ylabel="output")
    inputs = (0.9, 0.6, 0.35, 0.1)
    node = ATIFuNode(1.0, v_init=0.5, step_mode="m")
    with torch.no_grad():
        trains = node(torch.tensor(inputs).expand(8, -1))
    for place, train in enumerate(trains.T):
        times = (train.nonzero().flatten() + 1).tolist()
        spikes.eventplot(times, lineoffsets=-place, linelengths=0.7, linewidths=2.5, colors=look(place)["color"])
    spikes.set_yticks([-place for place in range(len(inputs))], [f"input {value:g}" for value in inputs])
    spikes.set(title="becomes a neuron that fires", xlabel="time step")
    step_axis(spikes, 8)
    spikes.set_xlim(0.5, 8.5)
    stairs.plot(x, x.clamp_min(0), color="black", ls="--", lw=1, label="ReLU")
    for place, steps in enumerate((2, 4, 16)):
        plots.draw_staircase(stairs, node, x, steps, color=look(place)["color"], lw=1.6, label=f"T = {steps}")
    stairs.set(title="rate x threshold is its output", xlabel="input", ylabel="decoded value")
    finish(relu, spikes, stairs)
    return figure


if __name__ == "__main__":
    run_main(main, "nothing more is written")
