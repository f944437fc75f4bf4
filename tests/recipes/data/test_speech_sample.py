"""The embedded corpus, and the script that has packed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

soundfile = pytest.importorskip("soundfile", exc_type=ImportError)

from recipes.data.speech_commands import WORDS, Corpus, load  # noqa: E402
from recipes.data.speech_sample import PATH, load_sample  # noqa: E402
from recipes.lib.files import write_json  # noqa: E402
from recipes.makers.speech_engines import VOICES  # noqa: E402
from recipes.makers.speech_sample import pack  # noqa: E402


@pytest.fixture(scope="module")
def sample() -> Corpus:
    return load("sample")


def test_every_speaker_says_every_word_once(sample: Corpus) -> None:
    for clips, people in ((sample.train, 28), (sample.validation, 4), (sample.test, 8)):
        assert clips.waveforms.shape == (35 * people, 16_000) and clips.waveforms.dtype == torch.int16
        assert clips.labels.dtype == torch.int64 and clips.words == WORDS
        said = set(zip(clips.speakers, clips.labels.tolist(), strict=True))
        assert len(set(clips.speakers)) == people and len(said) == len(clips) == len(clips.labels) == 35 * people
        assert (clips.waveforms.float().abs().amax(1) > 1_000).all()


def test_it_is_called_synthetic_and_a_sample(sample: Corpus) -> None:
    assert sample.name == "synthetic speech (packed sample)"


def test_each_voice_speaks_in_the_split_it_is_kept_for(sample: Corpus) -> None:
    for split in VOICES:
        voices = {tuple(name.rsplit(".", 1)[0].split("-", 1)) for name in getattr(sample, split).speakers}
        assert voices <= {(engine, voice) for engine, of in VOICES[split].items() for voice in of}
        assert {engine for engine, _ in voices} == set(VOICES[split])


def test_file_is_small_and_the_licence_of_every_engine_lies_beside_it(sample: Corpus) -> None:
    assert PATH.stat().st_size < 5_000_000
    licences = PATH.with_name("SYNTHETIC_SPEECH_LICENCES").read_text()
    for name in {
        name.rsplit(".", 1)[0] for clips in (sample.train, sample.validation, sample.test) for name in clips.speakers
    }:
        engine, voice = name.split("-", 1)
        assert f"{engine}-*" in licences if engine == "espeak" else voice in licences


def test_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    content = bytearray(PATH.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.npz: got sha256 .* want .*git checkout"):
        load_sample(tmp_path / "damaged.npz")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: not found"):
        load_sample(tmp_path / "nowhere.npz")


def test_other_voices_are_not_packed(tmp_path: Path) -> None:
    for word in ("no", "yes"):
        (tmp_path / word).mkdir()
        for speaker in ("bb05582b", "8b775397", "cb8f8307"):
            soundfile.write(tmp_path / word / f"{speaker}_nohash_0.wav", np.zeros(16_000, np.int16), 16_000)
    with pytest.raises(ValueError, match="^source: got .*, want synthetic speech"):
        pack(tmp_path, tmp_path / "packed.npz")
    assert not (tmp_path / "packed.npz").exists()


def test_packed_clips_come_back_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time = np.arange(16_000) / 16_000
    for number, speaker in enumerate(("bb05582b", "8b775397", "cb8f8307")):
        for word in ("no", "yes"):
            (tmp_path / word).mkdir(exist_ok=True)
            tone = 8_000 * np.sin(2 * np.pi * (300 + 200 * number + 700 * (word == "yes")) * time)
            soundfile.write(tmp_path / word / f"{speaker}_nohash_0.wav", tone.astype(np.int16), 16_000)
    write_json(tmp_path / "corpus.json", {"name": "synthetic speech"})
    digest = pack(tmp_path, tmp_path / "packed.npz")
    monkeypatch.setattr("recipes.data.speech_sample.SHA256", digest)
    packed, corpus = load_sample(tmp_path / "packed.npz"), load(str(tmp_path))
    for split in ("train", "validation", "test"):
        got, wanted = getattr(packed, split), getattr(corpus, split)
        assert got.speakers == wanted.speakers and torch.equal(got.labels, wanted.labels)
        loudest = [torch.fft.rfft(clips.waveforms.float()).abs().argmax(1) for clips in (got, wanted)]
        assert torch.equal(*loudest)
