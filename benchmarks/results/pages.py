"""Pages of results in Markdown: tables, what they depend on, and the command that made them."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from tabulate import tabulate

from recipes.lib.cli import defaults, parser_of
from recipes.lib.evaluations import versions
from recipes.lib.files import save_text
from snn_ext.evaluation import Evaluation, best_delay

__all__ = [
    "command_line", "environment", "fastest_delay", "latency", "mean_and_deviation", "provenance", "reduction",
    "spread", "table", "write_report",
]  # fmt: skip


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """Return a table in GitHub's Markdown; ``None`` becomes a dash."""
    cells = [["-" if value is None else str(value) for value in row] for row in rows]
    return tabulate(cells, header, tablefmt="github", disable_numparse=True)


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean, and the standard deviation over runs if there are several."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.{digits}f}"


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean, and (smallest..largest) if there are several values."""
    mean, low, high = (f"{v:.{digits}f}" for v in (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low}..{high})"


def latency(first: int | None, last: int | None = None) -> str:
    """Return the first step that reaches a level, and in brackets the step from which on it is kept, if another."""
    if first is None:
        return "-"
    return f"{first}" if last == first else f"{first} ({'-' if last is None else last})"


def fastest_delay(evaluation: Evaluation) -> int | None:
    """Return the delay that reaches 99 % of the analog accuracy first; ``None`` if none reaches it."""
    try:
        return best_delay(evaluation)
    except ValueError:
        return None


def reduction(value: float | None, reference: float | None) -> str:
    """Return by how many percent a value lies below a reference."""
    if value is None or not reference:
        return "-"
    return f"{100 * (1 - value / reference):.0f} %"


def command_line(options: Any) -> str:
    """Return the command that has these options, without its folder, and with file names instead of paths.

    Examples
    --------
    >>> from recipes.train_analog import Options
    >>> command_line(Options(out="runs/a", model="net1", epochs=3))
    'python -m recipes.train_analog --model net1 --epochs 3'
    """
    kind = type(options)
    parser = parser_of(kind)
    leading = {name for name in ("out", "preset", "model", "data", "data_dir") if hasattr(options, name)}
    usual = vars(kind(**{name: getattr(options, name) for name in leading}))  # presets depend on those
    words = []
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        reference = defaults(kind)[action.dest] if action.dest in leading else usual.get(action.dest)
        if action.dest == "out" or value == reference:
            continue
        names = [name for name in action.option_strings if name.startswith("--no-") == (value is False)]
        switch = action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction)
        values = [] if switch else value if isinstance(value, list) else [value]
        words += [*sorted(names, key=len)[-1:], *(v.name if isinstance(v, Path) else str(v) for v in values)]
    return shlex.join([*parser.prog.split(), *words])


def environment() -> dict[str, Any]:
    """Return the kind of machine and the versions of the libraries, which results depend on."""
    machine = {
        "architecture": platform.machine(), "system": platform.system(), "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    return {"machine": machine, "versions": versions()}


def provenance(command: str, seed: int | str) -> str:
    """Return the lines that say how a page was made."""
    machine, libraries = environment()["machine"], versions()
    return (
        f"Seed {seed}; {machine['cpus']} CPU cores ({machine['architecture']}, {machine['threads']} threads), "
        f"torch {libraries['torch']}, spikingjelly {libraries['spikingjelly']}.\n\n    {command}\n"
    )


def write_report(folder: Path, text: str) -> str:
    """Write ``report.md`` into the folder of a run, print it, and return it."""
    save_text(text, folder / "report.md")
    print(text)
    return text
