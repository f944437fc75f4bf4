"""Every kind of file that is read: how one is made, and what is loaded from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .forking import forked, module
from .outcomes import contents
from .recipes import _PICTURES, _SPIKING

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes
    ----------
    file : str
        The one that is damaged, in the folder.
    make : callable
        Fills the working folder.
    load : callable
        Returns what is loaded from the working folder.
    checked : bool
        Whether a flipped bit can be told at all: a WAV file has no checksum, so that other samples are no fault.
    """

    file: str
    make: Callable[[], object]
    load: Callable[[], Any]
    checked: bool = True


def _run(name: str, *arguments: str) -> Callable[[], None]:
    def make() -> None:
        ended = forked(module(f"recipes.{name}", arguments), Path.cwd())
        if ended.status:
            raise RuntimeError(f"recipes.{name}: status {ended.status}: {ended.errors[-2000:]}")
        shutil.copy("run/settings.json", "settings-as-they-are.json")

    return make


_trained = _run("train_images", *_SPIKING, "--model", "resnet18", "--out", "run")


def _open_run() -> Any:
    from recipes.lib.run_folder import RunFolder

    return RunFolder(
        Path("run"), json.loads(Path("settings-as-they-are.json").read_text(encoding="utf-8")), resume=True
    )


def _log() -> str:
    _open_run().checkpoint()
    return Path("run/log.jsonl").read_text(encoding="utf-8")


def _load_net() -> Any:
    from recipes.train_images import load_net

    return load_net(Path("run/last.pt")).state_dict()


def _analog() -> Any:
    from recipes.lib.analog import trained
    from recipes.lib.cli import parse
    from recipes.precharge import Options

    options = ["--model", "net2", *_SPIKING[:10], "--epochs", "1", "--checkpoint", "run/last.pt", "--out", "other"]
    return trained(parse(Options, options), Path("other")).net.state_dict()


def _autoencoder() -> Any:
    from recipes import autoencoder
    from recipes.data.images import load_images
    from recipes.data.pictures import padded
    from recipes.lib.cli import parse
    from recipes.lib.reconstruction import train_autoencoder

    options = parse(autoencoder.Options, [*_PICTURES, "--out", "run"])
    images = padded(load_images("fashion-mnist-subset").first(32, 64), "train")
    return train_autoencoder(images, options, Path("run/autoencoder.pt")).state_dict()


def _make_autoencoder() -> None:
    Path("run").mkdir()
    forked(_autoencoder, Path.cwd())


def _copy_listener() -> None:
    from recipes.lib.spotter import CHECKPOINT

    shutil.copy(CHECKPOINT, "keywords.pt")


def _listener() -> Any:
    from recipes.lib.spotter import load_spotter

    spotter = load_spotter(Path("keywords.pt"))
    return spotter.state_dict(), spotter.words, spotter.settings


def _net() -> tuple[nn.Module, list[Any]]:
    from snn_ext.spikingjelly import PCMPIFNode

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), PCMPIFNode(), nn.Linear(12, 4))
    return net, [(torch.rand(4, 6), torch.randint(0, 4, (4,))) for _ in range(4)]


class _Stopped(Exception):
    """Stands for an interruption."""


def _evaluation() -> str:
    from snn_ext import evaluate

    net, loader = _net()
    return evaluate(net, loader, 8, resume="state.pt", progress=False).to_json()


def _interrupted_evaluation() -> None:
    from snn_ext import evaluate

    net, loader = _net()

    def stopping() -> Any:
        yield from loader[:2]
        raise _Stopped

    try:
        evaluate(net, stopping(), 8, resume="state.pt", progress=False)
    except _Stopped:
        pass


def _kept() -> Any:
    from recipes.lib.evaluations import Evaluations

    net, loader = _net()
    evaluation, notes = Evaluations(Path("kept")).get("a net", {"seed": 0}, lambda: net, loader, 8, progress=False)
    return evaluation.to_json(), notes


def _note() -> Any:
    from recipes.lib.evaluations import Evaluations

    return Evaluations(Path("kept")).note("a note", {"seed": 0}, lambda: {"threshold": 0.625, "shares": [1, 2, 3]})


def _features() -> Any:
    from recipes.data.features import features
    from recipes.data.mfcc import MFCC
    from recipes.data.speech_commands import Clips

    torch.manual_seed(0)
    clips = Clips(torch.randint(-9999, 9999, (4, 16000)).short(), torch.zeros(4, dtype=torch.long), ("a",), ("s",) * 4)
    found = features(clips, MFCC(48), Path("cache"))
    for path in Path("cache").glob("*.npz"):
        path.replace("cache/features.npz")
    return found


def _cached_features() -> Any:
    from recipes.data import features

    name = features._key

    def load() -> Any:
        Path("cache/features.npz").replace(f"cache/mfcc-{key}.npz")

    key = ""

    def remembered(*arguments: Any) -> str:
        nonlocal key
        key = name(*arguments)
        load()
        return key

    features._key = remembered  # type: ignore[assignment]
    return _features()


def _embedded(name: str) -> Callable[[], None]:
    def make() -> None:
        import recipes.data

        shutil.copy(Path(recipes.data.__file__).with_name(name), name)

    return make


def _images() -> Any:
    from recipes.data.embedded import fashion_mnist_subset

    return [part.tensors for part in fashion_mnist_subset(Path("fashion_mnist_subset.npz"))]


def _words() -> Any:
    from recipes.data.speech_sample import load_sample

    corpus = load_sample(Path("synthetic_speech_sample.npz"))
    return [(part.waveforms, part.labels, part.speakers) for part in (corpus.train, corpus.validation, corpus.test)]


def _sound() -> np.ndarray:
    rng, time = np.random.default_rng(0), np.arange(16_000) / 16_000
    return (8_000 * np.sin(2 * np.pi * 440 * time) + 200 * rng.standard_normal(16_000)).astype(np.int16)


def _make_sound(name: str) -> Callable[[], None]:
    def make() -> None:
        import soundfile

        Path(name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(name, _sound(), 16_000, "PCM_16")

    return make


def _recording(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from recipes.listen import recording

        return torch.cat(list(recording(Path(name))))

    return load


def _make_corpus() -> None:
    from tests.recipes.keyword_corpus import write_corpus

    write_corpus(Path("words"), 1)


def _corpus() -> Any:
    from recipes.data.speech_commands import load

    corpus = load("words")
    return [(part.waveforms, part.labels, part.words) for part in (corpus.train, corpus.validation, corpus.test)]


def _make_digits() -> None:
    _make_sound("0_ann_0.wav")()
    with zipfile.ZipFile("digits.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for digit in range(4):
            archive.write("0_ann_0.wav", f"recordings/{digit}_ann_0.wav")


def _digits() -> Any:
    from recipes.data.speech_commands import real_digits

    clips = real_digits(Path("digits.zip"))
    return clips.waveforms, clips.labels, clips.speakers


def _make_archive() -> None:
    _make_corpus()
    with tarfile.open("words.tar.gz", "w:gz") as archive:
        archive.add("words", ".")
    shutil.rmtree("words")
    Path("sha256").write_text(hashlib.sha256(Path("words.tar.gz").read_bytes()).hexdigest(), encoding="utf-8")


def _archive() -> Any:
    """Take an archive that is there already, as it is taken for Speech Commands; there is no network."""
    from recipes.data.download import download, unpack

    path = download("http://127.0.0.1:9/words.tar.gz", Path("words.tar.gz"), Path("sha256").read_text(encoding="utf-8"))
    unpack(path, Path("words"))
    return contents(Path("words"))


def _cell() -> Any:
    from benchmarks.results.images import Cell

    return Cell("data", "model", "row", 0, Path("cell"), ("--lr", "0.1")).result


def _make_cell() -> None:
    Path("cell").mkdir()
    Path("cell/result.json").write_text(
        json.dumps({"accuracy": 0.625, "data": "digits", "theta": 0.25}), encoding="utf-8"
    )
    Path("cell/command.json").write_text(json.dumps(["--lr", "0.1"]), encoding="utf-8")


def _library() -> int:
    from snn_ext.ops.machine.build import load_library

    os.environ["SNN_EXT_CACHE"] = str(Path("cache").absolute())
    answer = '__attribute__((visibility("default"))) int answer(void) { return 42; }'
    answered = load_library({"answer.c": answer}).answer()
    for path in Path("cache").glob("answer-*.so"):
        path.rename("cache/library.so")
    return answered


def _make_library() -> None:
    forked(_library, Path.cwd())


def _cached_library() -> int:
    """Load it under the name that the cache gives it."""
    from snn_ext.ops.machine import build

    key = build._key

    def named(*arguments: Any) -> str:
        found = key(*arguments)
        Path("cache/library.so").rename(f"cache/answer-{found}.so")
        return found

    build._key = named  # type: ignore[assignment]
    return _library()


def _save_net() -> None:
    import snn_ext

    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    snn_ext.save(snn_ext.convert(ann, torch.rand(8, 2, 6, 6), method="data-norm"), "net.pt", notes={"seed": 0})


def _saved_net() -> Any:
    import snn_ext

    net = snn_ext.load("net.pt")
    return net.state_dict(), str(net), net.code, net.notes


FORMATS: dict[str, Format] = {
    "snn_ext.save": Format("net.pt", _save_net, _saved_net),
    "run: last.pt": Format("run/last.pt", _trained, lambda: _open_run().checkpoint()),
    "run: settings.json": Format("run/settings.json", _trained, lambda: _open_run().settings),
    "run: result.json": Format("run/result.json", _trained, lambda: _open_run().result),
    "run: log.jsonl": Format("run/log.jsonl", _trained, _log),
    "checkpoint of a spiking net": Format("run/last.pt", _trained, _load_net),
    "checkpoint of an analog net": Format(
        "run/last.pt", _run("train_analog", "--model", "net2", *_SPIKING[:10], "--epochs", "1", "--out", "run"), _analog
    ),
    "autoencoder.pt": Format("run/autoencoder.pt", _make_autoencoder, _autoencoder),
    "checkpoint of the listener": Format("keywords.pt", _copy_listener, _listener),
    "evaluate(resume=)": Format("state.pt", _interrupted_evaluation, _evaluation),
    "kept evaluation": Format("kept/a-net.json", _kept, _kept),
    "kept value": Format("kept/a-note.json", _note, _note),
    "cell: result.json": Format("cell/result.json", _make_cell, _cell),
    "cell: command.json": Format("cell/command.json", _make_cell, _cell),
    "feature cache": Format("cache/features.npz", _features, _cached_features),
    "compiled library": Format("cache/library.so", _make_library, _cached_library),
    "embedded images": Format("fashion_mnist_subset.npz", _embedded("fashion_mnist_subset.npz"), _images),
    "embedded words": Format("synthetic_speech_sample.npz", _embedded("synthetic_speech_sample.npz"), _words),
    "archive of a corpus": Format("words.tar.gz", _make_archive, _archive),
    "zip of spoken digits": Format("digits.zip", _make_digits, _digits),
    "WAV": Format("a.wav", _make_sound("a.wav"), _recording("a.wav"), checked=False),
    "FLAC": Format("a.flac", _make_sound("a.flac"), _recording("a.flac")),
    "WAV in a corpus": Format("words/no/voice0_nohash_0.wav", _make_corpus, _corpus, checked=False),
}
"""By name; what is loaded from a whole file is what has to be loaded from a damaged one, if anything is."""
