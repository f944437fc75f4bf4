"""Check that the operators are right, then measure how fast they are: ``python -m benchmarks operators``.

The tests of the operators run first; when one of them fails nothing is measured, for the time of a wrong result says
nothing. All contenders of a case run in one process, in turns.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from recipes.lib.cli import Argument, Count, NewFolder, Seed
from recipes.lib.command import command, run_main

from . import cases, report

ROOT = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class Options:
    """Options."""

    quick: Annotated[bool, "a few cases, few rounds: two minutes"] = False
    cases: Annotated[list[str], Argument(metavar="TEXT"), "only cases whose name contains a TEXT"] = field(
        default_factory=list
    )
    list_cases: Annotated[bool, Argument("--list"), "name the cases and stop"] = False
    rounds: Annotated[Count | None, "rounds a case (15; 5 with --quick)"] = None
    seed: Seed = 0
    out: Annotated[NewFolder, "folder for the results"] = ROOT / "runs" / "benchmarks"


@command
def main(options: Options) -> int:
    """Return the exit status."""
    names = [name for name in cases.CASES if _wanted(name, options)]
    if options.list_cases or not names:
        print("\n".join(cases.CASES))
        return 0 if options.list_cases else 2
    settings = cases.Settings(options.rounds or (5 if options.quick else 15), options.seed)
    about = report.environment(settings)  # before the tests, which are a load themselves
    if not correct():
        print("The operators fail their tests: nothing is measured.", file=sys.stderr)
        return 1
    rows: list[cases.Row] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += cases.CASES[name](settings)
        paths = report.write(rows, about, options.out)
    print(report.to_markdown(rows, about))
    print("Written: " + ", ".join(map(str, paths)), file=sys.stderr)
    return 0


def correct() -> bool:
    """Run the tests that hold every execution to the definition."""
    names = ("integrate_and_fire/test_operator.py", "asn/test_operator.py", "test_layout.py")
    tests = [str(ROOT / "tests" / "ops" / name) for name in names]
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", *tests], cwd=ROOT, check=False).returncode == 0


def _wanted(name: str, options: Options) -> bool:
    return any(text in name for text in options.cases) if options.cases else not options.quick or name in cases.QUICK


if __name__ == "__main__":
    run_main(main)
