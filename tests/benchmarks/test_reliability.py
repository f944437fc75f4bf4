"""The attacks notice a planted fault of each kind, and find nothing where there is none."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")
pytest.importorskip("soundfile")

from benchmarks.reliability import damage, disk, hostile, kills, together  # noqa: E402
from benchmarks.reliability.__main__ import main  # noqa: E402
from benchmarks.reliability.forking import forked, shared  # noqa: E402
from benchmarks.reliability.formats import Format  # noqa: E402
from benchmarks.reliability.outcomes import Try, contents, summary  # noqa: E402
from benchmarks.reliability.recipes import Run  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and signals as Linux has them")


def outcomes(tries: list[Try]) -> dict[str, set[str]]:
    return {one.subject: {other.outcome for other in tries if other.subject == one.subject} for one in tries}


def test_every_command_that_is_killed_is_there_and_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, list[str]] = {}
    monkeypatch.setattr(kills.recipes, "module", lambda name, arguments: found.setdefault(name, [*arguments]))
    kills.recipes.runs()
    assert {"recipes.convert", "benchmarks.results.images", "recipes.listen"} < set(found)
    for name, arguments in found.items():
        main = importlib.import_module(name).main
        (options,) = inspect.signature(main, eval_str=True).parameters.values()
        if dataclasses.is_dataclass(options.annotation):
            parse(options.annotation, arguments)


# -- damaged files ---------------------------------------------------------------------------------------------------


WHOLE = bytes(range(1, 101))


def guarded() -> bytes:
    content = Path("a.bin").read_bytes()
    if content != WHOLE:
        raise ValueError(f"{Path('a.bin')}: is damaged, want another copy")
    return content


def unnamed() -> bytes:
    try:
        return guarded()
    except ValueError:
        raise ValueError("damaged") from None


def unexpected() -> bytes:
    try:
        return guarded()
    except ValueError:
        raise KeyError("a.bin") from None


def ignored() -> int:
    return sum(Path("a.bin").read_bytes())


def endless() -> None:
    if Path("a.bin").read_bytes() != WHOLE:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_that_ignores_damage_is_wrong_and_one_that_does_not_say_so_is_unclear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(load: Callable[[], Any]) -> Format:
        return Format("a.bin", lambda: Path("a.bin").write_bytes(WHOLE), load)

    loaders = {"guarded": guarded, "unnamed": unnamed, "unexpected": unexpected, "ignored": ignored, "endless": endless}
    monkeypatch.setattr(damage, "FORMATS", {name: made(load) for name, load in loaders.items()})
    tries = damage.flips(25, 0, 1)
    assert outcomes(tries) == {
        "guarded": {"survived"}, "unnamed": {"unclear"}, "unexpected": {"unclear"}, "ignored": {"wrong"},
        "endless": {"unclear"},
    }  # fmt: skip
    assert {row["subject"]: row["wrong"] for row in summary(tries)}["ignored"] > 0


def test_every_kind_of_damage_changes_the_file(tmp_path: Path) -> None:
    for seed in range(30):
        path = tmp_path / "a"
        path.write_bytes(bytes(range(1, 256)) * 10)
        assert damage.damage(path, random.Random(seed)) and path.read_bytes() != bytes(range(1, 256)) * 10


def test_a_pickle_that_is_executed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(weights_only: bool) -> Format:
        return Format(
            "a.pt", lambda: torch.save({"settings": {}}, "a.pt"), lambda: torch.load("a.pt", weights_only=weights_only)
        )

    monkeypatch.setattr(hostile, "FORMATS", {"safe": made(True), "unsafe": made(False)})
    found = outcomes([one for one in hostile.hostile(1, 0, 1) if "code" in one.attack])
    assert "lost" in found["unsafe"] and "lost" not in found["safe"]


# -- interrupted runs ------------------------------------------------------------------------------------------------


def whole() -> None:
    """Take its time, and write a file in one step, under a name that the next run uses again."""
    time.sleep(0.2)
    Path(".new").write_text("done", encoding="utf-8")
    time.sleep(0.1)
    Path(".new").replace("result")


def leaving() -> None:
    Path(f".new.{os.getpid()}").write_text("done", encoding="utf-8")
    time.sleep(0.3)
    Path(f".new.{os.getpid()}").replace("result")


def adding() -> None:
    with open("result", "a", encoding="utf-8") as file:
        file.write("begun\n")
        file.flush()
        time.sleep(0.3)


def killed(monkeypatch: pytest.MonkeyPatch, how: signal.Signals, **runs: Callable[[], None]) -> dict[str, set[str]]:
    monkeypatch.setattr(kills.recipes, "inputs", lambda folder: nullcontext())
    monkeypatch.setattr(kills.recipes, "runs", lambda: {name: Run(work, work) for name, work in runs.items()})
    monkeypatch.setattr(kills, "SIGNALS", (how, how))
    return outcomes(kills.kills(4 * len(runs), 0, 1))


def test_a_killed_run_that_ends_in_another_result_or_leaves_a_temporary_file_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = killed(monkeypatch, signal.SIGKILL, whole=whole, leaving=leaving, adding=adding)
    assert found["whole"] == {"survived"} and "unclear" in found["leaving"] and "wrong" in found["adding"]


def test_an_interrupted_run_has_to_say_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = killed(monkeypatch, signal.SIGINT, leaving=leaving)
    assert "unclear" in found["leaving"]
    said = kills.Ended(130, None, "", "a bar: 50 %\rinterrupted; the same command continues\n", 1.0)
    assert kills.verdict_of_interrupt(said, Run(whole, whole)) == ""
    for change in ({"status": 1}, {"errors": "Traceback ...\nKeyboardInterrupt"}, {"errors": ""}, {"late": True}):
        assert kills.verdict_of_interrupt(dataclasses.replace(said, **change), Run(whole, whole))


def test_runs_that_differ_without_a_kill_are_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> None:
        Path("result").write_text(str(time.time()), encoding="utf-8")

    found = killed(monkeypatch, signal.SIGKILL, drawn=drawn)
    assert found == {"drawn": {"wrong"}}


def test_a_full_disk_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def saying() -> None:
        try:
            Path("result.json").write_text("1" * 500_000, encoding="utf-8")
        except OSError as error:
            Path("result.json").unlink(missing_ok=True)
            raise SystemExit(f"result.json: cannot be written ({error})") from None

    def silent() -> None:
        Path("result.json").write_text("1" * 500_000, encoding="utf-8")

    runs = {"saying": saying, "silent": silent}
    monkeypatch.setattr(disk.recipes, "inputs", lambda folder: nullcontext())
    monkeypatch.setattr(disk.recipes, "runs", lambda: {name: Run(work, work) for name, work in runs.items()})
    monkeypatch.setattr(disk, "ATTACKS", {"full disk": disk.ATTACKS["full disk"]})
    assert outcomes(disk.disk(4, 0, 1)) == {"saying": {"survived"}, "silent": {"unclear"}}


# -- threads ---------------------------------------------------------------------------------------------------------


def test_threads_that_share_a_file_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared_file(index: int, rng: random.Random) -> str:
        Path("files/one").write_text(str(index), encoding="utf-8")
        time.sleep(0.05)
        return Path("files/one").read_text(encoding="utf-8")

    works = {"apart": lambda index, rng: index + rng.random(), "shared": shared_file}
    monkeypatch.setattr(together, "WORKS", works)
    assert outcomes(together.threads(4, 0, 1)) == {"apart": {"survived"}, "shared": {"wrong"}}


# -- the machinery ---------------------------------------------------------------------------------------------------


def test_a_fork_ends_as_an_interpreter_does(tmp_path: Path) -> None:
    def leave(code: object) -> Callable[[], None]:
        def work() -> None:
            raise SystemExit(code)

        return work

    assert forked(lambda: os.getcwd(), tmp_path).value == str(tmp_path)
    assert [forked(leave(code)).status for code in (None, 3, "a sentence")] == [0, 3, 1]
    assert forked(leave("a sentence")).errors == "a sentence\n"
    assert "ZeroDivisionError" in forked(lambda: 1 / 0).errors
    assert forked(lambda: time.sleep(30), limit=0.2).late
    assert forked(lambda: time.sleep(30), stop=(0.1, signal.SIGKILL)).status == -signal.SIGKILL
    with pytest.raises(RuntimeError, match="its worker has ended"):
        shared([1, 0], lambda value: 1 / value, 2)
    assert shared([1, 2, 3], lambda value: value**2, 2) == [1, 4, 9]


def test_contents_leave_out_what_changes_and_nothing_else(tmp_path: Path) -> None:
    def of(**content: Any) -> dict[str, str]:
        (tmp_path / "a.json").write_text(json.dumps(content))
        torch.save({"weight": torch.ones(2) * content["loss"]}, tmp_path / "a.pt")
        return contents(tmp_path)

    assert of(loss=1.0, seconds=3.0) == of(loss=1.0, seconds=4.0)
    assert set(of(loss=1.0).items()).isdisjoint(of(loss=2.0).items())


def test_results_are_written_and_the_status_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # restored afterwards
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(kills.recipes, "preload", lambda: None)
    monkeypatch.setattr(together, "WORKS", {"fine": lambda index, rng: index})
    out = ["--jobs", "1", "--tries", "1", "--out", str(tmp_path)]
    assert main(["threads", *out]) == 0
    monkeypatch.setattr(together, "WORKS", {"torn": lambda index, rng: time.time_ns()})
    assert main(["threads", *out]) == 1
    written = json.loads((tmp_path / "threads.json").read_text())
    assert written["summary"] == [
        {"subject": "torn", "tries": 1, "survived": 0, "lost": 0, "wrong": 1, "unclear": 0}
    ]  # fmt: skip
