"""Nets for keywords side by side: accuracy, spikes, operations, energy, and who is not beaten in both.

``python -m benchmarks.results.keywords --data synthetic --seeds 0 1 2 --out runs/keywords``

Each cell is one run of ``recipes.spot_keywords`` in its own folder; options that are not known here are passed on to
it. With ``--fine-tune-epochs`` every row, ReLU included, starts from the ReLU net of its seed, which is how to do it on
a small machine. The ReLU nets are also converted to spiking ones (T = 32). Started again, the command keeps what is
finished and continues the rest. ``--real-digits`` adds the accuracy on digits that people have said, ``--markdown``
writes the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from recipes.data.features import features
from recipes.data.keyword_batches import FeatureBatches
from recipes.data.speech_commands import Clips, load, real_digits
from recipes.lib.cli import Argument, Count, NewFile, NewFolder, OldFile, Positive, Seed, Whole, parse, parse_known
from recipes.lib.clip_cost import evaluation_cost
from recipes.lib.command import command, run_main
from recipes.lib.evaluations import Evaluations, digest
from recipes.lib.files import feature_cache, fingerprint, read_json, save_figure, save_text
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder, read_log
from recipes.lib.spotter import MODELS, RECURRENT, digit_accuracy, load_spotter
from recipes.spot_keywords import Options as RunOptions
from snn_ext import convert

from .images import Cell, run_cells
from .keyword_page import page
from .keyword_plots import Line, best_line, confusion_figure, pareto_figure
from .listener import listen
from .pages import command_line

ROWS = {
    "ReLU": ["--neuron", "relu"],
    "IF, threshold 1": ["--neuron", "if"],
    "ATIF-u": ["--neuron", "atif-u"],
    "ATIF-nu": ["--neuron", "atif-nu"],
    "ATIF-u, pre-charged": ["--neuron", "atif-u", "--v-init", "0.5"],
    "IF, calibrated": ["--neuron", "pcmp"],
    "ATIF-u, calibrated": ["--neuron", "atif-u"],
    "ATIF-nu, calibrated": ["--neuron", "atif-nu"],
}
"""Rows; those that are calibrated are there with ``--fine-tune-epochs``, and others are then fitted to inputs."""
START = "ReLU, to start from"
CALIBRATED = ", calibrated"
LIF = "LIF, one recurrent layer"
CONVERSIONS: dict[str, tuple[dict[str, Any], int | None]] = {
    "ReLU, converted": ({"method": "data-norm", "percentile": 99.9, "precharge": 0.5}, 32),
    "ReLU, calibrated": ({"time_steps": 4}, 4),
    "ReLU, calibrated, wait 1": ({"time_steps": 4, "wait": 1}, None),
}
"""What becomes of ReLU nets without training, by name: how they are converted, and the steps of the evaluation."""
SEVERAL = Argument(nargs="*")


@dataclass(kw_only=True)
class Options:
    """Options; others are passed on to recipes.spot_keywords."""

    out: Annotated[NewFolder, "folder of the table and its cells"]
    data: Annotated[str, "as of recipes.spot_keywords"] = "sample"
    data_dir: Annotated[Path | None, "as of recipes.spot_keywords"] = None
    seeds: Annotated[list[Seed], Different] = field(default_factory=lambda: [0])
    models: Annotated[list[str], MODELS, SEVERAL, Different, "with all rows and seeds"] = field(
        default_factory=lambda: ["separable"]
    )
    rows: Annotated[list[str], ROWS, Argument(metavar="NAME"), Different, str(list(ROWS))] = field(
        default_factory=lambda: list(ROWS)
    )
    larger: Annotated[list[str], MODELS, SEVERAL, Different, "with some rows, first seed alone"] = field(
        default_factory=list
    )
    larger_rows: Annotated[list[str], ROWS, Argument(metavar="NAME"), Different] = field(
        default_factory=lambda: ["ReLU", "ATIF-u, pre-charged", "ATIF-u, calibrated"]
    )
    larger_epochs: Count | None = None
    fine_tune_epochs: Annotated[Count | None, "start all rows from a ReLU net and train as many epochs"] = None
    fine_tune_lr: Annotated[Positive | None, "rate of that (default: as before)"] = None
    recurrent: Annotated[Whole, Argument(metavar="SEEDS"), "seeds of the layer of LIF; 0 for none"] = 1
    real_digits: Annotated[Path | None, "archive or folder of the Free Spoken Digit Dataset"] = None
    listener: Annotated[OldFile | None, "listener.json of benchmarks.results.listener, for the page"] = None
    hours: Annotated[
        Positive | None, "instead: the best spiking net of the table listens, to so many hours of noise"
    ] = None  # fmt: skip
    jobs: Annotated[Count, "runs at a time, which share the processor"] = 1
    report_only: Annotated[bool, "write the table of the finished runs"] = False
    markdown: Annotated[NewFile | None, "file for the page; its figures go beside it"] = None

    def __post_init__(self) -> None:
        if self.real_digits is not None and not self.real_digits.exists():
            raise ValueError(f"--real-digits: got {self.real_digits}, want an archive or a folder that exists")
        if self.hours is not None and self.listener is not None:
            raise ValueError(f"--hours: got {self.hours:g} with --listener, want one of them")


@command
def main(argv: Sequence[str] | None = None) -> list[Line]:
    """Run what is not finished, and write ``table.json``, ``pareto.png``, ``confusion.png`` and the page."""
    options, passed = parse_known(Options, argv)
    table = cells(options, passed)
    with own_folder(options.out, "table_keywords"):
        failed = [] if options.report_only else run_cells(table, options.jobs, first=START)
        found = lines(table, options)
        save_text(json.dumps([vars(line) for line in found], indent=1) + "\n", options.out / "table.json")
        if any(line.results for line in found):
            _write(options, passed, found, _heard(options, table, found))
    if failed:
        raise SystemExit("failed: " + ", ".join(str(cell.folder / "output.txt") for cell in failed))
    return found


def cells(options: Options, passed: Sequence[str]) -> list[Cell]:
    """Return the runs of the table: all rows of the small net, some of the larger ones, and the recurrent layer."""
    data = ["--data", options.data] + ["--data-dir", str(options.data_dir)] * (options.data_dir is not None)
    run = parse(RunOptions, [*passed, *data, "--out", str(options.out)])  # a wrong option is named now
    nets = [(model, _rows(options.rows, options), seed) for seed in options.seeds for model in options.models]
    nets += [
        (model, _rows(options.larger_rows, options), seed) for seed in options.seeds[:1] for model in options.larger
    ]
    nets += [(RECURRENT, [LIF], seed) for seed in options.seeds[: options.recurrent]]
    found = []

    def add(model: str, row: str, seed: int, *own: str) -> Path:
        name = "-".join((model, row.lower().replace(", ", "-").replace(" ", "-"), str(seed)))
        every = (*passed, *data, "--model", model, "--seed", str(seed), *own)
        found.append(Cell(options.data, model, row, seed, options.out / "cells" / name, every, "recipes.spot_keywords"))
        return found[-1].folder

    for model, rows, seed in nets:
        shorter = ("--epochs", str(options.larger_epochs)) if model in options.larger and options.larger_epochs else ()
        tuned: tuple[str, ...] = shorter
        if options.fine_tune_epochs and model == RECURRENT:  # as many in all
            tuned = ("--epochs", str(run.epochs + options.fine_tune_epochs))
        elif options.fine_tune_epochs:
            start = add(model, START, seed, *ROWS["ReLU"], *shorter) / "last.pt"
            tuned = ("--from", str(start), "--epochs", str(options.fine_tune_epochs))
            tuned += ("--lr", str(options.fine_tune_lr)) if options.fine_tune_lr else ()
        for row in rows:
            inputs = bool(options.fine_tune_epochs) and row.startswith("ATIF") and not row.endswith(CALIBRATED)
            add(model, row, seed, *ROWS.get(row, ()), *tuned, *["--swap", "inputs"] * inputs)
    return found


def _rows(rows: Sequence[str], options: Options) -> list[str]:
    """Return the rows that there are: calibrated ones start from a ReLU net."""
    return [row for row in rows if options.fine_tune_epochs or not row.endswith(CALIBRATED)]


def lines(table: Sequence[Cell], options: Options) -> list[Line]:
    """Gather the results of the runs that are finished, of their conversions and of the real digits."""
    digits = None if options.real_digits is None else real_digits(options.real_digits)
    converted = _Converter(options)
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
            for name in CONVERSIONS:
                twin = found.setdefault((cell.model, name), Line(cell.model, name, 0, []))
                twin.wanted += 1
                twin.results.append(
                    {**result, **converted(cell, name), "seed": cell.seed, "real_digits": None, "data_share": None}
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

    def __init__(self, options: Options) -> None:
        self.options, self.evaluations = options, Evaluations(options.out / "conversions")

    def __call__(self, cell: Cell, conversion: str) -> dict[str, Any]:
        how, steps = CONVERSIONS[conversion]
        spotter = load_spotter(cell.folder / "last.pt")
        corpus = load(self.options.data, self.options.data_dir)

        def batches(clips: Clips, **options: int) -> FeatureBatches:
            clips = clips.only(spotter.words)
            found = features(clips, spotter.front_end, feature_cache())
            return FeatureBatches(found, clips.labels, 100, spotter.mean, spotter.std, **options)

        def make() -> Any:
            drawn = batches(corpus.train, shuffle=cell.seed)
            calibration = [inputs for (inputs, _), _ in zip(drawn, range(10), strict=False)]
            return convert(spotter.net, calibration, **how)

        name = f"{cell.model} {conversion} {cell.seed}"
        parts = (corpus.train.waveforms, corpus.test.waveforms, corpus.test.labels)
        settings = {"net": digest(spotter), "data": corpus.name, "contents": fingerprint(*parts), **how}
        evaluation, _ = self.evaluations.get(name, settings, make, batches(corpus.test), steps, progress=False)
        return {
            "accuracy": float(evaluation.accuracy[-1]), "theta": None, **evaluation_cost(evaluation),
            "time_steps": steps or f"{how['time_steps']} of {evaluation.time_steps}",
        }  # fmt: skip


def _real_digits(cell: Cell, clips: Clips) -> float:
    """Return the accuracy of a run's net among ten digits on real speakers, from its file if it is there."""
    net = fingerprint((cell.folder / "last.pt").read_bytes())
    key = {"checkpoint": net, "clips": fingerprint(clips.waveforms, clips.labels)}
    return Evaluations(cell.folder).note(
        "real digits", key, lambda: digit_accuracy(load_spotter(cell.folder / "last.pt"), clips)
    )


def _heard(options: Options, table: Sequence[Cell], found: Sequence[Line]) -> dict[str, Any] | None:
    """Return what is measured of a listener: by the file that is given, or now of the best spiking net."""
    if options.listener is not None:
        return read_json(options.listener, "what benchmarks.results.listener wrote", "measure again")
    if options.hours is None:
        return None
    best = best_line(found)
    cell = next(cell for cell in table if (cell.model, cell.row) == (best.model, best.row) and cell.result)
    net, corpus, hours = cell.folder / "last.pt", load(options.data, options.data_dir), options.hours
    key = {"checkpoint": fingerprint(net.read_bytes()), "clips": fingerprint(corpus.test.waveforms), "hours": hours}
    measured: dict[str, Any] = Evaluations(options.out).note("listener", key, lambda: listen(net, corpus, hours))
    return measured


def _write(options: Options, passed: Sequence[str], found: Sequence[Line], listener: dict[str, Any] | None) -> None:
    told = replace(options, markdown=None, jobs=1, report_only=False)
    command = " ".join([command_line(told), *passed, "--out runs/keywords"])
    given = [] if options.markdown is None else [(options.markdown, "pictures/keyword-spotting-")]
    for path, prefix in [(options.out / "table.md", ""), *given]:
        save_figure(pareto_figure(found, _data(found)), path.parent / f"{prefix}pareto.png")
        save_figure(confusion_figure(found), path.parent / f"{prefix}confusion.png")
        save_text(page(found, command, options.seeds, listener, prefix), path)
    print((options.out / "table.md").read_text(encoding="utf-8"))


def _data(found: Sequence[Line]) -> str:
    return str(next(line.results[0]["data"] for line in found if line.results))


if __name__ == "__main__":
    run_main(main, "the same command continues")
