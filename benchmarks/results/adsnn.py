"""All AdSNN runs that a CPU can do, and their page of results: ``python -m benchmarks.results.adsnn --out runs/adsnn``.

Finished runs are kept, so the command can be interrupted and started again. SONAR is looked for in ``--data-dir``; the
page says so if it is not there.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from recipes.data.images import data_folder
from recipes.lib.aan_training import TABLES
from recipes.lib.cli import NewFile, NewFolder
from recipes.lib.command import command, run_main
from recipes.lib.files import replacing, save_figure, save_text
from recipes.lib.run_folder import own_folder

from . import adsnn_images, cross_validation
from .adsnn_figures import neuron_figures
from .pages import provenance

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


@dataclass(kw_only=True)
class Options:
    """Options."""

    out: Annotated[NewFolder, "folder of the runs"]
    runs: Annotated[list[str], RUNS] = field(default_factory=lambda: list(RUNS))
    data_dir: Annotated[Path | None, "where SONAR is (default: SNN_EXT_DATA, or the user's cache)"] = None
    markdown: Annotated[NewFile | None, "file for the page"] = None


@command
def main(options: Options) -> None:
    """Run what is not finished, and write the page."""
    with own_folder(options.out, "adsnn_results"):
        for name, figure in neuron_figures():
            save_figure(figure, options.out / f"{name}.png")
        _run(options)


def _run(options: Options) -> None:
    sections = []
    for name in options.runs:
        folder = options.data_dir or data_folder()
        if name == "sonar" and not any((folder / file).is_file() for file in ("sonar.all-data", "Sonar.rda")):
            sections.append("### SONAR\n\nLeft out: its file is not in the data folder.\n")
            continue
        where = ["--data-dir", str(options.data_dir)] if name == "sonar" and options.data_dir else []
        run = cross_validation.main if name in TABLES else adsnn_images.main
        sections.append(run(["--data", name, *RUNS[name].split(), *where, "--out", str(options.out / name)]))
        if options.markdown is not None:
            sections[-1] += "\n" + _figures(options.out / name, options.markdown, f"{name}-")
    if options.markdown is not None:
        given = "" if options.runs == list(RUNS) else f"--runs {' '.join(options.runs)} "
        given += "--data-dir FOLDER " if options.data_dir else ""
        page = [INTRODUCTION.format(options=given), _figures(options.out, options.markdown, "")]
        page += [section.replace("### ", "## ", 1) for section in sections]
        page.append(
            provenance(
                "python -m benchmarks.results.adsnn_images --data NAME --out FOLDER", "0, 1, 2 (0 of the tables)"
            )
        )
        save_text("\n".join(page), options.markdown)


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
