"""Attack files, runs and input, and say what survived.

Each class of fault is a sub-command; each prints a table and writes it with all tries as JSON. A try is repeated
exactly by its seed, but for the moments at which processes are killed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from recipes.lib.command import command as told
from recipes.lib.command import run_main
from recipes.lib.ranges import SEED, integer, new_folder

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    "kills": (200, "SIGKILL and SIGINT at random times of every recipe and of evaluate(resume=), then the same again"),
    "imports": (26, "SIGINT while a command imports torch and the hosts"),
    "flips": (500, "flipped bits, cut ends and zeroed parts of files of every format"),
    "hostile": (1, "pickles and archives that run code or leave their folder, bombs, JSON that is none"),
    "disk": (51, "a full disk, a folder that may not be written, a file for a folder; then the same with room"),
    "threads": (70, "eight threads that convert, evaluate, train, load and write at once"),
    "sound": (60, "the listener: words in noise in random pieces, against one piece"),
}


@told
def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0 if all tries survived, else 1."""
    parser = argparse.ArgumentParser("python -m benchmarks.reliability", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (tries, text) in CLASSES.items():
        command = commands.add_parser(name, help=text, description=text)
        unit = "--minutes" if name == "sound" else "--tries"
        command.add_argument(unit, dest="tries", type=integer(), default=tries, help=f"default: {tries}")
        command.add_argument("--seed", type=SEED, default=0)
        command.add_argument("--jobs", type=integer(), default=os.cpu_count() or 1, help="tries at a time")
        command.add_argument("--only", nargs="+", metavar="NAME", help="only these subjects")
        command.add_argument(
            "--out", type=new_folder, default=ROOT / "runs" / "reliability", help="folder for the results"
        )
    options = parser.parse_args(arguments)

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported
        os.environ[name] = "1"
    from . import damage, disk, hostile, kills, outcomes, recipes, together

    attacks = {
        "kills": kills.kills, "imports": kills.fresh, "flips": damage.flips, "hostile": hostile.hostile,
        "disk": disk.disk, "threads": together.threads, "sound": together.sound,
    }  # fmt: skip
    recipes.preload()
    tries = attacks[options.command](options.tries, options.seed, options.jobs, options.only)
    path = options.out / f"{options.command}.json"
    outcomes.write(path, {"class": options.command, "seed": options.seed}, tries)
    print(f"\n{outcomes.table(tries)}\n\nWritten: {path}")
    return int(any(one.outcome != "survived" for one in tries))


if __name__ == "__main__":
    run_main(main)
