"""Pack the embedded sample of synthetic speech: ``python -m recipes.makers.speech_sample --source DIR``.

DIR is what ``python -m recipes.makers.synthetic_speech --speakers 40 --out DIR`` has made.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile

from ..data.audio import SAMPLE_RATE
from ..data.speech_commands import SPLITS, SYNTHETIC, load
from ..data.speech_sample import PATH
from ..lib.cli import NewFile
from ..lib.command import command, run_main, uninterrupted
from ..lib.files import write_arrays

__all__ = ["pack"]

COMPRESSION = 0.92  # 23 kbit/s: 2.8 kB a clip, where FLAC needs 14 kB, and Vorbis 5 kB with twice the error in the MFCC


def pack(source: Path, target: Path) -> str:
    """Write a synthetic corpus as one file and return its sha256.

    Parameters
    ----------
    source : Path
        Folder of the corpus.
    target : Path
        The file to write.

    Raises
    ------
    ValueError
        If the folder is not a whole corpus of synthetic speech.
    """
    corpus = load(str(source))
    if corpus.name != SYNTHETIC:
        raise ValueError(f"source: got {corpus.name}, want {SYNTHETIC}: other voices may not be redistributable")
    arrays = {}
    for split in SPLITS:
        clips = getattr(corpus, split)
        stream, samples = io.BytesIO(), clips.waveforms.flatten().numpy()
        with uninterrupted():  # libsndfile writes through callbacks
            soundfile.write(stream, samples, SAMPLE_RATE, "OPUS", format="OGG", compression_level=COMPRESSION)
        arrays[f"{split}_opus"] = np.frombuffer(stream.getvalue(), np.uint8)
        arrays[f"{split}_labels"] = clips.labels.numpy().astype(np.uint8)
        arrays[f"{split}_speakers"] = np.array(clips.speakers)
    write_arrays(target, arrays)
    return hashlib.sha256(target.read_bytes()).hexdigest()


@dataclass(kw_only=True)
class Options:
    """Options."""

    source: Annotated[Path, "folder of a corpus of synthetic speech"]
    target: Annotated[NewFile, "file to write (default: the embedded one)"] = PATH


@command
def main(options: Options) -> None:
    """Write the file, and print its checksum."""
    digest = pack(options.source, options.target)
    print(f"{options.target}: {options.target.stat().st_size:,} bytes, sha256 {digest}")


if __name__ == "__main__":
    run_main(main)
