"""Augmentation of speech: moved in time, in noise, and with bands and moments missing (SpecAugment)."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_ext._errors import bad_value, check_real

from .mfcc import MFCC

__all__ = ["Augment", "add_noise", "mask", "pink_noise", "time_shift"]


class Augment:
    """Everything that happens to a batch of clips between the corpus and the net.

    All draws come from ``generator`` alone, so one that is seeded by seed and epoch repeats an epoch exactly.

    Parameters
    ----------
    shift : float
        Clips are moved by up to so many seconds to either side; zeros take the place of what is missing.
    noise_share : float
        Share of the clips that get noise.
    snr : tuple of float
        Lowest and highest signal-to-noise ratio in dB; each clip has its own, drawn uniformly.
    noise : Tensor, optional
        ``[samples]``, a long recording from which stretches are drawn at random (see ``Corpus.noise``); by default a
        minute of pink noise.
    time_masks, time_width : int
        Number of stretches of frames that are blanked, and their greatest length.
    band_masks, band_width : int
        The same for mel bands.

    Notes
    -----
    SpecAugment (Park et al. 2019, Interspeech) without its time warping. It masks mel bands, so it stands between
    ``MFCC.log_mel`` and ``MFCC.cepstra``. A masked value is the mean of its clip.

    Examples
    --------
    >>> front_end, generator = MFCC(), torch.Generator().manual_seed(0)
    >>> Augment()(torch.randn(2, 16_000), front_end, generator).shape
    torch.Size([2, 1, 48, 10])
    """

    def __init__(
        self, *, shift: float = 0.1, noise_share: float = 0.8, snr: tuple[float, float] = (5.0, 30.0),
        noise: Tensor | None = None, time_masks: int = 1, time_width: int = 8, band_masks: int = 1,
        band_width: int = 6,
    ) -> None:  # fmt: skip
        self.shift = check_real("shift", shift, "seconds in [0, 1]", 0.0, 1.0)
        self.noise_share = check_real("noise_share", noise_share, "a share in [0, 1]", 0.0, 1.0)
        if len(snr) != 2 or snr[0] > snr[1]:
            bad_value("snr", snr, "the lowest and the highest ratio in dB")
        if noise is not None and (noise.ndim != 1 or len(noise) < 16_000):
            bad_value("noise", noise, "[samples], at least a second")
        for name, value in (
            ("time_masks", time_masks), ("time_width", time_width), ("band_masks", band_masks),
            ("band_width", band_width),
        ):  # fmt: skip
            if value < 0:
                bad_value(name, value, "an int >= 0")
        self.snr = snr
        self.noise = pink_noise(1, 2**20, torch.Generator().manual_seed(0))[0] if noise is None else noise
        self.time_masks, self.time_width, self.band_masks, self.band_width = (
            time_masks, time_width, band_masks, band_width,
        )  # fmt: skip

    def __call__(self, waveform: Tensor, front_end: MFCC, generator: torch.Generator) -> Tensor:
        """Return features ``[B, 1, frames, 10]`` of augmented clips ``[B, samples]``, floating, in [-1, 1]."""
        log_mel = front_end.log_mel(self.waveform(waveform, generator))
        for axis, count, width in ((1, self.time_masks, self.time_width), (2, self.band_masks, self.band_width)):
            for _ in range(count):
                log_mel = mask(log_mel, axis, width, generator)
        return front_end.cepstra(log_mel)

    def waveform(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Return the clips moved in time and in noise."""
        waveform = time_shift(waveform, round(self.shift * 16_000), generator)
        if self.noise_share == 0.0:
            return waveform
        n, samples = waveform.shape
        start = torch.randint(len(self.noise) - samples + 1, (n,), generator=generator)
        noise = self.noise.unfold(0, samples, 1)[start]
        low, high = self.snr
        snr = low + (high - low) * torch.rand(n, generator=generator)
        snr[torch.rand(n, generator=generator) >= self.noise_share] = torch.inf
        return add_noise(waveform, noise.to(waveform), snr.to(waveform))


def time_shift(waveform: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Move each clip ``[B, samples]`` by up to ``limit`` samples to either side; zeros take the place of the rest."""
    n, samples = waveform.shape
    if limit == 0:
        return waveform
    shift = torch.randint(-limit, limit + 1, (n,), generator=generator).to(waveform.device)
    windows = torch.nn.functional.pad(waveform, (limit, limit)).unfold(1, samples, 1)  # a view
    return windows[torch.arange(n, device=waveform.device), limit - shift]


def add_noise(waveform: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
    """Add noise so that the power of the clip over the power of the noise is ``snr`` dB.

    Parameters
    ----------
    waveform, noise : Tensor
        ``[B, samples]``. Both powers are means over the whole clip. Noise without power adds nothing, and a silent
        clip stays silent.
    snr : Tensor
        ``[B]``; +inf for none.
    """
    level, noise_level = (torch.linalg.vector_norm(x, dim=1) for x in (waveform, noise))
    gain = level / noise_level.clamp(min=1e-12) * 10.0 ** (-snr / 20.0)
    return torch.addcmul(waveform, gain[:, None], noise)


def mask(values: Tensor, axis: int, width: int, generator: torch.Generator) -> Tensor:
    """Replace one stretch of up to ``width`` along ``axis`` of each clip ``[B, frames, bands]`` by the clip's mean.

    As in SpecAugment the length is drawn first, uniformly from 0 to ``width``, then the place.
    """
    n, size = len(values), values.shape[axis]
    length = torch.randint(min(width, size) + 1, (n,), generator=generator)
    start = (torch.rand(n, generator=generator) * (size - length + 1)).long()
    place = torch.arange(size)
    masked = (place >= start[:, None]) & (place < (start + length)[:, None])
    shape = [n, 1, 1]
    shape[axis] = size
    return torch.where(masked.view(shape).to(values.device), values.mean((1, 2), keepdim=True), values)


def pink_noise(n: int, samples: int, generator: torch.Generator) -> Tensor:
    """Return noise ``[n, samples]`` whose power falls with one over the frequency."""
    spectrum = torch.fft.rfft(torch.randn(n, samples, generator=generator))
    return torch.fft.irfft(spectrum / torch.arange(1, spectrum.shape[1] + 1).sqrt(), samples)
