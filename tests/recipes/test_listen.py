"""A listener finds the same words however the sound comes in, and says each of them once."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("spikingjelly")
soundfile = pytest.importorskip("soundfile")

from benchmarks.results import listener as measure_listener  # noqa: E402
from benchmarks.results.listener import decide, hits, measure, posteriors, speech_stream  # noqa: E402
from recipes import listen  # noqa: E402
from recipes.data.background import LISTENED, TRAINED, background  # noqa: E402
from recipes.data.features import to_float  # noqa: E402
from recipes.data.speech_commands import Clips, load  # noqa: E402
from recipes.lib.listener import THRESHOLD, Detection, Listener, WordDecision  # noqa: E402
from recipes.lib.neurons import make_spiking  # noqa: E402
from recipes.lib.spotter import CHECKPOINT, Spotter, load_spotter  # noqa: E402
from recipes.models.keyword_nets import separable  # noqa: E402
from recipes.spot_keywords import parse_arguments  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def spotter() -> Spotter:
    """A net of random weights: what it hears does not matter, only that it hears the same."""
    torch.manual_seed(2)
    net = separable(3, width=0.0625)
    args = parse_arguments(["--out", "x", "--neuron", "atif-nu", "--time-steps", "2"])
    net.body[-1].weight.data *= 20
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data.normal_(0.3, 0.5)
    make_spiking(net, args)
    return Spotter(net, ("yes", "no", "stop"), torch.zeros(10), torch.full((10,), 5.0))


def sound(seconds: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    swell = torch.sin(torch.arange(int(16_000 * seconds)) / 3_000).abs()
    return (4_000 * swell * torch.randn(len(swell), generator=generator)).clamp(-32_768, 32_767).short()


def heard(spotter: Spotter, pieces: list[Tensor]) -> list[Detection]:
    listener = Listener(spotter, threshold=0.4, smoothing=2)
    words = [word for piece in pieces for word in listener.push(piece)]
    return [*words, *listener.finish()]


def test_words_do_not_depend_on_how_the_stream_is_cut(spotter: Spotter) -> None:
    stream = sound(4.3)
    whole = heard(spotter, [stream])
    assert len(whole) >= 2
    draw = torch.Generator().manual_seed(2)
    sizes = torch.randint(0, 5_000, (40,), generator=draw)
    sizes[-1] = len(stream) - sizes[:-1].sum().clamp(max=len(stream))
    for pieces in ([*stream.split(977)], [*stream.split(1_601)], [*stream.split(16_001)]):
        assert heard(spotter, pieces) == whole
    cuts = sizes.cumsum(0).clamp(max=len(stream))
    ragged = [*stream.tensor_split(cuts)]
    assert sum(map(len, ragged)) == len(stream) and min(map(len, ragged)) == 0
    assert heard(spotter, ragged) == whole
    assert heard(spotter, [stream.float() / 32_768]) == whole


def test_posteriors_are_equal_to_the_last_bit_also_sample_by_sample(spotter: Spotter) -> None:
    stream = sound(0.9).float() / 32_768

    def all_posteriors(size: int) -> Tensor:
        listener = Listener(spotter)
        return torch.stack([p for piece in stream.split(size) for _, p in listener.posteriors(piece)])

    whole = all_posteriors(len(stream))
    assert len(whole) == 5  # windows that begin half a second before the stream, every tenth of a second
    assert torch.equal(all_posteriors(1), whole)


def test_interrupted_listener_goes_on_where_it_was(spotter: Spotter, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, windows, forward = sound(3.0), 0, spotter.forward

    def interrupted(waveforms: Tensor) -> Tensor:
        nonlocal windows
        windows += 1
        if windows == 8:
            raise KeyboardInterrupt
        return forward(waveforms)

    def found(listener: Listener, samples: Tensor) -> list[tuple[float, list[float]]]:
        return [(middle, posterior.tolist()) for middle, posterior in listener.posteriors(samples)]

    whole = found(Listener(spotter), to_float(stream))
    listener, parts = Listener(spotter), []
    monkeypatch.setattr(spotter, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for middle, posterior in listener.posteriors(to_float(stream)):
            parts.append((middle, posterior.tolist()))
    assert [*parts, *found(listener, torch.zeros(0))] == whole


def test_recording_comes_in_pieces_so_that_words_are_told_as_they_are_found(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", sound(3.5).numpy(), 16_000)
    assert [len(piece) for piece in listen.recording(tmp_path / "long.wav")] == [16_000, 16_000, 16_000, 8_000]


def test_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    for content in (b"", b"garbage", b"RIFF0000WAVE", b"PK\x03\x04"):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(ValueError, match="x.pt: damaged or not a checkpoint of recipes.spot_keywords; re"):
            load_spotter(tmp_path / "x.pt")


def test_wrong_samples_are_named(spotter: Spotter) -> None:
    listener = Listener(spotter)
    for samples in (torch.zeros(2, 8), torch.zeros(8, dtype=torch.int32)):
        with pytest.raises(ValueError, match="samples: got .*want int16 or floating"):
            listener.push(samples)
    assert listener.seconds == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.001, -32_768.0])
def test_floats_that_are_no_sound_are_refused_and_change_nothing(value: float, spotter: Spotter) -> None:
    listener, samples = Listener(spotter), torch.zeros(20_000)
    samples[12_345] = value
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match=r"samples: got (nan|-?inf|1|-32768).*, want floating ones in \[-1, 1\]"):
            listener.push(samples.to(dtype) if value != 1.001 else samples)
    assert listener.seconds == 0 and listener.middle == 0 and len(listener.buffer) == 8_000
    listener.push(torch.tensor([1.0, -1.0]))
    assert listener.samples == 2


def test_net_that_gives_no_numbers_is_not_silence(spotter: Spotter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spotter, "forward", lambda waveforms: torch.full((1, 3), torch.nan))
    with pytest.raises(FloatingPointError, match="scores: got .*nan.*, want finite ones"):
        Listener(spotter).push(torch.zeros(16_000))


def decisions(values: list[list[float]], **options: float) -> list[Detection]:
    decision = WordDecision(("a", "b"), **{"threshold": 0.5, "smoothing": 1, **options})  # type: ignore[arg-type]
    words = [decision.push(0.1 * i, torch.tensor(value)) for i, value in enumerate(values)]
    return [word for word in (*words, decision.end()) if word is not None]


def test_a_peak_is_one_word_and_reaching_the_threshold_is_enough() -> None:
    peak = [[0.25, 0.0], [0.5, 0.0], [0.75, 0.0], [0.625, 0.0], [0.25, 0.0]]
    assert decisions(peak) == [Detection("a", 0.2, 0.75)]
    assert decisions(peak, threshold=0.75) == [Detection("a", 0.2, 0.75)]
    assert decisions(peak, threshold=0.76) == []


def test_the_surest_word_of_a_peak_is_said() -> None:
    assert [w.word for w in decisions([[0.6, 0.0], [0.0, 0.9], [0.6, 0.0], [0.0, 0.0]])] == ["b"]


def test_a_word_that_is_said_on_and_on_is_one_word_but_two_words_are_two() -> None:
    assert [w.word for w in decisions([[0.9, 0.0]] * 6)] == ["a"]
    assert [w.word for w in decisions([[0.9, 0.0], [0.0, 0.0], [0.9, 0.0]])] == ["a"]  # a dip is no pause
    assert [w.word for w in decisions([[0.9, 0.0], [0.0, 0.0], [0.0, 0.9]])] == ["a", "b"]
    apart = decisions([[0.9, 0.0], *[[0.0, 0.0]] * 9, [0.9, 0.0]])
    assert [(w.word, round(w.time, 3)) for w in apart] == [("a", 0.0), ("a", 1.0)]


def test_smoothing_begins_in_silence_and_dates_a_word_back() -> None:
    assert decisions([[0.9, 0.0], [0.0, 0.0], [0.0, 0.0]], smoothing=2, threshold=0.5) == []
    (word,) = decisions([[0.0, 0.0], [0.75, 0.0], [0.75, 0.0], [0.0, 0.0]], smoothing=2)
    assert (word.word, word.confidence) == ("a", 0.75) and word.time == pytest.approx(0.15)


def test_raw_samples_survive_pieces_of_odd_bytes() -> None:
    class Pipe(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return super().read(7)

    samples = sound(0.01)
    assert torch.equal(torch.cat([*listen.raw_samples(Pipe(samples.numpy().tobytes() + b"x"))]), samples)


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


def test_hits_are_words_found_once_where_they_were_said() -> None:
    said = [("a", 1.0), ("b", 3.0), ("a", 5.0)]
    found = [
        Detection("a", 1.0, 1), Detection("a", 1.9, 1), Detection("a", 3.5, 1), Detection("b", 3.6, 1),
        Detection("a", 4.0, 1), Detection("b", 5.5, 1),
    ]  # fmt: skip
    assert hits(found, said) == {"hits": 2, "wrong": 3, "between": 1}


def test_measurement_decides_as_the_listener_does(spotter: Spotter, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = Clips(torch.stack([sound(1)] * 3), torch.tensor([0, 1, 2]), ("yes", "no", "stop"), ("x",) * 3)
    stream, said = speech_stream(clips)
    assert len(stream) / 16_000 == pytest.approx(said[-1][1] + 1) and [w for w, _ in said] != ["yes"] * 3
    listener = Listener(spotter, threshold=0.5)
    found, heard = decide(spotter, posteriors(spotter, stream), 0.5), [*listener.push(stream), *listener.finish()]
    assert [(w.word, w.time) for w in found] == [(w.word, w.time) for w in heard] and len(found) > 1
    assert [w.confidence for w in found] == pytest.approx([w.confidence for w in heard], abs=1e-5)
    monkeypatch.setattr(measure_listener, "LISTENED", ("silence", "white"))
    measured = json.loads(json.dumps(measure(spotter, clips, hours=0.001)))
    assert measured["words_said"] == 3 and measured["at"]["0.5"]["false_alarms"].keys() == {"silence", "white"}


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="no trained net in this checkout")
def test_the_net_that_comes_along_knows_words_and_keeps_quiet_in_noise() -> None:
    assert CHECKPOINT.stat().st_size < 500_000
    shipped = load_spotter(CHECKPOINT)
    test = load("sample").test
    spoken = shipped(to_float(test.waveforms[::2])).argmax(1)
    assert (spoken == test.labels[::2]).double().mean() > 0.3  # chance is 1 in 35
    noise = background(40, 16_000, torch.Generator().manual_seed(5), TRAINED)
    assert shipped(noise).softmax(1).max() < THRESHOLD
