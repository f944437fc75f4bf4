"""Check that the operators are right, then measure how fast they are.

The tests of the operators run first; when one of them fails nothing is measured, for the time of a wrong result says
nothing. All contenders of a case run in one process, in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.lib.command import command, run_main
from recipes.lib.options import SEED, integer, new_folder

ROOT = Path(__file__).resolve().parents[1]


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases, few rounds: two minutes")
    parser.add_argument("--cases", nargs="+", default=[], metavar="TEXT", help="only cases whose name contains a TEXT")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--rounds", type=integer(), default=None, help="rounds a case (15; 5 with --quick)")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--out", type=new_folder, default=ROOT / "runs" / "benchmarks", help="folder for the results")
    options = parser.parse_args(arguments)

    from .speed import cases, report

    names = [name for name in cases.CASES if _wanted(name, options)]
    if options.list or not names:
        print("\n".join(cases.CASES))
        return 0 if options.list else 2
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
    """Run the tests that hold every implementation to the definition."""
    names = ("integrate_and_fire/test_operator.py", "asn/test_operator.py", "test_layout.py")
    tests = [str(ROOT / "tests" / "ops" / name) for name in names]
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", *tests], cwd=ROOT, check=False).returncode == 0


def _wanted(name: str, options: argparse.Namespace) -> bool:
    from .speed.cases import QUICK

    return any(text in name for text in options.cases) if options.cases else not options.quick or name in QUICK


if __name__ == "__main__":
    run_main(main)
