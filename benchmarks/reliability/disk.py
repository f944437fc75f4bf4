"""A disk that is full, a folder that may not be written, a file where a folder is to be: then the same with room."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from . import recipes
from .forking import forked, shared
from .kills import LIMIT, Reference, reference
from .outcomes import Try, differences
from .recipes import Run

__all__ = ["disk"]

Both = tuple[Callable[[], None], Callable[[], None]]
"""Two actions of the process: one before the run, and one afterwards that gives it room."""
Attack = Callable[[Path, random.Random], AbstractContextManager[Both]]

NOBODY = 65_534


def disk(tries: int, seed: int, jobs: int, only: list[str] | None = None) -> list[Try]:
    """Run each of the runs without room in turns, until there are so many tries."""
    with tempfile.TemporaryDirectory(prefix="disk-") as folder, recipes.inputs(Path(folder)):
        os.chmod(folder, 0o755)
        runs = {name: run for name, run in recipes.runs().items() if not only or name in only}
        runs.pop("listen", None)  # writes nothing
        names = list(runs)
        found = dict(
            zip(names, shared(names, lambda name: reference(name, runs[name]), jobs, "references"), strict=True)
        )
        done = [one for one in found.values() if isinstance(one, Try)]
        whole = [name for name in names if isinstance(found[name], Reference)]
        attacks = list(ATTACKS.items())

        def attempt(index: int) -> Try:
            name, (title, attack) = whole[index % len(whole)], attacks[index // len(whole) % len(attacks)]
            return _attempt(name, runs[name], found[name], title, attack, random.Random(f"{seed} {index}"))

        return done + shared(range(tries if whole else 0), attempt, jobs, "disk")


def _attempt(name: str, run: Run, want: Reference, title: str, attack: Attack, rng: random.Random) -> Try:
    with tempfile.TemporaryDirectory(prefix="run-") as place, attack(Path(place), rng) as (before, mend):
        folder = Path(place)
        ended = forked(lambda: (before(), run.work()), folder, limit=LIMIT)
        told = _last(ended.errors) or "no message"
        clear = (
            _names_a_path(ended.errors)
            if run.command
            else bool(re.match(r"\w*(OS|Permission|File\w+|Directory|Value)Error: ", told))
        )
        why = "does not end" if ended.late else "" if clear or not ended.status else f"status {ended.status}: {told}"
        mend()
        again = forked(run.again, folder, limit=LIMIT)
        if again.status:
            return Try(name, title, "lost", f"the next run ends with {again.status}: {_last(again.errors)}")
        changed = differences(run.contents(folder), want.files)
        if any(not change.startswith("+") for change in changed):
            return Try(name, title, "wrong", ", ".join(changed))
        if changed:
            why = f"{why}; left over: {', '.join(changed)}"
        return Try(name, title, "unclear" if why else "survived", why)


def _names_a_path(errors: str) -> bool:
    """Return whether a command ended with a sentence that names a file or folder, and without a traceback."""
    return "Traceback" not in errors and bool(re.search(r"run\b|data\b|cache\b|\.\w{2,5}\b", _last(errors)))


@contextmanager
def _full(folder: Path, rng: random.Random) -> Iterator[Both]:
    """Give a run a disk of its own that is soon full; where no disk can be mounted, let no file grow beyond a size."""
    size = rng.choice((4, 8, 40, rng.randrange(4, 400)))  # KiB
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)]
    if os.getuid() == 0 and shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield _nothing, lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True) and None
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    limits = (size << 10, resource.RLIM_INFINITY)  # a few KiB for the messages
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits), _nothing


@contextmanager
def _read_only(folder: Path, rng: random.Random) -> Iterator[Both]:
    """Take the right to write; root, who needs none, becomes nobody."""
    folder.chmod(0o555)

    def before() -> None:
        if os.getuid() == 0:
            os.environ["HOME"] = str(folder)
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    yield before, lambda: folder.chmod(0o755)


@contextmanager
def _file_for_folder(folder: Path, rng: random.Random) -> Iterator[Both]:
    """Put files where the folders of the run are to be."""
    everywhere = ("run", "data", "cache", "evaluations", "words")
    names = [folder / name for name in everywhere[: rng.choice((1, len(everywhere)))]]
    for name in names:
        name.write_text("in the way", encoding="utf-8")

    def mend() -> None:
        for name in names:
            if name.is_file():
                name.unlink()

    yield _nothing, mend


def _nothing() -> None:
    """Do nothing."""


def _last(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1].strip()[:300] if lines else ""


ATTACKS: dict[str, Attack] = {
    "full disk": _full,
    "read-only folder": _read_only,
    "a file for a folder": _file_for_folder,
}
