"""False alarms, hits and speed of a listener, and the words that it does not know.

``python -m benchmarks.results.listener --checkpoint runs/words/best.pt --data synthetic --out runs/listener``

False alarms: an hour of silence, noises, hum, clicks, tones and engines, of which four kinds are not among those that
nets are trained on. Hits: the test clips one after another, with pauses in noise between them; a word counts if it is
found once while its clip lasts. Unknown words: test clips of words that the net was not trained on, neither as words
nor as unknown ones (``--unheard`` of the training, or here), in such a stream; each word found is a false alarm. All at
the default threshold, at others, and at two operating points: the lowest thresholds that keep false alarms in unknown
words of the validation voices to so many an hour. The windows of a stream go through the
net in batches, which rounds otherwise than the listener's one at a time; its speed is that of the listener itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
from torch import Tensor
from tqdm import tqdm

from recipes.data.augment import pink_noise
from recipes.data.background import LISTENED, background
from recipes.data.features import to_float
from recipes.data.speech_commands import SAMPLE_RATE, Clips, Corpus, load
from recipes.lib.cli import Argument, NewFolder, OldFile, Positive, Seed
from recipes.lib.command import command, run_main
from recipes.lib.files import write_json
from recipes.lib.listener import HOP, MARGIN, SMOOTHING, THRESHOLD, WINDOW, Detection, Listener, WordDecision
from recipes.lib.ranges import Different, integer
from recipes.lib.run_folder import own_folder
from recipes.lib.spotter import CHECKPOINT, Spotter, load_spotter

from .pages import command_line, environment

__all__ = ["decide", "false_alarms", "hits", "listen", "main", "measure", "posteriors", "speech_stream"]

PIECE = 10  # seconds of a kind of noise
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RATES = (100, 20)
"""False alarms an hour of the operating points, in a stream of unknown words."""
STEPS = [*(i / 100 for i in range(30, 100)), 0.995, 0.998, 0.999]
"""Thresholds among which they are looked for."""

Posteriors = list[tuple[float, Tensor]]


@dataclass(kw_only=True)
class Options:
    """Options."""

    checkpoint: Annotated[OldFile, "of recipes.spot_keywords"] = CHECKPOINT
    data: Annotated[str, "corpus whose test clips are the words"] = "sample"
    data_dir: Path | None = None
    unheard: Annotated[
        list[str] | None, Argument(nargs="*"), Different, "unknown words (default: --unheard of the training)"
    ] = None  # fmt: skip
    hours: Annotated[Positive, "of noise"] = 1.0
    seed: Seed = 0
    threads: Annotated[int, integer(1, 1024), "cores that the listener may use"] = 1
    out: Annotated[NewFolder, "folder for listener.json"]


def listen(
    checkpoint: Path, corpus: Corpus, hours: float = 1.0, seed: int = 0, unheard: list[str] | None = None
) -> dict[str, Any]:
    """Return what :func:`measure` does of the net of a checkpoint, with the name of net and data."""
    spotter = load_spotter(checkpoint)
    unknown = _unknown(spotter, corpus, unheard)
    measured = measure(spotter, corpus.test.only(spotter.words), hours, seed, unknown)
    return {**measured, "net": _name(spotter, checkpoint), "data": corpus.name}


def measure(
    spotter: Spotter, clips: Clips, hours: float = 1.0, seed: int = 0, unknown: tuple[Clips, Clips] | None = None
) -> dict[str, Any]:
    """Return false alarms, hits and speed, at every threshold; JSON values.

    Parameters
    ----------
    spotter : Spotter
        The net.
    clips : Clips
        Words that it was not trained on.
    hours : float
        Length of the noise, over all its kinds.
    seed : int
        Of noise, order of the clips and pauses.
    unknown : tuple of Clips, optional
        Clips of words that it does not know, of validation and test voices.
    """
    noise = {kind: posteriors(spotter, _noise(kind, hours / len(LISTENED), seed)) for kind in LISTENED}
    stream, said = speech_stream(clips, seed)
    heard = posteriors(spotter, stream)
    strangers, about = [], {}
    thresholds = {f"{threshold:g}": threshold for threshold in sorted({*THRESHOLDS, THRESHOLD})}
    if unknown is not None:
        trial, others = (speech_stream(part, seed)[0] for part in unknown)
        points = operating_points(spotter, trial)
        strangers = posteriors(spotter, others)
        thresholds |= {f"{threshold:g}": threshold for threshold in points.values()}
        about = {
            "operating_points": points, "unknown_words": [*unknown[1].words], "unknown_said": len(unknown[1]),
            "unknown_hours": len(others) / SAMPLE_RATE / 3600,
        }  # fmt: skip
    return {
        "hours": hours, "seed": seed, "smoothing": SMOOTHING, "threshold": THRESHOLD,
        "times_real_time": _speed(spotter, stream[: 30 * SAMPLE_RATE]), "words_said": len(said),
        "stream_seconds": len(stream) / SAMPLE_RATE, **about,
        "at": {
            name: {
                "false_alarms": {kind: len(decide(spotter, found, threshold)) for kind, found in noise.items()},
                **hits(decide(spotter, heard, threshold), said),
                "unknown": len(decide(spotter, strangers, threshold)),
            }
            for name, threshold in sorted(thresholds.items(), key=lambda item: item[1])
        },
    }  # fmt: skip


def operating_points(spotter: Spotter, stream: Tensor) -> dict[str, float]:
    """Return for each rate the lowest threshold at which a stream of unknown words has no more false alarms an hour."""
    found, hours = posteriors(spotter, stream), len(stream) / SAMPLE_RATE / 3600
    alarms = {threshold: len(decide(spotter, found, threshold)) for threshold in STEPS}
    return {str(rate): next((t for t in STEPS if alarms[t] <= rate * hours), 1.0) for rate in RATES}


def false_alarms(measured: dict[str, Any], threshold: float = THRESHOLD) -> int:
    """Return the number of words found in the noise of a measurement."""
    return sum(measured["at"][f"{threshold:g}"]["false_alarms"].values())


def posteriors(spotter: Spotter, stream: Tensor) -> Posteriors:
    """Return middle and posterior of every window of a stream, those that a listener sees."""
    windows = torch.cat([torch.zeros(MARGIN), stream, torch.zeros(MARGIN)]).unfold(0, WINDOW, HOP)
    found = torch.cat([spotter(batch.contiguous()) for batch in tqdm(windows.split(100), leave=False, disable=None)])
    return [(i * HOP / SAMPLE_RATE, posterior) for i, posterior in enumerate(found.softmax(1))]


def decide(spotter: Spotter, found: Posteriors, threshold: float = THRESHOLD) -> list[Detection]:
    """Return the words that a listener of a threshold finds in the posteriors of a stream."""
    decision = WordDecision(spotter.words, threshold)
    words = [decision.push(middle, posterior) for middle, posterior in found]
    return [word for word in (*words, decision.end()) if word is not None]


def hits(found: Sequence[Detection], said: Sequence[tuple[str, float]]) -> dict[str, int]:
    """Count the words that were found once where they were said, and everything else that was found.

    Parameters
    ----------
    found : sequence of Detection
        In the order of time.
    said : sequence of (str, float)
        Words and the beginnings of their clips, which last a second.
    """
    hit = wrong = elsewhere = 0
    taken: set[int] = set()
    for detection in found:
        clip = next((i for i, (_, start) in enumerate(said) if start <= detection.time < start + 1.0), None)
        if clip is None:
            elsewhere += 1
        elif said[clip][0] == detection.word and clip not in taken:
            hit += 1
            taken.add(clip)
        else:
            wrong += 1
    return {"hits": hit, "wrong": wrong, "between": elsewhere}


def speech_stream(clips: Clips, seed: int = 0) -> tuple[Tensor, list[tuple[str, float]]]:
    """Put clips one after another with pauses of 0.5 to 1.5 s, in pink noise 60 dB below full scale.

    Returns
    -------
    stream : Tensor
        ``[samples]`` in [-1, 1].
    said : list of (str, float)
        The words, and the beginnings of their clips in seconds.
    """
    generator = torch.Generator().manual_seed(seed)
    parts, said, length = [], [], 0
    for i in torch.randperm(len(clips.labels), generator=generator).tolist():
        pause = int(SAMPLE_RATE * (0.5 + float(torch.rand(1, generator=generator))))
        clip = to_float(clips.waveforms[i])
        parts += [torch.zeros(pause), clip]
        said.append((clips.words[int(clips.labels[i])], (length + pause) / SAMPLE_RATE))
        length += pause + len(clip)
    stream = torch.cat(parts)
    noise = torch.cat(
        [pink_noise(1, SAMPLE_RATE * PIECE, generator)[0] for _ in range(length // (SAMPLE_RATE * PIECE) + 1)]
    )
    return (stream + 1e-3 * noise[:length] / noise.std()).clamp(-1.0, 1.0), said


def _speed(spotter: Spotter, stream: Tensor) -> float:
    """Return seconds of sound for a second of processor time, the median over pieces of a second.

    Processor time, of all threads, is what does not depend on what else the machine is doing.
    """
    listener, seconds = Listener(spotter), []
    for piece in stream.split(SAMPLE_RATE):
        began = time.process_time()
        listener.push(piece)
        seconds.append(time.process_time() - began)
    return 1.0 / median(seconds[1:] or seconds)


def _noise(kind: str, hours: float, seed: int) -> Tensor:
    pieces = max(1, round(3600 * hours / PIECE))
    generator = torch.Generator().manual_seed(1_000 * (seed + 1) + LISTENED.index(kind))
    return background(pieces, PIECE * SAMPLE_RATE, generator, (kind,)).flatten()


def _name(spotter: Spotter, checkpoint: Path) -> str:
    s = spotter.settings
    which = ", which comes along," if checkpoint == CHECKPOINT else ""
    charge = "" if s["v_init"] is None else f" with V(0) = {s['v_init']:g} thresholds"
    return f"The net{which} {s['model']} of {s['neuron']} neurons{charge}, T = {s['time_steps']}, seed {s['seed']}"


def _unknown(spotter: Spotter, corpus: Corpus, words: list[str] | None) -> tuple[Clips, Clips] | None:
    """Return clips of validation and test voices of words that the net was not trained on; ``None`` without any."""
    if words is None:
        words = [word for word in spotter.settings.get("unheard") or () if word in corpus.classes]
    for word in words:
        if word not in corpus.classes or word in spotter.words:
            raise ValueError(f"--unheard: got {word}, want words of {corpus.name} that the net does not know")
    return (corpus.validation.only(words), corpus.test.only(words)) if words else None


@command
def main(options: Options) -> dict[str, Any]:
    """Measure, print a summary, and write ``listener.json``."""
    torch.set_num_threads(options.threads)
    with own_folder(options.out, "measure_listener"):
        corpus = load(options.data, options.data_dir)
        measured = listen(options.checkpoint, corpus, options.hours, options.seed, options.unheard)
        told = replace(options, data=Path(options.data).name)  # no path of this machine
        measured |= {"threads": options.threads, **environment(), "command": command_line(told)}
        write_json(options.out / "listener.json", measured)
    for rate, threshold in measured.get("operating_points", {}).items():
        at = measured["at"][f"{threshold:g}"]
        print(
            f"threshold {threshold:g}, for {rate} false alarms an hour of unknown words: "
            f"{at['unknown'] / measured['unknown_hours']:.1f} an hour, {at['hits'] / measured['words_said']:.1%} found"
        )
    best = measured["at"][f"{THRESHOLD:g}"]
    print(
        f"threshold {THRESHOLD:g}: {false_alarms(measured)} words in {options.hours:g} h of noise; of "
        f"{measured['words_said']} words {best['hits']} found, {best['wrong']} mistaken, {best['between']} between; "
        f"{measured['times_real_time']:.0f} seconds of sound in a second of processor time"
    )
    return measured


if __name__ == "__main__":
    run_main(main)
