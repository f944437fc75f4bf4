"""Sound files of every kind, as 16-bit samples at 16 kHz."""

from __future__ import annotations

import io
import math
import struct

import numpy as np
import soundfile
from scipy.signal import resample_poly

__all__ = ["SAMPLE_RATE", "one_second", "read_samples", "resample", "to_int16"]

SAMPLE_RATE = 16_000
SLOWEST_RATE = 8_000  # below, nothing of the front end's 4000 Hz is left


def read_samples(content: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a sound file as 16-bit mono at 16 kHz.

    Of any other file is made what comes closest: other sample formats are rounded to 16 bits, channels averaged, other
    rates resampled.

    Parameters
    ----------
    content : bytes
        The file.

    Returns
    -------
    samples : ndarray
        ``[n]``, int16.
    repairs : tuple of str
        What had to be done for them.

    Raises
    ------
    ValueError
        If it is no sound file, or truncated, or has no samples, or some that are not numbers, or a rate below 8 kHz.
    """
    _check_length(content)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            plain = file.subtype == "PCM_16"
            samples = file.read(dtype="int16" if plain else "float32", always_2d=True)
            rate, kind = file.samplerate, file.subtype
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not a sound file ({error.error_string.rstrip('.')})") from error
    if not len(samples):
        raise ValueError("empty: no samples")
    if rate < SLOWEST_RATE:
        raise ValueError(f"{rate} Hz, want at least {SLOWEST_RATE} Hz")
    repairs = []
    channels = samples.shape[1]
    if plain and channels == 1 and rate == SAMPLE_RATE:
        return samples[:, 0], ()
    values = (samples / np.float32(32768) if plain else samples).mean(1)
    if not np.isfinite(values).all():
        raise ValueError("holds samples that are no numbers")
    if not plain:
        repairs.append(f"{kind} rounded to 16 bits")
    if channels > 1:
        repairs.append(f"{channels} channels averaged")
    if rate != SAMPLE_RATE:
        values = resample(values, rate)
        repairs.append(f"resampled from {rate} Hz")
    return to_int16(values), tuple(repairs)


def one_second(samples: np.ndarray, *, centre: bool = False) -> np.ndarray:
    """Return samples ``[16000]``: the loudest second of a longer recording; a shorter one gets zeros at the end.

    With ``centre`` the zeros are on both sides.
    """
    if len(samples) > SAMPLE_RATE:
        return _loudest_second(samples)
    second = np.zeros(SAMPLE_RATE, samples.dtype)
    before = (SAMPLE_RATE - len(samples)) // 2 if centre else 0
    second[before : before + len(samples)] = samples
    return second


def resample(values: np.ndarray, rate: float, speed: float = 1.0) -> np.ndarray:
    """Return samples ``[n]`` at 16 kHz; ``speed`` above 1 raises pitch and formants, as a tape played fast does."""
    source = round(rate * speed)
    divisor = math.gcd(SAMPLE_RATE, source)
    up, down = SAMPLE_RATE // divisor, source // divisor
    if max(up, down) > 1000:  # odd rates and speeds: a short filter, at an error of the rate below 0.4 %
        up, down = round(400 * SAMPLE_RATE / source), 400
    return resample_poly(values, up, down).astype(np.float32)


def to_int16(values: np.ndarray) -> np.ndarray:
    """Return samples in [-1, 1) as int16; what is louder is clipped."""
    return np.clip(np.round(values * 32768.0), -32768, 32767).astype(np.int16)


def _check_length(content: bytes) -> None:
    """Raise if a WAV or AIFF file is shorter than its header says, which libsndfile does not mind."""
    if not content:
        raise ValueError("empty: 0 bytes")
    order = {b"RIFF": "<I", b"FORM": ">I"}.get(content[:4])
    if order is not None and len(content) >= 8:
        (size,) = struct.unpack(order, content[4:8])
        # The size is unknown in a stream (sox and arecord write about 2 GiB); a pad byte may be missing.
        if 0 < size < 0x7FFF0000 and size + 8 > len(content) + 1:
            raise ValueError(f"truncated: {len(content):,} of {size + 8:,} bytes")


def _loudest_second(samples: np.ndarray) -> np.ndarray:
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    start = int(np.argmax(energy[SAMPLE_RATE:] - energy[:-SAMPLE_RATE]))
    return samples[start : start + SAMPLE_RATE]
