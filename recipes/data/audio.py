"""Sound files of every kind, as 16-bit samples at 16 kHz."""

from __future__ import annotations

import io
import math
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from ..lib.command import uninterrupted
from .containers import check_whole, mpeg_samples

__all__ = ["SAMPLE_RATE", "one_second", "read_samples", "resample", "to_int16"]

SAMPLE_RATE = 16_000
SLOWEST_RATE = 8_000  # below, nothing of the front end's 4000 Hz is left
FASTEST_RATE = 768_000  # of any sound card
BLOCK = 1 << 20  # values read at a time
UNKNOWN = 1 << 62  # frames of a stream
MP3_MARGIN = 4 * 1152


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
        If it is no sound file, or truncated, or damaged, or has no samples, or some that are not numbers, or a
        rate below 8 kHz or above 768 kHz.
    """
    check_whole(content)
    samples, rate, channels, kind = _decoded(content)
    if not len(samples):
        raise ValueError("empty: no samples")
    repairs = []
    if samples.dtype == np.int16 and rate == SAMPLE_RATE:
        return samples, ()
    values = samples / np.float32(32768) if samples.dtype == np.int16 else samples
    if not np.isfinite(values).all():
        raise ValueError("holds samples that are no numbers")
    if kind != "PCM_16":
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
    from scipy.signal import resample_poly  # slow to import, and most files need no other rate

    source = round(rate * speed)
    divisor = math.gcd(SAMPLE_RATE, source)
    up, down = SAMPLE_RATE // divisor, source // divisor
    if max(up, down) > 1000:  # odd rates and speeds: a short filter, at an error of the rate below 0.4 %
        up, down = round(400 * SAMPLE_RATE / source), 400
    return resample_poly(values, up, down).astype(np.float32)


def to_int16(values: np.ndarray) -> np.ndarray:
    """Return samples in [-1, 1) as int16; what is louder is clipped."""
    return np.clip(np.round(values * 32768.0), -32768, 32767).astype(np.int16)


def _decoded(content: bytes) -> tuple[np.ndarray, int, int, str]:
    """Return samples ``[n]``, the mean of the channels (int16 where it needs no rounding), rate, channels and kind.

    What the header says of the length is not believed: it comes in blocks, for as long as there are some.
    """
    try:
        file = _opened(content)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not a sound file ({error.error_string.rstrip('.')})") from error
    with file:
        if not SLOWEST_RATE <= file.samplerate <= FASTEST_RATE:
            raise ValueError(f"{file.samplerate} Hz, want at least {SLOWEST_RATE} Hz, at most {FASTEST_RATE}")
        plain, blocks = file.subtype == "PCM_16", []
        try:
            while len(block := _block(file, "int16" if plain else "float32")):
                if not plain or file.channels > 1:
                    block = (block / np.float32(32768) if plain else block).mean(1)
                blocks.append(block.reshape(-1))
        except soundfile.LibsndfileError as error:
            raise ValueError(f"damaged ({error.error_string.rstrip('.')})") from error
        samples = np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
        # The frames of MP3 are a guess, and include what encoders put before and after the sound.
        wanted = file.frames if file.format != "MP3" else mpeg_samples(content) - MP3_MARGIN
        if len(samples) < wanted < UNKNOWN or (file.format == "MAT4" and "seems to be truncated" in file.extra_info):
            raise ValueError(f"truncated: {len(samples):,} of {wanted:,} samples can be read")
        return samples, file.samplerate, file.channels, file.subtype


def _opened(content: bytes) -> soundfile.SoundFile:
    with uninterrupted():
        try:
            return _Straight(io.BytesIO(content))
        except soundfile.LibsndfileError:  # libsndfile 1.2.2 opens some MP3 files by a path alone
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                path = Path(folder, "sound")
                path.write_bytes(content)
                return _Straight(path)


class _Straight(soundfile.SoundFile):
    """Reads on from block to block, where soundfile would seek, which not every codec does exactly."""

    def seekable(self) -> bool:
        return False


def _block(file: soundfile.SoundFile, dtype: str) -> np.ndarray:
    with uninterrupted():  # libsndfile reads through callbacks
        return file.read(max(1, BLOCK // file.channels), dtype=dtype, always_2d=True)


def _loudest_second(samples: np.ndarray) -> np.ndarray:
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    start = int(np.argmax(energy[SAMPLE_RATE:] - energy[:-SAMPLE_RATE]))
    return samples[start : start + SAMPLE_RATE]
