"""The figures of ``benchmarks.results.quantizer``."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from torch import Tensor  # noqa: E402

from recipes.lib.fine_tuning import COLOURS  # noqa: E402
from snn_ext.functional import decode, sqnr, staircase  # noqa: E402

__all__ = ["errors", "inputs", "nonuniform_training", "staircases", "steps", "uniform_training"]

GREY = "0.55"
FIXED = "IF, threshold 1"


def staircases(time_steps: int = 8) -> Figure:
    """Draw figure 1: spike counts over a constant input, for some biases and some thresholds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, layout="constrained")
    x = torch.linspace(-0.4, 1.6, 8001)
    shades = plt.cm.viridis(np.linspace(0.0, 0.85, 4))
    for bias, colour in zip((-0.25, 0.0, 0.25, 0.5), shades, strict=True):
        left.plot(x, staircase(x + bias, 1.0, time_steps), color=colour, lw=1.8, label=f"bias {bias:g}")
    for threshold, colour in zip((0.5, 0.75, 1.0, 1.5), shades, strict=True):
        right.plot(x, staircase(x, threshold, time_steps), color=colour, lw=1.8, label=f"threshold {threshold:g}")
    left.set(title="a bias moves the staircase (threshold 1)", ylabel=f"spikes in T = {time_steps} steps")
    right.set(title="a threshold sets its step and its range")
    for axes in (left, right):
        axes.set_xlabel("input current, constant over time")
        axes.legend(frameon=False, loc="upper left")
        axes.grid(alpha=0.3)
    return figure


def errors(x: Tensor, sigma: float, time_steps: int) -> Figure:
    """Draw figure 2: the error inside the staircase (granular) and beyond its last step (overload)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    u = torch.linspace(0, 1.6, 8001)
    decoded = decode(staircase(u, 1.0, time_steps), 1.0, time_steps)
    left.plot(u, u - decoded, color=COLOURS["ATIF-u"], lw=1.8)
    left.axvspan(0, 1, color=COLOURS["ATIF-u"], alpha=0.08, lw=0)
    left.axvspan(1, 1.6, color=COLOURS["ATIF-nu"], alpha=0.10, lw=0)
    left.text(0.5, 0.52, "granular", ha="center", color=COLOURS["ATIF-u"])
    left.text(1.3, 0.52, "overload", ha="center", color=COLOURS["ATIF-nu"])
    left.set(
        title=f"error of one neuron, T = {time_steps}", xlim=(0, 1.6), ylim=(0, 0.6),
        xlabel="input / threshold", ylabel="(input - decoded) / threshold",
    )  # fmt: skip

    thresholds = torch.logspace(-0.6, 1.0, 200) * sigma
    granular, overload, ratio = [], [], []
    for threshold in thresholds.tolist():
        decoded = decode(staircase(x, threshold, time_steps), threshold, time_steps)
        square = (x - decoded).double().square() / x.double().square().mean()
        granular.append(float(square[x < threshold].sum() / len(x)))
        overload.append(float(square[x >= threshold].sum() / len(x)))
        ratio.append(float(sqnr(x, decoded)))
    at = (thresholds / sigma).tolist()
    right.plot(at, granular, color=COLOURS["ATIF-u"], lw=1.8, label="granular")
    right.plot(at, overload, color=COLOURS["ATIF-nu"], lw=1.8, label="overload")
    right.plot(at, [a + b for a, b in zip(granular, overload, strict=True)], color="black", lw=1, ls="--", label="both")
    best = int(np.argmax(ratio))
    right.axvline(at[best], color=GREY, lw=1)
    right.annotate(
        f"best: {ratio[best]:.1f} dB\nat {at[best]:.2f} $\\sigma$", (at[best], 0.35), xytext=(6, 0),
        textcoords="offset points",
    )  # fmt: skip
    right.set(
        xscale="log", xlabel=r"threshold / $\sigma$", ylabel="power of the error / power of the input", ylim=(0, 1),
        title="Gaussian input", xticks=[0.3, 1, 3, 10], xticklabels=["0.3", "1", "3", "10"],
    )  # fmt: skip
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.22, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def uniform_training(result: dict[str, Any], sigma: float, time_steps: int) -> Figure:
    """Draw figure 3: SQNR and threshold while ATIF-u is trained, without and with pre-charge."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for name in ("ATIF-u, pre-charged", "ATIF-u"):
        fit, (best, (threshold,)) = result["fits"][name], result["optima"][name]
        left.plot(fit.iterations, fit.sqnr_db, color=COLOURS[name], lw=1.8, label=f"{name} ({fit.sqnr_db[-1]:.1f} dB)")
        left.axhline(best, color=COLOURS[name], lw=1, ls=":")
        right.plot(fit.iterations, np.array(fit.thresholds) / sigma, color=COLOURS[name], lw=1.8, label=name)
        right.axhline(threshold / sigma, color=COLOURS[name], lw=1, ls=":")
    for steps, style in ((20, "-."), (time_steps, "--")):
        value = result["optima"][f"{FIXED}, T = {steps}"][0]
        left.axhline(value, color=GREY, ls=style, lw=1.4, label=f"{FIXED}, T = {steps} ({value:.1f} dB)")
    left.set(ylabel="SQNR (dB)", ylim=(0, 17), title=f"T = {time_steps}, Gaussian input; dotted: the optimum")
    right.set(ylabel=r"threshold / $\sigma$", ylim=(0, 10.5), title="threshold")
    left.legend(frameon=False, loc="center right")
    right.legend(frameon=False)
    _iterations(left, right)
    return figure


def steps(result: dict[str, Any], x: Tensor, sigma: float, time_steps: int) -> Figure:
    """Draw figure 4: the trained staircases over the density of the input."""
    names = ("ATIF-u", "ATIF-nu", "ATIF-u, pre-charged")
    figure, grid = plt.subplots(1, 3, figsize=(11.5, 4), sharey=True, layout="constrained")
    for axes, name in zip(grid, names, strict=True):
        fit = result["fits"][name]
        edges = np.array(fit.edges[-1]) / sigma
        levels = np.arange(time_steps + 1) * fit.thresholds[-1][0] / sigma / time_steps
        background = axes.twinx()
        background.hist((x / sigma).numpy(), bins=60, range=(0, 3), density=True, color="0.88")
        background.set(yticks=[], ylim=(0, 2))
        axes.set_zorder(background.get_zorder() + 1)
        axes.patch.set_visible(False)
        axes.plot((0, 3), (0, 3), color="black", ls="--", lw=1)
        axes.stairs(levels, (0, *np.nan_to_num(edges, nan=3), 3), baseline=None, color=COLOURS[name], lw=2)
        axes.plot(edges, np.zeros_like(edges), "^", color=COLOURS[name], clip_on=False, ms=7)
        axes.set(title=f"{name}: {fit.sqnr_db[-1]:.1f} dB", xlabel=r"input / $\sigma$", xlim=(0, 3))
        axes.set_ylim(0, 3)
        axes.grid(alpha=0.3)
    grid[0].set_ylabel(r"decoded value / $\sigma$")
    handles = [
        plt.Line2D([], [], color=GREY, marker="^", ls="", label="edges of the steps"),
        plt.Line2D([], [], color="black", ls="--", lw=1, label="ReLU"),
        plt.Rectangle((0, 0), 1, 1, color="0.88", label="density of the input"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def nonuniform_training(result: dict[str, Any], sigma: float, time_steps: int) -> Figure:
    """Draw figure 5: SQNR of all, and the points of ATIF-nu, during training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for name in ("ATIF-u, pre-charged", "ATIF-nu", "ATIF-u"):
        fit = result["fits"][name]
        left.plot(fit.iterations, fit.sqnr_db, color=COLOURS[name], lw=1.8, label=f"{name} ({fit.sqnr_db[-1]:.1f} dB)")
        left.axhline(result["optima"][name][0], color=COLOURS[name], lw=1, ls=":")
    fixed = result["optima"][f"{FIXED}, T = {time_steps}"][0]
    left.axhline(fixed, color=GREY, ls="--", lw=1.4, label=f"{FIXED} ({fixed:.1f} dB)")
    left.set(ylabel="SQNR (dB)", ylim=(0, 17), title=f"T = {time_steps}, Gaussian input; dotted: the optimum")
    left.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.06))
    fit, (_, best) = result["fits"]["ATIF-nu"], result["optima"]["ATIF-nu"]
    edges = np.array(fit.edges).T[::-1] / sigma
    points = np.array(fit.thresholds).T / sigma
    for k, (edge, point, optimum) in enumerate(zip(edges, points, best, strict=True), start=1):
        colour = plt.cm.plasma(0.8 * (k - 1) / time_steps)
        spikes = time_steps - k + 1
        right.plot(fit.iterations, edge, color=colour, lw=2, label=f"{spikes} spike{'s' * (spikes > 1)}, $p_{k}$")
        right.plot(fit.iterations, point, color=colour, lw=1, ls="--")
        right.axhline(optimum / sigma, color=colour, lw=1, ls=":")
    right.set(
        ylabel=r"input / $\sigma$", ylim=(0, 10.5),
        title="ATIF-nu: edges of its steps (dashed: its points p,\nthe edges only where its recursion is exact)",
    )  # fmt: skip
    right.legend(frameon=False)
    _iterations(left, right)
    return figure


def inputs(results: dict[str, Any], samples: dict[str, Tensor], sigma: float, time_steps: int) -> Figure:
    """Draw figure 6: optimum and training for every input, with its density."""
    figure, grid = plt.subplots(
        2, len(results), figsize=(3.1 * len(results), 5.4), height_ratios=(1, 2), sharey="row", layout="constrained"
    )
    for column, (name, result) in zip(grid.T, results.items(), strict=True):
        density, bars = column
        density.hist((samples[name] / sigma).numpy(), bins=60, range=(0, 4), density=True, color=GREY)
        density.set(title=name, xlabel=r"input / $\sigma$", yticks=[])
        kinds = {FIXED: COLOURS[FIXED], **{kind: COLOURS[kind] for kind in result["fits"]}}
        for i, (kind, colour) in enumerate(kinds.items()):
            best = result["optima"][f"{FIXED}, T = {time_steps}" if kind == FIXED else kind][0]
            value = result["fits"][kind].sqnr_db[-1] if kind in result["fits"] else best
            bars.bar(i, value, color=colour)
            bars.plot((i - 0.4, i + 0.4), (best, best), color="black", lw=1.5)
            bars.text(i, max(value, best) + 0.3, f"{value:.1f}", ha="center", fontsize=9)
        bars.set(xticks=[], ylim=(0, 21))
        bars.grid(alpha=0.3, axis="y")
    grid[1][0].set_ylabel("SQNR (dB)")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour, label=kind) for kind, colour in kinds.items()]
    handles.append(plt.Line2D([], [], color="black", lw=1.5, label="optimum"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"SQNR after training at T = {time_steps}, inputs of equal power")
    return figure


def _iterations(*axes: plt.Axes) -> None:
    for each in axes:
        each.set_xlabel("iteration")
        each.margins(x=0)
        each.grid(alpha=0.3)
