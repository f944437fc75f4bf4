"""Studies: how fast the package is, what came out of the recipes, and what the tests and files stand.

``python -m benchmarks`` lists them, ``python -m benchmarks NAME ...`` runs one, ``NAME --help`` shows its options.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from recipes.lib.command import run_main

STUDIES = {
    "operators": "speed.operators",
    "conversion-speed": "speed.conversion",
    "kernels": "speed.kernels",
    "memory": "speed.memory",
    "curves": "speed.curves",
    "front-end": "speed.front_end",
    "gpu": "speed.gpu",
    "step": "speed.step",
    "fused-norms": "speed.fused_norms",
    "pictures": "results.pictures",
    "quickstart": "results.quickstart",
    "quantizer": "results.quantizer",
    "images": "results.images",
    "conversion": "results.conversion",
    "normalisation": "results.normalisation",
    "methods": "results.methods",
    "calibrated": "results.calibrated",
    "cifar": "results.cifar",
    "ablation": "results.ablation",
    "precharge": "results.precharge",
    "autoencoder": "results.autoencoder",
    "adsnn": "results.adsnn",
    "adsnn-images": "results.adsnn_images",
    "cross-validation": "results.cross_validation",
    "any-cnn": "results.any_cnn",
    "real-weights": "results.real_weights",
    "keywords": "results.keywords",
    "listener": "results.listener",
    "reliability": "reliability.__main__",
    "mutation": "mutation",
    "host-suites": "host_suites",
}
"""Modules of this package, each of which also runs by ``python -m benchmarks.MODULE``."""


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run a study, or list all of them."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("study", nargs="?", choices=STUDIES, metavar="NAME", help="of the list; none: show the list")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the study")
    chosen = parser.parse_args(arguments)
    if chosen.study is None:
        print("\n".join(f"{name:<18}{about(module)}" for name, module in STUDIES.items()))
        return 0
    return import_module(f"benchmarks.{STUDIES[chosen.study]}").main(chosen.options)


def about(module: str) -> str:
    """Return the first sentence of a study's docstring, without importing it."""
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").split(": ``")[0].rstrip(".")


if __name__ == "__main__":
    run_main(main)
