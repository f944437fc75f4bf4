"""What is measured of a listener is what the listener does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("soundfile")

from benchmarks.results import listener as measure_listener  # noqa: E402
from benchmarks.results.listener import decide, hits, measure, posteriors, speech_stream  # noqa: E402
from recipes.data.speech_commands import Clips, load  # noqa: E402
from recipes.lib.listener import Detection, Listener  # noqa: E402
from tests.recipes.keyword_corpus import random_spotter, sound, write_corpus  # noqa: E402


def test_hits_are_words_found_once_where_they_were_said() -> None:
    said = [("a", 1.0), ("b", 3.0), ("a", 5.0)]
    found = [
        Detection("a", 1.0, 1), Detection("a", 1.9, 1), Detection("a", 3.5, 1), Detection("b", 3.6, 1),
        Detection("a", 4.0, 1), Detection("b", 5.5, 1),
    ]  # fmt: skip
    assert hits(found, said) == {"hits": 2, "wrong": 3, "between": 1}


def test_measurement_decides_as_the_listener_does(monkeypatch: pytest.MonkeyPatch) -> None:
    spotter = random_spotter()
    clips = Clips(torch.stack([sound(1)] * 3), torch.tensor([0, 1, 2]), ("yes", "no", "stop"), ("x",) * 3)
    stream, said = speech_stream(clips)
    assert len(stream) / 16_000 == pytest.approx(said[-1][1] + 1) and [w for w, _ in said] != ["yes"] * 3
    listener = Listener(spotter, threshold=0.5)
    found, heard = decide(spotter, posteriors(spotter, stream), 0.5), [*listener.push(stream), *listener.finish()]
    assert [(w.word, w.time) for w in found] == [(w.word, w.time) for w in heard] and len(found) > 1
    assert [w.confidence for w in found] == pytest.approx([w.confidence for w in heard], abs=1e-5)
    monkeypatch.setattr(measure_listener, "LISTENED", ("silence", "white"))
    measured = json.loads(json.dumps(measure(spotter, clips, hours=0.001)))
    assert (
        "operating_points" not in measured
        and measured["words_said"] == 3
        and measured["at"]["0.5"]["false_alarms"].keys() == {"silence", "white"}
    )


def test_unknown_words_are_false_alarms_which_the_operating_points_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    spotter = random_spotter()
    clips = Clips(torch.stack([sound(1)] * 3), torch.tensor([0, 1, 2]), ("yes", "no", "stop"), ("x",) * 3)
    others = Clips(clips.waveforms.repeat(4, 1), torch.zeros(12, dtype=torch.int64), ("maybe",), ("y",) * 12)
    monkeypatch.setattr(measure_listener, "LISTENED", ("silence",))
    monkeypatch.setattr(measure_listener, "RATES", (100_000, 400, 0))
    measured = measure(spotter, clips, hours=0.001, unknown=(others, others))
    assert measured["unknown_words"] == ["maybe"] and measured["unknown_said"] == 12
    points = measured["operating_points"]
    assert points["100000"] == 0.3 < points["400"] < points["0"] <= 1.0
    trial = posteriors(spotter, speech_stream(others)[0])
    for rate, threshold in points.items():
        alarms = measured["at"][f"{threshold:g}"]["unknown"]
        assert alarms == len(decide(spotter, trial, threshold)) <= int(rate) * measured["unknown_hours"]
    assert len(decide(spotter, trial, points["400"] - 0.01)) > 400 * measured["unknown_hours"]


def test_unknown_words_are_those_that_were_kept_out_of_the_training(tmp_path: Path) -> None:
    spotter, corpus = random_spotter(), load(str(write_corpus(tmp_path, more={"maybe": (300.0, 600.0)})))
    assert measure_listener._unknown(spotter, corpus, None) is None
    spotter.settings = {"unheard": ["maybe", "elsewhere"]}
    found = measure_listener._unknown(spotter, corpus, None)
    assert found is not None and [(part.words, len(part)) for part in found] == [(("maybe",), 2)] * 2
    for word in ("yes", "elsewhere"):
        with pytest.raises(ValueError, match=f"--unheard: got {word}, want words of .* that the net does not know"):
            measure_listener._unknown(spotter, corpus, [word])
