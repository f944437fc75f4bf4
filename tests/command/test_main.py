"""The command ``snn-ext``: the table, statuses, start-up, and what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import snn_ext
from recipes.lib.command import EXTRAS, missing
from snn_ext.command import COMMANDS, main

ROOT = Path(snn_ext.__file__).parents[1]


def run(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | path | environment,
        check=False,
    )


def test_help_lists_all_commands_and_needs_neither_torch_nor_half_a_second(tmp_path: Path) -> None:
    code = "import sys, time; from snn_ext.command import main\ntry:\n    main(['--help'])\nfinally:\n"
    code += "    print(time.process_time(), *(m for m in ('torch', 'numpy') if m in sys.modules), file=sys.stderr)"
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    seconds, *loaded = done.stderr.split()
    assert not loaded and float(seconds) < 0.5


def test_version_is_told_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"snn_ext {snn_ext.__version__}\n"
    main(["--version", "--json"])
    assert json.loads(capsys.readouterr().out)["snn_ext"] == snn_ext.__version__


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "usage: snn-ext"),
        (["nothing"], "got nothing, want one of doctor, convert"),
        (["train"], "got train, want one of train images, train keywords, train analog"),
        (["train", "birds"], "got train birds, want one of train images"),
        (["--nope", "doctor"], "unrecognized arguments: --nope"),
        (["evaluate"], "usage: snn-ext evaluate"),
        (["evaluate", "none.pt", "data"], "argument net: got none.pt, want a file that exists"),
    ],
)
def test_wrong_usage_has_status_2(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_every_command_is_there() -> None:
    for name, command in COMMANDS.items():
        assert callable(import_module(f"snn_ext.{command.module}").main), name


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for name in [name for name in sys.modules if name.startswith("snn_ext.recipes")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        SystemExit, match=r"snn-ext listen: soundfile: not installed, want pip install 'snn_ext\[recipes\]'"
    ):
        main(["listen", "x.wav"])


def test_recipe_of_a_checkout_names_the_extra_too(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('No module', name='numpy')", encoding="utf-8")
    done = run("-m", "recipes.makers.fashion_mnist", cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "numpy: not installed, want pip install 'snn_ext[recipes]'\n")


def test_own_faults_are_not_taken_for_missing_extras() -> None:
    for error in (ModuleNotFoundError("x", name="snn_ext.nothing"), ImportError("cannot import name", name="numpy")):
        assert missing(error) is None
    assert missing(ModuleNotFoundError("x", name="torch")) == "torch: not installed, want pip install torch"
    assert EXTRAS["timm"] == "timm" and missing(ModuleNotFoundError("x", name="PIL.Image"))


def test_study_needs_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from snn_ext.command import bench

    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    with pytest.raises(SystemExit, match="got operators, and the studies are in a checkout"):
        main(["bench", "operators"])


def test_bench_times_every_implementation_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(["--json", "bench", "--neurons", "1000", "--rounds", "1"])
    out, err = capsys.readouterr()
    assert json.loads(out) == rows and "integrate_and_fire" in err
    for operator in ("integrate_and_fire", "adaptive_spiking"):
        ran = {row["implementation"] for row in rows if row["operator"] == operator}
        assert "torch" in ran and ran.isdisjoint(snn_ext.ops.implementation(operator, "cpu").unavailable)
    assert all(0 < row["forward"] < row["both"] for row in rows)
