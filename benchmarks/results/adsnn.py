"""All AdSNN runs that a CPU can do, and their page of results: ``python -m benchmarks.results.adsnn --out runs/adsnn``.

Every run keeps what is finished, so the command can be interrupted and started again. SONAR is looked for in
``--data-dir``; without it the page says that it is left out.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from recipes import adsnn
from recipes.data.images import data_folder
from recipes.lib.command import command, run_main
from recipes.lib.files import replacing
from recipes.lib.options import new_file, new_folder
from recipes.lib.run_folder import own_folder

from .adsnn_figures import neuron_figures
from .pages import provenance
from .plots import save

__all__ = ["RUNS", "main"]

RUNS = {
    "iris": "",
    "sonar": "",
    "digits": "--seeds 0 1 2 --eval-images 355 --m-f 0.1 0.45 1 --relu-m-f 0.1 0.4 --relu-seeds 0 --error-shares 95 "
    "--taus 10 20 100",
    "fashion-mnist-subset": "--seeds 0 1 2 --eval-images 200 --arousal-images 200 --m-f 0.1 0.2 0.3 0.45 0.6 1 "
    "--relu-seeds --error-shares 95 --taus",
}
"""Options of each data set."""
INTRODUCTION = """\
# Adaptive spiking neural networks: results

Nets of AANs, converted to adaptive spiking neurons and shown each sample for 500 steps of 1 ms; what the columns
mean is in [adsnn.md](adsnn.md). Narrow nets on data that need no download, SONAR apart; no figure here is one of MNIST,
CIFAR-10 or ImageNet, for which the paper has firing rates of 24 to 68 Hz, and of 10 to 22 Hz at low precision. One
command makes this page, and the figures beside it:

    python -m benchmarks.results.adsnn --out runs/adsnn {options}--markdown docs/adsnn-results.md
"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not finished, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results.adsnn", description=__doc__)
    parser.add_argument("--out", type=new_folder, required=True, help="folder of the runs")
    parser.add_argument("--runs", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--data-dir", type=Path, help="where SONAR is (default: SNN_EXT_DATA, or the user's cache)")
    parser.add_argument("--markdown", type=new_file, help="file for the page")
    args = parser.parse_args(argv)
    with own_folder(args.out, "adsnn_results"):
        for name, figure in neuron_figures():
            save(figure, args.out / f"{name}.png")
        _run(args)


def _run(args: argparse.Namespace) -> None:
    sections = []
    for name in args.runs:
        folder = args.data_dir or data_folder()
        if name == "sonar" and not any((folder / file).is_file() for file in ("sonar.all-data", "Sonar.rda")):
            sections.append("### SONAR\n\nLeft out: its file is not in the data folder.\n")
            continue
        where = ["--data-dir", str(args.data_dir)] if name == "sonar" and args.data_dir else []
        sections.append(adsnn.main(["--data", name, *RUNS[name].split(), *where, "--out", str(args.out / name)]))
        if args.markdown is not None:
            sections[-1] += "\n" + _figures(args.out / name, args.markdown, f"{name}-")
    if args.markdown is not None:
        options = "" if args.runs == list(RUNS) else f"--runs {' '.join(args.runs)} "
        options += "--data-dir FOLDER " if args.data_dir else ""
        page = [INTRODUCTION.format(options=options), _figures(args.out, args.markdown, "")]
        page += [section.replace("### ", "## ", 1) for section in sections]
        page.append(provenance("python -m recipes.adsnn --data NAME --out FOLDER", "0, 1, 2 (0 of the tables)"))
        with replacing(args.markdown) as temporary:
            temporary.write_text("\n".join(page), encoding="utf-8")


def _figures(folder: Path, page: Path, prefix: str) -> str:
    """Copy the figures of a run to the folder ``adsnn`` beside the page, and return the lines that show them."""
    lines = []
    for path in sorted(folder.glob("*.png")):
        name = f"{prefix}{path.stem.replace('_', '-')}.png"
        with replacing(page.parent / "adsnn" / name) as temporary:
            shutil.copyfile(path, temporary)
        lines.append(f"![{path.stem.replace('_', ' ')}](adsnn/{name})\n")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main, "the same command continues")
