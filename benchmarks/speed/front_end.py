"""MFCC of one-second clips, against librosa and torchaudio where they are there.

All contenders compute the same features (see tests/recipes/data/test_mfcc.py), in one process, in turns. librosa is not
a requirement of anything here: ``pip install librosa``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import scipy.fft
import torch
from tabulate import tabulate

from recipes.data.mfcc import BANDS, COEFFICIENTS, FFT, HIGH, HOP, LOG_OFFSET, LOW, MFCC, PADDING, SAMPLE_RATE, WINDOW
from recipes.lib.cli import Count, NewFile
from recipes.lib.command import command, run_main
from recipes.lib.files import save_text
from recipes.lib.ranges import integer

from .measuring import measure, ratio

OURS = "MFCC, in a batch"
OWN_TOLERANCE = 1e-3


@dataclass(kw_only=True)
class Options:
    """Options."""

    clips: Count = 128
    rounds: Count = 15
    threads: Annotated[int, integer(1, 1024), "of torch; librosa uses one"] = 1
    out: Annotated[NewFile | None, "write the times as JSON"] = None


@command
def main(options: Options) -> None:
    """Print the table."""
    torch.set_num_threads(options.threads)

    clips = 0.1 * torch.randn(options.clips, SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    calls = contenders(clips)
    wanted = calls[OURS]()
    for name, call in calls.items():
        if not np.allclose(np.asarray(call()), wanted, atol=OWN_TOLERANCE):
            raise SystemExit(f"{name} gives other features: nothing is measured")
    times = measure(calls, options.rounds)
    rows = [
        (name, 1e3 * timing.median / options.clips, str(ratio(timing, times[OURS]))) for name, timing in times.items()
    ]
    print(tabulate(rows, ("", "ms a clip", "MFCC is faster by (quartiles), best by best"), "github", floatfmt=".3f"))
    print(f"\n{options.clips} clips, {options.rounds} rounds, {options.threads} threads of torch {torch.__version__}")
    if options.out:
        seconds = {name: timing.seconds for name, timing in times.items()}
        save_text(json.dumps(seconds, indent=1) + "\n", options.out)


def contenders(clips: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return what can be called here, by name; each returns ``[B, 49, 10]``."""
    front_end = MFCC(49)
    calls: dict[str, Callable[[], object]] = {
        OURS: lambda: front_end(clips)[:, 0],
        "MFCC, clip by clip": lambda: torch.cat([front_end(clip[None])[:, 0] for clip in clips]),
    }
    if torchaudio := _imported("torchaudio"):
        mel = {"n_fft": FFT, "win_length": WINDOW, "hop_length": HOP, "pad": PADDING, "n_mels": BANDS, "f_min": LOW}
        other = torchaudio.transforms.MFCC(
            SAMPLE_RATE, COEFFICIENTS, log_mels=True, melkwargs={**mel, "f_max": HIGH, "center": False}
        )
        calls[f"torchaudio {torchaudio.__version__}, in a batch"] = lambda: other(clips).transpose(1, 2)
    if librosa := _imported("librosa"):
        samples = clips.numpy()

        def by_librosa(waveform: np.ndarray) -> np.ndarray:
            padded = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(PADDING, PADDING)])
            mel = librosa.feature.melspectrogram(
                y=padded, sr=SAMPLE_RATE, n_fft=FFT, win_length=WINDOW, hop_length=HOP, center=False, htk=True,
                norm=None, n_mels=BANDS, fmin=LOW, fmax=HIGH,
            )  # fmt: skip
            cepstra = scipy.fft.dct(np.log(mel + LOG_OFFSET), axis=-2, norm="ortho")
            return np.swapaxes(cepstra[..., :COEFFICIENTS, :], -1, -2)

        calls[f"librosa {librosa.__version__}, in a batch"] = lambda: by_librosa(samples)
        calls[f"librosa {librosa.__version__}, clip by clip"] = lambda: np.stack([by_librosa(x) for x in samples])
    return calls


def _imported(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


if __name__ == "__main__":
    run_main(main)
