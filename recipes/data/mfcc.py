"""The front end of keyword spotting: mel-frequency cepstral coefficients of one-second clips, in batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from snn_ext._errors import bad_type, bad_value, check_choice, check_count, check_real

__all__ = ["MFCC"]

SAMPLE_RATE = 16_000
FFT, WINDOW, HOP, PADDING = 1024, 640, 320, 320  # samples
BANDS, LOW, HIGH = 40, 20.0, 4000.0  # mel bands, and where they begin and end in Hz
COEFFICIENTS = 10
LOG_OFFSET = 1e-6  # what torchaudio adds before the logarithm
SMALLEST_POWER = 1e-10  # -100 dB
CLIPS_IN_CACHE = 16  # a CPU is several times slower with spectra that its cache does not hold


class MFCC(nn.Module):
    """Ten mel-frequency cepstral coefficients of each frame of 40 ms, every 20 ms.

    The power spectrum (Hann window of 640 samples in an FFT of 1024, hop 320, 320 zeros on both sides) is summed up in
    40 mel bands from 20 to 4000 Hz (HTK's scale, triangles of height 1); their logarithms go through an orthonormal
    DCT-II, of which the first ten coefficients are kept. This equals ``torchaudio.transforms.MFCC`` with those settings
    and ``log_mels=True``.

    Parameters
    ----------
    frames : int or None
        Number of frames in the result: the paper's 48, or all the 49 that a second gives; ``None`` takes what there is.
    scale : str
        "log" is ``log(power + 1e-6)``; "decibel" is ``10 log10(power)``, raised to at least ``top_db`` below the
        loudest value *of the same clip*. (torchaudio clamps by the loudest value of the whole batch: there a quiet clip
        depends on its neighbours.)
    top_db : float
        Dynamic range of a clip with ``scale="decibel"``.

    Notes
    -----
    Computed in the default dtype at the time it is made, float32, under autocast too, on the device of its tables,
    which are not part of the state dict.

    Castagnetti et al. 2023, Front. Neurosci. 17:1154241. The parameters printed there give 49 frames of a second; its
    48 are taken to be the first 48.

    Examples
    --------
    >>> MFCC()(torch.zeros(2, 16_000)).shape
    torch.Size([2, 1, 48, 10])
    """

    window: Tensor
    mel: Tensor
    dct: Tensor

    def __init__(self, frames: int | None = 48, *, scale: str = "log", top_db: float = 80.0) -> None:
        super().__init__()
        self.frames = None if frames is None else check_count("frames", frames)
        self.scale = check_choice("scale", scale, ("log", "decibel"))
        self.top_db = check_real("top_db", top_db, "a number of decibels > 0", low=1e-3)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("mel", _mel_filters(), persistent=False)
        self.register_buffer("dct", _dct_matrix(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the features of clips.

        Parameters
        ----------
        waveform : Tensor
            ``[B, samples]``, floating, in [-1, 1], at 16 kHz. Clips that are too short for the frames are padded with
            zeros at the end; longer than a second by a frame or more, they are refused.

        Returns
        -------
        Tensor
            ``[B, 1, frames, 10]``.
        """
        return self.cepstra(self.log_mel(waveform))

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Return the logarithms of the mel bands, ``[B, frames, 40]``: where SpecAugment has its place."""
        waveform = self._checked(waveform).to(self.window.dtype)
        padded = nn.functional.pad(waveform, (PADDING, PADDING + self._missing(waveform.shape[-1])))
        with torch.autocast(waveform.device.type, enabled=False):
            if waveform.is_cuda:
                return self._log_mel(padded)
            return torch.cat([self._log_mel(part) for part in padded.split(CLIPS_IN_CACHE)])

    def _log_mel(self, padded: Tensor) -> Tensor:
        spectrum = torch.stft(padded, FFT, HOP, WINDOW, self.window, center=False, return_complex=True)
        spectrum = spectrum[:, : len(self.mel), : self.frames].transpose(1, 2)  # above 4000 Hz no band listens
        bands = (spectrum.real.square() + spectrum.imag.square()) @ self.mel
        if self.scale == "log":
            return torch.log(bands + LOG_OFFSET)
        decibels = 10.0 * torch.log10(bands.clamp(min=SMALLEST_POWER))
        return torch.maximum(decibels, decibels.amax((1, 2), keepdim=True) - self.top_db)

    def cepstra(self, log_mel: Tensor) -> Tensor:
        """Return the cepstral coefficients ``[B, 1, frames, 10]`` of logarithms of mel bands ``[B, frames, 40]``."""
        with torch.autocast(log_mel.device.type, enabled=False):
            return (log_mel @ self.dct).unsqueeze(1)

    def extra_repr(self) -> str:
        limit = f", top_db={self.top_db}" if self.scale == "decibel" else ""
        return f"frames={self.frames}, scale={self.scale!r}{limit}"

    def _checked(self, waveform: Tensor) -> Tensor:
        want = "a floating tensor [B, samples] with values in [-1, 1]"
        if not isinstance(waveform, Tensor) or not waveform.is_floating_point():
            bad_type("waveform", waveform, want)
        if waveform.ndim != 2 or waveform.numel() == 0:
            bad_value("waveform", waveform, want)
        if self.frames is not None and _frames(waveform.shape[1]) > self.frames + 1:
            longest = _samples(self.frames + 2) - 1
            bad_value("waveform", waveform, f"at most {longest} samples, or frames=None")
        return waveform

    def _missing(self, samples: int) -> int:
        """Return how many zeros have to follow a clip."""
        return max(0, _samples(1 if self.frames is None else self.frames) - samples)


def _frames(samples: int) -> int:
    return 1 + (samples + 2 * PADDING - FFT) // HOP


def _samples(frames: int) -> int:
    """Return the length of the shortest clip that has so many frames."""
    return (frames - 1) * HOP + FFT - 2 * PADDING


def _mel_filters() -> Tensor:
    """Return triangles of height 1 over the frequencies up to ``HIGH``, ``[frequencies, BANDS]``."""
    frequencies = torch.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    mels = torch.linspace(_mel(LOW), _mel(HIGH), BANDS + 2, dtype=torch.float64)
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    widths = corners.diff()
    above = frequencies[frequencies <= HIGH, None] - corners
    rising, falling = above[:, :-2] / widths[:-1], -above[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0.0).to(torch.get_default_dtype())


def _mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def _dct_matrix() -> Tensor:
    """Return the first columns of the orthonormal DCT-II, ``[BANDS, COEFFICIENTS]``."""
    band, coefficient = torch.arange(BANDS, dtype=torch.float64)[:, None], torch.arange(COEFFICIENTS)
    matrix = torch.cos(math.pi / BANDS * (band + 0.5) * coefficient) * math.sqrt(2.0 / BANDS)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix.to(torch.get_default_dtype())
