"""All small conversion runs, and their page of results.

``python -m benchmarks.results.conversion --out runs/conversion`` keeps finished runs, so it can be interrupted and
started again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from recipes.convert import METHODS
from recipes.lib.cli import NewFile, NewFolder, Seed
from recipes.lib.command import command, run_main
from recipes.lib.files import save_text

from . import autoencoder, methods, normalisation, precharge
from .rivals import RIVALS

Run = tuple[Callable[[Sequence[str]], str], str, list[str]]
VGG16, RESNET20 = (["--model", model] for model in ("vgg16", "resnet20"))
QUICK = [name for name in METHODS if "pre-charge 0.5" in name and "%" in name]
POISSON = ["--poisson-seeds", "0"]
SHORT = [*RESNET20, "--poisson-steps", "500", *POISSON]
RUNS: dict[str, Run] = {
    "methods-vgg16": (methods.main, "vgg16", VGG16),
    "methods-resnet20": (
        methods.main, "resnet20",
        [*RESNET20, "--eval-images", "200", "--time-steps", "100", "--methods", *RIVALS, *QUICK],
    ),
    "normalisation-vgg16": (normalisation.main, "vgg16", [*VGG16, *POISSON]),
    "normalisation-resnet20": (normalisation.main, "resnet20", SHORT),
    "constraints": (
        normalisation.main, "resnet20", [*RESNET20, "--poisson-images", "300", *POISSON, "--experiment", "constraints"],
    ),
    "precharge-net1": (precharge.main, "precharge-net1", ["--model", "net1"]),
    "precharge-net2": (precharge.main, "precharge-net2", ["--model", "net2"]),
    "precharge-resnet20": (precharge.main, "precharge-resnet20", ["--model", "resnet20", "--eval-images", "100"]),
    "autoencoder": (autoencoder.main, "autoencoder", []),
}  # fmt: skip
"""The command of each run, its folder (two may share a trained net), and its options."""
INTRODUCTION = """\
# Conversion: results

Small, narrow nets on the data that the repository holds; no figure here is one of CIFAR-10 or ImageNet. Figures of the
papers stand beside ours where the data are theirs; here they are only named in the text. One command makes this page:

    python -m benchmarks.results.conversion --out runs/conversion {only}--markdown docs/conversion-results.md
"""


@dataclass(kw_only=True)
class Options:
    """Options."""

    out: Annotated[NewFolder, "folder of the runs"]
    runs: Annotated[list[str], RUNS] = field(default_factory=lambda: list(RUNS))
    seed: Seed = 0
    markdown: Annotated[NewFile | None, "file for the page"] = None


@command
def main(options: Options) -> None:
    """Run what is not finished, and write the page."""
    sections = []
    for name in options.runs:
        run, folder, own = RUNS[name]
        sections.append(run([*own, "--seed", str(options.seed), "--out", str(options.out / folder)]))
    if options.markdown is not None:
        only = "" if options.runs == list(RUNS) else f"--runs {' '.join(options.runs)} "
        page = [INTRODUCTION.format(only=only), *(section.replace("### ", "## ", 3) for section in sections)]
        save_text("\n".join(page), options.markdown)


if __name__ == "__main__":
    run_main(main, "the same command continues")
