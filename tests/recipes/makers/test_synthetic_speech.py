"""The generator of synthetic speech: who speaks where, what is made twice, and what an interruption leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile", exc_type=ImportError)

from recipes.data.speech_commands import SPLITS, WORDS, load  # noqa: E402
from recipes.makers import speech_engines  # noqa: E402
from recipes.makers import synthetic_speech as module  # noqa: E402
from recipes.makers.speech_effects import background_noises, record, trim  # noqa: E402
from recipes.makers.speech_engines import COMMANDS, ENGINES, VOICES, Speaker, check_engines, synthesize  # noqa: E402
from recipes.makers.synthetic_speech import main, make, speakers  # noqa: E402


class Humming:
    """In the place of the engines: a tone whose pitch depends on the word."""

    def __init__(self, until: float = float("inf")) -> None:
        self.calls, self.until = 0, until

    def __call__(
        self, speaker: Speaker, word: str, words: tuple[str, ...], pace: float, pitch: float
    ) -> tuple[np.ndarray, int]:
        self.calls += 1
        if self.calls > self.until:
            raise KeyboardInterrupt
        hertz = 150 + 10 * words.index(word) + 50 * pitch
        time = np.arange(round(8_000 / pace)) / 16_000
        return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), 16_000


@pytest.fixture
def humming(monkeypatch: pytest.MonkeyPatch) -> Humming:
    engine = Humming()
    monkeypatch.setattr(module, "WORDS", WORDS[:3])
    monkeypatch.setattr(module, "synthesize", engine)
    monkeypatch.setattr(module, "check_engines", lambda engines: dict.fromkeys(engines, "1.0"))
    monkeypatch.setattr(module, "background_noises", lambda babble, draw: background_noises(babble, draw, 2))
    return engine


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_no_voice_is_in_two_splits_nor_a_version_of_one() -> None:
    same = {"kal_diphone": "kal", "kal16": "kal", "cmu_us_slt_arctic_hts": "slt"}
    for engine in ("espeak", "recorded"):
        owners: dict[str, str] = {}
        for split in SPLITS:
            for group, voices in VOICES[split].items():
                if (group == "espeak") != (engine == "espeak"):
                    continue
                for voice in voices:
                    # m1 and f1 are voices of their own; iven2 is another iven
                    person = voice if voice[1:].isdigit() else same.get(voice, voice.rstrip("0123456789").lower())
                    assert owners.setdefault(person, split) == split


@pytest.mark.parametrize("split", SPLITS)
def test_speakers_are_told_apart_and_more_of_them_change_no_other(split: str) -> None:
    many = speakers(split, 150, seed=3)
    assert len({speaker.name for speaker in many}) == 150 and many[:20] == speakers(split, 20, seed=3)
    assert {speaker.voice for speaker in many} == {voice for voices in VOICES[split].values() for voice in voices}
    assert many != speakers(split, 150, seed=4)
    assert {speaker.engine for speaker in speakers(split, 20, 3, ["espeak"])} == {"espeak"}


def test_corpus_is_split_by_voice_and_readable(humming: Humming, tmp_path: Path) -> None:
    make(tmp_path / "out", 20, takes=2)
    corpus = load(str(tmp_path / "out"))
    assert corpus.name == "synthetic speech" and len(corpus.noise) == 5 * 32_000
    voices = []
    for clips, people in ((corpus.train, 14), (corpus.validation, 2), (corpus.test, 4)):
        assert len(clips) == people * 3 * 2 and len(set(clips.speakers)) == people
        assert clips.labels.bincount(minlength=35)[:3].tolist() == [people * 2] * 3
        assert (clips.waveforms.abs().amax(1) > 1000).all()
        voices.append({speaker.rsplit(".", 1)[0] for speaker in clips.speakers})
    assert not voices[0] & voices[1] and not voices[0] & voices[2] and not voices[1] & voices[2]


def test_interrupted_run_goes_on_and_makes_what_one_run_makes(
    humming: Humming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "whole", 10)
    monkeypatch.setattr(module, "synthesize", Humming(until=55))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", 10)
    with pytest.raises(ValueError, match="is not complete"):
        load(str(tmp_path / "parts"))
    half = contents(tmp_path / "parts")
    assert 0 < len([name for name in half if "_nohash_" in name]) < 30
    monkeypatch.setattr(module, "synthesize", again := Humming())
    make(tmp_path / "parts", 10)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert again.calls <= 40 + 30 - len([name for name in half if "_nohash_" in name])
    calls = again.calls
    make(tmp_path / "parts", 10)
    assert again.calls == calls


def test_folder_of_other_settings_or_other_files_is_left_alone(humming: Humming, tmp_path: Path) -> None:
    make(tmp_path / "out", 10)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"^out: .* made with seed 0; want the same settings or another folder"):
        make(tmp_path / "out", 10, seed=1)
    assert contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"^out: .*mine holds other files, want a new folder"):
        make(tmp_path / "mine", 10)
    assert set(contents(tmp_path / "mine")) == {"thesis.tex"}


def test_missing_engine_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech_engines.shutil, "which", lambda name: None if name == "flite" else name)
    with pytest.raises(FileNotFoundError, match="^flite: not installed; on Debian: apt-get install flite$"):
        check_engines(ENGINES)
    monkeypatch.setattr("sys.argv", ["make", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="apt-get install flite"):
        main()
    assert not (tmp_path / "out").exists()


def test_engines_without_a_voice_for_a_split_are_refused(humming: Humming, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^engines: got festival, want one that has voices for each split"):
        make(tmp_path / "out", 10, engines=["festival"])
    assert not (tmp_path / "out").exists()


def test_recordings_are_at_most_a_second_neither_silent_nor_clipped() -> None:
    draw = np.random.default_rng(0)
    noises = list(background_noises([draw.standard_normal(4_000).astype(np.float32)], draw, 2).values())
    assert all(np.abs(noise).max() == 0.5 and len(noise) == 32_000 for noise in noises)
    voice = np.sin(np.arange(9_000) / 20).astype(np.float32)
    clips = [record(np.tile(voice, 1 + i % 3), noises, draw) for i in range(200)]
    lengths = np.array([len(clip) for clip in clips])
    assert lengths.max() == 16_000 and lengths.min() >= 8_800 and 2 <= (lengths < 16_000).sum() <= 40
    assert all(0.12 < np.abs(clip).max() < 0.9 and clip.dtype == np.float32 for clip in clips if len(clip) == 16_000)


def test_trimming_keeps_the_word_and_a_margin() -> None:
    sound = np.zeros(16_000, np.float32)
    sound[5_000:9_000] = np.sin(np.arange(4_000) / 5)
    trimmed = trim(sound)
    assert 4_000 + 2 * 320 - 100 <= len(trimmed) <= 4_000 + 2 * 320 + 200
    assert np.square(trimmed).sum() == np.square(sound).sum()


@pytest.mark.parametrize("engine", ENGINES)
def test_installed_engine_says_words_that_differ(engine: str) -> None:
    if shutil.which(COMMANDS[engine]) is None:
        pytest.skip(f"{COMMANDS[engine]} is not installed: {' '.join(speech_engines.PACKAGES[engine])} of Debian")
    assert check_engines([engine])[engine][0].isdigit()
    speaker = next(each for each in speakers("train", 20, 0) if each.engine == engine)
    said = {word: synthesize(speaker, word, ("yes", "no"), 1.0, 0.5) for word in ("yes", "no")}
    for samples, rate in said.values():
        assert rate >= 16_000 and 0.1 < len(samples) / rate < 3 and samples.dtype == np.float32
    again, _ = synthesize(speaker, "yes", ("yes", "no"), 1.0, 0.5)
    assert np.array_equal(again, said["yes"][0]) and not np.array_equal(said["yes"][0], said["no"][0])


def test_settings_are_told_beside_the_clips(humming: Humming, tmp_path: Path) -> None:
    make(tmp_path, 10, engines=["espeak"])
    about = json.loads((tmp_path / "corpus.json").read_text())
    assert about["name"] == "synthetic speech" and about["engines"] == {"espeak": "1.0"} and about["complete"] is True
