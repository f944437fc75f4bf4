"""Pages of results in Markdown: tables, what they depend on, and the command that made them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

from recipes.lib.files import replacing

from .quickstart_report import environment

__all__ = ["command_line", "latency", "mean_and_deviation", "provenance", "reduction", "table", "write_report"]


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """Return a table in GitHub's Markdown; ``None`` becomes a dash."""
    cells = [["-" if value is None else str(value) for value in row] for row in rows]
    return tabulate(cells, header, tablefmt="github", disable_numparse=True)


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean with the standard deviation over runs, if there are several."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.{digits}f}"


def latency(first: int | None, last: int | None = None) -> str:
    """Return the step that first reaches a level, and in brackets that from which on it is kept, if it is another."""
    if first is None:
        return "-"
    return f"{first}" if last == first else f"{first} ({'-' if last is None else last})"


def reduction(value: float | None, reference: float | None) -> str:
    """Return by how many percent a value lies below a reference."""
    if value is None or not reference:
        return "-"
    return f"{100 * (1 - value / reference):.0f} %"


def command_line(recipe: str, argv: Sequence[str] | None) -> str:
    """Return the command that was called, without the folder of its results.

    Examples
    --------
    >>> command_line("precharge", ["--model", "net1", "--out", "runs/a b"])
    'python -m recipes.precharge --model net1'
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--out" in arguments:
        start = arguments.index("--out")
        del arguments[start : start + 2]
    kept = [argument for argument in arguments if not argument.startswith("--out=")]
    return shlex.join(["python", "-m", f"recipes.{recipe}", *kept])


def provenance(command: str, seed: int | str) -> str:
    """Return the lines that say how a page was made."""
    machine, versions = environment()["machine"], environment()["versions"]
    return (
        f"Seed {seed}; {machine['cpus']} CPU cores ({machine['architecture']}, {machine['threads']} threads), "
        f"torch {versions['torch']}, spikingjelly {versions['spikingjelly']}.\n\n    {command}\n"
    )


def write_report(folder: Path, text: str) -> str:
    """Write ``report.md`` into the folder of a run, print it, and return it."""
    with replacing(folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return text
