"""Run work in forks of this process, which has imported everything: a try costs milliseconds, not the seconds of torch.

Nothing here may start a thread before a fork, so whoever imports this module sets ``OMP_NUM_THREADS=1`` before torch is
imported, and the work itself (backward passes, progress bars) runs in the forks alone.
"""

from __future__ import annotations

import os
import pickle
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ended", "forked", "module", "shared"]


@dataclass(frozen=True)
class Ended:
    """How a fork ended.

    Attributes
    ----------
    status : int
        Exit status; that of a signal is negative, as in ``subprocess``.
    value : Any
        What the work returned; ``None`` if it did not return.
    output, errors : str
        Standard output and standard error.
    seconds : float
        How long it took.
    late : bool
        It did not end within the limit and was killed.
    """

    status: int
    value: Any
    output: str
    errors: str
    seconds: float
    late: bool = False


def forked(
    work: Callable[[], Any], folder: Path | None = None, *, limit: float = 120.0, memory: int | None = None,
    stop: tuple[float, signal.Signals] | None = None,
) -> Ended:  # fmt: skip
    """Run ``work`` in a fork, in a process group of its own, and wait for its end.

    Parameters
    ----------
    work : callable
        Its exceptions end the fork as they end an interpreter.
    folder : Path, optional
        Where it runs.
    limit : float
        Seconds after which it is killed.
    memory : int, optional
        Bytes of address space on top of what this process has.
    stop : (float, Signals), optional
        Send the signal to the whole group after that many seconds.
    """
    with tempfile.TemporaryDirectory(prefix="try-") as kept:
        paths = [Path(kept) / name for name in ("output", "errors", "value")]
        ready, said = os.pipe()
        sys.stdout.flush(), sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.setsid()
            os.close(ready)
            _child(work, folder, paths, memory, said)
        os.close(said)
        os.read(ready, 1)
        os.close(ready)
        began = time.monotonic()
        status = None
        if stop is not None:
            status = _wait(child, stop[0])
            if status is None:
                os.killpg(child, stop[1])
        late = False
        if status is None:
            status = _wait(child, limit)
            late = status is None
        seconds = time.monotonic() - began
        try:
            os.killpg(child, signal.SIGKILL)  # it, if it is late, and whatever it has left behind
        except ProcessLookupError:
            pass
        if status is None:
            _, status = os.waitpid(child, 0)
        output, errors = (
            path.read_text(errors="replace", encoding="utf-8") if path.exists() else "" for path in paths[:2]
        )
        value = pickle.loads(paths[2].read_bytes()) if os.WIFEXITED(status) and paths[2].exists() else None
        return Ended(os.waitstatus_to_exitcode(status), value, output, errors, seconds, late)


def module(name: str, arguments: Sequence[str]) -> Callable[[], None]:
    """Return work that does what ``python -m NAME ARGUMENTS`` does; modules that it starts in turn are forked too."""

    def work() -> None:
        subprocess.run = _run_in_a_fork  # type: ignore[assignment]
        sys.argv = [name, *arguments]
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    return work


def shared(items: Sequence[Any], work: Callable[[Any], Any], jobs: int, told: str = "") -> list[Any]:
    """Return ``work(item)`` of all items, in their order; ``jobs`` forks share them out."""
    with tempfile.TemporaryDirectory(prefix="jobs-") as kept:
        workers = []
        for job in range(jobs):
            worker = os.fork()
            if worker == 0:
                _work_off(items, work, job, jobs, Path(kept), told)
            workers.append(worker)
        try:
            for worker in workers:
                os.waitpid(worker, 0)
        except BaseException:
            for worker in workers:
                os.kill(worker, signal.SIGTERM)
            raise
        results = []
        for index in range(len(items)):
            path = Path(kept) / str(index)
            if not path.exists():
                raise RuntimeError(f"{told} {items[index]}: its worker has ended; see what it printed")
            results.append(pickle.loads(path.read_bytes()))
        return results


def _work_off(items: Sequence[Any], work: Callable[[Any], Any], job: int, jobs: int, kept: Path, told: str) -> None:
    try:
        for index in range(job, len(items), jobs):
            (kept / str(index)).write_bytes(pickle.dumps(work(items[index])))
            if told:
                print(f"\r{told} {len(list(kept.iterdir()))} of {len(items)} ", end="", file=sys.stderr, flush=True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _child(work: Callable[[], Any], folder: Path | None, paths: list[Path], memory: int | None, said: int) -> None:
    def whole() -> Any:
        if folder is not None:
            os.chdir(folder)
        if memory is not None:
            pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
        os.write(said, b"!")
        os.close(said)
        return work()

    status = 1
    try:
        with open(paths[0], "wb") as output, open(paths[1], "wb") as errors:
            status, value = _ending(whole, output.fileno(), errors.fileno())
        if status == 0:
            paths[2].write_bytes(pickle.dumps(value))
    finally:  # a fork never comes back
        os._exit(status)


def _ending(work: Callable[[], Any], output: int | None, errors: int | None) -> tuple[int, Any]:
    """Run work with its output in files; return the status that an interpreter would end with, and the value."""
    status, value = 1, None
    try:
        for number, file in ((1, output), (2, errors)):
            if file is not None:
                os.dup2(file, number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False, buffering=1, encoding="utf-8") for n in (1, 2))
        value = work()
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)  # as the interpreter does: a command may have its own
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.flush(), sys.stderr.flush()
    return status & 255, value


def _wait(child: int, seconds: float) -> int | None:
    """Return the status of a child that ends within that time."""
    until, pause = time.monotonic() + seconds, 0.001
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        left = until - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(2 * pause, 0.02)


def _run_in_a_fork(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Do what ``subprocess.run`` does; ``python -m NAME`` runs in a fork, in the same process group."""
    if list(command[:2]) != [sys.executable, "-m"]:
        return _RUN(command, **options)
    child = os.fork()
    if child == 0:
        files = [options[name].fileno() if name in options else None for name in ("stdout", "stderr")]
        try:
            status, _ = _ending(module(command[2], command[3:]), *files)
        finally:
            os._exit(status)
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


_RUN = subprocess.run
