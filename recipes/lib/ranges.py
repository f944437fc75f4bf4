"""Types of options of the command line: numbers with a range, paths that can be used; quick to import."""

from __future__ import annotations

import argparse
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "FRACTION", "PERCENT", "SEED", "Different", "Increasing", "Number", "integer", "new_file", "new_folder", "number",
    "old_file",
]  # fmt: skip


@dataclass(frozen=True)
class Number:
    """The type of an option that takes a finite number in a range; made by :func:`integer` and :func:`number`."""

    kind: type[int] | type[float]
    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __call__(self, text: str) -> Any:
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        above = value is not None and (value > self.low or (value == self.low and not self.low_open))
        below = value is not None and (value < self.high or (value == self.high and not self.high_open))
        if value is None or not (above and below and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"got {text}, want {self.want}")
        return value

    @property
    def want(self) -> str:
        """The range in words."""
        noun = "an int" if self.kind is int else "a finite number"
        low = f"{'>' if self.low_open else '>='} {self.low:.12g}" if self.low > -math.inf else ""
        high = f"{'<' if self.high_open else '<='} {self.high:.12g}" if self.high not in (LARGEST, math.inf) else ""
        wide = ", of 32 bits" if self.high == LARGEST else ""
        return f"{noun} {' and '.join(filter(None, (low, high)))}".rstrip() + wide


LARGEST = 2**31 - 1


def integer(low: int = 1, high: int = LARGEST) -> Number:
    """Return the type of an int in a range, both ends of which belong to it."""
    return Number(int, low, high)


def number(
    low: float = -math.inf, high: float = math.inf, *, above: float | None = None, below: float | None = None
) -> Number:
    """Return the type of a finite number >= ``low`` or > ``above``, and <= ``high`` or < ``below``."""
    return Number(
        float, low if above is None else above, high if below is None else below, above is not None, below is not None
    )


SEED = integer(0, 2**32 - 1)
"""The range that every generator takes, NumPy's too."""
FRACTION = number(0.0, 1.0)
PERCENT = number(0.0, 100.0)


def new_folder(text: str) -> Path:
    """Take the path of a folder that is there or can be made, and be written to."""
    return _writable(Path(text), "a folder", text)


def new_file(text: str) -> Path:
    """Take the path of a file that can be written, in a folder that is there or can be made."""
    return _writable(Path(text), "a file", text)


def old_file(text: str) -> Path:
    """Take the path of a file that is there."""
    path = Path(text)
    try:
        there = path.is_file()
    except OSError:  # such as of a name that is too long
        there = False
    if not there:
        raise argparse.ArgumentTypeError(f"got {text}, want a file that exists")
    return path


def _writable(path: Path, noun: str, text: str) -> Path:
    """Return the path if the nearest folder that is there lets something be made in it; nothing is made."""
    for place in (path, *path.absolute().parents):
        try:
            is_folder = stat.S_ISDIR(os.stat(place).st_mode)
        except FileNotFoundError:
            if place.is_symlink():
                raise argparse.ArgumentTypeError(f"got {text}, want {noun}: {place} links to nothing") from None
            continue
        except (OSError, ValueError) as error:  # ValueError: a null byte
            reason = getattr(error, "strerror", None) or error
            raise argparse.ArgumentTypeError(f"got {text}, want {noun} that can be made: {reason}") from None
        if noun == "a file" and place is path:
            if is_folder:
                raise argparse.ArgumentTypeError(f"got {text}, want {noun}: it is a folder")
            continue
        if not is_folder:
            raise argparse.ArgumentTypeError(f"got {text}, want {noun}: {place} is a file")
        if not os.access(place, os.W_OK | os.X_OK):
            raise argparse.ArgumentTypeError(f"got {text}, want {noun} that can be made: {place} is not writable")
        break
    return path


class Different(argparse.Action):
    """Take several values, no two of them equal."""

    good = staticmethod(lambda values: len(set(values)) == len(values))
    want = "different ones"

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if not self.good(values):
            raise argparse.ArgumentError(self, f"got {' '.join(map(str, values))}, want {self.want}")
        setattr(namespace, self.dest, values)


class Increasing(Different):
    """Take several values, each larger than the one before."""

    good = staticmethod(lambda values: all(a < b for a, b in zip(values, values[1:], strict=False)))
    want = "increasing ones"
