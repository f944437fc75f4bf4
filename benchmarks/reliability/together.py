"""Threads that work at once, and an hour of sound in random pieces: the result is that of one after the other."""

from __future__ import annotations

import copy
import json
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .forking import forked, shared
from .outcomes import Try, fingerprint

__all__ = ["sound", "threads"]

SAMPLE_RATE = 16_000


def threads(tries: int, seed: int, jobs: int, only: list[str] | None = None) -> list[Try]:
    """Do each of the works in eight threads at once, and compare with the same works one after the other."""
    works = {name: work for name, work in WORKS.items() if not only or name in only}
    names = list(works)

    def attempt(index: int) -> Try:
        name = names[index % len(names)]
        with tempfile.TemporaryDirectory(prefix="threads-") as place:
            ended = forked(lambda: _both_ways(works[name], f"{seed} {index}"), Path(place))
        if ended.status:
            return Try(name, "8 threads", "lost", ended.errors.strip().splitlines()[-1][:300])
        serial, parallel, left = ended.value
        if serial != parallel:
            other = [value for mine, value in zip(serial, parallel, strict=True) if mine != value]
            return Try(name, "8 threads", "wrong", f"{len(other)} of 8 differ, as {other[0]}")
        return Try(name, "8 threads", "unclear" if left else "survived", f"left over: {left}" if left else "")

    return shared(range(tries), attempt, jobs, "threads")


def _both_ways(work: Callable[[int, random.Random], Any], seed: str, count: int = 8) -> tuple[Any, Any, list[str]]:
    """Return what the works return one after the other and at once, and which temporary files they leave."""

    def one(index: int) -> str:
        try:
            return fingerprint(work(index, random.Random(f"{seed} {index}")))
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    Path("files").mkdir()
    serial = [one(index) for index in range(count)]
    for path in Path("files").iterdir():
        path.unlink()
    parallel: list[Any] = [None] * count
    torch.set_num_threads(1)  # renews torch's own pool, which in a fork is not safe to do by several threads
    barrier = threading.Barrier(count)

    def run(index: int) -> None:
        barrier.wait()
        parallel[index] = one(index)

    workers = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return serial, parallel, [path.name for path in Path("files").iterdir() if path.name.startswith(".")]


def _nets(rng: random.Random) -> tuple[nn.Module, list[Any]]:
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    ann = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 5)).eval()
    with torch.no_grad():
        for parameter in ann.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.4)
    x = torch.rand(8, 10, generator=generator)
    return ann, [(x, torch.arange(8) % 5)] * 3


def _convert(index: int, rng: random.Random) -> Any:
    from snn_ext import convert

    ann, loader = _nets(rng)
    options = rng.choice([{"method": "data-norm", "precharge": 0.5}, {"method": "spike-norm", "time_steps": 10}, {}])
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    snn = convert(ann, loader, **options)
    assert all(torch.equal(before[name], value) for name, value in ann.state_dict().items()), "the net was changed"
    return snn.state_dict(), json.loads(snn.report.to_json())


def _evaluate(index: int, rng: random.Random) -> Any:
    from snn_ext import convert, evaluate

    ann, loader = _nets(rng)
    snn = convert(ann, loader, method="data-norm", precharge=0.5)
    return evaluate(snn, loader, 20, ann=ann, resume=f"files/{index}.pt", progress=False).to_json()


def _write_one_file(index: int, rng: random.Random) -> Any:
    from recipes.lib.files import replacing

    text = "x" * 200_000
    for _ in range(20):
        with replacing(Path("files/one.json")) as temporary:
            temporary.write_text(text, encoding="utf-8")
        assert Path("files/one.json").read_text(encoding="utf-8") == text, "half a file"
    return text


def _keep_one_value(index: int, rng: random.Random) -> Any:
    from recipes.lib.evaluations import Evaluations

    return [Evaluations(Path("files")).note(f"note {i}", {"seed": 0}, lambda i=i: [i] * 1000) for i in range(10)]


def _cache(index: int, rng: random.Random) -> Any:
    from recipes.data.features import features
    from recipes.data.mfcc import MFCC
    from recipes.data.speech_commands import Clips

    waveforms = torch.arange(2 * SAMPLE_RATE).view(2, -1).short()
    return features(Clips(waveforms, torch.zeros(2, dtype=torch.long), ("a",), ("s",) * 2), MFCC(48), Path("files"))


def _listen(index: int, rng: random.Random) -> Any:
    from recipes.lib.listener import Listener
    from recipes.lib.spotter import CHECKPOINT, load_spotter

    listener = Listener(load_spotter(CHECKPOINT))
    found = listener.push(torch.from_numpy(_noise(rng, 2))) + listener.finish()
    return [(word.word, word.time, word.confidence) for word in found]


def _train_thresholds(index: int, rng: random.Random) -> Any:
    from snn_ext.spikingjelly import ATIFuNode

    node = ATIFuNode(0.5 + rng.random(), step_mode="m")
    x = torch.rand(6, 100, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)), requires_grad=True)
    node(x).sum().backward()
    return copy.deepcopy(x.grad), [parameter.grad for parameter in node.parameters()]


WORKS: dict[str, Callable[[int, random.Random], Any]] = {
    "convert": _convert,
    "evaluate(resume=)": _evaluate,
    "forward and backward": _train_thresholds,
    "write one file": _write_one_file,
    "keep one value": _keep_one_value,
    "share one feature cache": _cache,
    "load and listen": _listen,
}


def sound(tries: int, seed: int, jobs: int, only: list[str] | None = None) -> list[Try]:
    """Listen to so many minutes of words in noise in random pieces, and compare with one piece, minute by minute."""
    del only

    def attempt(part: int) -> Try:
        ended = forked(lambda: _in_pieces(tries / jobs, random.Random(f"{seed} {part}")), limit=36_000)
        if ended.status:
            return Try("listener", f"part {part}", "lost", ended.errors.strip().splitlines()[-1][:300])
        words, pieces, same = ended.value
        told = f"{words} words in {tries / jobs:g} minutes, {pieces} pieces"
        return Try("listener", f"part {part}: {told}", "survived" if same and words else "wrong", "" if same else told)

    return shared(range(jobs), attempt, jobs, "parts of the sound")


def _in_pieces(minutes: float, rng: random.Random) -> tuple[int, int, bool]:
    from recipes.data.speech_commands import load
    from recipes.lib.listener import Listener
    from recipes.lib.spotter import CHECKPOINT, load_spotter

    clips, spotter = load("sample").test.waveforms.numpy(), load_spotter(CHECKPOINT)
    samples = _noise(rng, round(60 * minutes))
    for start in range(0, len(samples) - SAMPLE_RATE, 3 * SAMPLE_RATE):
        at = start + rng.randrange(2 * SAMPLE_RATE)
        room = samples[at : at + SAMPLE_RATE]
        room[:] = np.clip(room.astype(np.int32) + clips[rng.randrange(len(clips))][: len(room)], -32768, 32767)
    whole, cut = Listener(spotter), Listener(spotter)
    stream = torch.from_numpy(samples)
    want = whole.push(stream) + whole.finish()
    got, pieces, place = [], 0, 0
    while place < len(stream):
        length = rng.choice((1, rng.randrange(1, 400), rng.randrange(1, 4000), rng.randrange(1, 100_000)))
        got += cut.push(stream[place : place + length])
        place, pieces = place + length, pieces + 1
    got += cut.finish()
    return len(want), pieces, got == want


def _noise(rng: random.Random, seconds: int) -> np.ndarray:
    draw = np.random.default_rng(rng.randrange(1 << 30))
    return (300 * draw.standard_normal(seconds * SAMPLE_RATE)).astype(np.int16)
