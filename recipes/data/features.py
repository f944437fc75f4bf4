"""Features of whole sets of clips, kept on disk."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..lib.files import DamagedFileError, intact, load_arrays, replacing
from .mfcc import COEFFICIENTS, MFCC
from .speech_commands import Clips

__all__ = ["features", "to_float"]

CLIPS_AT_ONCE = 256
VERSION = 1  # of the arithmetic in mfcc.py: another number makes old caches void


def features(clips: Clips, front_end: MFCC, cache: Path | None = None) -> Tensor:
    """Return the features of all clips, computed on the device of the front end.

    Parameters
    ----------
    clips : Clips
        Waveforms ``[N, 16000]``, int16.
    front_end : MFCC
        What computes them.
    cache : Path, optional
        Folder to keep them in. The file is named after a hash of the waveforms and the settings, so that what is found
        is what would be computed; it is written whole or not at all, a damaged one is computed again, and a folder that
        nothing can be written to is done without.

    Returns
    -------
    Tensor
        ``[N, 1, frames, 10]``, float32, on the CPU.
    """
    if cache is None:
        return _computed(clips, front_end)
    path = Path(cache) / f"mfcc-{_key(clips, front_end)}.npz"
    try:
        if path.is_file():
            return _read(path, len(clips), front_end.frames)
    except (OSError, DamagedFileError) as error:
        warnings.warn(f"{error}; its features are computed again", stacklevel=2)
    result = _computed(clips, front_end)
    try:
        with replacing(path) as temporary:
            np.savez(temporary, features=result.numpy())  # a zip file: each array has a checksum
    except OSError as error:
        warnings.warn(f"features are not kept: {error}", stacklevel=2)
    return result


def _read(path: Path, clips: int, frames: int | None) -> Tensor:
    kind = "a file of features", "remove it to have them computed again"
    arrays = load_arrays(path, *kind)
    with intact(path, *kind):
        found = arrays["features"]
        want = (clips, 1, found.shape[2] if frames is None else frames, COEFFICIENTS)
        if (found.shape, found.dtype) != (want, np.float32):
            raise ValueError(f"got {found.dtype} {found.shape}, want float32 {want}")
        return torch.from_numpy(found)


def to_float(waveforms: Tensor) -> Tensor:
    """Return int16 samples as float32 in [-1, 1)."""
    return waveforms.float() / 32768.0


@torch.no_grad()
def _computed(clips: Clips, front_end: MFCC) -> Tensor:
    device = front_end.window.device
    parts = [front_end(to_float(part.to(device))).float().cpu() for part in clips.waveforms.split(CLIPS_AT_ONCE)]
    return torch.cat(parts)


def _key(clips: Clips, front_end: MFCC) -> str:
    digest = hashlib.sha256(f"{VERSION} {front_end} {front_end.window.dtype} {list(clips.waveforms.shape)}".encode())
    digest.update(clips.waveforms.contiguous().numpy())
    return digest.hexdigest()[:32]
