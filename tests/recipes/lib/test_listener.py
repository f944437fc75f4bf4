"""A listener finds the same words however the sound comes in, and says each of them once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("spikingjelly")
pytest.importorskip("soundfile")

from recipes.data.features import to_float  # noqa: E402
from recipes.lib.listener import Detection, Listener, WordDecision  # noqa: E402
from recipes.lib.spotter import Spotter  # noqa: E402
from tests.recipes.keyword_corpus import random_spotter, sound  # noqa: E402


@pytest.fixture(scope="module")
def spotter() -> Spotter:
    return random_spotter()


def heard(spotter: Spotter, pieces: list[Tensor]) -> list[Detection]:
    listener = Listener(spotter, threshold=0.4, smoothing=2)
    words = [word for piece in pieces for word in listener.push(piece)]
    return [*words, *listener.finish()]


def test_words_do_not_depend_on_how_the_stream_is_cut(spotter: Spotter) -> None:
    stream = sound(3.3)
    whole = heard(spotter, [stream])
    assert len(whole) >= 2
    draw = torch.Generator().manual_seed(2)
    sizes = torch.randint(0, 5_000, (40,), generator=draw)
    sizes[-1] = len(stream) - sizes[:-1].sum().clamp(max=len(stream))
    for pieces in ([*stream.split(977)], [*stream.split(16_001)]):
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
