"""The folders of runs and of results: what they hold is whole, belongs together, and is nobody else's."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .files import DamagedFileError, intact, load_tensors, lock, named, read_json, replacing, save_tensors, write_json

__all__ = ["RunFolder", "own_folder", "read_log"]

MARK = "recipe.json"
"""Says which recipe writes its results into a folder."""
RESULTS = (".csv", ".json", ".jsonl", ".md", ".png", ".pt")
"""Suffixes that recipes write: files with such names are somebody's results."""
CHECK = "crc"
"""Key of the check of a line of the log and all before it."""
A_LOG = "the log of a run", "remove it to go on without"


@contextmanager
def own_folder(path: Path, recipe: str) -> Iterator[None]:
    """Hold a folder for the results of a recipe: no other run writes there, and nobody else's results are overwritten.

    Raises
    ------
    ValueError
        If it holds results of something else, or is in use.
    """
    with _held(path):
        mark = path / MARK
        there = None
        if mark.exists():
            there = read_json(mark, "the mark of a recipe", "want a new folder").get("recipe")
        elif found := sorted(file.name for file in path.iterdir() if file.suffix in RESULTS and file.name[0] != "."):
            raise ValueError(f"--out: got {path}, which holds a {found[0]} of something else, want a new folder")
        if there not in (None, recipe):
            raise ValueError(f"--out: got {path}, which holds results of recipes.{there}, want another folder")
        if there is None:
            write_json(mark, {"recipe": recipe})
        yield


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of the log of a finished run."""
    with intact(path, *A_LOG):
        lines = path.read_text(encoding="utf-8").splitlines()
        _chained(lines)
        return [json.loads(line) for line in lines]


class RunFolder:
    """``settings.json``, ``log.jsonl``, ``last.pt``, ``best.pt``, ``result.json`` and TensorBoard's files.

    Parameters
    ----------
    path : Path
        The folder; made if it is not there.
    settings : dict
        What makes the run the one it is; JSON values.
    resume : bool
        Continue the run that is there, if one is.
    may_grow : tuple of str
        Settings that may be larger when a run is continued.
    defaults : dict, optional
        What a setting is that is not there, as the run was begun before there was such a setting.
    forgotten : tuple of str
        Settings that are ``None`` where they can be told no longer: those of the run that is there hold then.

    Raises
    ------
    ValueError
        If the folder holds a run and ``resume`` is False, holds one with other settings, files of something else, or
        is in use.

    Notes
    -----
    Nothing but ``lock`` is written before the first line of the log, so a call that fails before it leaves no run.
    At the end of an epoch come, in this order: the epoch's line in the log, ``best.pt``, ``last.pt``. Whatever an
    interruption leaves of an epoch that is not in ``last.pt`` is taken away when the run is continued.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], resume: bool, may_grow: tuple[str, ...] = (),
        defaults: dict[str, Any] | None = None, forgotten: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.path, self.settings = path, dict(settings)
        self._defaults = {name: value for name, value in (defaults or {}).items() if name in settings}
        self._begun, self._chain = False, (0, 0)  # lines of the log, and the check of the last
        self._lock = _locked(path)
        try:
            self._check(resume, may_grow, forgotten)
        except BaseException:
            self.close()
            raise

    def _check(self, resume: bool, may_grow: tuple[str, ...], forgotten: tuple[str, ...]) -> None:
        """Refuse a folder that is not this run's, before anything is written."""
        path, there = self.path, self._read("settings.json")
        if there is None and any(file for name in ("*.pt", "log.jsonl", "result.json") for file in path.glob(name)):
            raise ValueError(f"--out: got {path}, which holds files of something else, want a new folder")
        if there is not None and not resume:
            raise ValueError(f"--out: got {path}, which holds a run, want another folder, or --resume to continue it")
        if there is not None:
            self.settings |= {name: there[name] for name in forgotten if name in there and self.settings[name] is None}
            _compare(path, self._defaults | there, self.settings, may_grow)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of the finished run with these settings; ``None`` if it is not finished."""
        result = self._read("result.json")
        return result if result is not None and self._defaults | result["settings"] == self.settings else None

    def checkpoint(self) -> dict[str, Any] | None:
        """Load the last checkpoint, and cut the log off after it."""
        path, log, checkpoint, count = self.path / "last.pt", self.path / "log.jsonl", None, 0
        if path.exists():
            kind = "a checkpoint of a run of this version", "restore a copy of it, or start in another folder"
            checkpoint = load_tensors(path, *kind)
            with intact(path, *kind):
                count = checkpoint.pop("log")
        if log.exists():
            with intact(log, *A_LOG):
                lines = log.read_bytes().splitlines()[:count]
                if len(lines) < count:
                    raise ValueError("lines are missing")
                self._chain = len(lines), _chained([line.decode() for line in lines])
            with replacing(log) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in lines))
        return checkpoint

    def log(self, **record: Any) -> None:
        """Append a line; a record needs its ``epoch``."""
        self._begin()
        count, check = self._chain
        self._chain = count + 1, _link(check, record)
        log = self.path / "log.jsonl"
        with named(log), open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({**record, CHECK: self._chain[1]}) + "\n")

    def save(self, checkpoint: dict[str, Any], best: bool) -> None:
        """Write the checkpoint of a finished epoch, whole or not at all."""
        self._begin()
        if self._chain[0]:
            with open(self.path / "log.jsonl", "rb+") as log:  # on the disk before a checkpoint that counts on it
                os.fsync(log.fileno())
        for name in ("best.pt", "last.pt") if best else ("last.pt",):
            save_tensors({**checkpoint, "log": self._chain[0]}, self.path / name)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which says that the run is finished."""
        self._begin()
        write_json(self.path / "result.json", {**result, "settings": self.settings})

    def _begin(self) -> None:
        if not self._begun:
            write_json(self.path / "settings.json", self.settings)
            self._begun = True

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.close()

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        try:
            return read_json(path, f"the {name} of a run")
        except DamagedFileError as error:
            raise ValueError(
                f"--out: got {self.path}, whose {name} is of something else or damaged, want a copy of it, "
                "or a new folder"
            ) from error


@contextmanager
def _held(path: Path) -> Iterator[None]:
    file = _locked(path)
    try:
        yield
    finally:
        file.close()


def _locked(path: Path) -> IO[str]:
    """Make a folder and lock it where the system can; the lock is free when the file is closed, or the process ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / "lock", "a", encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"--out: got {path}, where nothing can be written ({error.strerror}), want a folder that can be"
        ) from error
    free = lock(file.fileno(), wait=False)
    if free is False:
        file.close()
        raise ValueError(f"--out: got {path}, in which another run is under way, want another folder")
    if free is None and os.name != "nt":
        warnings.warn(f"--out: {path} cannot be locked; see that no other run uses it", stacklevel=4)
    return file


def _link(check: int, record: dict[str, Any]) -> int:
    """Return the check of a record of the log, which takes in that of the line before."""
    return zlib.crc32(json.dumps(record).encode(), check)


def _chained(lines: Iterable[str]) -> int:
    """Return the check of the last line of a log; raise if a line is not what was written after the one before."""
    check = 0
    for line in lines:
        record = json.loads(line)
        own, check = record.pop(CHECK), _link(check, record)
        if own != check:
            raise ValueError("another check")
    return check


def _compare(path: Path, there: dict[str, Any], settings: dict[str, Any], may_grow: tuple[str, ...]) -> None:
    for name in sorted(there.keys() | settings.keys()):
        old, new = there.get(name), settings.get(name)
        if old != new and not (name in may_grow and old < new):
            raise ValueError(
                f"--out: got {path}, which holds a run with {name}={old!r}, and now {name}={new!r}, want the same "
                f"settings to continue it, or another folder"
            )
