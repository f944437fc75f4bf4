"""Corpora by name: who is in which split, what a folder may look like, what its results may be called."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile", exc_type=ImportError)

from recipes.data.speech_commands import DIGITS, WORDS, load, real_digits, which_set  # noqa: E402
from recipes.lib.files import write_json  # noqa: E402


def write(path: Path, value: int = 1, samples: int = 16_000, rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(samples, value, np.int16), rate, "PCM_16")


def folder_of(folder: Path, words: tuple[str, ...] = ("no", "yes"), lists: bool = True) -> Path:
    for number, word in enumerate(words):
        for speaker in ("anna", "bert", "cleo"):
            write(folder / word / f"{speaker}_nohash_0.wav", number + 1)
    if lists:
        (folder / "validation_list.txt").write_text("".join(f"{word}/bert_nohash_0.wav\n" for word in words))
        (folder / "testing_list.txt").write_text("".join(f"{word}/cleo_nohash_0.wav\n" for word in words))
    return folder


def test_words_are_the_35_in_alphabetical_order() -> None:
    assert len(WORDS) == len(set(WORDS)) == 35 and list(WORDS) == sorted(WORDS) and set(DIGITS) < set(WORDS)


def test_lists_split_the_folder_and_the_rest_trains(tmp_path: Path) -> None:
    write(folder_of(tmp_path / "mine") / "_background_noise_" / "hum.wav", 7, 40_000)
    corpus = load(str(tmp_path / "mine"))
    for clips, speaker in ((corpus.train, "anna"), (corpus.validation, "bert"), (corpus.test, "cleo")):
        assert clips.speakers == (speaker, speaker) and clips.words == ("no", "yes")
        assert clips.waveforms.shape == (2, 16_000) and clips.labels.tolist() == [0, 1]
        assert clips.waveforms[:, 0].tolist() == [1, 2]
    assert corpus.name == "mine (6 clips)" and len(corpus.noise) == 40_000


def test_speakers_of_the_official_lists_are_hashed_where_the_lists_have_them() -> None:
    for speaker in "bb05582b 97f4c236 f2e59fea fdb5155e dc75148d 3f170018 893705bb e41a903b".split():
        assert which_set(f"right/{speaker}_nohash_3.wav") == which_set(f"{speaker}_nohash_0.wav") == "test"
    for speaker in "8b775397 2643992f 060cd039 f5e5e8b0 dbb40d24 d57febf0 6a27a9bf fd32732a".split():
        assert which_set(f"cat/{speaker}_nohash_1.wav") == "validation"
    sets = [which_set(f"{number:08x}_nohash_0.wav") for number in range(4_000)]
    assert 0.08 < sets.count("validation") / 4_000 < 0.12 and 0.08 < sets.count("test") / 4_000 < 0.12


def test_folder_without_lists_is_split_by_speaker(tmp_path: Path) -> None:
    for speaker in ("bb05582b", "8b775397", "cb8f8307"):
        for word in ("no", "yes"):
            write(tmp_path / word / f"{speaker}_nohash_0.wav")
    corpus = load(str(tmp_path))
    assert corpus.test.speakers == ("bb05582b",) * 2 and corpus.validation.speakers == ("8b775397",) * 2
    assert corpus.train.speakers == ("cb8f8307",) * 2


def test_split_without_clips_and_damaged_noise_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "mine")
    write(tmp_path / "mine" / "_background_noise_" / "hum.wav", 1, 0)
    with pytest.raises(ValueError, match=r"hum\.wav: empty: no samples"):
        load(str(tmp_path / "mine"))
    (tmp_path / "mine" / "validation_list.txt").write_text("")
    with pytest.raises(ValueError, match="mine: has no clips for validation; want lists that name some, or more"):
        load(str(tmp_path / "mine"))
    (tmp_path / "empty" / "yes").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty: has no clips for train, validation, test"):
        load(str(tmp_path / "empty"))


def test_speaker_who_is_in_two_splits_is_told(tmp_path: Path) -> None:
    write(folder_of(tmp_path) / "yes" / "cleo_nohash_1.wav")
    with pytest.warns(UserWarning, match="1 speakers are in more than one split, cleo among them"):
        load(str(tmp_path))


def test_one_list_alone_and_a_list_of_other_files_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "testing_list.txt").write_text("yes/nobody_nohash_0.wav\n")
    with pytest.raises(ValueError, match=r"testing_list.txt: lists 1 files that are not there, yes/nobody"):
        load(str(tmp_path))
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match="testing_list.txt: not found beside the other list"):
        load(str(tmp_path))


def test_file_in_both_lists_is_refused_instead_of_tested_on(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "validation_list.txt").write_text("yes/bert_nohash_0.wav\nyes/cleo_nohash_0.wav\n")
    with pytest.raises(ValueError, match="testing_list.txt: lists 1 files of the other list too, yes/cleo_nohash_0"):
        load(str(tmp_path))


def test_names_with_spaces_and_in_capitals_are_read_and_a_word_without_clips_is_named(tmp_path: Path) -> None:
    write(folder_of(tmp_path) / "yes" / "dora may_nohash_0.wav")
    write(tmp_path / "yes" / "emil_nohash_0.wav")
    (tmp_path / "yes" / "emil_nohash_0.wav").rename(tmp_path / "yes" / "emil_nohash_0.WAV")
    with (tmp_path / "testing_list.txt").open("a") as lines:
        lines.write("yes/dora may_nohash_0.wav\n")
    corpus = load(str(tmp_path))
    assert "dora may" in corpus.test.speakers and "emil" in corpus.train.speakers
    (tmp_path / "up").mkdir()
    with pytest.raises(ValueError, match="has no clips of: up"):
        load(str(tmp_path))


def test_every_damaged_file_is_named_before_anything_is_returned(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "no" / "anna_nohash_0.wav").write_bytes(b"")
    (tmp_path / "yes" / "cleo_nohash_0.wav").write_bytes(b"<html>")
    with pytest.raises(ValueError) as error:
        load(str(tmp_path))
    told = str(error.value)
    assert told.startswith("2 of 6 sound files cannot be used:\n")
    assert "no/anna_nohash_0.wav: empty: 0 bytes" in told and "yes/cleo_nohash_0.wav: not a sound file" in told


def test_damaged_noise_is_named_beside_the_clips(tmp_path: Path) -> None:
    write(folder_of(tmp_path) / "_background_noise_" / "hum.wav")
    for name in ("_background_noise_/hum.wav", "no/anna_nohash_0.wav"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="2 of 7 sound files") as error:
        load(str(tmp_path))
    assert "no/anna_nohash_0.wav: truncated" in str(error.value)
    assert "_background_noise_/hum.wav: truncated" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.json", b"[1]", "corpus.json: damaged or not the description of a synthetic corpus"),
        ("corpus.json", b"{", "corpus.json: damaged or not the description of a synthetic corpus"),
        ("corpus.json", b"\xff\xfe", "corpus.json: damaged or not the description of a synthetic corpus"),
        ("testing_list.txt", b"yes/\xff.wav", "testing_list.txt: damaged or not a list of sound files"),
    ],
)
def test_damaged_file_beside_the_words_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (folder_of(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_archive_of_digits_that_is_damaged_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "fsdd.zip").write_bytes(content)
    with pytest.raises(ValueError, match="fsdd.zip: damaged or not the archive"):
        real_digits(tmp_path / "fsdd.zip")


def test_many_damaged_files_do_not_fill_the_screen(tmp_path: Path) -> None:
    for number in range(50):
        word = tmp_path / ("no", "yes")[number % 2]
        word.mkdir(exist_ok=True)
        (word / f"{number}.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)^50 of 50 .*\n... and 40 more$") as error:
        load(str(tmp_path))
    assert len(str(error.value).splitlines()) == 12


def test_repairs_are_counted_in_one_warning_and_a_short_clip_needs_none(tmp_path: Path) -> None:
    folder_of(tmp_path)
    write(tmp_path / "no" / "anna_nohash_0.wav", 1, 8_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(str(tmp_path))
    for name in ("anna", "bert"):
        write(tmp_path / "yes" / f"{name}_nohash_0.wav", 1, 8_000, 8_000)
    write(tmp_path / "yes" / "cleo_nohash_0.wav", 1, 20_000)
    with pytest.warns(UserWarning, match=r"resampled from 8000 Hz \(2 files\), the loudest second kept \(1 files\)"):
        load(str(tmp_path))


@pytest.mark.parametrize("words", [("ja", "nein", "yes"), ("no", "stop", "yes")])
def test_words_of_a_folder_are_classes_and_no_others_are(words: tuple[str, ...], tmp_path: Path) -> None:
    corpus = load(str(folder_of(tmp_path, words)))
    assert corpus.train.words == words and corpus.train.labels.tolist() == [0, 1, 2]


def test_words_that_are_not_known_train_as_unknown_ones_and_unheard_ones_not_at_all(tmp_path: Path) -> None:
    whole = load(str(folder_of(tmp_path / "mine", ("ja", "nein", "so", "wie", "yes"))))
    corpus = whole.divided(["yes", "ja"], ["wie"])
    for part, speaker in ((corpus.train, "anna"), (corpus.validation, "bert"), (corpus.test, "cleo")):
        assert part.words == corpus.classes == ("ja", "yes") and part.labels.tolist() == [0, 1]
        assert part.waveforms[:, 0].tolist() == [1, 5] and part.speakers == (speaker, speaker)
    assert corpus.unknown is not None and corpus.unknown.words == ("nein", "so")
    assert corpus.unknown.waveforms[:, 0].tolist() == [2, 3] and corpus.unknown.speakers == ("anna", "anna")
    assert corpus.name == "mine (15 clips), 2 of its 5 words" and "2 clips of 2 unknown words" in str(corpus)
    rest = whole.divided(unheard=["so"])
    assert rest.classes == ("ja", "nein", "wie", "yes") and rest.unknown is None
    assert whole.divided() is whole and whole.divided(whole.classes) is whole


@pytest.mark.parametrize(
    ("words", "unheard", "message"),
    [
        (["ja"], [], "words: got 'ja', want two or more to tell apart"),
        (["ja", "no"], [], "words: got 'no', want words of mine .*: ja, nein, yes"),
        ([], ["so"], "unheard: got 'so', want words of mine"),
        (["ja", "nein"], ["ja"], "unheard: got 'ja', want none of the words to be known"),
    ],
)
def test_words_that_are_not_there_are_named(words: list[str], unheard: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(str(folder_of(tmp_path / "mine", ("ja", "nein", "yes")))).divided(words, unheard)


def test_folder_of_more_words_than_the_35_is_read_with_its_lists(tmp_path: Path) -> None:
    folder_of(tmp_path, (*WORDS, "zulu"))
    assert load("synthetic", tmp_path).classes == WORDS and load(str(tmp_path)).classes == (*WORDS, "zulu")
    assert len(load("synthetic", tmp_path).test) == 35


@pytest.mark.parametrize("word", ["alpha", "yes"])
def test_one_word_alone_is_refused_for_there_is_nothing_to_tell_apart(word: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has clips of one word only, {word}, and there is nothing to tell apart"):
        load(str(folder_of(tmp_path / "mine", (word,))))


def test_half_written_files_and_hidden_folders_are_not_read(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "yes" / ".anna_nohash_1.77.wav").write_bytes(b"half")
    (tmp_path / ".cache").mkdir()
    assert len(load(str(tmp_path)).train) == 2


def test_only_the_whole_official_corpus_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, WORDS)
    assert load("speech-commands", tmp_path).name == f"{tmp_path.name} (105 clips)"
    monkeypatch.setattr("recipes.data.speech_commands.OFFICIAL_SIZES", (35, 35, 35))
    assert load("speech-commands", tmp_path).name == "Speech Commands V2"


def test_synthetic_speech_is_called_so_wherever_it_lies_and_is_complete(tmp_path: Path) -> None:
    folder_of(tmp_path, WORDS)
    about = {"name": "synthetic speech", "complete": True}
    write_json(tmp_path / "corpus.json", about)
    assert {load("synthetic", tmp_path).name, load(str(tmp_path)).name} == {"synthetic speech"}
    write_json(tmp_path / "corpus.json", {**about, "complete": False})
    with pytest.raises(ValueError, match="is not complete; call the command that makes it again"):
        load("synthetic", tmp_path)
    content = (tmp_path / "corpus.json").read_text()
    (tmp_path / "corpus.json").write_text(content.replace("complete", "conplete"))  # one bit of "m"
    with pytest.raises(ValueError, match=r"corpus\.json: damaged or not the description of a synthetic corpus; make"):
        load("synthetic", tmp_path)


def test_own_folder_is_told_with_its_words_speakers_and_splits(tmp_path: Path) -> None:
    corpus = load(str(folder_of(tmp_path, ("apple", "banana"))))
    lines = str(corpus).splitlines()
    assert lines[1] == "2 words: apple, banana" and lines[0].startswith(f"{corpus.name}: ")
    for part, name in ((corpus.train, "train"), (corpus.validation, "validation"), (corpus.test, "test")):
        assert f"{len(part)} clips of {len({*part.speakers})} speakers for {name}" in lines[0]


def test_files_that_name_no_speaker_are_warned_of(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / ("no", "yes")[number % 2] / f"voice-{number}.wav", 1)
    with pytest.warns(UserWarning, match=r"30 of 30 files, no/.* name no speaker, .*, want SPEAKER_nohash_N.wav"):
        load(str(tmp_path))


def test_folder_of_sounds_without_folders_of_words(tmp_path: Path) -> None:
    write(tmp_path / "yes.wav", 1, 16_000)
    with pytest.raises(ValueError, match="holds sound files and no folders, want one for each word"):
        load(str(tmp_path))


def test_missing_words_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder of the words: wow, zero; want"):
        load("speech-commands", folder_of(tmp_path, WORDS[:32] + ("yes",)))


def test_missing_corpora_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="corpus: got 'gsc', want 'sample', 'synthetic', 'speech-commands' or a folder"
    ):
        load("gsc")
    monkeypatch.setenv("SNN_EXT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"synthetic_speech --out .*synthetic-speech' makes it"):
        load("synthetic")

    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(
        FileNotFoundError, match=r"Speech Commands V2: not found in .*the download failed \(.*no network"
    ):
        load("speech-commands")


def test_official_archive_is_fetched_checked_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder_of(tmp_path / "original", WORDS), ".")
    (tmp_path / "served.tar.gz").write_bytes(packed.getvalue())
    monkeypatch.setattr("recipes.data.speech_commands.ARCHIVE_URL", (tmp_path / "served.tar.gz").as_uri())
    monkeypatch.setattr("recipes.data.speech_commands.OFFICIAL_SIZES", (35, 35, 35))
    monkeypatch.setenv("SNN_EXT_DATA", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="got sha256"):
        load("speech-commands")
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    monkeypatch.setattr("recipes.data.speech_commands.ARCHIVE_SHA256", digest)
    assert load("speech-commands").name == "Speech Commands V2"
    (tmp_path / "served.tar.gz").unlink()
    assert len(load("speech-commands").test) == 35


def test_real_digits_are_read_from_archive_and_folder_with_labels_of_the_words(tmp_path: Path) -> None:
    for digit, speaker in ((7, "george"), (0, "lucas_b")):
        write(tmp_path / "recordings" / f"{digit}_{speaker}_3.wav", digit + 1, 4_000, 8_000)
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for path in (tmp_path / "recordings").iterdir():
            archive.write(path, f"recordings/{path.name}")
    for source in (tmp_path, tmp_path / "recordings", tmp_path / "digits.zip"):
        clips = real_digits(source)
        assert [WORDS[i] for i in clips.labels] == ["zero", "seven"] and clips.speakers == ("lucas_b", "george")
        assert clips.waveforms[:, 8_000].tolist() == [1, 8] and clips.waveforms[:, [0, -1]].abs().sum() == 0
    with pytest.raises(FileNotFoundError, match="path: .*nowhere not found"):
        real_digits(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no files DIGIT_SPEAKER_N.wav"):
        real_digits(tmp_path / "empty")


@pytest.mark.data
def test_free_spoken_digits_are_3000_of_six_people() -> None:
    path = Path(os.environ.get("SNN_EXT_DATA", ".")) / "fsdd.zip"
    if not path.is_file():
        pytest.skip("SNN_EXT_DATA names no folder with fsdd.zip")
    clips = real_digits(path)
    assert len(clips) == 3_000 and len(set(clips.speakers)) == 6
    assert clips.labels.bincount(minlength=35)[[WORDS.index(digit) for digit in DIGITS]].tolist() == [300] * 10
