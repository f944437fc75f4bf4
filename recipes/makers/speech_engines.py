"""Three speech synthesisers of Debian, as people: speakers with a voice, an accent, a pace and a pitch."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

__all__ = ["ENGINES", "VOICES", "Speaker", "check_engines", "synthesize"]

PACKAGES = {
    "espeak": ("espeak-ng",),
    "flite": ("flite",),
    "festival": ("festival", "festvox-kallpc16k", "festvox-kdlpc16k", "festvox-us-slt-hts"),
}
"""Engines, and the Debian packages of each with its voices."""
ENGINES = tuple(PACKAGES)
COMMANDS = {"espeak": "espeak-ng", "flite": "flite", "festival": "festival"}

VOICES = {
    "train": {
        "espeak": tuple(
            "m1 m2 m4 m5 m7 f1 f3 f5 Alex Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Jacky Lee Mario Michael "
            "Nguyen adam antonio aunty benjamin boris caleb david ed edward edward2 gustave iven iven2 iven3 iven4 "
            "john klatt klatt2 klatt3 klatt4 linda marcelo max miguel norbert paul quincy rob robert sandro steph "
            "steph2 steph3 victor zac".split()
        ),
        "flite": ("awb", "kal16"),
        "festival": ("kal_diphone",),
    },
    "validation": {
        "espeak": tuple("m3 f2 Alicia belinda kaukovalta michel pedro shelby travis".split()),
        "flite": ("rms",),
    },
    "test": {
        "espeak": tuple("m6 f4 Marco anika m8 Hugo grandma Mike pablo grandpa".split()),
        "flite": ("slt",),
        "festival": ("ked_diphone", "cmu_us_slt_arctic_hts"),
    },
}
"""Voices by split and engine. No voice is in two splits, nor are two versions of one: ``iven`` and ``iven2``, or the
same person's recordings in two engines (``kal16`` and ``kal_diphone``, ``slt`` and ``cmu_us_slt_arctic_hts``)."""

ACCENTS = tuple("en-us en-gb en-gb-x-rp en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc".split())
PACES = (0.8, 1.0, 1.2)  # of festival, which speaks all words at once


@dataclass(frozen=True)
class Speaker:
    """A speaker: a voice of an engine, with its pace and pitch.

    Attributes
    ----------
    name : str
        ``ENGINE-VOICE.NUMBER``.
    split, engine, voice : str
        Of ``VOICES``.
    accent : int
        Which of espeak's Englishes; the other engines are American but for the Scot ``awb``.
    pace : float
        1 is the engine's own; above is faster.
    pitch : float
        In [0, 1]: from low to high, within what the engine has for a voice; festival has one.
    tract : float
        Length of the vocal tract against that of the voice, which is applied to the sound afterwards.
    """

    name: str
    split: str
    engine: str
    voice: str
    accent: int
    pace: float
    pitch: float
    tract: float


def check_engines(engines: Sequence[str]) -> dict[str, str]:
    """Return the version of each engine.

    Raises
    ------
    FileNotFoundError
        If one is not installed; the message is the command that installs it.
    """
    missing = [engine for engine in engines if shutil.which(COMMANDS[engine]) is None]
    if missing:
        packages = " ".join(package for engine in missing for package in PACKAGES[engine])
        raise FileNotFoundError(f"{', '.join(missing)}: not installed; on Debian: apt-get install {packages}")
    return {engine: _version(engine) for engine in engines}


def synthesize(speaker: Speaker, word: str, words: Sequence[str], pace: float, pitch: float) -> tuple[np.ndarray, int]:
    """Speak a word.

    Parameters
    ----------
    speaker : Speaker
        Who.
    word : str
        What.
    words : sequence of str
        All words that this voice will be asked for.
    pace, pitch : float
        Those of the speaker, give or take a little.

    Returns
    -------
    samples : ndarray
        ``[n]``, float32, in [-1, 1].
    rate : int
        Samples a second.
    """
    engines: dict[str, Callable[[], bytes]] = {
        "espeak": lambda: _espeak(f"{ACCENTS[speaker.accent]}+{speaker.voice}", word, pace, pitch),
        "flite": lambda: _flite(speaker.voice, word, pace, pitch),
        "festival": lambda: _festival(speaker.voice, word, tuple(words), pace),
    }
    samples, rate = soundfile.read(io.BytesIO(engines[speaker.engine]()), dtype="float32")
    if not np.abs(samples).max(initial=0.0) > 0.0:
        raise RuntimeError(f"{speaker.engine} gave no sound for {word!r} with the voice {speaker.voice}")
    return samples, rate


def _espeak(voice: str, word: str, pace: float, pitch: float) -> bytes:
    """A process for each word also gives each voice that breathes the same random numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        _run(
            ["espeak-ng", "-v", voice, "-s", f"{150 * pace:.0f}", "-p", f"{20 + 60 * pitch:.0f}", "-w", str(path), word]
        )
        return path.read_bytes()


def _flite(voice: str, word: str, pace: float, pitch: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        settings = [f"duration_stretch={1 / pace:.3f}", f"int_f0_target_mean={85 + 145 * pitch:.0f}"]
        options = [option for setting in settings for option in ("--setf", setting)]
        _run(["flite", "-voice", voice, *options, "-t", word, "-o", str(path)])
        return path.read_bytes()


_spoken: dict[tuple[str, float], dict[str, bytes]] = {}
_speaking = threading.Lock()


def _festival(voice: str, word: str, words: tuple[str, ...], pace: float) -> bytes:
    """Speak all words in one process, which takes half a second to start."""
    pace = min(PACES, key=lambda choice: abs(choice - pace))
    with _speaking:
        spoken = _spoken.setdefault((voice, pace), {})
        if word not in spoken:
            with tempfile.TemporaryDirectory() as folder:
                script = Path(folder) / "words.scm"
                lines = [f"(voice_{voice})", f"(Parameter.set 'Duration_Stretch {1 / pace:.3f})"]
                for each in words:
                    lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{each}")) "{folder}/{each}.wav" \'riff)')
                script.write_text("\n".join(lines) + "\n", encoding="utf-8")
                _run(["festival", "-b", str(script)])
                spoken.update({each: (Path(folder) / f"{each}.wav").read_bytes() for each in words})
        return spoken[word]


def _version(engine: str) -> str:
    told = _run([COMMANDS[engine], "--version"]).decode(errors="replace")
    found = re.search(r"\d+\.\d+(\.\d+)?", told)
    return found[0] if found else told.strip()


def _run(command: Sequence[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode and "--version" not in command:  # flite tells its version and fails
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout or done.stderr
