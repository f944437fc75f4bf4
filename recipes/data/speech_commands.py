"""Spoken words by the name of a corpus: Speech Commands V2, synthetic speech, or a folder with the same layout."""

from __future__ import annotations

import hashlib
import itertools
import re
import textwrap
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from snn_ext._errors import bad_value

from ..lib.files import data_folder, intact, read_json
from .audio import SAMPLE_RATE, one_second, read_samples
from .download import download, unpack

__all__ = ["SAMPLE_RATE", "WORDS", "Clips", "Corpus", "load", "real_digits", "which_set"]

WORDS = tuple(
    "backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one "
    "right seven sheila six stop three tree two up visual wow yes zero".split()
)
"""The 35 words of Speech Commands V2, in alphabetical order; a label is an index into them."""
DIGITS = tuple("zero one two three four five six seven eight nine".split())

OFFICIAL = "Speech Commands V2"
OFFICIAL_SIZES = (84_843, 9_981, 11_005)
ARCHIVE = "speech_commands_v0.02.tar.gz"
ARCHIVE_URL = f"http://download.tensorflow.org/data/{ARCHIVE}"
ARCHIVE_SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"

SYNTHETIC = "synthetic speech"
ABOUT = "corpus.json"  # in a synthetic corpus: what it is, and whether it is complete
A_CORPUS = "the description of a synthetic corpus", "make the corpus again in a new folder"
NOISE = "_background_noise_"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Clips:
    """One split of a corpus.

    Attributes
    ----------
    waveforms : Tensor
        ``[N, 16000]``, int16, at 16 kHz.
    labels : Tensor
        ``[N]``, int64, indices into ``words``.
    words : tuple of str
        The classes.
    speakers : tuple of str
        Who speaks each clip.
    """

    waveforms: Tensor
    labels: Tensor
    words: tuple[str, ...]
    speakers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, words: Sequence[str]) -> Clips:
        """Return the clips of some words, which are the classes then."""
        label = torch.tensor([words.index(word) if word in words else -1 for word in self.words])[self.labels]
        speakers = tuple(itertools.compress(self.speakers, (label >= 0).tolist()))
        return Clips(self.waveforms[label >= 0], label[label >= 0], tuple(words), speakers)


@dataclass(frozen=True)
class Corpus:
    """A corpus in memory.

    Attributes
    ----------
    name : str
        Of the data in results.
    train, validation, test : Clips
        Its splits; a warning tells if a speaker is in two of them.
    noise : Tensor
        ``[samples]``, int16: its background noise, one recording after the other; may be empty.
    unknown : Clips, optional
        For training too: clips that are none of its classes, by :meth:`divided`.
    """

    name: str
    train: Clips
    validation: Clips
    test: Clips
    noise: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int16))
    unknown: Clips | None = None

    def __str__(self) -> str:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        sizes = (
            f"{len(part):,} clips of {len({*part.speakers}):,} speakers for {name}" for name, part in parts.items()
        )
        told = [f"{self.name}: {'; '.join(sizes)}", f"{len(self.classes)} words: {', '.join(self.classes)}"]
        if self.unknown is not None:
            told.append(f"{len(self.unknown):,} clips of {len(self.unknown.words)} unknown words")
        return "\n".join([told[0], *(textwrap.fill(line, 80) for line in told[1:])])

    @property
    def classes(self) -> tuple[str, ...]:
        """The words, in the order of the labels."""
        return self.train.words

    def divided(self, words: Sequence[str] = (), unheard: Sequence[str] = ()) -> Corpus:
        """Return the corpus whose classes are some of its words; training clips of the others are ``unknown``.

        Parameters
        ----------
        words : sequence of str
            The classes; by default all but ``unheard``.
        unheard : sequence of str
            Words of which training has no clip, neither as a class nor as an unknown word.
        """
        for name, some in (("words", words), ("unheard", unheard)):
            if strange := [word for word in some if word not in self.classes]:
                bad_value(name, ", ".join(strange), f"words of {self.name}: {', '.join(self.classes)}")
        if both := [word for word in unheard if word in words]:
            bad_value("unheard", ", ".join(both), "none of the words to be known")
        known = tuple(word for word in self.classes if word in (words or self.classes) and word not in unheard)
        if len(known) < 2:
            bad_value("words", ", ".join(known) or "none", "two or more to tell apart")
        if known == self.classes:
            return self
        parts = (part.only(known) for part in (self.train, self.validation, self.test))
        others = [word for word in self.classes if word not in known and word not in unheard]
        name = f"{self.name}, {len(known)} of its {len(self.classes)} words"
        return Corpus(name, *parts, self.noise, self.train.only(others) if others else None)


def load(corpus: str, folder: Path | None = None) -> Corpus:
    """Load a corpus into memory.

    Every file is looked at before anything is returned. One that cannot be read is an error that names it; what can be
    made one second of 16-bit mono at 16 kHz is, with a warning that counts the repairs (see `x`).

    Parameters
    ----------
    corpus : str
        "sample", the synthetic speech that ships with the repository; "synthetic", the whole of it, as
        ``python -m recipes.makers.synthetic_speech`` makes it; "speech-commands", Speech Commands V2, downloaded
        (2.4 GB) if it is not there; or the path of a folder with their layout: ``WORD/SPEAKER_nohash_N.wav``.
    folder : Path, optional
        Where the corpus is; by default its folder in the data folder, ``SNN_EXT_DATA`` or the user's cache.

    Returns
    -------
    Corpus
        Split by the folder's ``validation_list.txt`` and ``testing_list.txt``; what they do not list is for training.
        Without lists, speakers are assigned by a hash of their name, as Speech Commands assigns its own.

    Raises
    ------
    FileNotFoundError
        If the corpus is missing and cannot be downloaded.
    ValueError
        If there is no such corpus, it has one word only, or some of its files are damaged.
    """
    if corpus == "sample":
        from .speech_sample import load_sample

        return load_sample()
    if corpus == "synthetic":
        folder = Path(folder or data_folder() / "synthetic-speech")
        if not folder.is_dir():
            maker = f"{__package__.removesuffix('.data')}.makers.synthetic_speech"
            raise FileNotFoundError(
                f"{folder}: not found; 'python -m {maker} --out {folder}' makes it, and "
                "'sample' is a corpus that needs nothing"
            )
        return _read_folder(folder, WORDS)
    if corpus == "speech-commands":
        folder = Path(folder or data_folder() / "SpeechCommands" / ARCHIVE.removesuffix(".tar.gz"))
        return _read_folder(_official(folder), WORDS)
    if not Path(corpus).is_dir():
        raise ValueError(f"corpus: got {corpus!r}, want 'sample', 'synthetic', 'speech-commands' or a folder")
    return _read_folder(Path(corpus))


def real_digits(path: Path) -> Clips:
    """Read the Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0): real people who say zero to nine.

    Parameters
    ----------
    path : Path
        Its zip archive, its folder, or the folder of its recordings; the files are called ``DIGIT_SPEAKER_N.wav``.

    Returns
    -------
    Clips
        Resampled from 8 kHz, and in the middle of the second, for they are cut to the word. The labels are indices
        into ``WORDS``.
    """
    path = Path(path)
    pattern = re.compile(r"(\d)_(.+)_(\d+)\.wav")
    if path.is_dir():
        files: dict[str, Callable[[], bytes]] = {file.name: file.read_bytes for file in path.rglob("*.wav")}
    elif path.is_file():
        kind = "the archive of the Free Spoken Digit Dataset"
        with intact(path, kind, "get another copy"), zipfile.ZipFile(path) as archive:  # which compares its checksums
            contents = {Path(name).name: archive.read(name) for name in archive.namelist() if name.endswith(".wav")}
        files = {name: (lambda content=content: content) for name, content in contents.items()}
    else:
        raise FileNotFoundError(f"path: {path} not found, want the archive or the folder of the spoken digits")
    matches = [match for match in map(pattern.fullmatch, sorted(files)) if match]
    if not matches:
        raise ValueError(f"path: {path} has no files DIGIT_SPEAKER_N.wav, want the Free Spoken Digit Dataset")
    waveforms, _ = _read({match.string: files[match.string] for match in matches}, digits=True)
    labels = torch.tensor([WORDS.index(DIGITS[int(match[1])]) for match in matches])
    return Clips(waveforms, labels, WORDS, tuple(match[2] for match in matches))


def which_set(name: str, validation: float = 10.0, testing: float = 10.0) -> str:
    """Return the split of a file that no list names: "train", "validation" or "test", by a hash of its speaker.

    It is the rule that Speech Commands was split by (Warden 2018, arXiv:1804.03209, section 7), so that a speaker
    stays where they are when recordings are added.

    Parameters
    ----------
    name : str
        Of the file; what follows ``_nohash_`` does not matter.
    validation, testing : float
        Shares of the splits in percent.
    """
    speaker = re.sub(r"_nohash_.*$", "", Path(name).name)
    largest = 2**27 - 1
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (largest + 1) * (100.0 / largest)
    return "validation" if percent < validation else "test" if percent < validation + testing else "train"


def _official(folder: Path) -> Path:
    if not folder.is_dir():
        archive = folder.parent / ARCHIVE
        try:
            download(ARCHIVE_URL, archive, ARCHIVE_SHA256)
        except OSError as error:
            raise FileNotFoundError(
                f"{OFFICIAL}: not found in {folder}, and the download failed ({error}); want the folder of its words, "
                "or 'sample', a corpus that needs nothing"
            ) from error
        unpack(archive, folder)
    return folder


def _read_folder(folder: Path, words: tuple[str, ...] = ()) -> Corpus:
    about = read_json(folder / ABOUT, *A_CORPUS) if (folder / ABOUT).is_file() else {}
    if not about.get("complete", True):
        raise ValueError(f"{folder}: is not complete; call the command that makes it again, and it goes on")
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    if not found and _wavs(folder):
        raise ValueError(
            f"{folder}: holds sound files and no folders, want one for each word: WORD/SPEAKER_nohash_N.wav"
        )
    if not found or set(words) - set(found):
        missing = ", ".join(sorted(set(words) - set(found))) or "any"
        raise FileNotFoundError(f"{folder}: has no folder of the words: {missing}; want WORD/SPEAKER_nohash_N.wav")
    words = words or tuple(found)
    names = [f"{word}/{path.name}" for word in words for path in _wavs(folder / word)]
    if len(spoken := {name.split("/")[0] for name in names}) == 1:
        raise ValueError(
            f"{folder}: has clips of one word only, {min(spoken)}, and there is nothing to tell apart; want two or more"
        )
    split = _split(folder, names)
    if empty := [part for part in SPLITS if part not in split.values()]:
        raise ValueError(f"{folder}: has no clips for {', '.join(empty)}; want lists that name some, or more speakers")
    if silent := set(found) & set(words) - spoken:
        raise ValueError(f"{folder}: has no clips of: {', '.join(sorted(silent))}; want WORD/SPEAKER_nohash_N.wav")
    unnamed = [name for name in names if "_nohash_" not in name]
    if unnamed and len({*split.values()}) > 1 and not (folder / "testing_list.txt").is_file():
        warnings.warn(
            f"{folder}: {len(unnamed):,} of {len(names):,} files, {unnamed[0]} among them, name no speaker, and "
            "their whole names are taken for it: one voice may train and test, want SPEAKER_nohash_N.wav",
            stacklevel=3,
        )
    names.sort(key=lambda name: (SPLITS.index(split[name]), name))
    noises = [f"{NOISE}/{path.name}" for path in _wavs(folder / NOISE)]
    waveforms, noise = _read({name: (folder / name).read_bytes for name in (*names, *noises)}, whole=len(noises))
    labels = torch.tensor([words.index(name.split("/")[0]) for name in names])
    speakers = tuple(re.sub(r"_nohash_.*$|(?i:\.wav)$", "", name.split("/")[1]) for name in names)
    parts, start = [], 0
    for part in SPLITS:
        stop = start + sum(split[name] == part for name in names)
        parts.append(Clips(waveforms[start:stop], labels[start:stop], words, speakers[start:stop]))
        start = stop
    both = set.union(*(set(a.speakers) & set(b.speakers) for a, b in itertools.combinations(parts, 2)))
    if both:
        warnings.warn(
            f"{folder}: {len(both)} speakers are in more than one split, {min(both)} among them", stacklevel=3
        )
    name = about.get("name") or OFFICIAL
    if name == OFFICIAL and tuple(map(len, parts)) != OFFICIAL_SIZES:
        name = f"{folder.name} ({len(names):,} clips)"
    return Corpus(name, *parts, noise)


def _wavs(folder: Path) -> list[Path]:
    """Return the WAV files of a folder, ``.WAV`` too; hidden ones are those of file managers."""
    return sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() == ".wav")


def _split(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the split of each file, by the folder's lists or, without them, by the hash of the speaker."""
    lists = {"validation": folder / "validation_list.txt", "test": folder / "testing_list.txt"}
    missing = [path.name for path in lists.values() if not path.is_file()]
    if len(missing) == 2:
        return {name: which_set(name) for name in names}
    if missing:
        raise FileNotFoundError(f"{folder / missing[0]}: not found beside the other list, want both or neither")
    split = dict.fromkeys(names, "train")
    for part, path in lists.items():
        with intact(path, "a list of sound files", "restore a copy of it"):
            listed = {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
        if absent := {name for name in listed - split.keys() if not (folder / name).is_file()}:
            raise ValueError(f"{path}: lists {len(absent)} files that are not there, {min(absent)} among them")
        if twice := [name for name in listed & split.keys() if split[name] != "train"]:
            raise ValueError(f"{path}: lists {len(twice)} files of the other list too, {min(twice)} among them")
        split.update(dict.fromkeys(listed & split.keys(), part))
    return split


def _read(files: Mapping[str, Callable[[], bytes]], digits: bool = False, whole: int = 0) -> tuple[Tensor, Tensor]:
    """Read sound files ``[N, 16000]``, and the last ``whole`` ones as they are, one after the other.

    All problems are told at once, all repairs in one warning.
    """
    clips = len(files) - whole
    waveforms, rest = np.zeros((clips, SAMPLE_RATE), np.int16), [np.zeros(0, np.int16)]
    problems, repaired = [], Counter[str]()
    for i, (name, content) in enumerate(tqdm(files.items(), "clips", leave=False, disable=None)):
        try:
            samples, repairs = read_samples(content())
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
            continue
        if i >= clips:
            rest.append(samples)
            continue
        if len(samples) > SAMPLE_RATE:
            repairs = (*repairs, "the loudest second kept")
        waveforms[i] = one_second(samples, centre=digits)
        repaired.update(repairs)
    if problems:
        more = f"\n... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"{len(problems)} of {len(files)} sound files cannot be used:\n" + "\n".join(problems[:10]) + more
        )
    if repaired and not digits:
        told = ", ".join(f"{what} ({count} files)" for what, count in sorted(repaired.items()))
        warnings.warn(f"sound files that are not one second of 16-bit mono at 16 kHz: {told}", stacklevel=4)
    return torch.from_numpy(waveforms), torch.from_numpy(np.concatenate(rest))
