"""The folder of one training run: what it holds is whole, belongs together, and is enough to go on exactly."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import IO, Any

import torch

from .files import replacing

__all__ = ["RunFolder"]

LEFTOVER = re.compile(r"\.(settings|log|last|best|result)\.\d+\.(json|jsonl|pt)")
"""What ``replacing`` leaves of a file of ours when the process is killed."""


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
        defaults: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.path, self.settings = path, settings
        self._defaults = {name: value for name, value in (defaults or {}).items() if name in settings}
        self._begun = False
        path.mkdir(parents=True, exist_ok=True)
        # Held, not closed: the system frees it however the process ends.
        self._lock = open(path / "lock", "a", encoding="utf-8")
        _lock(self._lock, path)
        there = self._read("settings.json")
        if there is None and any(file for name in ("*.pt", "log.jsonl", "result.json") for file in path.glob(name)):
            raise ValueError(f"--out: got {path}, which holds files of something else, want a new folder")
        if there is not None and not resume:
            raise ValueError(f"--out: got {path}, which holds a run, want another folder, or --resume to continue it")
        if there is not None:
            _compare(path, self._defaults | there, settings, may_grow)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of the finished run with these settings; ``None`` if it is not finished."""
        result = self._read("result.json")
        return result if result is not None and self._defaults | result["settings"] == self.settings else None

    def checkpoint(self) -> dict[str, Any] | None:
        """Load the last checkpoint, and cut the log off after it."""
        path = self.path / "last.pt"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
        epochs = 0 if checkpoint is None else checkpoint["epochs"]
        log = self.path / "log.jsonl"
        if log.exists():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _epoch(line) < epochs]
            with replacing(log) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return checkpoint

    def log(self, **record: Any) -> None:
        """Append a line; a record needs its ``epoch``."""
        self._begin()
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, checkpoint: dict[str, Any], best: bool) -> None:
        """Write the checkpoint of a finished epoch, whole or not at all."""
        self._begin()
        for name in ("best.pt", "last.pt") if best else ("last.pt",):
            with replacing(self.path / name) as temporary:
                torch.save(checkpoint, temporary)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which says that the run is finished."""
        self._begin()
        self._write("result.json", {**result, "settings": self.settings})

    def _begin(self) -> None:
        if self._begun:
            return
        for leftover in self.path.iterdir():  # of files that were being written
            if LEFTOVER.fullmatch(leftover.name):
                leftover.unlink()
        self._write("settings.json", self.settings)
        self._begun = True

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.close()

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # neither JSON nor text
            content = None
        if not isinstance(content, dict):
            raise ValueError(f"--out: got {self.path}, whose {name} is of something else, want a new folder")
        return content

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _lock(file: IO[str], path: Path) -> None:
    """Lock the folder where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"--out: got {path}, in which another run is under way, want another folder") from None
    except OSError as error:
        warnings.warn(f"--out: {path} can not be locked ({error}); see that no other run uses it", stacklevel=4)


def _epoch(line: str) -> float:
    """Return the epoch of a line of the log; a line that was cut off belongs to none that counts."""
    try:
        return int(json.loads(line)["epoch"])
    except ValueError:
        return float("inf")


def _compare(path: Path, there: dict[str, Any], settings: dict[str, Any], may_grow: tuple[str, ...]) -> None:
    for name in sorted(there.keys() | settings.keys()):
        old, new = there.get(name), settings.get(name)
        if old != new and not (name in may_grow and old < new):
            raise ValueError(
                f"--out: got {path}, which holds a run with {name}={old!r}, and now {name}={new!r}, want the same "
                f"settings to continue it, or another folder"
            )
