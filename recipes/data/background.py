"""Sounds that are no word: to train on, and others to listen to."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .speech_commands import SAMPLE_RATE

__all__ = ["LISTENED", "TRAINED", "background"]

LEVELS = (-75.0, -6.0)
"""Root mean square of the sounds in decibels below full scale, drawn uniformly."""


def background(n: int, samples: int, generator: torch.Generator, kinds: tuple[str, ...]) -> Tensor:
    """Return ``[n, samples]`` in [-1, 1]: each row is of a kind and at a level drawn from the generator.

    Parameters
    ----------
    n, samples : int
        Number and length of the sounds, at 16 kHz.
    generator : torch.Generator
        Everything random comes from it.
    kinds : tuple of str
        ``TRAINED`` or ``LISTENED``.
    """
    rows = []
    for _ in range(n):
        kind = kinds[int(torch.randint(len(kinds), (1,), generator=generator))]
        low, high = LEVELS
        level = low + (high - low) * float(torch.rand(1, generator=generator))
        sound = KINDS[kind](samples, generator)
        power = float(sound.square().mean())
        gain = 10 ** (level / 20) / math.sqrt(power) if power > 0 else 0.0
        rows.append((gain * sound).clamp(-1.0, 1.0))
    return torch.stack(rows) if rows else torch.empty(0, samples)


def _coloured(exponent: float) -> Callable[[int, torch.Generator], Tensor]:
    """Noise whose power is the frequency to a power: 0 white, -1 pink, -2 brown, 1 blue, 2 violet."""

    def sound(samples: int, generator: torch.Generator) -> Tensor:
        spectrum = torch.fft.rfft(torch.randn(samples, generator=generator))
        frequencies = torch.arange(len(spectrum)).clamp(min=samples * 20 // SAMPLE_RATE + 1)  # flat below 20 Hz
        return torch.fft.irfft(spectrum * frequencies.double().pow(exponent / 2).float(), samples)

    return sound


def _silence(samples: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(samples)


def _hum(samples: int, generator: torch.Generator) -> Tensor:
    """Mains at 50 or 60 Hz, or a fan at any frequency up to 200 Hz, with ten harmonics."""
    draw = torch.rand(22, generator=generator)
    base = (50.0, 60.0)[int(draw[0] * 2)] if draw[1] < 0.5 else 30.0 + 170.0 * float(draw[0])
    order = torch.arange(1, 11)
    phase = 2 * math.pi * (base * order[:, None] * _time(samples) + draw[2:12, None])
    return (draw[12:22, None] / order[:, None] * phase.sin()).sum(0)


def _clicks(samples: int, generator: torch.Generator) -> Tensor:
    """Keys, doors, crackle: short decaying bursts of noise at random times, 1 to 30 in a second."""
    rate = 1.0 + 29.0 * float(torch.rand(1, generator=generator))
    hits = (torch.rand(samples, generator=generator) < rate / SAMPLE_RATE).float()
    decay = torch.exp(-torch.arange(400) / (5.0 + 75.0 * torch.rand(1, generator=generator)))
    burst = decay * torch.randn(400, generator=generator)
    return _filtered(hits, burst)


def _modulated(samples: int, generator: torch.Generator) -> Tensor:
    """Pink noise that swells and fades 1 to 8 times in a second, at the rhythm of syllables."""
    draw = torch.rand(3, generator=generator)
    swell = 1.0 + (0.5 + 0.5 * draw[0]) * torch.sin(2 * math.pi * ((1 + 7 * draw[1]) * _time(samples) + draw[2]))
    return swell * _coloured(-1.0)(samples, generator)


def _tones(samples: int, generator: torch.Generator) -> Tensor:
    """Beeps and whistles: a tone between 200 and 4000 Hz that glides, on for part of the time."""
    draw = torch.rand(5, generator=generator)
    time = _time(samples)
    start, end = 200.0 * 20.0 ** draw[0], 200.0 * 20.0 ** draw[1]
    cycles = start * time + (end - start) * time.square() / (2 * time[-1])
    gate = (torch.sin(2 * math.pi * ((0.5 + 3.5 * draw[2]) * time + draw[3])) > 1.6 * draw[4] - 0.8).float()
    return gate * torch.sin(2 * math.pi * cycles)


def _engine(samples: int, generator: torch.Generator) -> Tensor:
    """A saw tooth of 40 to 250 Hz whose speed wanders, in brown noise."""
    draw = torch.rand(4, generator=generator)
    time = _time(samples)
    base = 40.0 + 210.0 * draw[0]
    phase = base * time + draw[1] * 3.0 * torch.sin(2 * math.pi * (0.2 + 2.0 * draw[2]) * time)
    brown = _coloured(-2.0)(samples, generator)
    return 2.0 * (phase - phase.floor()) - 1.0 + 2.0 * draw[3] * brown / brown.std()


def _time(samples: int) -> Tensor:
    return torch.arange(samples) / SAMPLE_RATE


def _filtered(signal: Tensor, response: Tensor) -> Tensor:
    size = len(signal) + len(response)
    return torch.fft.irfft(torch.fft.rfft(signal, size) * torch.fft.rfft(response, size), size)[: len(signal)]


KINDS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "silence": _silence, "white": _coloured(0.0), "pink": _coloured(-1.0), "brown": _coloured(-2.0), "hum": _hum,
    "clicks": _clicks, "modulated": _modulated,
    "blue": _coloured(1.0), "violet": _coloured(2.0), "tones": _tones, "engine": _engine,
}  # fmt: skip

TRAINED = ("silence", "white", "pink", "brown", "hum", "clicks", "modulated")
"""The kinds that nets are trained on."""
LISTENED = tuple(KINDS)
"""All kinds; four of them no net has been trained on."""
