"""The recipes, and calls of the package that keep something, with settings so small that a run takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .forking import module
from .outcomes import contents

__all__ = ["Run", "inputs", "preload", "runs"]

_NET = ["--train-images", "32", "--test-images", "12", "--batch-size", "16", "--width", "0.0625", "--device", "cpu"]
_ANALOG = [*_NET, "--epochs", "2"]
_SPIKING = [*_NET, "--epochs", "2", "--time-steps", "2", "--neuron", "atif-u"]
_SHORT = ["--model", "vgg16", *_ANALOG, "--eval-images", "6", "--time-steps", "8", "--calibration-images", "8"]
_POISSON = ["--poisson-images", "6", "--poisson-steps", "6", "--norm-steps", "6", "--poisson-seeds", "0"]
_PRECHARGE = [
    "--model", "net2", *_ANALOG, "--eval-images", "6", "--time-steps", "101", "--max-delay", "20", "--delay-step",
    "10", "--search-images", "4", "--search-steps", "8", "--calibration-images", "16",
]  # fmt: skip
_ADSNN = [
    "--data", "digits", "--layout", "4c3-m2-d8", "--device", "cpu", "--epochs", "2", "--batch-size", "16",
    "--time-steps", "120", "--m-f", "0.1", "0.3", "--relu-m-f", "0.3", "--error-shares", "95", "--taus", "20",
    "--calibration-images", "8", "--train-images", "48", "--test-images", "12", "--eval-images", "12",
    "--arousal-images", "12",
]  # fmt: skip
_PICTURES = [
    "--train-images", "32", "--test-images", "64", "--batch-size", "16", "--width", "0.0625", "--epochs", "2",
    "--search-images", "4", "--search-steps", "8", "--eval-tiles", "2", "--time-steps", "101", "--device", "cpu",
]  # fmt: skip
_QUICK = [
    "--train-images", "64", "--test-images", "16", "--epochs", "1", "--fine-tune-epochs", "1", "--time-steps", "2",
    "--conversion-images", "16", "--conversion-steps", "16",
]  # fmt: skip
_WORDS = ["--width", "0.0625", "--time-steps", "2", "--batch-size", "8", "--epochs", "2", "--device", "cpu"]


@dataclass(frozen=True)
class Run:
    """Something that is run in a folder, killed, and run again.

    Attributes
    ----------
    work : callable
        The first call.
    again : callable
        The call that continues it.
    command : bool
        Whether it is a command, which says in a sentence that it was interrupted.
    ends : bool
        Whether an interrupt is the usual way to end it, with status 0.
    passing : tuple of str
        Files that hold times, so that two runs do not have them in common.
    """

    work: Callable[[], Any]
    again: Callable[[], Any]
    command: bool = True
    ends: bool = False
    passing: tuple[str, ...] = ()

    def contents(self, folder: Path) -> dict[str, str]:
        """Return fingerprints of what it has written."""
        return {name: value for name, value in contents(folder).items() if name not in self.passing}


def _command(name: str, *arguments: str, resume: bool = False, **options: Any) -> Run:
    name = name if "." in name else f"recipes.{name}"
    plain = module(name, arguments)
    return Run(plain, module(name, [*arguments, "--resume"]) if resume else plain, **options)


def _call(work: Callable[[], Any]) -> Run:
    return Run(work, work, command=False)


def _evaluate() -> str:
    """Evaluate a net, with the sums kept after each batch."""
    from snn_ext import evaluate
    from snn_ext.spikingjelly import PCMPIFNode

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 200), PCMPIFNode(), nn.Linear(200, 10))
    loader = [(torch.rand(32, 40), torch.randint(0, 10, (32,))) for _ in range(40)]
    return evaluate(net, loader, 100, resume="state.pt", progress=False).to_json("evaluation.json")


def _kept_evaluations() -> list[str]:
    """Evaluate converted nets whose evaluations are kept, as the recipes do it."""
    from recipes.convert import METHODS
    from recipes.lib.evaluations import Evaluations
    from snn_ext import convert

    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 5)).eval()
    loader = [(torch.rand(16, 20), torch.randint(0, 5, (16,))) for _ in range(10)]
    kept = Evaluations(Path("evaluations"))
    return [
        kept.get(name, method, lambda m=method: convert(ann, loader, **m), loader, 40, progress=False)[0].to_json()
        for name, method in list(METHODS.items())[:3]
    ]


def _build() -> int:
    """Compile a library into an empty cache."""
    from snn_ext.ops.machine.build import load_library

    os.environ["SNN_EXT_CACHE"] = str(Path("cache").absolute())
    answer = '__attribute__((visibility("default"))) int answer(void) { return 42; }'
    return load_library({"answer.c": answer + "\n" * 20_000}).answer()


def _unpack() -> None:
    """Unpack an archive of many files, if that is not done."""
    from recipes.data.download import unpack

    if not Path("words").is_dir():
        unpack(SHARED / "words.tar.gz", Path("words"))


SHARED = Path("/nowhere")  # where the inputs are that all tries read; set by `inputs`


@contextmanager
def inputs(folder: Path) -> Iterator[None]:
    """Write the inputs of the runs, a small corpus and an archive of it, into a folder that stays until the end."""
    import tarfile

    from tests.recipes.keyword_corpus import write_corpus

    global SHARED
    SHARED = folder.absolute()
    SHARED.mkdir(parents=True, exist_ok=True)
    with tarfile.open(SHARED / "words.tar.gz", "w:gz") as archive:
        archive.add(write_corpus(SHARED / "words"), "words")
    kept = dict(os.environ)
    os.environ |= {"SNN_EXT_DATA": "data", "MPLBACKEND": "Agg", "MPLCONFIGDIR": str(SHARED / "matplotlib")}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def runs() -> dict[str, Run]:
    """Return what is killed, by name."""
    words = ["--data", str(SHARED / "words")]
    recording = SHARED / "words" / "yes" / "voice0_nohash_0.wav"
    cells = ["--rows", "ReLU", "ATIF-u", "--models", "vgg16", *_NET, "--epochs", "1", "--time-steps", "2"]
    return {
        "train_images": _command("train_images", *_SPIKING, "--model", "resnet18", "--out", "run", resume=True),
        "train_images_snntorch": _command("train_images", *_SPIKING, "--host", "snntorch", "--out", "run", resume=True),
        "train_analog": _command("train_analog", "--model", "net2", *_ANALOG, "--out", "run", resume=True),
        "convert": _command("convert", *_SHORT, "--methods", "data-norm 99.9 %, pre-charge 0.5", "--out", "run"),
        "normalisation": _command("benchmarks.results.normalisation", *_SHORT, *_POISSON, "--out", "run"),
        "precharge": _command("precharge", *_PRECHARGE, "--out", "run"),
        "adsnn": _command("benchmarks.results.adsnn_images", *_ADSNN, "--out", "run"),
        "autoencoder": _command("autoencoder", *_PICTURES, "--out", "run"),
        "spot_keywords": _command("spot_keywords", *_WORDS, *words, "--neuron", "atif-u", "--out", "run", resume=True),
        "fit_quantizer": _command("fit_quantizer", "--iterations", "4", "--out", "run"),
        "quickstart": _command("quickstart", *_QUICK, "--out", "run"),
        "table_images": _command("benchmarks.results.images", *cells, "--out", "run"),
        "table_keywords": _command(
            "benchmarks.results.keywords", *_WORDS, *words, "--rows", "ReLU", "ATIF-u", "--recurrent", "0", "--out",
            "run", passing=("run/table.md",),
        ),
        "listen": _command("listen", str(recording), str(recording), ends=True),
        "evaluate": _call(_evaluate),
        "kept evaluations": _call(_kept_evaluations),
        "compile": _call(_build),
        "unpack": _call(_unpack),
    }  # fmt: skip


def preload() -> None:
    """Import what the runs import, once and for all tries; nothing of it may start a thread."""
    import matplotlib

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    import matplotlib.pyplot  # noqa: F401
    import scipy.signal  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import snntorch  # noqa: F401
    from torch.distributed import fsdp  # noqa: F401
    from torch.utils import tensorboard  # noqa: F401

    import snn_ext
    from snn_ext import convert, evaluate, ops  # noqa: F401

    for operator in ("integrate_and_fire", "adaptive_spiking", "asn_transfer"):
        snn_ext.ops.implementation(operator, "cpu")  # compiles and tests it
