"""The embedded corpus: 1,400 clips of synthetic speech (licences of the voices: see SYNTHETIC_SPEECH_LICENCES)."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import soundfile
import torch

from ..lib.command import uninterrupted
from .audio import SAMPLE_RATE
from .embedded import embedded_file
from .speech_commands import SPLITS, WORDS, Clips, Corpus

__all__ = ["SYNTHETIC_SAMPLE", "load_sample"]

SYNTHETIC_SAMPLE = "synthetic speech (packed sample)"
"""Name of the data in results: nobody has spoken these words."""

PATH = Path(__file__).with_name("synthetic_speech_sample.npz")
SHA256 = "297eed19716ed0b777916cba88619ff23261081e19897fbed8ac29ae6f770850"


@functools.lru_cache(maxsize=1)
def load_sample(path: Path = PATH) -> Corpus:
    """Load the embedded corpus: 40 speakers, who say each of the 35 words once; 28 train, 4 validate, 8 test.

    Parameters
    ----------
    path : Path
        Another place of the same file.

    Returns
    -------
    Corpus
        980 + 140 + 280 clips; no voice is in two splits. They were compressed (Opus, 23 kbit/s).

    Raises
    ------
    FileNotFoundError
        If the file is not there.
    ValueError
        If its checksum is not the expected one.
    """
    content = embedded_file(path, SHA256)
    parts = []
    with np.load(io.BytesIO(content)) as arrays:
        for split in SPLITS:
            with uninterrupted():  # libsndfile reads through callbacks
                samples, _ = soundfile.read(io.BytesIO(arrays[f"{split}_opus"].tobytes()), dtype="int16")
            labels = torch.from_numpy(arrays[f"{split}_labels"]).long()
            waveforms = torch.from_numpy(samples).view(len(labels), SAMPLE_RATE)
            parts.append(Clips(waveforms, labels, WORDS, tuple(arrays[f"{split}_speakers"].tolist())))
    return Corpus(SYNTHETIC_SAMPLE, *parts)
