"""Training that is interrupted, repeated, or shared among processes ends in the same numbers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

pytest.importorskip("spikingjelly")
pytest.importorskip("torchvision")
from recipes.data.images import Batches  # noqa: E402
from recipes.lib.files import read_json, write_json  # noqa: E402
from recipes.lib.run_folder import RunFolder, read_log  # noqa: E402
from recipes.lib.trainer import _Totals  # noqa: E402
from recipes.lib.training import accuracy, right  # noqa: E402
from recipes.train_images import main  # noqa: E402

ROOT = Path(__file__).parents[3]
TINY = [
    "--model", "vgg16", "--width", "0.0625", "--time-steps", "2", "--neuron", "atif-nu", "--train-images", "50",
    "--test-images", "33", "--batch-size", "16", "--epochs", "3", "--crop", "2", "--mixup-alpha", "1",
    "--log-every", "1", "--device", "cpu",
]  # fmt: skip

# Each run kills itself with SIGKILL, which nothing can catch, at another moment of its second epoch. It is a fork, so
# that torch is imported once; the process that forks has computed nothing, and no thread of it is missed.
KILLED = """
import io, os, signal, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from recipes.lib import run_folder, trainer
from recipes.train_images import main

calls, folder, count = 0, Path(sys.argv[1]), int(sys.argv[2])
ends = []
for moment in sys.argv[3 : 3 + count]:
    child = os.fork()
    if not child:
        break
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    print(ends, flush=True)
    os._exit(ends != [-signal.SIGKILL] * count)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def nth(n, function, replacement):
    def counted(*args):
        global calls
        calls += 1
        return replacement(*args) if calls == n else function(*args)
    return counted

def half(checkpoint, path):
    whole = io.BytesIO()
    save(checkpoint, whole)
    Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    kill()

save = torch.save
if moment == "in the middle of an epoch":
    trainer._Totals.add = nth(8, trainer._Totals.add, lambda *_: kill())  # 3 steps and 3 test batches, then the second
if moment == "while a checkpoint is written":
    torch.save = nth(3, torch.save, half)  # best and last of the first epoch, then half of the next one
if moment == "between epochs":
    whole = run_folder.RunFolder.save
    run_folder.RunFolder.save = nth(2, whole, lambda *args: (whole(*args), kill()))
if moment == "before the result is written":
    run_folder.RunFolder.finish = lambda *_: kill()
try:
    main([*sys.argv[3 + count :], "--out", str(folder / moment)])
except BaseException:
    traceback.print_exc()
os._exit(1)
"""
MOMENTS = [
    "in the middle of an epoch", "while a checkpoint is written", "between epochs", "before the result is written",
]  # fmt: skip


DOUBLE = """
import sys
import torch
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
from recipes.lib.cli import parse
from recipes.train_images import ImageTrainer, Options

class DoubleTrainer(ImageTrainer):
    def load_model(self, args, num_classes):
        return super().load_model(args, num_classes).double()

DoubleTrainer().main(parse(Options, sys.argv[1:]))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Return all that a run leaves: its result, its log without times, its last checkpoint."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for record in log:
        record.pop("seconds", None), record.pop("crc")  # the time is another one in every run
    return read_json(folder / "result.json", "a result"), log, torch.load(folder / "last.pt", weights_only=True)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    main([*TINY, "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one killed run for each moment."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(folder), str(len(MOMENTS)), *MOMENTS, *TINY]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_run_ends_in_the_same_bits(killed: Path, undisturbed: Path, moment: str) -> None:
    folder = killed / moment
    assert (folder / "last.pt").exists() and not (folder / "result.json").exists()
    main([*TINY, "--out", str(folder), "--resume"])
    assert_same(outcome(folder), outcome(undisturbed))
    assert not list(folder.glob(".*"))  # no half-written file is left


def test_second_run_into_a_folder_is_refused_and_changes_nothing(undisturbed: Path) -> None:
    before = {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}
    with pytest.raises(SystemExit, match=r"holds a run, want another folder, or --resume"):
        main([*TINY, "--out", str(undisturbed)])
    with pytest.raises(SystemExit, match=r"seed=0, and now seed=1"):
        main([*TINY, "--out", str(undisturbed), "--resume", "--seed", "1"])
    with pytest.raises(SystemExit, match=r"epochs=3, and now epochs=4"):  # the cosine would have been another one
        main([*TINY, "--out", str(undisturbed), "--resume", "--epochs", "4"])
    assert {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()} == before


def test_resuming_a_finished_run_returns_its_result_without_training(undisturbed: Path) -> None:
    before = outcome(undisturbed)
    assert main([*TINY, "--out", str(undisturbed), "--resume"]) == before[0]
    assert_same(outcome(undisturbed), before)


def test_a_run_can_grow_where_the_schedule_does_not_depend_on_its_length(tmp_path: Path) -> None:
    options = [*TINY, "--lr-scheduler", "step"]
    main([*options, "--epochs", "2", "--out", str(tmp_path / "whole")])
    main([*options, "--epochs", "1", "--out", str(tmp_path / "grown")])
    main([*options, "--epochs", "2", "--out", str(tmp_path / "grown"), "--resume"])
    assert_same(outcome(tmp_path / "grown"), outcome(tmp_path / "whole"))


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    first = RunFolder(tmp_path, {"seed": 0}, resume=False)
    with pytest.raises(ValueError, match="another run is under way"):
        RunFolder(tmp_path, {"seed": 0}, resume=True)
    first.close()
    RunFolder(tmp_path, {"seed": 0}, resume=True).close()


@pytest.mark.parametrize("name", ["weights.pt", "log.jsonl", "result.json"])
def test_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ValueError, match="files of something else"):
        RunFolder(tmp_path, {}, resume=True)
    assert (tmp_path / name).read_bytes() == b"precious"


@pytest.mark.parametrize("content", [b"precious", b"[1, 2]", b"\xff\xfe"], ids=["text", "list", "bytes"])
def test_folder_with_settings_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match="settings.json is of something else"):
        RunFolder(tmp_path, {}, resume=True)
    assert (tmp_path / "settings.json").read_bytes() == content


def test_only_leftovers_of_a_run_are_taken_away(tmp_path: Path) -> None:
    foreign = [".tmux.conf", ".gitlab-ci.yml", ".notes.12.json", "lock"]
    for name in foreign:
        (tmp_path / name).write_text("precious")
    (tmp_path / ".config.d").mkdir()
    (tmp_path / ".snn_ext-0123456789abcdef.json").write_text("half")
    folder = RunFolder(tmp_path, {}, resume=False)
    folder.log(epoch=0)
    folder.close()
    assert [(tmp_path / name).read_text() for name in foreign] == ["precious"] * 4
    assert (tmp_path / ".config.d").is_dir() and not list(tmp_path.glob(".snn_ext-*"))


def test_run_begun_before_a_setting_was_there_goes_on_with_its_default(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"seed": 0}, resume=False)
    folder.finish({"accuracy": 1.0})
    folder.close()
    later = RunFolder(tmp_path, {"seed": 0, "ema": False}, resume=True, defaults={"seed": 7, "ema": False})
    assert later.result == {"accuracy": 1.0, "settings": {"seed": 0}}
    later.close()
    with pytest.raises(ValueError, match="ema=False, and now ema=True"):
        RunFolder(tmp_path, {"seed": 0, "ema": True}, resume=True, defaults={"seed": 7, "ema": False})


def test_trainer_knows_the_default_of_a_setting_that_an_old_run_lacks(tmp_path: Path, undisturbed: Path) -> None:
    for name in ("settings.json", "result.json"):
        content = read_json(undisturbed / name, "a file of a run")
        content.get("settings", content).pop("label_smoothing")
        write_json(tmp_path / name, content)
    assert main([*TINY, "--out", str(tmp_path), "--resume"])["accuracy"] == outcome(undisturbed)[0]["accuracy"]


def test_full_disk_names_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for part in ("__init__", "add_scalar"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="tensorboard: No space left"):
            patch.setattr(SummaryWriter, part, full)
            main([*TINY, "--out", str(tmp_path / part)])


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), ImportError()])
def test_system_without_locks_still_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fcntl = pytest.importorskip("fcntl")

    def fails(*_: Any) -> None:
        raise error

    warns: Any = pytest.warns(UserWarning, match="cannot be locked")
    if isinstance(error, ImportError):  # Windows
        monkeypatch.setitem(sys.modules, "fcntl", None)
        warns = contextlib.nullcontext()
    monkeypatch.setattr(fcntl, "flock", fails)
    with warns:
        RunFolder(tmp_path, {}, resume=False).close()


def test_log_is_cut_off_after_the_last_checkpoint_also_within_a_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {}, resume=False)
    folder.log(epoch=0, loss=1.0)
    folder.save({"epochs": 1}, best=True)
    folder.log(epoch=1, loss=0.5)
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 0, "lo')
    assert folder.checkpoint() == {"epochs": 1}
    assert read_log(tmp_path / "log.jsonl") == [{"epoch": 0, "loss": 1.0, "crc": mock.ANY}]
    folder.close()


def test_two_processes_see_the_loss_curve_of_one(tmp_path: Path) -> None:
    """Order, crops, mixtures, batch norm, the odd number of test images: all as in one process.

    In float64, as the order of a sum in float32 makes a neuron near its threshold fire or not, after a few steps.
    """
    script = tmp_path / "double.py"
    script.write_text(DOUBLE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runs = [
        subprocess.Popen([*start, str(script), *TINY, "--out", str(tmp_path / name)], env=environment(), cwd=ROOT)
        for name, start in (("one", [sys.executable]), ("two", command))
    ]
    assert [run.wait() for run in runs] == [0, 0]
    (result, log, checkpoint), (one_result, one_log, one_checkpoint) = (outcome(tmp_path / n) for n in ("two", "one"))
    losses, one_losses = ([r["loss"] for r in records if "step" in r] for records in (log, one_log))
    assert len(losses) == 9
    assert losses == pytest.approx(one_losses, rel=1e-10)
    for name in ("test_loss", "test_acc1", "train_loss", "accuracy", "theta"):
        assert result[name] == pytest.approx(one_result[name], rel=1e-10)
    for name, value in checkpoint["model"].items():
        torch.testing.assert_close(value, one_checkpoint["model"][name], rtol=1e-7, atol=1e-9)


def test_shares_of_the_test_set_hold_every_image_once() -> None:
    part = torch.arange(33).byte().view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.arange(33)
    shares = [
        torch.cat([labels for _, labels in Batches(part, 10, torch.zeros(1), torch.ones(1), rank=r, processes=4)])
        for r in range(4)
    ]
    assert torch.cat(shares).sort().values.tolist() == list(range(33))


def test_outputs_that_are_no_numbers_are_never_right() -> None:
    output = torch.full((4, 10), torch.nan)
    output[2:] = 0.0
    output[2, 3] = output[3, 0] = 1.0
    output[3, 9] = torch.nan
    for labels in (torch.tensor([0, 1, 3, 0]), torch.eye(10)[[0, 1, 3, 0]]):
        totals = _Totals(torch.device("cpu"))
        totals.add(torch.tensor(0.0), output, labels)
        assert totals.result(1)[1:] == (0.25, 0.25)
    assert right(output, torch.tensor([0, 1, 3, 0])).tolist() == [False, False, True, False]
    net = torch.nn.Linear(2, 3)
    torch.nn.init.constant_(net.weight, torch.nan)
    assert accuracy(net, [(torch.ones(5, 2), torch.zeros(5, dtype=torch.int64))]) == 0.0
