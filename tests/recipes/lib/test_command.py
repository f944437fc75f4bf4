"""A command ends by a sentence and a status: after wrong input, Ctrl-C at any time, SIGTERM, and a closed pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes.lib.command import Children, command, uninterrupted

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("--x: got 1, want 2"), "--x: got 1, want 2"),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (FileNotFoundError("corpus: not found"), "corpus: not found"),
        (FloatingPointError("loss: got nan"), "loss: got nan"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_the_user_can_mend_is_a_sentence(error: Exception, sentence: str) -> None:
    @command
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == sentence and end.value.__cause__ is error


@pytest.mark.parametrize("error", [BrokenPipeError(), KeyboardInterrupt(), RuntimeError("a bug"), TypeError("a bug")])
def test_what_is_no_wrong_input_passes(error: BaseException) -> None:
    @command
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        main()


# -- a program ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
from recipes.lib.command import Children, run_main, uninterrupted
def main():
    try:
        print("begun", flush=True)
{body}
    finally:
        sys.stderr.write("cleaned up\\n")
assert "torch" not in sys.modules
run_main(main, "--resume continues")
"""


def program(body: str, **options: object) -> subprocess.Popen[str]:
    """Start a program that prints "begun", does what the body says, and then "cleaned up" into its errors."""
    code = PROGRAM.format(body="\n".join(f"        {line}" for line in body.splitlines()))
    pipes = {name: subprocess.PIPE for name in ("stdout", "stderr")}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **{**pipes, **options})  # type: ignore


def ended(process: subprocess.Popen[str], number: int | None = None) -> tuple[int, str]:
    """Send a signal as soon as the program has begun; return status and errors."""
    if number is not None:
        assert process.stdout and process.stdout.readline() == "begun\n"
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors and "Exception" not in errors, errors
    return process.returncode, errors


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(signal.SIGINT, 130, "cleaned up\ninterrupted; --resume continues\n"), (signal.SIGTERM, 143, "cleaned up\n")],
)
def test_signal_cleans_up_and_gives_its_status(number: int, status: int, told: str) -> None:
    assert ended(program("time.sleep(60)"), number) == (status, told)


@pytest.mark.parametrize("raised", ["raise KeyboardInterrupt", "exec('raise KeyboardInterrupt')"])
def test_ctrl_c_inside_an_exec_of_text_gives_the_status_too(raised: str, tmp_path: Path) -> None:
    text = f"from recipes.lib.command import run_main\n\ndef main():\n    {raised}\n\nrun_main(main)\n"
    (tmp_path / "interrupted_module.py").write_text(text)
    arguments = [sys.executable, "-m", "interrupted_module"]  # python -m alone looks at the flag that exec leaves
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    process = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "interrupted\n")


def test_ctrl_c_that_was_lost_comes_again() -> None:
    body = """
import recipes.lib.command
recipes.lib.command.LOST = 0.2
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)  # and something clears the error
    time.sleep(5)
except KeyboardInterrupt:
    pass
time.sleep(60)
"""
    assert ended(program(body.strip())) == (130, "cleaned up\ninterrupted; --resume continues\n")


def test_full_disk_in_the_thread_of_tensorboard_is_told_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    body = f"""
from tensorboard.summary.writer import event_file_writer as writers
def full(*_): raise OSError(28, "No space left on device")
writers.RecordWriter.write = full
try:
    writers.EventFileWriter({str(tmp_path)!r})
    raise AssertionError
except OSError:
    time.sleep(0.1)  # the thread goes on to its end
"""
    status, errors = ended(program(body.strip()))
    assert (status, errors.splitlines()[-1]) == (0, "cleaned up")


def test_background_job_that_ignores_ctrl_c_goes_on() -> None:
    process = program("time.sleep(0.3)", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert ended(process, signal.SIGINT) == (0, "cleaned up\n")


@pytest.mark.parametrize(("body", "status"), [("return 3", 3), ("return 'a report'", 0), ("sys.exit('no')", 1)])
def test_result_is_the_status_if_it_is_a_number(body: str, status: int) -> None:
    assert ended(program(body))[0] == status


def test_reader_that_goes_away_is_no_error() -> None:
    process = program("while True: print('x' * 1000)")
    assert process.stdout and process.stdout.readline() == "begun\n"
    process.stdout.close()
    assert process.stderr and process.stderr.read() == "cleaned up\n" and process.wait() == 141


def test_text_that_the_terminal_does_not_have_is_printed_as_it_can_be() -> None:
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = program("print('mean \\u00b1 deviation \\ud800')", env={**os.environ, **plain})
    out, errors = process.communicate()
    assert process.returncode == 0 and "mean \\xb1 deviation \\ud800" in out and "Traceback" not in errors


def test_closed_standard_streams_do_not_take_the_numbers_of_files(tmp_path: Path) -> None:
    body = f"with open({str(tmp_path / 'file')!r}, 'w') as f: f.write(str(f.fileno()))\nprint('x', file=sys.stderr)"
    process = program(body, preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    assert process.wait(timeout=60) == 0 and int((tmp_path / "file").read_text()) > 2


SWALLOWED = {
    "a destructor": "class A:\n    def __del__(self): time.sleep(60)\nA()",
    "a callback of C": "import ctypes\nctypes.CFUNCTYPE(None)(lambda: time.sleep(60))()",
}


@pytest.mark.parametrize("place", SWALLOWED)
def test_ctrl_c_that_cannot_be_passed_on_comes_again(place: str) -> None:
    status, errors = ended(program(f"{SWALLOWED[place]}\nfor _ in range(600): time.sleep(0.1)"), signal.SIGINT)
    assert status == 130 and errors == "cleaned up\ninterrupted; --resume continues\n"


def test_ctrl_c_is_put_off_until_a_library_has_returned() -> None:
    body = "with uninterrupted():\n    print('reads', flush=True)\n    time.sleep(0.5)\n    sys.stderr.write('read, ')"
    process = program(f"{body}\ntime.sleep(60)")
    assert process.stdout and [process.stdout.readline() for _ in range(2)] == ["begun\n", "reads\n"]
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "read, cleaned up\ninterrupted; --resume continues\n")


def test_signals_are_as_before_after_they_were_put_off() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), uninterrupted():
        _ = 1 / 0
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    thread = threading.Thread(target=uninterrupted().__enter__)  # where no signal arrives, and none can be set
    thread.start()
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_children_end_with_their_program(number: int) -> None:
    child = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    process = program(f"with Children() as children: children.call({child!r})", start_new_session=True)
    assert process.stdout and process.stdout.readline() == "begun\n"
    pid = int(process.stdout.readline())
    process.send_signal(number)
    assert ended(process)[0] == 128 + number
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.05)


def test_no_child_begins_after_the_end() -> None:
    with Children() as children:
        assert children.call([sys.executable, "-c", "raise SystemExit(3)"]) == 3
        children.end()
        assert children.call([sys.executable, "-c", "raise SystemExit(3)"]) != 3


# -- real commands -----------------------------------------------------------------------------------------------------


def interrupted(seconds: float, *arguments: str, number: int = signal.SIGINT) -> tuple[int, str]:
    """Start a command, signal it after some time, and return its status and its errors."""
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.parametrize("module", ["recipes.train_images", "recipes.makers.synthetic_speech", "benchmarks.speed.gpu"])
def test_ctrl_c_while_torch_is_imported_is_told_in_a_line(module: str) -> None:
    assert interrupted(0.5, module, "--help") == (130, "interrupted\n")


def test_package_that_is_imported_leaves_the_signals_alone() -> None:
    code = "import recipes, benchmarks, signal; assert signal.getsignal(2) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "module", "arguments"),
    [
        (4.0, "recipes.quickstart", []),
        (6.0, "recipes.spot_keywords", []),
        (9.0, "benchmarks.results.images", ["--width", "0.0625", "--models", "vgg16"]),
    ],
)
def test_ctrl_c_at_any_time_leaves_no_traceback(
    seconds: float, module: str, arguments: list[str], tmp_path: Path
) -> None:
    status, errors = interrupted(seconds, module, *arguments, "--out", str(tmp_path / "run"))
    assert status == 130 and "Traceback" not in errors and "interrupted" in errors
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
