"""All small conversion runs, and their page of results: ``python -m benchmarks.results.conversion --out runs/conversion``.

Every run keeps what is finished, so the command can be interrupted and started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from recipes import autoencoder, convert_images, precharge
from recipes.lib.command import command, run_main
from recipes.lib.conversions import OURS, RIVALS
from recipes.lib.files import replacing
from recipes.lib.options import SEED, new_file, new_folder

__all__ = ["RUNS", "main"]

Run = tuple[Callable[[Sequence[str]], str], str, list[str]]
VGG16, RESNET20 = (["--model", model, "--experiments"] for model in ("vgg16", "resnet20"))
QUICK = [name for name in OURS if "pre-charge 0.5" in name and "%" in name]
SEEDS = ["--poisson-seeds", "0"]
RUNS: dict[str, Run] = {
    "methods-vgg16": (convert_images.main, "vgg16", [*VGG16, "methods"]),
    "methods-resnet20": (
        convert_images.main,
        "resnet20",
        [*RESNET20, "methods", "--eval-images", "200", "--time-steps", "100", "--methods", *RIVALS, *QUICK],
    ),
    "normalisation-vgg16": (convert_images.main, "vgg16", [*VGG16, "normalisation", *SEEDS]),
    "normalisation-resnet20": (
        convert_images.main, "resnet20", [*RESNET20, "normalisation", "--poisson-steps", "500", *SEEDS],
    ),
    "constraints": (
        convert_images.main, "resnet20", [*RESNET20, "constraints", "--poisson-steps", "500", *SEEDS],
    ),
    "precharge-net1": (precharge.main, "precharge-net1", ["--model", "net1"]),
    "precharge-net2": (precharge.main, "precharge-net2", ["--model", "net2"]),
    "precharge-resnet20": (precharge.main, "precharge-resnet20", ["--model", "resnet20", "--eval-images", "100"]),
    "autoencoder": (autoencoder.main, "autoencoder", []),
}  # fmt: skip
"""What each run calls, its folder (two may share a trained net), and its options."""
INTRODUCTION = """\
# Conversion: results

Small, narrow nets on the data that the repository holds; no figure here is one of CIFAR-10 or ImageNet. Figures of the
papers stand beside ours where the data are theirs; here they are only named in the text. One command makes this page:

    python -m benchmarks.results.conversion --out runs/conversion {only}--markdown docs/conversion-results.md
"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not finished, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results.conversion", description=__doc__)
    parser.add_argument("--out", type=new_folder, required=True, help="folder of the runs")
    parser.add_argument("--runs", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--markdown", type=new_file, help="file for the page")
    args = parser.parse_args(argv)
    sections = []
    for name in args.runs:
        run, folder, options = RUNS[name]
        sections.append(run([*options, "--seed", str(args.seed), "--out", str(args.out / folder)]))
    if args.markdown is not None:
        only = "" if args.runs == list(RUNS) else f"--runs {' '.join(args.runs)} "
        page = [INTRODUCTION.format(only=only), *(section.replace("### ", "## ", 3) for section in sections)]
        with replacing(args.markdown) as temporary:
            temporary.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    run_main(main, "the same command continues")
