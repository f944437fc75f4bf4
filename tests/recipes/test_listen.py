"""The command that listens: recordings, pipes and a microphone."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("spikingjelly")
soundfile = pytest.importorskip("soundfile")

from recipes import listen  # noqa: E402
from recipes.data.background import LISTENED, TRAINED, background  # noqa: E402
from recipes.data.features import to_float  # noqa: E402
from recipes.data.speech_commands import load  # noqa: E402
from recipes.lib.listener import THRESHOLD  # noqa: E402
from recipes.lib.spotter import CHECKPOINT, Spotter, load_spotter  # noqa: E402
from tests.recipes.keyword_corpus import random_spotter, sound  # noqa: E402


@pytest.fixture(scope="module")
def spotter() -> Spotter:
    return random_spotter()


def test_recording_comes_in_pieces_so_that_words_are_told_as_they_are_found(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", sound(3.5).numpy(), 16_000)
    assert [len(piece) for piece in listen.recording(tmp_path / "long.wav")] == [16_000, 16_000, 16_000, 8_000]


def test_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    for content in (b"", b"garbage", b"RIFF0000WAVE", b"PK\x03\x04"):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(ValueError, match="x.pt: damaged or not a checkpoint of recipes.spot_keywords; re"):
            load_spotter(tmp_path / "x.pt")


def test_raw_samples_survive_pieces_of_odd_bytes() -> None:
    class Pipe(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return super().read(7)

    samples = sound(0.01)
    assert torch.equal(torch.cat([*listen.raw_samples(Pipe(samples.numpy().tobytes() + b"x"))]), samples)


@pytest.mark.parametrize(
    ("heard", "spent", "told"),
    [
        (30.0, 2.0, ", 15 times faster than real time"), (3.0, 2.0, ", 1.5 times faster than real time"),
        (2.0, 3.0, ", 1.5 times slower than real time"), (0.1, 20.0, ", 200 times slower than real time"),
        (9.99, 1.0, ", 10 times faster than real time"), (1.0, 0.0, ""), (0.0, 1.0, ""),
    ],
)  # fmt: skip
def test_speed_is_never_zero_times(heard: float, spent: float, told: str) -> None:
    assert listen.speed(heard, spent) == told


@pytest.fixture
def checkpoint(spotter: Spotter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "load_spotter", lambda path: spotter)


@pytest.mark.usefixtures("checkpoint")
def test_recording_of_another_rate_is_heard_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "8k.wav", sound(2).numpy()[::2], 8_000)
    listen.main([str(tmp_path / "8k.wav"), "--threshold", "0.4"])
    out, err = capsys.readouterr()
    assert "2.0 s of sound" in out and "times faster than real time" in out and "resampled from 8000 Hz" in err
    for line in out.splitlines()[1:-1]:
        seconds, _, word, confidence = line.split()
        assert -0.5 <= float(seconds) <= 2.5 and word in ("yes", "no", "stop") and 0.4 <= float(confidence) <= 1


@pytest.mark.usefixtures("checkpoint")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.wav"], "recordings: got no.wav, want a file that exists"),
        (["--microphone"], "--microphone: got no sounddevice"),
    ],
)
def test_what_is_missing_is_said(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SystemExit, match=message):
        listen.main(arguments)


@pytest.mark.usefixtures("checkpoint")
def test_raw_samples_from_a_closed_standard_input_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit, match="recordings: got -, and the standard input is closed"):
        listen.main(["-"])


@pytest.mark.usefixtures("checkpoint")
def test_ctrl_c_ends_a_microphone_well_and_a_list_of_recordings_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces(*_: object) -> Iterator[Tensor]:
        yield sound(1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(listen, "microphone", pieces)
    listen.main(["--microphone"])
    assert "1.0 s of sound" in capsys.readouterr().out
    monkeypatch.setattr(listen, "recording", pieces)
    with pytest.raises(KeyboardInterrupt):
        listen.main(["a.wav", "b.wav"])
    out = capsys.readouterr().out
    assert out.startswith("a.wav\n") and "b.wav" not in out


@pytest.mark.usefixtures("checkpoint")
def test_recording_without_words_names_the_best_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "x.wav", sound(2).numpy(), 16_000)
    (found,) = listen.main([str(tmp_path / "x.wav"), "--threshold", "1"])
    best = found["best"]
    assert not found["words"] and 0 < best.confidence < 1
    told = f"no word reached --threshold 1; the best candidate is {best.word} at {best.time:.2f} s with "
    assert told in capsys.readouterr().out
    (found,) = listen.main([str(tmp_path / "x.wav"), "--threshold", f"{best.confidence - 1e-6}"])
    assert found["words"][0] == best and "best candidate" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "recordings: got none"),
        (["a.wav", "--microphone"], "recordings: got both"),
        (["a.wav", "--threshold", "0"], "--threshold: got 0, want a finite number > 0 and <= 1"),
        (["a.wav", "--smoothing", "0"], "--smoothing: got 0"),
    ],
)
def test_wrong_argument_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        listen.main(arguments)
    assert message in capsys.readouterr().err


def test_background_is_drawn_from_its_generator_alone_and_has_its_level() -> None:
    for kind in LISTENED:
        first, second = (background(3, 8_000, torch.Generator().manual_seed(3), (kind,)) for _ in range(2))
        assert torch.equal(first, second) and first.isfinite().all() and first.abs().max() <= 1
        level = 20 * first.square().mean(1).sqrt().log10()
        assert (level <= -5.9).all() and (kind == "silence" or (level > -80).all())
    assert set(TRAINED) < set(LISTENED)


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="no trained net in this checkout")
def test_the_net_that_comes_along_knows_words_and_keeps_quiet_in_noise() -> None:
    assert CHECKPOINT.stat().st_size < 500_000
    shipped = load_spotter(CHECKPOINT)
    test = load("sample").test
    spoken = shipped(to_float(test.waveforms[::2])).argmax(1)
    assert (spoken == test.labels[::2]).double().mean() > 0.3  # chance is 1 in 35
    noise = background(40, 16_000, torch.Generator().manual_seed(5), TRAINED)
    assert shipped(noise).softmax(1).max() < THRESHOLD
