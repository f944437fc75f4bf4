"""Outcomes of tries, and tables of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Outcome", "Try", "contents", "fingerprint", "summary", "table"]

Outcome = str
OUTCOMES: tuple[Outcome, ...] = ("survived", "lost", "wrong", "unclear")
"""Survived: the right result, or a clear refusal. Lost: work or a file that was whole is gone, or the run cannot go on.
Wrong: another result, and nobody says so. Unclear: a traceback, a status or a message that does not say what to do."""

CHANGING = {"seconds", "cpu_seconds", "machine", "data_share", "sha256", "crc"}
"""Keys of JSON objects that two runs do not have in common."""
PASSING = re.compile(r"lock|output\.txt|events\.out\.tfevents.*|.*\.pyc")
"""Files that two runs do not have in common."""


@dataclass(frozen=True)
class Try:
    """One attack: on what, how, what came of it, and what tells so."""

    subject: str
    attack: str
    outcome: Outcome
    told: str = ""


def summary(tries: Iterable[Try]) -> list[dict[str, Any]]:
    """Return how many tries on each subject had which outcome."""
    tries = list(tries)
    rows = []
    for subject in dict.fromkeys(one.subject for one in tries):
        found = Counter(one.outcome for one in tries if one.subject == subject)
        rows.append({"subject": subject, "tries": found.total(), **{name: found[name] for name in OUTCOMES}})
    return rows


def table(tries: Sequence[Try], examples: int = 3) -> str:
    """Return a table in Markdown, and some of what did not survive."""
    rows = summary(tries)
    total = {"subject": "all", **{name: sum(row[name] for row in rows) for name in ("tries", *OUTCOMES)}}
    lines = ["| subject | tries | survived | lost | wrong | unclear |", "|---|--:|--:|--:|--:|--:|"]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in (*rows, total)]
    for row in rows:
        fallen = [one for one in tries if one.subject == row["subject"] and one.outcome != "survived"]
        told = [f"{one.subject}, {one.attack}: {one.outcome}: {one.told}" for one in fallen[:examples]]
        lines += ["", *told] if told else []
    return "\n".join(lines)


def write(path: Path, about: dict[str, Any], tries: Sequence[Try]) -> None:
    """Write all tries as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**about, "summary": summary(tries), "tries": [asdict(one) for one in tries]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def contents(folder: Path) -> dict[str, str]:
    """Return a fingerprint of what each file of a folder holds, without what two equal runs do not have in common."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not PASSING.fullmatch(path.name))
    return {str(path.relative_to(folder)): _of_file(path) for path in files}


def differences(got: dict[str, str], want: dict[str, str]) -> list[str]:
    """Return the names of files that are missing, left over or other ones, with a sign before each."""
    signs = {name: "-" if name not in got else "+" if name not in want else "~" for name in got.keys() | want.keys()}
    return sorted(f"{sign}{name}" for name, sign in signs.items() if got.get(name) != want.get(name))


def fingerprint(value: Any) -> str:
    """Return a hash of a value of tensors, arrays, numbers, texts and containers of them."""
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()[:16]


def _of_file(path: Path) -> str:
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            return fingerprint(_lasting(json.loads(content)))
        if path.suffix == ".jsonl":
            return fingerprint([_lasting(json.loads(line)) for line in content.splitlines()])
        if path.suffix == ".pt":
            return fingerprint(torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # of another kind, or damaged: then the bytes count
        pass
    return hashlib.sha256(content).hexdigest()[:16]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in CHANGING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"{value.dtype}{list(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(f"{key!r}:".encode())
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())
