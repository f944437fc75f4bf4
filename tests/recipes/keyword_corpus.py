"""A tiny corpus in the layout of Speech Commands: three words that are three chords, said by six voices."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

CHORDS = {"yes": (400.0, 900.0), "no": (700.0, 1600.0), "stop": (1200.0, 2500.0)}


def write_corpus(folder: Path, clips: int = 2) -> Path:
    """Write ``clips`` clips of each word and voice; four voices are for training, one each for validation and test."""
    rng = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word, chord in CHORDS.items():
        (folder / word).mkdir(parents=True, exist_ok=True)
        for voice in range(6):
            for n in range(clips):
                name = f"{word}/voice{voice}_nohash_{n}.wav"
                envelope = np.exp(-(((time - 0.5 + 0.05 * rng.standard_normal()) / 0.15) ** 2))
                sound = sum(np.sin(2 * np.pi * f * (1 + 0.02 * voice) * time) for f in chord)
                samples = 6_000 * envelope * sound + 20 * rng.standard_normal(16_000)
                with wave.open(str(folder / name), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(16_000)
                    file.writeframes(samples.astype("<i2").tobytes())
                if voice >= 4:
                    lists[[*lists][voice - 4]].append(name)
    for name, entries in lists.items():
        (folder / name).write_text("\n".join(entries) + "\n")
    return folder
