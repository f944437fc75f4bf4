"""The one style of all figures: colours, markers and axes. Figures of the recipes and studies take it from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._errors import bad_value

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter
except ImportError as error:
    raise ImportError("snn_ext: plots need matplotlib, want it installed: pip install 'snn_ext[plots]'") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["COLOURS", "MARKERS", "finish", "legend_beside", "look", "name_axis", "new_figure", "plain_log", "step_axis"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
"""Okabe and Ito's colours, which colour-blind readers can tell apart, and a grey."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
"""Markers repeat what a colour says; there are more of them, so that no two of twelve curves look alike."""

_LINES = ("-", "--", ":")
_NAMES = 12  # names of layers that fit below an axis


def look(place: int) -> dict[str, Any]:
    """Return the colour, marker and line of a curve by its place in the legend.

    Examples
    --------
    >>> look(0)["color"], look(0)["marker"], look(8)["ls"]
    ('#0072B2', 'o', '--')
    """
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "ls": _LINES[place // len(COLOURS) % len(_LINES)],
        "lw": 1.4,
        "ms": 5,
    }


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Return an empty figure, sizes in inches, whose parts never overlap."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def finish(*panels: Axes, legend: bool = True) -> None:
    """Give panels a grid, and a legend where something in them has a label."""
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if legend and axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)


def legend_beside(figure: Figure, axes: Axes) -> None:
    """Put the legend of a panel to the right of the figure, where many names have room."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)


def step_axis(axes: Axes, last: int, *, log: bool = False) -> None:
    """Label time steps by whole numbers: all of a few, or powers of two on a logarithmic axis."""
    if last < 1:
        bad_value("last", last, "a number of steps, >= 1")
    if log and last > 1:
        axes.set_xscale("log", base=2)
        ticks = [1 << i for i in range(last.bit_length())]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0.93, last * 1.08)
        return
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=9))
    margin = 0.02 * max(last - 1, 1)
    axes.set_xlim(1 - margin, last + margin)


def name_axis(axes: Axes, names: Sequence[str]) -> None:
    """Label places 0, 1, ... of the x axis by names of layers; of many names only some are shown."""
    every = -(-len(names) // _NAMES)
    axes.set_xticks(range(0, len(names), every or 1), names[:: every or 1], rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.5, max(len(names), 1) - 0.5)


def plain_log(axis: Axis) -> None:
    """Label a logarithmic axis by plain numbers; call it last, for they depend on the range."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if not 0 < low < high < 5 * low else MaxNLocator(5))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
