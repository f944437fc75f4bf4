"""Results as JSON, Markdown and a plot, each written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tabulate import tabulate

from recipes.lib.files import replacing, save_text
from snn_ext.plots.style import finish, look, new_figure, plain_log

from .cases import Row, Settings
from .contenders import BASELINE
from .measuring import Ratio

__all__ = ["environment", "read", "speed_ups", "to_markdown", "write"]

_SPEED_UP = re.compile(r"([\d.]+) \(([\d.]+)-([\d.]+)\), best ([\d.]+)")


def environment(settings: Settings) -> dict[str, str | int]:
    """Return what the numbers depend on: versions, kind of machine, seed."""
    return {
        **{name: version(name) for name in ("torch", "spikingjelly", "snntorch")},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "load at the start": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "rounds": f"{settings.rounds} ({max(settings.rounds // 2, 2)} of training)",
        "seed": settings.seed,
    }


def measured_with(about: dict[str, str | int]) -> str:
    """Return what the numbers depend on as a sentence."""
    return "Measured with " + ", ".join(f"{name} {value}" for name, value in about.items()) + "."


def to_markdown(rows: Sequence[Row], about: dict[str, str | int]) -> str:
    """Return the rows as tables, one a case."""
    parts = [measured_with(about)]
    for case, group in groupby(rows, key=lambda row: row.case):
        table = [
            (
                row.contender,
                f"{row.value:.3g} {row.unit}",
                row.speedup or "",
                f"{row.floor.median:.2f}" if row.floor else "",
                row.demand,
                {True: "yes", False: "NO", None: ""}[row.met],
            )
            for row in group
        ]
        headers = (
            "",
            "median",
            "times as fast as the host: median (quartiles), best",
            "times memcpy",
            "demand",
            "met",
        )
        used = [i for i in range(len(headers)) if i < 2 or any(line[i] != "" for line in table)]
        columns = [[line[i] for i in used] for line in table]
        parts.append(f"### {case}\n\n" + tabulate(columns, [headers[i] for i in used], tablefmt="github"))
    return "\n\n".join(parts) + "\n"


def write(rows: Sequence[Row], about: dict[str, str | int], folder: Path) -> list[Path]:
    """Write ``benchmarks.json``, ``.md`` and ``.png`` to a folder."""
    paths = [folder / f"benchmarks.{suffix}" for suffix in ("json", "md", "png")]
    with replacing(paths[0]) as path:
        content = {"about": about, "rows": [asdict(row) for row in rows]}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    save_text(to_markdown(rows, about), paths[1])
    with replacing(paths[2]) as path:
        speed_ups(rows).savefig(path, dpi=120)
    return paths


def speed_ups(rows: Sequence[Row]) -> Figure:
    """Draw the speed-ups, a panel for each kind of case and a marker for each contender, with quartiles."""
    shown = [row for row in rows if row.speedup is not None and row.contender != BASELINE]
    kinds = [(kind, [*group]) for kind, group in _by_kind(shown).items()]
    places = {name: i for i, name in enumerate(dict.fromkeys(row.contender for row in shown))}
    columns = min(3, max(len(kinds), 1))
    lines = -(-len(kinds) // columns) or 1
    figure = new_figure(3.9 * columns, 0.6 + 3.0 * lines)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (kind, group) in zip(grid, kinds, strict=False):
        cases = [*dict.fromkeys(row.case for row in group)]
        contenders = [*dict.fromkeys(row.contender for row in group)]
        for row in group:
            assert row.speedup is not None
            aside = 0.7 * ((contenders.index(row.contender) + 0.5) / len(contenders) - 0.5)
            ratio, x, style = row.speedup, cases.index(row.case) + aside, look(places[row.contender])
            bars = [[max(ratio.median - ratio.low, 0.0)], [max(ratio.high - ratio.median, 0.0)]]
            marker = {key: style[key] for key in ("color", "marker", "ms")}
            axes.errorbar(x, ratio.median, bars, ls="none", capsize=2, lw=1.2, **marker)
        axes.axhline(1.0, color="black", lw=1)
        axes.set_xticks(range(len(cases)), [_short(case, kind) for case in cases], fontsize=8)
        axes.set_xlim(-0.5, len(cases) - 0.5)
        axes.set(title=kind, yscale="log")
        plain_log(axes.yaxis)
        finish(axes)
    for axes in grid[len(kinds) :]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel(f"times as fast as\n{BASELINE}")
    handles = [
        Line2D([], [], label=name, ls="none", **{key: look(i)[key] for key in ("color", "marker", "ms")})
        for name, i in places.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def read(text: str) -> list[Row]:
    """Return the rows of tables that :func:`to_markdown` wrote: those that have a speed-up."""
    rows: list[Row] = []
    case = ""
    for line in text.splitlines():
        if line.startswith("### "):
            case = line[4:]
        cells = [cell.strip() for cell in line.split("|")]
        found = _SPEED_UP.fullmatch(cells[3]) if len(cells) > 3 else None
        if found:
            median, low, high, best = map(float, found.groups())
            number, _, unit = cells[2].partition(" ")
            rows.append(Row(case, cells[1], float(number), unit, speedup=Ratio(low, median, high, best)))
    return rows


def _by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows by the name of their case up to the shape, or to the first comma."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.case.split(" [")[0].split(", ")[0], []).append(row)
    return kinds


def _short(case: str, kind: str) -> str:
    """Return what tells a case from the others of its panel; a shape stands in two lines, to fit beside others."""
    rest = case.removeprefix(kind).strip(" ,")
    if not rest.startswith("["):
        return rest
    sizes = rest.split(",")
    half = len(sizes) // 2
    return ",".join(sizes[:half]) + ",\n" + ",".join(size.strip() for size in sizes[half:])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
