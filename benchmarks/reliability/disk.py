"""A disk that is full, a folder that may not be written, a file where a folder is to be: then the same with room."""

from __future__ import annotations

import os
import random
import re
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import recipes
from .forking import forked, shared
from .kills import LIMIT, Reference, reference
from .outcomes import Try, differences
from .recipes import Run

__all__ = ["disk"]

NOBODY = 65_534


def disk(tries: int, seed: int, jobs: int, only: list[str] | None = None) -> list[Try]:
    """Run each of the runs without room in turns, until there are so many tries."""
    with tempfile.TemporaryDirectory(prefix="disk-") as folder, recipes.inputs(Path(folder)):
        os.chmod(folder, 0o755)
        runs = {name: run for name, run in recipes.runs().items() if not only or name in only}
        runs.pop("listen", None)  # writes nothing
        names = list(runs)
        found = dict(zip(names, shared(names, lambda name: reference(name, runs[name]), jobs, "references"), strict=True))
        done = [one for one in found.values() if isinstance(one, Try)]
        whole = [name for name in names if isinstance(found[name], Reference)]
        attacks = list(ATTACKS.items())

        def attempt(index: int) -> Try:
            name, (title, attack) = whole[index % len(whole)], attacks[index // len(whole) % len(attacks)]
            return _attempt(name, runs[name], found[name], title, attack, random.Random(f"{seed} {index}"))

        return done + shared(range(tries if whole else 0), attempt, jobs, "disk")


def _attempt(name: str, run: Run, want: Reference, title: str, attack: Callable[..., Any], rng: random.Random) -> Try:
    with tempfile.TemporaryDirectory(prefix="run-") as place:
        folder = Path(place)
        undo = attack(folder, rng)
        ended = forked(lambda: (undo.get("first", _nothing)(), run.work()), folder, limit=LIMIT)
        why = ""
        if ended.late:
            why = "does not end"
        elif ended.status and run.command:
            why = "" if ended.status in (1, 2) and _names_a_path(ended.errors, folder) else _last(ended.errors)
        elif ended.status:
            why = "" if re.search(r"(OSError|PermissionError|FileExistsError|NotADirectoryError|ValueError): ", _last(ended.errors)) else _last(ended.errors)
        undo.get("then", _nothing)()
        again = forked(run.again, folder, limit=LIMIT)
        if again.status:
            return Try(name, title, "lost", f"the next run ends with {again.status}: {_last(again.errors)}")
        changed = differences(run.contents(folder), want.files)
        if any(not change.startswith("+") for change in changed):
            return Try(name, title, "wrong", ", ".join(changed))
        if changed:
            why = f"{why}; left over: {', '.join(changed)}"
        return Try(name, title, "unclear" if why else "survived", why)


def _names_a_path(errors: str, folder: Path) -> bool:
    """Return whether the run ended with a sentence that names a file or folder, and without a traceback."""
    last = _last(errors)
    return "Traceback" not in errors and bool(re.search(r"run|data|cache|\.\w{2,5}\b", last))


def _full(folder: Path, rng: random.Random) -> dict[str, Callable[[], Any]]:
    """Let no file grow beyond a size, which fails as a full disk does, at a place drawn at random."""
    size = rng.choice((0, 100, 1000, rng.randrange(1, 200_000)))
    return {"first": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))}


def _read_only(folder: Path, rng: random.Random) -> dict[str, Callable[[], Any]]:
    """Take the right to write; root, who needs none, becomes nobody."""
    folder.chmod(0o555)

    def first() -> None:
        if os.getuid() == 0:
            os.environ["HOME"] = str(folder)
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    return {"first": first, "then": lambda: folder.chmod(0o755)}


def _file_for_folder(folder: Path, rng: random.Random) -> dict[str, Callable[[], Any]]:
    """Put files where the folders of the run are to be."""
    names = [folder / name for name in ("run", "data", "cache", "evaluations", "words", "state.pt")][: rng.choice((1, 6))]
    for name in names:
        name.write_text("in the way")
    return {"then": lambda: [name.unlink() for name in names if name.is_file() and name.read_bytes() == b"in the way"]}


def _nothing() -> None:
    """Do nothing."""


def _last(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1].strip()[:300] if lines else ""


ATTACKS = {"full disk": _full, "read-only folder": _read_only, "a file for a folder": _file_for_folder}
