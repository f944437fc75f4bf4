"""Sound files as people have them: repaired as documented, or refused with a reason."""

from __future__ import annotations

import io

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile", exc_type=ImportError)

from recipes.data.audio import one_second, read_samples, resample, to_int16  # noqa: E402


def tone(rate: int = 16_000, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def wav(samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, subtype, format=kind)
    return content.getvalue()


def test_plain_file_is_taken_to_the_last_bit() -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 12_345).astype(np.int16)
    got, repairs = read_samples(wav(samples))
    np.testing.assert_array_equal(got, samples)
    assert got.dtype == np.int16 and repairs == ()
    np.testing.assert_array_equal(read_samples(wav(samples, kind="FLAC"))[0], samples)


@pytest.mark.parametrize(
    ("content", "repair", "error"),
    [
        (wav(np.stack([tone(), 0 * tone()], 1) * 2), "2 channels averaged", 2),
        (wav(tone(), subtype="PCM_U8"), "PCM_U8 rounded to 16 bits", 256),
        (wav(tone(), subtype="PCM_24"), "PCM_24 rounded to 16 bits", 2),
        (wav(tone(), subtype="FLOAT"), "FLOAT rounded to 16 bits", 2),
        (wav(tone(8_000), 8_000), "resampled from 8000 Hz", 200),
        (wav(tone(44_100), 44_100), "resampled from 44100 Hz", 200),
    ],
    ids=["stereo", "8 bit", "24 bit", "float", "8 kHz", "44.1 kHz"],
)
def test_other_file_becomes_the_same_sound(content: bytes, repair: str, error: int) -> None:
    samples, repairs = read_samples(content)
    assert repairs == (repair,) and samples.dtype == np.int16 and len(samples) == 16_000
    middle = slice(1_000, 15_000)  # a filter rings at the ends
    assert np.abs(samples[middle].astype(int) - to_int16(tone())[middle]).max() <= error


def test_all_repairs_of_a_file_are_told() -> None:
    stereo = np.stack([tone(48_000), tone(48_000)], 1)
    assert read_samples(wav(stereo, 48_000, "PCM_U8"))[1] == (
        "PCM_U8 rounded to 16 bits", "2 channels averaged", "resampled from 48000 Hz",
    )  # fmt: skip


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap_round() -> None:
    samples, _ = read_samples(wav(4 * tone(), subtype="FLOAT"))
    assert samples.max() == 2**15 - 1 and samples.min() == -(2**15)
    assert np.abs(np.diff(samples.astype(int))).max() < 2**15


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (wav(np.zeros(0)), "empty: no samples"),
        (wav(tone())[:-1_000], "truncated: 31,044 of 32,044 bytes"),
        (wav(tone(), kind="AIFF")[:-1_000], "truncated"),
        (b"<html>not found</html>", "not a sound file"),
        (b"RIFF\x04\x00\x00\x00WAVE", "not a sound file"),
        (wav(np.array([0.0, np.nan]), subtype="FLOAT"), "no numbers"),
        (wav(tone(4_000), 4_000), "4000 Hz, want at least 8000 Hz"),
    ],
    ids=["nothing", "no samples", "truncated", "truncated AIFF", "a web page", "only a header", "NaN", "old telephone"],
)
def test_what_can_not_be_used_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_samples(content)


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\0\0\0\0"])
def test_recording_from_a_pipe_that_does_not_know_its_length_is_read(size: bytes) -> None:
    content = wav(tone())
    assert len(read_samples(content[:4] + size + content[8:])[0]) == 16_000


def test_second_is_padded_at_the_end_or_around_and_a_long_one_cut_where_it_is_loudest() -> None:
    short, long = np.ones(6_000, np.int16), np.zeros(50_000, np.int16)
    np.testing.assert_array_equal(one_second(short), np.r_[short, np.zeros(10_000, np.int16)])
    np.testing.assert_array_equal(one_second(short, centre=True)[5_000:11_000], short)
    assert one_second(short, centre=True).sum() == 6_000
    long[20_000:36_000], long[40_000:] = 3, 2
    np.testing.assert_array_equal(one_second(long), np.full(16_000, 3))


@pytest.mark.parametrize("rate", [22_051, 47_999])
def test_odd_rate_is_resampled_to_four_thousandths(rate: int) -> None:
    samples, repairs = read_samples(wav(tone(rate), rate))
    assert repairs == (f"resampled from {rate} Hz",) and abs(len(samples) - 16_000) <= 64
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 2**18))
    assert abs(spectrum.argmax() * 16_000 / 2**18 - 440) <= 1.76


def test_resampling_at_a_speed_is_a_tape_played_fast() -> None:
    fast = resample(tone(22_050, hertz=400).astype(np.float32), 22_050, speed=1.25)
    assert abs(len(fast) - 12_800) <= 30
    spectrum = np.abs(np.fft.rfft(fast * np.hanning(len(fast))))
    assert abs(spectrum.argmax() * 16_000 / len(fast) - 500) < 2


def test_wav_from_a_pipe_whose_header_has_no_true_size_is_read() -> None:
    content = bytearray(wav(tone()))
    content[4:8], content[40:44] = (0x80000024).to_bytes(4, "little"), (0x80000000).to_bytes(4, "little")  # arecord's
    assert np.array_equal(read_samples(bytes(content))[0], read_samples(wav(tone()))[0])
