"""Results as JSON, Markdown and a plot, each written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tabulate import tabulate

from recipes.lib.files import replacing

from .cases import Row, Settings
from .contenders import BASELINE

__all__ = ["environment", "to_markdown", "write"]


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


def to_markdown(rows: Sequence[Row], about: dict[str, str | int]) -> str:
    """Return the rows as tables, one a case."""
    parts = ["Measured with " + ", ".join(f"{name} {value}" for name, value in about.items()) + "."]
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
            f"times as fast as {BASELINE}: median (quartiles), best",
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
    with replacing(paths[1]) as path:
        path.write_text(to_markdown(rows, about), encoding="utf-8")
    with replacing(paths[2]) as path:
        _plot(rows).savefig(path, dpi=120)
    return paths


def _plot(rows: Sequence[Row]) -> Figure:
    """Plot the speed-ups with their quartiles."""
    shown = [row for row in rows if row.speedup is not None and row.contender != BASELINE]
    figure = Figure(figsize=(9, 1.5 + 0.22 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(shown)):
        assert row.speedup is not None
        colour = "#0072B2" if "native" in row.contender else "#009E73" if ", torch" in row.contender else "#999999"
        axes.plot((row.speedup.low, row.speedup.high), (place, place), color=colour, lw=4, solid_capstyle="butt")
        axes.plot(row.speedup.median, place, "o", color=colour)
    axes.axvline(1.0, color="black", lw=1)
    axes.set_yticks(range(len(shown)), [f"{row.case}: {row.contender}" for row in reversed(shown)], fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel(f"times as fast as {BASELINE}: median and quartiles over the rounds")
    return figure


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
