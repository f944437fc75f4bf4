"""The front end against its definition in NumPy, torchaudio and librosa."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch

from recipes.data.mfcc import MFCC

TOLERANCE = 5e-4
LIBROSA = Path(__file__).with_name("mfcc_of_librosa_0.11.0.npy")
"""Of ``noise_that_fades()``, by that version: ``by_librosa`` is how."""
BROAD = [0, 1, 4, 5, 6]
"""The clips without the pure tones: beside a tone, the rounding of a float32 window is what a band hears."""


def clips() -> torch.Tensor:
    """Loud and faint noise, a tone above and one between the bands, a click, silence, full scale on a 1/16 grid."""
    time, draw = torch.arange(16_000) / 16_000, torch.Generator().manual_seed(0)
    noise = torch.randn(16_000, generator=draw)
    rows = [0.3 * noise, 1e-4 * noise.flip(0), torch.sin(2 * torch.pi * 5000 * time)]
    rows += [0.5 * torch.sin(2 * torch.pi * 440 * time), torch.zeros(16_000), torch.zeros(16_000)]
    rows += [torch.randint(-16, 17, (16_000,), generator=draw) / 16]
    rows[4][8_000] = 1.0
    return torch.stack(rows)


def definition(waveform: np.ndarray, scale: str = "log") -> np.ndarray:
    """Return the 49 frames of one clip, in float64, frame by frame."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(640) / 640)
    mel = np.linspace(*(2595 * np.log10(1 + np.array([20.0, 4000.0]) / 700)), 42)
    corner = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.arange(513) * 16_000 / 1024
    bank = np.array([np.interp(frequency, corner[i : i + 3], [0, 1, 0], 0, 0) for i in range(40)])
    padded = np.pad(waveform.astype(np.float64), 320)
    frames = np.stack([padded[192 + 320 * i : 832 + 320 * i] * window for i in range(49)])
    power = np.abs(np.fft.rfft(frames, 1024)) ** 2 @ bank.T
    if scale == "log":
        logarithm = np.log(power + 1e-6)
    else:
        logarithm = 10 * np.log10(np.maximum(power, 1e-10))
        logarithm = np.maximum(logarithm, logarithm.max() - 80)
    return scipy.fft.dct(logarithm, norm="ortho")[:, :10]


@pytest.mark.parametrize("scale", ["log", "decibel"])
def test_features_are_those_of_the_definition(scale: str) -> None:
    wanted = torch.from_numpy(np.stack([definition(clip.numpy(), scale) for clip in clips()]))[:, None]
    torch.testing.assert_close(MFCC(49, scale=scale)(clips())[BROAD].double(), wanted[BROAD], atol=TOLERANCE, rtol=0)
    torch.set_default_dtype(torch.float64)
    try:
        front_end = MFCC(49, scale=scale)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(front_end(clips().double()), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("frames", [48, 49])
def test_features_are_those_of_torchaudio(frames: int) -> None:
    torchaudio = pytest.importorskip("torchaudio", reason="torchaudio does not import here", exc_type=ImportError)
    settings = {"n_fft": 1024, "win_length": 640, "hop_length": 320, "pad": 320, "center": False, "n_mels": 40}
    reference = torchaudio.transforms.MFCC(
        16_000, 10, log_mels=True, melkwargs={**settings, "f_min": 20.0, "f_max": 4000.0}
    )
    wanted = reference(clips()).transpose(1, 2)[:, None, :frames]
    torch.testing.assert_close(MFCC(frames)(clips()), wanted, atol=TOLERANCE, rtol=0)


def by_librosa(waveforms: torch.Tensor) -> torch.Tensor:
    librosa = pytest.importorskip(
        "librosa", reason="librosa is not installed: pip install librosa (a quarter gigabyte)"
    )
    mel = librosa.feature.melspectrogram(
        y=np.pad(waveforms.numpy(), ((0, 0), (320, 320))), sr=16_000, n_fft=1024, win_length=640, hop_length=320,
        center=False, htk=True, norm=None, n_mels=40, fmin=20.0, fmax=4000.0,
    )  # fmt: skip
    return torch.from_numpy(scipy.fft.dct(np.log(mel + 1e-6), axis=1, norm="ortho")[:, :10].transpose(0, 2, 1)).float()


def noise_that_fades() -> torch.Tensor:
    """Return a clip ``[1, 16000]`` that is the same everywhere: 16-bit noise, half as loud every eighth of a second."""
    noise = np.frombuffer(hashlib.shake_256(b"noise").digest(32_000), "<i2")
    return torch.from_numpy((noise >> np.arange(16_000) // 2_000).astype(np.float32) / 32768)[None]


def test_features_are_those_of_librosa() -> None:
    torch.testing.assert_close(MFCC(49)(clips())[BROAD, 0], by_librosa(clips())[BROAD], atol=TOLERANCE, rtol=0)
    stored = torch.from_numpy(np.load(LIBROSA))[None]
    torch.testing.assert_close(stored, by_librosa(noise_that_fades()), atol=1e-5, rtol=0)


def test_features_are_those_that_librosa_had_given() -> None:
    stored = torch.from_numpy(np.load(LIBROSA))[None]
    torch.testing.assert_close(MFCC(49)(noise_that_fades())[:, 0], stored, atol=TOLERANCE, rtol=0)


def test_clip_in_a_large_batch_has_the_features_it_has_alone() -> None:
    x = torch.randn(50, 16_000)
    torch.testing.assert_close(MFCC()(x), torch.cat([MFCC()(clip[None]) for clip in x]), atol=1e-4, rtol=0)


def test_48_frames_are_the_first_of_49_and_a_short_clip_is_padded_at_the_end() -> None:
    x = torch.randn(2, 16_000)
    assert MFCC()(x).shape == (2, 1, 48, 10)
    torch.testing.assert_close(MFCC()(x), MFCC(49)(x)[:, :, :48], atol=1e-4, rtol=0)
    short = x[:, :9_000]
    assert torch.equal(MFCC()(short), MFCC()(torch.nn.functional.pad(short, (0, 7_000))))
    assert MFCC(None)(torch.randn(1, 48_000)).shape == (1, 1, 149, 10) and MFCC(None)(x[:, :5]).shape[2] == 1


def test_quiet_clip_does_not_depend_on_a_loud_neighbour() -> None:
    front_end, quiet = MFCC(scale="decibel"), 1e-5 * torch.randn(1, 16_000)
    together = front_end(torch.cat([quiet, torch.randn(1, 16_000)]))
    torch.testing.assert_close(together[:1], front_end(quiet), atol=TOLERANCE, rtol=0)
    levels = front_end.log_mel(torch.sin(torch.arange(16_000.0))[None])
    assert levels.max() - levels.min() == 80.0


def test_autocast_changes_no_bit_and_half_precision_is_computed_in_float32() -> None:
    x = torch.randn(2, 16_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(MFCC()(x), MFCC()(x.clone()))
        inside = MFCC()(x)
    assert torch.equal(inside, MFCC()(x))
    assert torch.equal(MFCC()(x.half()), MFCC()(x.half().float()))


def test_gradient_reaches_the_waveform_also_in_silence() -> None:
    x = torch.zeros(1, 16_000, requires_grad=True)
    MFCC()(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_checkpoint_of_a_net_holds_no_tables() -> None:
    assert not MFCC().state_dict()


@pytest.mark.parametrize(
    ("waveform", "error"),
    [
        (torch.zeros(2, 16_000, dtype=torch.int16), TypeError),
        (torch.zeros(16_000), ValueError),
        (torch.zeros(2, 0), ValueError),
        (torch.zeros(0, 16_000), ValueError),
        (torch.zeros(2, 32_000), ValueError),
    ],
)
def test_wrong_waveform_is_refused_by_name(waveform: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^waveform: got a .* want "):
        MFCC()(waveform)


@pytest.mark.parametrize("options", [{"frames": 0}, {"frames": 1.5}, {"scale": "mel"}, {"top_db": 0.0}])
def test_wrong_option_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(options))}: got"):
        MFCC(**options)


@pytest.mark.gpu
def test_features_on_a_gpu_are_those_of_the_cpu() -> None:
    torch.testing.assert_close(MFCC().cuda()(clips().cuda()).cpu(), MFCC()(clips()), atol=TOLERANCE, rtol=0)
