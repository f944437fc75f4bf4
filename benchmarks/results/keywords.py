"""Nets for keywords side by side: accuracy, spikes, operations, energy, and who is not beaten in both.

``python -m benchmarks.results.keywords --data synthetic --seeds 0 1 2 --out runs/keywords``

Each cell is one run of ``recipes.spot_keywords`` in its own folder; options that are not known here are passed on to
it. With ``--fine-tune-epochs`` every row, ReLU included, starts from the ReLU net of its seed, which is how to do it on
a small machine. The ReLU nets are also converted to spiking ones (T = 32). Started again, the command keeps what is
finished and continues the rest. ``--real-digits`` adds the accuracy on digits that people have said, ``--markdown``
writes the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.data.features import features
from recipes.data.keyword_batches import FeatureBatches
from recipes.data.speech_commands import Clips, load, real_digits
from recipes.lib.cli import parse
from recipes.lib.clip_cost import evaluation_cost
from recipes.lib.command import command, run_main
from recipes.lib.evaluations import Evaluations, digest
from recipes.lib.files import feature_cache, fingerprint, read_json, replacing, save_figure
from recipes.lib.options import SEED, Different, integer, new_file, new_folder, number, old_file
from recipes.lib.run_folder import own_folder, read_log
from recipes.lib.spotter import MODELS, RECURRENT, digit_accuracy, load_spotter
from recipes.spot_keywords import Options as RunOptions
from snn_ext import convert

from .images import ROWS, Cell, run_cells
from .keyword_page import page
from .keyword_plots import Line, confusion_figure, pareto_figure

__all__ = ["cells", "lines", "main"]

START = "ReLU, to start from"
LIF = "LIF, one recurrent layer"
CONVERTED = "ReLU, converted"
CONVERTED_STEPS = 32


def cells(args: argparse.Namespace, options: Sequence[str]) -> list[Cell]:
    """Return the runs of the table: all rows of the small net, some of the larger ones, and the recurrent layer."""
    nets = [(model, args.rows, seed) for seed in args.seeds for model in args.models]
    nets += [(model, args.larger_rows, seed) for seed in args.seeds[:1] for model in args.larger]
    nets += [(RECURRENT, [LIF], seed) for seed in args.seeds[: args.recurrent]]
    data = ["--data", args.data] + ["--data-dir", str(args.data_dir)] * (args.data_dir is not None)
    found = []

    def add(model: str, row: str, seed: int, *own: str) -> Path:
        name = "-".join((model, row.lower().replace(", ", "-").replace(" ", "-"), str(seed)))
        every = (*options, *data, "--model", model, "--seed", str(seed), *own)
        found.append(Cell(args.data, model, row, seed, args.out / "cells" / name, every, "recipes.spot_keywords"))
        return found[-1].folder

    for model, rows, seed in nets:
        shorter = ("--epochs", str(args.larger_epochs)) if model in args.larger and args.larger_epochs else ()
        tuned: tuple[str, ...] = shorter
        if args.fine_tune_epochs and model == RECURRENT:  # as many in all
            tuned = (
                "--epochs",
                str(parse(RunOptions, [*options, "--out", str(args.out)]).epochs + args.fine_tune_epochs),
            )
        elif args.fine_tune_epochs:
            start = add(model, START, seed, *ROWS["ReLU"], *shorter) / "last.pt"
            tuned = ("--from", str(start), "--epochs", str(args.fine_tune_epochs))
            tuned += ("--lr", str(args.fine_tune_lr)) if args.fine_tune_lr else ()
        for row in rows:
            add(model, row, seed, *ROWS.get(row, ()), *tuned)
    return found


def lines(table: Sequence[Cell], args: argparse.Namespace) -> list[Line]:
    """Gather the results of the runs that are finished, of their conversions and of the real digits."""
    digits = None if args.real_digits is None else real_digits(args.real_digits)
    converted = _Converter(args)
    found: dict[tuple[str, str], Line] = {}
    before = {(cell.model, cell.seed): cell.result for cell in table if cell.row == START}
    for cell in sorted((cell for cell in table if cell.row != START), key=_order):
        line = found.setdefault((cell.model, cell.row), Line(cell.model, cell.row, 0, []))
        line.wanted += 1
        result = cell.result
        if result is None:
            continue
        start = before.get((cell.model, cell.seed))
        result["epochs"] = f"{start['epoch'] + 1} + {result['epoch'] + 1}" if start else str(result["epoch"] + 1)
        result["data_share"] = _data_share(cell.folder / "log.jsonl")
        if digits is not None:
            result["real_digits"] = _real_digits(cell, digits)
        line.results.append({**result, "seed": cell.seed})
        if cell.row == "ReLU":
            twin = found.setdefault((cell.model, CONVERTED), Line(cell.model, CONVERTED, 0, []))
            twin.wanted += 1
            twin.results.append(
                {**result, **converted(cell), "seed": cell.seed, "real_digits": None, "data_share": None}
            )
    return list(found.values())


def _order(cell: Cell) -> tuple[int, int, int]:
    models = [*MODELS, RECURRENT]
    rows = [*ROWS, LIF]
    return models.index(cell.model), rows.index(cell.row), cell.seed


def _data_share(log: Path) -> float | None:
    """Return the part of the training time that batches took, mean over the epochs."""
    shares = [record["data_share"] for record in read_log(log) if "data_share" in record]
    return fmean(shares) if shares else None


class _Converter:
    """Converts the ReLU nets of finished runs, and measures them on the test set; what is measured is kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.evaluations = args, Evaluations(args.out / "conversions")

    def __call__(self, cell: Cell) -> dict[str, Any]:
        spotter = load_spotter(cell.folder / "last.pt")
        corpus = load(self.args.data, self.args.data_dir)

        def batches(clips: Clips) -> FeatureBatches:
            found = features(clips, spotter.front_end, feature_cache())
            return FeatureBatches(found, clips.labels, 100, spotter.mean, spotter.std)

        def make() -> Any:
            calibration = [inputs for (inputs, _), _ in zip(batches(corpus.train), range(10), strict=False)]
            return convert(spotter.net, calibration, method="data-norm", percentile=99.9, precharge=0.5)

        name = f"{cell.model} {cell.seed}"
        parts = (corpus.train.waveforms, corpus.test.waveforms, corpus.test.labels)
        settings = {"net": digest(spotter), "data": corpus.name, "contents": fingerprint(*parts)}
        evaluation, _ = self.evaluations.get(
            name, settings, make, batches(corpus.test), CONVERTED_STEPS, progress=False
        )
        return {
            "accuracy": float(evaluation.accuracy[-1]), "time_steps": CONVERTED_STEPS, "theta": None,
            **evaluation_cost(evaluation),
        }  # fmt: skip


def _real_digits(cell: Cell, clips: Clips) -> float:
    """Return the accuracy of a run's net among ten digits on real speakers, from its file if it is there."""
    net = fingerprint((cell.folder / "last.pt").read_bytes())
    key = {"checkpoint": net, "clips": fingerprint(clips.waveforms, clips.labels)}
    return Evaluations(cell.folder).note(
        "real digits", key, lambda: digit_accuracy(load_spotter(cell.folder / "last.pt"), clips)
    )


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of the table, and those that are passed on to each run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results.keywords", description=__doc__.split("\n\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=new_folder, required=True, help="folder of the table and its cells")
    parser.add_argument("--data", default="sample", help="as of recipes.spot_keywords")
    parser.add_argument("--data-dir", type=Path, help="as of recipes.spot_keywords")
    parser.add_argument("--seeds", type=SEED, nargs="+", action=Different, default=[0])
    parser.add_argument(
        "--models", choices=MODELS, nargs="*", action=Different, default=["separable"], help="with all rows and seeds"
    )
    parser.add_argument(
        "--rows", choices=ROWS, nargs="+", action=Different, default=list(ROWS), metavar="NAME", help=str(list(ROWS))
    )
    parser.add_argument(
        "--larger", choices=MODELS, nargs="*", action=Different, default=[], help="with some rows, first seed alone"
    )
    parser.add_argument(
        "--larger-rows", choices=ROWS, nargs="+", action=Different, default=["ReLU", [*ROWS][-1]], metavar="NAME"
    )
    parser.add_argument("--larger-epochs", type=integer())
    parser.add_argument(
        "--fine-tune-epochs", type=integer(), help="start all rows from a ReLU net and train as many epochs"
    )
    parser.add_argument("--fine-tune-lr", type=number(above=0.0), help="rate of that (default: as before)")
    parser.add_argument(
        "--recurrent", type=integer(0), default=1, metavar="SEEDS", help="seeds of the layer of LIF; 0 for none"
    )
    parser.add_argument("--real-digits", type=Path, help="archive or folder of the Free Spoken Digit Dataset")
    parser.add_argument("--listener", type=old_file, help="listener.json of benchmarks.results.listener, for the page")
    parser.add_argument("--jobs", type=integer(), default=1, help="runs at a time, which share the processor")
    parser.add_argument("--report-only", action="store_true", help="write the table of what is finished")
    parser.add_argument("--markdown", type=new_file, help="file for the page; its figures go beside it")
    args, options = parser.parse_known_args(argv)
    place = [] if args.data_dir is None else ["--data-dir", str(args.data_dir)]
    parse(RunOptions, [*options, "--data", args.data, *place, "--out", str(args.out)])  # a wrong option is named now
    if args.real_digits is not None and not args.real_digits.exists():
        parser.error(f"argument --real-digits: got {args.real_digits}, want an archive or a folder that exists")
    return args, options


@command
def main(argv: Sequence[str] | None = None) -> list[Line]:
    """Run what is not finished, and write ``table.json``, ``pareto.png``, ``confusion.png`` and the page."""
    args, options = parse_arguments(argv)
    table = cells(args, options)
    with own_folder(args.out, "table_keywords"):
        failed = [] if args.report_only else run_cells(table, args.jobs, first=START)
        found = lines(table, args)
        with replacing(args.out / "table.json") as temporary:
            temporary.write_text(json.dumps([vars(line) for line in found], indent=1) + "\n", encoding="utf-8")
        if any(line.results for line in found):
            _write(args, options, found)
    if failed:
        raise SystemExit("failed: " + ", ".join(str(cell.folder / "output.txt") for cell in failed))
    return found


def _write(args: argparse.Namespace, options: Sequence[str], found: Sequence[Line]) -> None:
    kind = "what benchmarks.results.listener wrote", "measure again"
    listener = None if args.listener is None else read_json(args.listener, *kind)
    given = [] if args.markdown is None else [(args.markdown, "keyword-spotting-")]
    for path, prefix in [(args.out / "table.md", ""), *given]:
        save_figure(pareto_figure(found), path.parent / f"{prefix}pareto.png")
        save_figure(confusion_figure(found), path.parent / f"{prefix}confusion.png")
        with replacing(path) as temporary:
            temporary.write_text(page(found, _command(args, options), args.seeds, listener, prefix), encoding="utf-8")
    print((args.out / "table.md").read_text(encoding="utf-8"))


def _command(args: argparse.Namespace, options: Sequence[str]) -> str:
    """Return the command that makes the table, with file names in the place of paths."""
    parts = [f"--data {args.data}", f"--seeds {' '.join(map(str, args.seeds))}"]
    parts += [f"--larger {' '.join(args.larger)}"] * bool(args.larger)
    for name in ("larger_epochs", "fine_tune_epochs", "fine_tune_lr"):
        value = getattr(args, name)
        parts += [] if value is None else [f"--{name.replace('_', '-')} {value:g}"]
    parts += [f"--recurrent {args.recurrent}"]
    for option, path in (("--real-digits", args.real_digits), ("--listener", args.listener)):
        parts += [] if path is None else [f"{option} {path.name}"]
    return " ".join(["python -m benchmarks.results.keywords", *parts, *options, "--out runs/keywords"])


if __name__ == "__main__":
    run_main(main, "the same command continues")
