"""Kill every recipe and ``evaluate(resume=)`` at a random time, and compare the next run with one that was let be."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import recipes
from .forking import Ended, forked, shared
from .outcomes import Outcome, Try, differences
from .recipes import Run

__all__ = ["fresh", "kills", "verdict_of_interrupt"]

LIMIT = 300.0
"""Seconds that a run may take."""
SIGNALS = (signal.SIGKILL, signal.SIGINT)


@dataclass(frozen=True)
class Reference:
    """A run that was let be: what it left, what it printed and how long it took."""

    files: dict[str, str]
    value: object
    seconds: float


def kills(tries: int, seed: int, jobs: int, only: list[str] | None = None) -> list[Try]:
    """Kill each of the runs in turns, until there are so many tries; every second one by SIGINT."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, recipes.inputs(Path(folder)):
        runs = {name: run for name, run in recipes.runs().items() if not only or name in only}
        names = list(runs)
        found = dict(
            zip(names, shared(names, lambda name: reference(name, runs[name]), jobs, "references"), strict=True)
        )
        done = [one for one in found.values() if isinstance(one, Try)]
        whole = [name for name in names if isinstance(found[name], Reference)]
        todo = [(i, whole[i % len(whole)]) for i in range(tries)] if whole else []

        def attempt(item: tuple[int, str]) -> Try:
            index, name = item
            return kill(
                name, runs[name], found[name], SIGNALS[index // len(whole) % 2], random.Random(f"{seed} {index}")
            )

        return done + shared(todo, attempt, jobs, "kills")


def reference(name: str, run: Run) -> Reference | Try:
    """Run twice without a kill: the results have to be equal, or nothing can be compared with them."""
    found = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="run-") as folder:
            ended = forked(run.work, Path(folder), limit=LIMIT)
            if ended.status:
                return Try(name, "let be", "lost", f"status {ended.status}: {_last_line(ended.errors)}")
            found.append(Reference(run.contents(Path(folder)), _value(ended), ended.seconds))
    if found[0].files != found[1].files or found[0].value != found[1].value:
        told = ", ".join(differences(found[0].files, found[1].files)) or "what it prints or returns"
        return Try(name, "let be, twice", "wrong", f"two runs differ: {told}")
    return found[1]


def kill(name: str, run: Run, want: Reference, how: signal.Signals, rng: random.Random) -> Try:
    """Kill a run once or a few times, run it to its end, and compare."""
    with tempfile.TemporaryDirectory(prefix="run-") as place:
        folder, told, when = Path(place), [], []
        verdict: Outcome = "survived"
        work = run.work
        for _ in range(rng.choice((1, 1, 2))):
            when.append(rng.uniform(0, want.seconds))
            ended = forked(work, folder, limit=LIMIT if how == signal.SIGKILL else when[-1] + 30, stop=(when[-1], how))
            work = run.again
            if how == signal.SIGINT and (why := verdict_of_interrupt(ended, run)):
                verdict = "unclear"
                told.append(why)
        attack = f"{how.name} after {' and '.join(f'{t:.2f}' for t in when)} of {want.seconds:.2f} s"
        ended = forked(run.again, folder, limit=LIMIT)
        if ended.status:
            return Try(name, attack, "lost", f"the next run ends with {ended.status}: {_last_line(ended.errors)}")
        changed = differences(run.contents(folder), want.files)
        if any(not change.startswith("+") for change in changed):
            return Try(name, attack, "wrong", ", ".join(changed))
        if _value(ended) != want.value:
            return Try(name, attack, "wrong", "another value is returned or printed")
        if changed:
            verdict = "unclear"
            told.append(f"left over: {', '.join(changed)}")
        return Try(name, attack, verdict, "; ".join(told))


def verdict_of_interrupt(ended: Ended, run: Run) -> str:
    """Return what is wrong with the end of an interrupted run; nothing if it ends as it is to, or was over before."""
    if not run.command or ended.status == 0 and (run.ends or not ended.late):
        return ""
    if ended.late:
        return "SIGINT is not heeded"
    if "Traceback" in ended.errors:
        return f"a traceback for SIGINT: {_last_line(ended.errors)} {_place(ended.errors)}"
    if ended.status not in (130, -signal.SIGINT):
        return f"status {ended.status} after SIGINT, want 130: {_last_line(ended.errors)}"
    return "" if "interrupted" in _last_line(ended.errors) else f"no sentence, but {_last_line(ended.errors)!r}"


def fresh(tries: int, seed: int, jobs: int, only: list[str] | None = None) -> list[Try]:
    """Interrupt the commands while they import: each in a new interpreter, once torch begins to be loaded."""
    from recipes import __path__ as where

    root = Path(next(iter(where))).parent
    names = sorted(
        p.stem
        for p in root.joinpath("recipes").glob("*.py")
        if 'if __name__ == "__main__"' in p.read_text(encoding="utf-8")
    )
    names = [name for name in names if not only or name in only]

    def attempt(index: int) -> Try:
        name = names[index % len(names)]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
            command = [sys.executable, "-m", f"recipes.{name}", "--help"]
            child = subprocess.Popen(
                command, cwd=root, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            began = time.monotonic()
            while child.poll() is None and not _loads_torch(child.pid):
                time.sleep(0.005)
            delay = random.Random(f"{seed} {index}").uniform(0.0, 2.0)
            try:
                child.wait(delay)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGINT)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            errors.seek(0)
            ended = Ended(child.returncode, None, "", errors.read(), time.monotonic() - began, child.returncode == -9)
        why = verdict_of_interrupt(ended, Run(_nothing, _nothing))
        return Try(name, f"SIGINT {delay:.2f} s into its imports", "unclear" if why else "survived", why)

    return shared(range(tries), attempt, jobs, "imports")


def _nothing() -> None:
    """Do nothing."""


def _loads_torch(process: int) -> bool:
    try:
        return "torch" in Path(f"/proc/{process}/maps").read_text(encoding="utf-8")
    except OSError:
        return True


def _value(ended: Ended) -> tuple[object, str]:
    """Return what a run returned, or what it printed without its times: of the listener, which writes nothing."""
    text = re.sub(r"[\d.]+ times faster", "", ended.output)
    return ended.value, text if re.search(r" s of sound", text) else ""


def _last_line(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1].strip()[:300] if lines else ""


def _place(text: str) -> str:
    """Return the innermost line of the project in a traceback."""
    places = re.findall(r'File "[^"]*?((?:recipes|snn_ext|benchmarks)/[^"]*)", line (\d+)', text)
    return f"({places[-1][0]}:{places[-1][1]})" if places else ""
