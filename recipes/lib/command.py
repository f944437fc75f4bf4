"""The frame of a command: wrong input ends as a sentence, Ctrl-C, SIGTERM and a closed pipe as a status.

Nothing here is slow to import, so that :func:`quiet_while_importing` comes before torch, which takes seconds.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from typing import Any, NoReturn, TypeVar

from .cli import parse_command

__all__ = ["Children", "command", "missing", "quiet_while_importing", "run_main", "uninterrupted"]

INTERRUPTED, TERMINATED, PIPE_CLOSED = 128 + 2, 128 + 15, 128 + 13
"""Exit statuses: those that a shell gives a program that ended by the signal."""

PATIENCE = 10.0
"""Seconds that a process has to end by itself."""
LOST = 20.0
"""Seconds after which a Ctrl-C that has not ended the program comes again: C code that clears errors can lose one."""

T = TypeVar("T")


def command(main: Callable[..., T]) -> Callable[..., T]:
    """Make a ``main`` a command: it gets its options, and what the user can mend ends it by a sentence, ``SystemExit``.

    If the parameter of ``main`` is a dataclass, :func:`recipes.lib.cli.parse_command` makes its argument, from
    ``sys.argv`` or from the list of arguments that the command is called with. A call with the options themselves runs
    with them. With ``--json`` the standard output gets the result and nothing else.
    """

    @functools.wraps(main)
    def told(*arguments: Any) -> T:
        as_json = False
        for parameter in inspect.signature(main, eval_str=True).parameters.values():
            if is_dataclass(parameter.annotation) and not isinstance((*arguments, None)[0], parameter.annotation):
                options, as_json = parse_command(parameter.annotation, *arguments)
                arguments = (options,)
        try:
            if not as_json:
                return main(*arguments)
            with redirect_stdout(sys.stderr):
                result = main(*arguments)
            print(json.dumps(result, default=_plain, indent=1))
            return result
        except BrokenPipeError:  # nobody reads what is printed: no error of the input
            raise
        except (ValueError, OSError, FloatingPointError) as error:
            raise SystemExit(_sentence(error)) from error
        except ImportError as error:
            if (sentence := missing(error)) is None:
                raise
            raise SystemExit(sentence) from error

    return told


EXTRAS = {"timm": "timm", "h5py": "real-weights"} | dict.fromkeys(
    ("spikingjelly", "snntorch", "torchvision", "PIL", "numpy", "matplotlib", "soundfile", "scipy", "sklearn",
     "tabulate", "tqdm", "tensorboard", "safetensors"), "recipes"
)  # fmt: skip
"""The extra that installs a module."""


def missing(error: ImportError) -> str | None:
    """Return what to install where torch or a module of an extra is missing; ``None`` where something else is wrong."""
    module = (error.name or "").split(".")[0]
    if not (module in EXTRAS or module == "torch") or not isinstance(error, ModuleNotFoundError):
        return None
    wanted = f"'snn_ext[{EXTRAS[module]}]'" if module in EXTRAS else module
    return f"{module}: not installed, want pip install {wanted}"


def _plain(value: Any) -> Any:
    """Return what is no JSON value as one: evaluations, tensors, dataclasses; the text of anything else."""
    if hasattr(value, "to_json"):
        return json.loads(value.to_json())
    if hasattr(value, "tolist"):
        return value.tolist()
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def run_main(main: Callable[[], Any], after_interruption: str = "") -> NoReturn:
    """Run the ``main`` of a module as the program, and end with its status.

    Parameters
    ----------
    main : callable
        Its result is the exit status if it is an int.
    after_interruption : str
        What the message after Ctrl-C adds.
    """
    _open_standard_streams()
    sys.unraisablehook, threading.excepthook = _interrupt_again, _leave_out_tensorboard
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # of a job in the background
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            result = main()
            status = result if isinstance(result, int) else 0
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
        exec("")  # forgets a Ctrl-C inside an exec of text, as dataclasses do it; else ``python -m`` dies by the signal
        print("interrupted" + (f"; {after_interruption}" if after_interruption else ""), file=sys.stderr)
    except BrokenPipeError:
        status = PIPE_CLOSED
        for number in (1, 2):  # what is still to be flushed has a place to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    finally:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _leave)  # nothing is left to clean up
    sys.exit(status)


def quiet_while_importing() -> None:
    """Let ``python -m recipes.NAME`` end without a traceback by Ctrl-C or a missing module while it imports.

    To be called as the first import of the package. Where the package is imported in any other way nothing changes.
    """
    own = ("recipes.", "benchmarks.", "benchmarks", "snn_ext.recipes.")
    if sys.argv[:1] != ["-m"] or not any(a.removeprefix("-m").startswith(own) for a in sys.orig_argv[1:]):
        return
    sys.excepthook = _tell_missing
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _tell_missing(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    sentence = missing(error) if isinstance(error, ImportError) else None
    if sentence is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(sentence, file=sys.stderr)


def _leave(number: int, frame: Any) -> NoReturn:
    """End at once: where imports or the interpreter's end would catch an exception, or print it."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def _interrupt(number: int, frame: Any) -> None:
    """Raise ``KeyboardInterrupt``, and once more if the program still runs long after that."""
    again = threading.Timer(LOST, os.kill, (os.getpid(), number))
    again.daemon = True  # it ends with the program
    again.start()
    signal.default_int_handler(number, frame)


def _terminate(number: int, frame: Any) -> NoReturn:
    raise SystemExit(TERMINATED)  # so that temporary files are taken away, and children ended


def _interrupt_again(unraisable: Any) -> None:
    """Repeat a Ctrl-C that came in a destructor or a callback of C, which cannot pass it on."""
    again = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(unraisable.exc_type)
    if again is None:
        sys.__unraisablehook__(unraisable)
    else:
        threading.Timer(0.01, os.kill, (os.getpid(), again)).start()


def _leave_out_tensorboard(error: threading.ExceptHookArgs) -> None:
    """Print no traceback of TensorBoard's thread: the next call of its writer raises that error again."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(error)


def _open_standard_streams() -> None:
    """Open what the caller has closed, and let text be printed that the terminal's encoding does not have."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would be the standard output of libraries
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM until the block ends, for a library that calls back: it prints them and goes on."""
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # the only one that signals reach
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


class Children:
    """Processes that end with this one: those that still run are terminated when the block is left by an error.

    Examples
    --------
    >>> with Children() as children:
    ...     children.call([sys.executable, "-c", ""])
    0
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._over = threading.Lock(), False

    def __enter__(self) -> Children:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.end()

    def call(self, arguments: Sequence[str], **options: Any) -> int:
        """Run a process and return its exit status; from any thread. After :meth:`end` none begins."""
        with self._lock:
            if self._over:
                return TERMINATED
            process = subprocess.Popen(arguments, **options)
            self._running.add(process)
        status = process.wait()  # where that is interrupted, the process stays among those that run
        self._running.discard(process)
        return status

    def end(self) -> None:
        """Terminate what runs, and kill what does not end by that."""
        with self._lock:
            self._over, running = True, list(self._running)
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
