"""From the clean sound of a synthesiser to something like a recording: rooms, microphones, noise."""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

from ..data.audio import SAMPLE_RATE, resample

__all__ = ["background_noises", "record", "trim"]


def record(voice: np.ndarray, noises: list[np.ndarray], draw: np.random.Generator) -> np.ndarray:
    """Return a clip of at most a second, as somebody would have recorded it.

    Half of the clips are in a room, seven in ten have the colour of a microphone; the word is somewhere in the middle;
    the noise is 24 dB below it, give or take 9; the loudest sample is between -18 and -1 dB. One in 25 is cut too late,
    one in twelve shorter than a second, as in Speech Commands.

    Parameters
    ----------
    voice : ndarray
        ``[n]``, the word at 16 kHz without silence around it.
    noises : list of ndarray
        Background noises, longer than a second.
    draw : Generator
        Where all of this comes from.

    Returns
    -------
    ndarray
        ``[at most 16000]``, float32, in [-1, 1].
    """
    if draw.random() < 0.5:
        voice = _in_a_room(voice, draw)
    if draw.random() < 0.7:
        voice = _through_a_microphone(voice, draw)
    if len(voice) > SAMPLE_RATE:  # spoken faster
        voice = resample(voice, SAMPLE_RATE, len(voice) / (0.98 * SAMPLE_RATE))
    voice = voice[:SAMPLE_RATE] / _rms(voice)
    slack = SAMPLE_RATE - len(voice)
    start = int(np.clip(draw.normal(slack / 2, slack / 5), 0, slack))
    if draw.random() < 0.04:
        voice, start = voice[int(draw.uniform(0.0, 0.12) * len(voice)) :], 0
    clip = np.zeros(SAMPLE_RATE, np.float32)
    clip[start : start + len(voice)] = voice
    noise = noises[draw.integers(len(noises))]
    first = draw.integers(len(noise) - SAMPLE_RATE)
    noise = noise[first : first + SAMPLE_RATE]
    decibels = float(np.clip(draw.normal(24.0, 9.0), 3.0, 45.0))
    clip += noise / _rms(noise) * 10.0 ** (-decibels / 20.0)
    clip *= 10.0 ** (draw.uniform(-18.0, -1.0) / 20.0) / np.abs(clip).max()
    return clip[: int(draw.uniform(0.55, 0.99) * SAMPLE_RATE)] if draw.random() < 0.08 else clip


def trim(samples: np.ndarray, decibels: float = 35.0, margin: float = 0.02) -> np.ndarray:
    """Return what lies between the first and the last 10 ms that are loud enough, with a margin in seconds."""
    power = np.convolve(np.square(samples), np.full(160, 1 / 160), "same")
    loud = np.flatnonzero(power > power.max() * 10.0 ** (-decibels / 10.0))
    border = int(margin * SAMPLE_RATE)
    return samples[max(0, loud[0] - border) : loud[-1] + border]


def background_noises(babble: list[np.ndarray], draw: np.random.Generator, seconds: int = 30) -> dict[str, np.ndarray]:
    """Return noises ``[samples]`` by name, at half of full scale.

    Parameters
    ----------
    babble : list of ndarray
        Words of the people who talk in the background.
    draw : Generator
        Where all of this comes from.
    seconds : int
        Their length.
    """
    samples = seconds * SAMPLE_RATE
    time = np.arange(samples) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * time + draw.uniform(0, 6)) / k for k in (1, 2, 3, 4, 6, 9))
    clatter = 0.1 * _coloured(samples, 1.5, draw)
    ring = np.arange(4000) / SAMPLE_RATE
    for _ in range(4 * seconds):
        start, pitch, decay = draw.integers(samples - 4000), draw.uniform(900, 6000), draw.uniform(20, 90)
        stroke = np.sin(2 * np.pi * pitch * ring) * np.exp(-decay * ring)
        clatter[start : start + 4000] += draw.uniform(0.1, 1.0) * stroke
    voices = np.zeros(samples, np.float32)
    for _ in range(6 * seconds):
        word = babble[draw.integers(len(babble))][:SAMPLE_RATE]
        start = draw.integers(samples - len(word))
        voices[start : start + len(word)] += draw.uniform(0.3, 1.0) * word
    noises = {
        "white_noise": draw.standard_normal(samples),
        "pink_noise": _coloured(samples, 1.0, draw),
        "hum": hum * (1 + 0.4 * np.sin(2 * np.pi * 1.3 * time)) + _coloured(samples, 2.0, draw),
        "clatter": clatter,
        "babble": voices,
    }
    return {name: (noise / np.abs(noise).max() * 0.5).astype(np.float32) for name, noise in noises.items()}


def _in_a_room(samples: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    length = int(draw.uniform(0.08, 0.45) * SAMPLE_RATE)  # to -60 dB
    echoes = draw.standard_normal(length) * 10.0 ** (-3.0 * np.arange(length) / length)
    echoes *= draw.uniform(0.1, 0.5) / np.sqrt(np.square(echoes).sum())
    echoes[0] = 1.0
    return fftconvolve(samples, echoes)[: len(samples) + length // 3].astype(np.float32)


def _through_a_microphone(samples: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    tilted = lfilter([1.0, draw.uniform(-0.5, 0.5)], [1.0], samples)
    band = [draw.uniform(40, 220), draw.uniform(3600, 7600)]
    return sosfilt(butter(2, band, "band", fs=SAMPLE_RATE, output="sos"), tilted).astype(np.float32)


def _coloured(samples: int, slope: float, draw: np.random.Generator) -> np.ndarray:
    """Return noise whose power falls with the frequency to the power of ``slope``, at full scale."""
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    frequency[0] = frequency[1]
    spectrum = draw.standard_normal(len(frequency)) + 1j * draw.standard_normal(len(frequency))
    noise = np.fft.irfft(spectrum / frequency ** (slope / 2), samples)
    return (noise / np.abs(noise).max()).astype(np.float32)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()) + 1e-9)
