"""The table of Castagnetti et al. 2023 on the data at hand: nets, neurons, seeds, and the paper's figures beside ours.

``python -m benchmarks.results.images --width 0.125 --seeds 0 1 2 --out runs/table``

Each cell is one run of ``recipes.train_images`` in its own folder and its own process; options that are not known here
are passed on to it. Started again, the table keeps the cells that are finished and continues the one that is not. With
``--fine-tune-epochs`` the spiking nets start from the ReLU net of their seed, which is how to do it on a small machine.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tabulate import tabulate
from tqdm import tqdm

from recipes.data.images import DATA_SETS
from recipes.lib.cli import Count, NewFolder, Seed, parse, parse_known
from recipes.lib.command import Children, command, run_main
from recipes.lib.files import DamagedFileError, fingerprint, read_json, save_text, write_json
from recipes.lib.ranges import Different
from recipes.lib.run_folder import own_folder
from recipes.train_images import MODELS
from recipes.train_images import Options as RunOptions

__all__ = ["ROWS", "Cell", "cells", "main", "markdown", "run_cells", "spread"]

ROWS = {
    "ReLU": ["--neuron", "relu"],
    "IF, threshold 1": ["--neuron", "if"],
    "ATIF-u": ["--neuron", "atif-u"],
    "ATIF-nu": ["--neuron", "atif-nu"],
    "ATIF-u, pre-charged": ["--neuron", "atif-u", "--v-init", "0.5"],
}
ABLATION = {
    f"ATIF-u, {output} output, {norm} batch norm": [
        "--neuron", "atif-u", "--output", output, "--norm" if norm == "with" else "--no-norm",
    ]
    for output in ("scaled", "binary")
    for norm in ("with", "without")
}  # fmt: skip

AS_NAMED = ["--distillation", "0"]  # each neuron as its row says, and nothing else

# On CIFAR-10, full width, T = 4, 900 epochs; * is not stated, but follows from differences that are.
PAPER_ACCURACY = {
    ("resnet18", "ReLU"): "95.96 *", ("resnet18", "IF, threshold 1"): "89.68 *", ("resnet18", "ATIF-u"): "93.84 *",
    ("resnet18", "ATIF-nu"): "94.65",
}  # fmt: skip
PAPER_THETA = {("vgg16", "ATIF-u"): "0.111"}
PAPER_DATA = ("cifar10", "cifar10-jpeg")


@dataclass(kw_only=True)
class Options:
    """The table; further options are those of ``recipes.train_images``."""

    out: Annotated[NewFolder, "folder of the table and its cells"]
    data: Annotated[list[str], DATA_SETS, Different] = field(default_factory=lambda: ["fashion-mnist-subset"])
    models: Annotated[list[str], MODELS, Different] = field(default_factory=lambda: list(MODELS))
    seeds: Annotated[list[Seed], Different] = field(default_factory=lambda: [0])
    ablation: Annotated[bool, "scaled or binary output, with or without batch norm"] = False
    rows: Annotated[list[str] | None, "some of the rows, by name"] = None
    fine_tune_epochs: Annotated[Count | None, "start from the ReLU net and train as many epochs"] = None
    jobs: Annotated[Count, "cells at a time, which share the processor"] = 1
    report_only: Annotated[bool, "write the table of what is finished"] = False

    def __post_init__(self) -> None:
        rows = ABLATION if self.ablation else ROWS
        if unknown := [row for row in self.rows or () if row not in rows]:
            raise ValueError(f"--rows: got {unknown}, want some of {list(rows)}")
        if self.fine_tune_epochs and (self.ablation or (self.rows is not None and "ReLU" not in self.rows)):
            raise ValueError("--fine-tune-epochs: got no row ReLU to start from, want it among --rows, no --ablation")


@dataclass(frozen=True)
class Cell:
    """One run: where, and with which options."""

    data: str
    model: str
    row: str
    seed: int
    folder: Path
    options: tuple[str, ...]
    recipe: str = "recipes.train_images"

    @property
    def result(self) -> dict[str, Any] | None:
        """Return the result of the finished run; ``None`` if it is not finished or was another run."""
        path, command = self.folder / "result.json", self.folder / "command.json"
        if not path.exists() or not command.exists():
            return None
        try:
            if read_json(command, "the command of a cell") != self.command:
                return None
        except DamagedFileError:  # the run itself knows whether it is finished
            return None
        return read_json(path, "the result of a run", "restore a copy of it, or remove its folder to run it again")

    @property
    def command(self) -> dict[str, Any]:
        """Return what makes the cell the one it is: its options, and the net that it starts from."""
        start = Path(self.options[self.options.index("--from") + 1]) if "--from" in self.options else None
        there = start is not None and start.is_file()
        return {"options": [*self.options], "start": fingerprint(start.read_bytes()) if start and there else None}

    def run(self, threads: int, children: Children) -> bool:
        """Run or continue the cell in a process of its own, with its output in ``output.txt``; return the success."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", self.recipe, *self.options, "--out", str(self.folder), "--resume"]
        with open(self.folder / "output.txt", "w", encoding="utf-8") as output:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            success = children.call(command, env=environment, stdout=output, stderr=output) == 0
        if success:  # only now: until then the folder may hold the result of other options
            write_json(self.folder / "command.json", self.command)
        return success


def cells(args: Options, options: Sequence[str]) -> list[Cell]:
    """Return the cells of the table, ReLU first, as the others may start from it."""
    rows = ABLATION if args.ablation else ROWS
    wanted = [name for name in rows if args.rows is None or name in args.rows]
    found = []
    for data in args.data:
        for model in args.models:
            for seed in args.seeds:
                for row in wanted:
                    own = [*options, "--data", data, "--model", model, "--seed", str(seed), *rows[row]]
                    if args.fine_tune_epochs and row != "ReLU":
                        start = _folder(args.out, data, model, "ReLU", seed) / "last.pt"
                        own += ["--from", str(start), "--epochs", str(args.fine_tune_epochs), *AS_NAMED]
                        own += ["--swap", "inputs"] * (row != "IF, threshold 1")
                    found.append(Cell(data, model, row, seed, _folder(args.out, data, model, row, seed), tuple(own)))
    return sorted(found, key=lambda cell: cell.row != "ReLU")


def _folder(out: Path, data: str, model: str, row: str, seed: int) -> Path:
    return out / "cells" / "-".join((data, model, row.lower().replace(", ", "-").replace(" ", "-"), str(seed)))


def markdown(table: Sequence[Cell]) -> str:
    """Return a table for each data set, of means over the seeds with (smallest..largest), and SQNR by layer."""
    parts = []
    for data in dict.fromkeys(cell.data for cell in table):
        lines, by_layer, title = [], [], data
        for model, row in dict.fromkeys((cell.model, cell.row) for cell in table if cell.data == data):
            group = [cell for cell in table if (cell.data, cell.model, cell.row) == (data, model, row)]
            results = [cell.result for cell in group if cell.result is not None]
            line: list[str] = [model, row, f"{len(results)} of {len(group)}"]
            if results:
                title = results[0]["data"]
                line += [spread([100 * r["accuracy"] for r in results], 2)]
            if results and "theta" in results[0]:
                line += [str(results[0]["time_steps"]), spread([r["theta"] for r in results], 3)]
                line += [spread([r["spikes_per_neuron"] for r in results], 3)]
                layers = [_mean_sqnr(layers) for layers in zip(*(r["layers"] for r in results), strict=True)]
                known = [value for value in layers if value is not None]
                line += [f"{statistics.median(known):.1f} ({min(known):.1f}..{max(known):.1f})" if known else "-"]
                by_layer.append([model, row, " ".join("-" if v is None else f"{v:.1f}" for v in layers)])
            line += ["-"] * (8 - len(line))
            if data in PAPER_DATA:
                line += [PAPER_ACCURACY.get((model, row), "-"), PAPER_THETA.get((model, row), "-")]
            lines.append(line)
        header = ["net", "neuron", "seeds", "accuracy (%)", "T", "theta", "spikes per neuron", "SQNR (dB)"]
        header += ["paper: accuracy", "paper: theta"] if data in PAPER_DATA else []
        parts.append(f"## {title}\n\n{tabulate(lines, header, tablefmt='github', disable_numparse=True)}\n")
        if by_layer:
            header = ["net", "neuron", "SQNR by layer (dB), mean over the seeds"]
            parts.append(f"{tabulate(by_layer, header, tablefmt='github', disable_numparse=True)}\n")
    return "\n".join([*parts, NOTES])


NOTES = """\
Accuracy is that of the last epoch. theta: share of neurons and steps with a spike, mean over the spiking layers, then
over the test set (equation 20). Spikes per neuron: pooled over all neurons of the net. SQNR of a layer: decoded value
against the ReLU of its mean input, on the test set; "-" where there is no error or no signal. Means over the seeds,
with (smallest..largest); for the SQNR the median over the layers, with (smallest..largest).
The paper's figures are for CIFAR-10, nets of full width, T = 4 and 900 epochs; * is derived from differences it states.
"""


def _mean_sqnr(layers: Sequence[dict[str, Any]]) -> float | None:
    known = [layer["sqnr_db"] for layer in layers if layer["sqnr_db"] is not None]
    return statistics.mean(known) if known else None


def spread(values: Sequence[float], digits: int) -> str:
    """Return the mean with (smallest..largest), if there are several."""
    mean, low, high = (f"{v:.{digits}f}" for v in (statistics.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low}..{high})"


@command
def main(argv: Sequence[str] | None = None) -> list[Cell]:
    """Run what is not finished, and write ``table.md`` and ``table.json``."""
    options, others = parse_known(Options, argv)
    for model in options.models:
        parse(RunOptions, [*others, "--out", str(options.out), "--model", model])  # a wrong option is named now
    table = cells(options, others)
    with own_folder(options.out, "table_images"):
        failed = [] if options.report_only else run_cells(table, options.jobs, lambda: _write(options.out, table))
        _write(options.out, table)
        print(markdown(table))
    if failed:
        raise SystemExit("failed: " + ", ".join(str(cell.folder / "output.txt") for cell in failed))
    return table


def run_cells(
    table: Sequence[Cell], jobs: int, after_each: Callable[[], None] = lambda: None, first: str = "ReLU"
) -> list[Cell]:
    """Run the cells that are not finished, some at a time, those of the row ``first`` before the others.

    Returns
    -------
    list of Cell
        Those that failed.
    """
    todo = [cell for cell in table if cell.result is None]
    threads = max(1, _cores() // jobs)
    failed: list[Cell] = []
    with tqdm(total=len(table), initial=len(table) - len(todo), unit="cell", dynamic_ncols=True) as bar:
        for begin in (True, False):  # the nets to start from, then the others
            batch = [cell for cell in todo if (cell.row == first) == begin]
            with ThreadPoolExecutor(jobs) as pool, Children() as children:  # the children end before the pool waits
                done = pool.map(lambda cell: cell.run(threads, children), batch)
                for cell, success in zip(batch, done, strict=True):
                    failed += [] if success else [cell]
                    bar.update()
                    after_each()
    return failed


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(out: Path, table: Sequence[Cell]) -> None:
    results = [
        {"data": cell.data, "model": cell.model, "row": cell.row, "seed": cell.seed, "result": cell.result}
        for cell in table
    ]
    for name, text in (("table.md", markdown(table)), ("table.json", json.dumps(results, indent=1) + "\n")):
        save_text(text, out / name)


if __name__ == "__main__":
    run_main(main, "the same command continues")
