"""Sound files as people have them: repaired as documented, or refused with a reason."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile", exc_type=ImportError)

from recipes.data import audio, containers  # noqa: E402
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


KINDS = {
    "WAV": "PCM_16", "WAVEX": "PCM_24", "AIFF": "PCM_16", "FLAC": "PCM_16", "AU": "PCM_16", "W64": "PCM_16",
    "RF64": "PCM_16", "NIST": "PCM_16", "VOC": "PCM_16", "CAF": "PCM_16", "SVX": "PCM_16", "AVR": "PCM_16",
    "MPC2K": "PCM_16", "MAT4": "PCM_16", "MAT5": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III",
}  # fmt: skip


def written(kind: str, subtype: str, samples: np.ndarray) -> bytes:
    if not (kind in soundfile.available_formats() and soundfile.check_format(kind, subtype)):
        pytest.skip(f"this libsndfile does not write {kind}")
    return wav(samples, subtype=subtype, kind=kind)


@pytest.mark.parametrize(("kind", "subtype"), [*KINDS.items(), ("NIST", "ULAW"), ("OGG", "OPUS"), ("AU", "ULAW")])
def test_truncated_recording_of_any_container_is_refused_wherever_it_ends(kind: str, subtype: str) -> None:
    noise = np.random.default_rng(0).integers(-(2**12), 2**12, 16_000).astype(np.int16)
    content = written(kind, subtype, noise)
    assert len(read_samples(content)[0]) == 16_000
    for length in [*range(1, 200, 13), *(round(share * len(content)) for share in np.linspace(0.01, 0.99, 40))]:
        with pytest.raises(ValueError, match="truncated|damaged|not a sound file|empty"):
            read_samples(content[:length])


def test_truncated_recording_of_two_channels_is_refused() -> None:
    stereo = np.random.default_rng(0).integers(-(2**12), 2**12, (16_000, 2)).astype(np.int16)
    for kind in ("AU", "NIST", "VOC", "AVR", "MPC2K", "W64", "CAF"):
        content = wav(stereo, kind=kind)
        assert len(read_samples(content)[0]) == 16_000
        with pytest.raises(ValueError, match="truncated"):
            read_samples(content[: len(content) * 2 // 3])


@pytest.mark.parametrize(
    ("kind", "place", "size"),
    [("AU", 8, b"\xff" * 4), ("RF64", 20, b"\xff" * 8), ("RF64", 20, bytes(8)), ("AIFF", 4, b"\xff" * 4)],
)
def test_recording_from_a_pipe_is_read_in_other_containers_too(kind: str, place: int, size: bytes) -> None:
    content = wav(tone(), kind=kind)
    content = content[:place] + size + content[place + len(size) :]
    np.testing.assert_array_equal(read_samples(content)[0], read_samples(wav(tone()))[0])


def test_data_beyond_the_end_are_missed_where_the_size_of_the_whole_is_right() -> None:
    content = bytearray(wav(tone()))
    content[40:44] = (40_000).to_bytes(4, "little")
    with pytest.raises(ValueError, match="truncated: 32,044 of 40,044 bytes"):
        read_samples(bytes(content))


@pytest.mark.parametrize("declared", [1 << 24, (1 << 36) - 1])
def test_header_that_declares_more_samples_than_there_are_costs_no_memory(declared: int) -> None:
    content = bytearray(wav(np.zeros(16_000, np.int16), kind="FLAC"))
    content[21:26] = ((content[21] >> 4 << 36) | declared).to_bytes(5, "big")
    with pytest.raises(ValueError, match=f"truncated: 16,000 of {declared:,} samples can be read"):
        read_samples(bytes(content))


def test_flac_that_does_not_know_its_length_is_read() -> None:
    whole = wav(tone(), kind="FLAC")
    content = whole[:21] + (whole[21] >> 4 << 36).to_bytes(5, "big") + whole[26:]
    np.testing.assert_array_equal(read_samples(content)[0], read_samples(whole)[0])


def mp3(bit_rate: str, seconds: float = 3.0) -> tuple[bytes, bytes]:
    """Return an MP3 file, and its frames alone, as an encoder streams them: without the Xing header of the first."""
    content = io.BytesIO()
    if "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile does not write MP3")
    soundfile.write(content, tone(seconds=seconds), 16_000, format="MP3", bitrate_mode=bit_rate, compression_level=0.5)
    sizes = [size for size, _ in containers._mpeg_frames(content.getvalue(), 0)]
    assert sum(sizes) == len(content.getvalue()) and re.search(rb"Xing|Info", content.getvalue()[: sizes[0]])
    return content.getvalue(), content.getvalue()[sizes[0] :]


def test_mp3_with_tags_and_without_a_xing_header_is_read_and_its_truncation_seen() -> None:
    content, stream = mp3("CONSTANT")
    tag = b"ID3\x04\0\0\0\0\x01\x05" + bytes(133)
    for whole in (content, stream, tag + stream + b"TAG" + bytes(125)):
        assert abs(len(read_samples(whole)[0]) - 48_000) <= 2 * 1_152
    for whole in (content, stream, tag + stream):
        with pytest.raises(ValueError, match="truncated"):
            read_samples(whole[: len(whole) * 3 // 5])


def test_mp3_whose_length_libsndfile_guesses_wrong_is_not_cut_in_silence() -> None:
    content, stream = mp3("VARIABLE")
    assert abs(len(read_samples(content)[0]) - 48_000) <= 2 * 1_152
    with pytest.raises(ValueError, match="truncated: .* samples can be read"):
        read_samples(stream)


def test_blocks_are_the_recording_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(-(2**12), 2**12, 20_000).astype(np.int16)
    for kind, subtype in (("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16"), ("WAV", "MS_ADPCM"), ("WAV", "ULAW")):
        content = written(kind, subtype, noise)
        whole, _ = read_samples(content)
        with monkeypatch.context() as patch:
            patch.setattr(audio, "BLOCK", 1_777)
            np.testing.assert_array_equal(read_samples(content)[0], whole)


@pytest.mark.parametrize("rate", [4_000, 1_000_000, 2**31 - 1])
def test_absurd_rate_is_refused(rate: int) -> None:
    with pytest.raises(ValueError, match=f"{rate} Hz, want at least 8000 Hz, at most 768000"):
        read_samples(wav(tone(), rate))


def test_many_channels_are_one_sound() -> None:
    samples, repairs = read_samples(wav(np.repeat(tone()[:, None], 1_000, 1)))
    assert repairs == ("1000 channels averaged",) and np.abs(samples - to_int16(tone()).astype(int)).max() <= 1
