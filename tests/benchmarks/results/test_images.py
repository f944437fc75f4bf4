"""The table keeps what is finished, and says which data its figures belong to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("spikingjelly")
pytest.importorskip("torchvision")

from benchmarks.results import images as table_images
from benchmarks.results.images import Cell, main, markdown  # noqa: E402
from recipes import train_images
from recipes.lib.command import Children  # noqa: E402
from recipes.lib.files import write_json  # noqa: E402

OPTIONS = [
    "--width", "0.0625", "--train-images", "32", "--test-images", "20", "--batch-size", "16", "--epochs", "1",
    "--time-steps", "2", "--models", "vgg16", "--device", "cpu",
]  # fmt: skip


def in_this_process(children: Children, command: list[str], **_: object) -> int:
    """Run a cell as ``Children.call`` would, without the seconds that a new process needs to import torch."""
    try:
        train_images.main(command[command.index("recipes.train_images") + 1 :])
    except (SystemExit, ValueError):
        return 1
    return 0


def test_second_call_runs_only_what_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*OPTIONS, "--out", str(tmp_path), "--rows", "ReLU", "ATIF-u"]
    main([*command[:-1], "--jobs", "2"])  # the first row, in a process
    monkeypatch.setattr(Children, "call", in_this_process)
    unfinished = tmp_path / "cells" / "fashion-mnist-subset-vgg16-atif-u-0"
    runs: list[str] = []
    run = Cell.run
    monkeypatch.setattr(Cell, "run", lambda cell, *options: runs.append(cell.row) or run(cell, *options))
    main(command)
    assert runs == ["ATIF-u"]
    before = json.loads((unfinished / "result.json").read_text())
    (unfinished / "result.json").unlink()
    main(command)
    assert runs == ["ATIF-u"] * 2
    assert json.loads((unfinished / "result.json").read_text()) == before
    text = (tmp_path / "table.md").read_text()
    assert "sample of 32 + 20 images" in text and "CIFAR-10 (" not in text
    assert "| vgg16 | ATIF-u   | 1 of 1" in text
    with pytest.raises(SystemExit, match="failed: .*output.txt"):  # other options, refused by the run that is there
        main([*command, "--lr", "0.5"])
    assert "0 of 1" in (tmp_path / "table.md").read_text() and "1 of 1" not in (tmp_path / "table.md").read_text()
    main([*command, "--report-only"])
    assert (tmp_path / "table.md").read_text() == text


def test_old_result_is_not_shown_for_a_run_of_other_options_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cell"
    folder.mkdir()
    short, longer = (Cell("mnist", "vgg16", "ReLU", 0, folder, ("--epochs", n)) for n in "12")
    write_json(folder / "result.json", {"accuracy": 0.5})
    write_json(folder / "command.json", short.command)
    assert short.result == {"accuracy": 0.5}
    monkeypatch.setattr(Children, "call", lambda children, command, **_: -9)
    assert not longer.run(1, Children())
    assert longer.result is None and short.result == {"accuracy": 0.5}


def test_wrong_option_of_a_run_is_named_before_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--no-such-option", "1"], "--no-such-option"),
        (["--crop", "-1"], "argument --crop: got -1"),
        (["--pool", "avg"], "argument --pool: got avg with --model resnet18"),
        (["--rows", "LIF"], "argument --rows: got ['LIF']"),
        (["--fine-tune-epochs", "1", "--rows", "ATIF-u"], "argument --fine-tune-epochs"),
    ):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path), *options])
        assert message in capsys.readouterr().err


def test_figures_of_the_paper_stand_only_beside_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [{"neurons": 1, "theta": 0.1, "sqnr_db": None}, {"neurons": 1, "theta": 0.1, "sqnr_db": 9.0}]
    result = {"accuracy": 0.9, "theta": 0.1, "spikes_per_neuron": 0.4, "time_steps": 4, "layers": layers}

    def table(data: str, name: str) -> str:
        monkeypatch.setattr(Cell, "result", {**result, "data": name})
        return markdown([Cell(data, model, "ATIF-u", 0, tmp_path, ()) for model in table_images.MODELS])

    with_paper = table("cifar10-jpeg", "CIFAR-10 (JPEG copy)")
    assert "## CIFAR-10 (JPEG copy)" in with_paper and "93.84 *" in with_paper and "0.111" in with_paper
    assert "- 9.0" in with_paper
    assert "93.84" not in table("cifar100", "CIFAR-100")
