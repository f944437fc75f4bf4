"""Flip bits of files, cut them off and zero parts of them; then load them."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .forking import Ended, forked, shared
from .formats import FORMATS, Format
from .outcomes import Try, fingerprint

__all__ = ["damage", "flips", "judge", "pristine"]

MEMORY = 4 << 30
"""Bytes that loading may take on top."""
BLOCK = 512
CLEAR = (
    "SystemExit", "DamagedFileError", "ValueError", "OSError", "FileNotFoundError", "IsADirectoryError",
    "NotADirectoryError",
)  # fmt: skip
"""Types of errors that callers expect of a file."""


def flips(tries: int, seed: int, jobs: int, only: list[str] | None = None) -> list[Try]:
    """Damage each of the formats in turns, until there are so many tries."""
    formats = {name: kind for name, kind in FORMATS.items() if not only or name in only}
    with pristine(formats, jobs) as (folders, want):
        whole = [name for name in formats if want[name].value is not None]
        broken = [Try(n, "none", "lost", _last(want[n].errors)) for n in formats if want[n].value is None]

        def attempt(index: int) -> Try:
            name = whole[index % len(whole)]
            rng = random.Random(f"{seed} {index}")
            with tempfile.TemporaryDirectory(prefix="flip-") as place:
                folder = Path(place) / "here"
                shutil.copytree(folders / name, folder)
                attack = damage(folder / formats[name].file, rng)
                ended = loaded(formats[name], folder)
            return judge(name, attack, ended, formats[name], want[name].value)

        return broken + shared(range(tries), attempt, jobs, "flips")


@contextmanager
def pristine(formats: dict[str, Format], jobs: int) -> Iterator[tuple[Path, dict[str, Ended]]]:
    """Make a file of each format, and load it: that is what the others are compared with."""
    with tempfile.TemporaryDirectory(prefix="files-") as place:
        folders = Path(place)

        def prepare(name: str) -> Ended:
            (folders / name).mkdir()
            made = forked(formats[name].make, folders / name)
            if made.status:
                return made
            shutil.copytree(folders / name, folders / f"{name}, loaded")
            return loaded(formats[name], folders / f"{name}, loaded")

        names = list(formats)
        yield folders, dict(zip(names, shared(names, prepare, jobs, "files"), strict=True))


def damage(path: Path, rng: random.Random) -> str:
    """Flip a bit, cut the file off, or zero a part of it; return what was done."""
    content = bytearray(path.read_bytes())
    kind = rng.choices(("flip", "cut", "zero"), (7, 2, 1))[0]
    place = rng.randrange(len(content))
    if kind == "flip":
        bit = rng.randrange(8)
        content[place] ^= 1 << bit
        attack = f"bit {bit} of byte {place:,} of {len(content):,}"
    elif kind == "cut":
        attack = f"cut off behind byte {place:,} of {len(content):,}"
        del content[place:]
    else:
        place -= place % BLOCK
        attack = f"zeros from byte {place:,} of {len(content):,}"
        content[place : place + BLOCK] = bytes(len(content[place : place + BLOCK]))
    path.write_bytes(content)
    return attack


def loaded(kind: Format, folder: Path) -> Ended:
    """Load in a fork; its value says what came: ("value", fingerprint) or ("error", type, message)."""
    return forked(_attempted(kind.load), folder, limit=30, memory=MEMORY)


def _attempted(load: Callable[[], Any]) -> Callable[[], tuple[str, ...]]:
    def work() -> tuple[str, ...]:
        try:
            return "value", fingerprint(load())
        except (Exception, SystemExit) as error:
            return "error", type(error).__name__, str(error)

    return work


def judge(name: str, attack: str, ended: Ended, kind: Format, want: Any) -> Try:
    """Say what came of loading a damaged file: its right content, a clear refusal, or something else."""
    if ended.value is None:
        told = "does not end" if ended.late else f"status {ended.status}: {_last(ended.errors)}"
        return Try(name, attack, "unclear", told)
    if ended.value == want:
        return Try(name, attack, "survived", "loaded or made again")
    if ended.value[0] == "value":
        return Try(name, attack, "wrong" if kind.checked else "survived", "another content is taken for the right one")
    _, error, message = ended.value
    if (error, message) == ("SystemExit", "2"):  # argparse has told it
        message = ended.errors
    path = Path(kind.file)
    clear = error in CLEAR
    named = path.name in message or path.parent.name and path.parent.name in message
    return Try(
        name, attack, "survived" if clear and named else "unclear", f"{error}: {' '.join(message.split())[:300]}"
    )


def _last(text: str) -> str:
    return text.strip().splitlines()[-1][:300] if text.strip() else ""
