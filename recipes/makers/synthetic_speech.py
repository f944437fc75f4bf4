"""Make synthetic speech in the layout of Speech Commands: ``python -m recipes.makers.synthetic_speech --out DIR``.

Every speaker says each of the 35 words. A speaker is a voice of one of three speech synthesisers with an accent, a
pace, a pitch and a vocal tract of their own; a voice speaks in one split only, and the test split has voices of a kind
that training has never heard. The clips depend on --seed and the versions of the synthesisers alone. A run that was
interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
from tqdm import tqdm

from ..data.audio import SAMPLE_RATE, resample, to_int16
from ..data.speech_commands import A_CORPUS, ABOUT, NOISE, SPLITS, SYNTHETIC, WORDS
from ..lib.cli import Count, NewFolder, Seed
from ..lib.command import command, run_main
from ..lib.files import data_folder, read_json, replacing, save_text, write_json
from ..lib.ranges import Different, integer
from .speech_effects import background_noises, record, trim
from .speech_engines import ACCENTS, ENGINES, VOICES, Speaker, check_engines, synthesize

__all__ = ["make", "speakers"]

VERSION = 1  # of what is made from the same seed
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
PATTERN = {  # whose turn it is, over and over
    "train": "espeak espeak espeak flite espeak espeak espeak espeak festival espeak".split(),
    "validation": "espeak espeak flite espeak".split(),
    "test": "espeak festival espeak flite festival espeak".split(),
}


def make(
    out: Path, people: int = 200, takes: int = 1, seed: int = 0, engines: Sequence[str] = ENGINES,
    more: Sequence[str] = (),
) -> None:  # fmt: skip
    """Make a corpus, or what is missing of it.

    Parameters
    ----------
    out : Path
        Its folder.
    people : int
        Number of speakers: seven tenths train, a tenth validates, two tenths test.
    takes : int
        How often each says each word.
    seed : int
        Of all that is drawn.
    engines : sequence of str
        Synthesisers to use, of ``ENGINES``.
    more : sequence of str
        Words besides the 35, whose clips do not change: for a net that is to reject what it does not know.

    Raises
    ------
    FileNotFoundError
        If a synthesiser is not installed.
    ValueError
        If the folder holds a corpus that was made with other settings.
    """
    about = {
        "name": SYNTHETIC,
        "version": VERSION,
        "speakers": people,
        "takes": takes,
        "seed": seed,
        "engines": check_engines(engines),
        **({"more": [*more]} if more else {}),
    }
    path = out / ABOUT
    if path.is_file():
        before = read_json(path, *A_CORPUS)
        if other := [key for key in {**about, **before} if key != "complete" and before.get(key) != about.get(key)]:
            told = ", ".join(f"{key} {before.get(key)!r}" for key in other)
            raise ValueError(f"out: {out} holds a corpus made with {told}; want the same settings or another folder")
        if before.get("complete"):
            return
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out: {out} holds other files, want a new folder")
    folk = [speaker for split in SPLITS for speaker in speakers(split, round(SHARES[split] * people), seed, engines)]
    write_json(path, {**about, "complete": False})
    noises, words = _noises(out, folk, seed), (*WORDS, *more)
    clips = [(speaker, word, take) for speaker in folk for word in words for take in range(takes)]

    def one(clip: tuple[Speaker, str, int]) -> None:
        _make_clip(out, *clip, words, seed, noises)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for _ in tqdm(pool.map(one, clips), "clips", len(clips), disable=None):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    for split, name in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        listed = sorted(_name(*clip) for clip in clips if clip[0].split == split)
        save_text("".join(f"{line}\n" for line in listed), out / name)
    write_json(path, {**about, "complete": True})


def speakers(split: str, number: int, seed: int, engines: Sequence[str] = ENGINES) -> list[Speaker]:
    """Return the speakers of a split; more of them do not change the first ones."""
    turns = [engine for engine in PATTERN[split] if engine in engines]
    if not turns:
        raise ValueError(f"engines: got {', '.join(engines)}, want one that has voices for each split, as espeak has")
    made: list[Speaker] = []
    for i in range(number):
        engine = turns[i % len(turns)]
        turn = sum(speaker.engine == engine for speaker in made)
        voice = VOICES[split][engine][turn % len(VOICES[split][engine])]
        draw = _draw(seed, split, i)
        made.append(
            Speaker(
                f"{engine}-{voice}.{turn // len(VOICES[split][engine])}", split, engine, voice,
                accent=int(draw.integers(len(ACCENTS))), pace=float(draw.uniform(0.75, 1.25)),
                pitch=float(draw.uniform(0.1, 0.9)), tract=float(draw.uniform(0.87, 1.15)),
            )
        )  # fmt: skip
    return made


def _make_clip(
    out: Path, speaker: Speaker, word: str, take: int, words: Sequence[str], seed: int, noises: list[np.ndarray]
) -> None:
    path = out / _name(speaker, word, take)
    if path.is_file():
        return
    draw = _draw(seed, speaker.name, word, take)
    clip = record(_spoken(speaker, word, words, draw), noises, draw)
    _write_wav(path, clip)


def _spoken(speaker: Speaker, word: str, words: Sequence[str], draw: np.random.Generator) -> np.ndarray:
    pace = speaker.pace * draw.uniform(0.9, 1.1)
    pitch = float(np.clip(speaker.pitch + draw.uniform(-0.1, 0.1), 0.0, 1.0))
    samples, rate = synthesize(speaker, word, words, pace, pitch)
    return trim(resample(samples, rate, 1.0 / speaker.tract * draw.uniform(0.97, 1.03)))


def _noises(out: Path, folk: Sequence[Speaker], seed: int) -> list[np.ndarray]:
    """Return the background noises, which are made first; the babble is of speakers who train."""
    talkers = [speaker for speaker in folk if speaker.split == "train"]
    draw = _draw(seed, NOISE)
    babble = [_spoken(talkers[i % len(talkers)], str(draw.choice(WORDS)), WORDS, draw) for i in range(40)]
    noises = background_noises(babble, draw)
    for name, noise in noises.items():
        _write_wav(out / NOISE / f"{name}.wav", noise)
    return list(noises.values())


def _name(speaker: Speaker, word: str, take: int) -> str:
    return f"{word}/{speaker.name}_nohash_{take}.wav"


def _draw(*key: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little"))


def _write_wav(path: Path, samples: np.ndarray) -> None:
    content = io.BytesIO()
    soundfile.write(content, to_int16(samples), SAMPLE_RATE, "PCM_16", format="WAV")
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _other_word(text: str) -> str:
    if not re.fullmatch("[a-z]+", text) or text in WORDS:
        raise argparse.ArgumentTypeError(f"got {text}, want small letters, and none of the 35 words")
    return text


@dataclass(kw_only=True)
class Options:
    """Options."""

    out: Annotated[NewFolder | None, "default: synthetic-speech in SNN_EXT_DATA or the cache"] = None
    speakers: Annotated[int, integer(10), "7/10 train, 1/10 validates, 2/10 test"] = 200
    takes: Annotated[Count, "clips of each word by each speaker"] = 1
    seed: Annotated[Seed, "of voices and noise"] = 0
    engines: Annotated[list[str], ENGINES, "programs that speak"] = field(default_factory=lambda: list(ENGINES))
    more: Annotated[list[str], _other_word, Different, "words besides the 35"] = field(default_factory=list)


@command
def main(options: Options) -> None:
    """Make the corpus."""
    out = options.out or data_folder() / "synthetic-speech"
    make(out, options.speakers, options.takes, options.seed, options.engines, options.more)
    words = len(WORDS) + len(options.more)
    print(f"{out}: {options.speakers * options.takes * words:,} clips of {SYNTHETIC}")


if __name__ == "__main__":
    run_main(main, "the same command continues")
