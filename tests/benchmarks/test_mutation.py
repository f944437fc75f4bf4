"""A mutant that no test notices is listed, one that a test notices is not, and nothing is run twice."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")
pytest.importorskip("torchvision")

from benchmarks import mutation  # noqa: E402

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks as Linux has them")

MODULE = '''"""A module."""


def positive(x):
    """Return whether x > 0."""
    return x > 0


def never_called(x):
    return x + 1


LEVELS = 2
'''
TESTS = """
import pytest
from toy.functional.module import LEVELS, positive

def test_positive():
    assert positive(3) and not positive(-3)

@pytest.mark.parametrize("level", range(LEVELS))
def test_level(level):
    assert positive(level + 1)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path, text in {
        "toy/__init__.py": "", "toy/functional/__init__.py": "", "toy/functional/module.py": MODULE,
        "tests/functional/test_module.py": TESTS, "pytest.ini": "[pytest]\npythonpath = .\n",
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(mutation, "ROOT", tmp_path)
    monkeypatch.setattr(mutation, "PACKAGE", "toy")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MPLBACKEND"):  # restored afterwards
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(mutation, "MEMORY", -1)
    return tmp_path


def test_survivors_are_listed_and_what_is_known_is_kept(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(toy / "toy" / "functional"), "--sample", "0", "--out", str(toy / "kept")]
    command += ["--tests", str(toy / "tests" / "functional")]
    assert mutation.main(command) == 0
    survivors = json.loads((toy / "kept" / "survivors.json").read_text())
    found = {(one["kind"], one["line"], one.get("diff", "")) for one in survivors}
    assert ("comparison", 6, "-    return x > 0\n+    return x >= 0") in found  # 0 itself is in no test
    assert not any("x < 0" in diff or "None" in diff for _, _, diff in found)
    assert {one["outcome"] for one in survivors if one["function"].startswith("never_called")} == {"no test"}
    assert not any("LEVELS = 1" in diff for _, _, diff in found)  # then a test is missing, and pytest runs none at all
    printed = capsys.readouterr().out
    assert "toy/functional/module.py:6 comparison: survived (3 tests)" in printed
    monkeypatch.setattr(mutation, "outcome", lambda *_: pytest.fail("run again"))
    assert mutation.main(command) == 0 and capsys.readouterr().out == printed
    assert (toy / "toy" / "functional" / "module.py").read_text() == MODULE


def test_every_mutant_is_another_program_and_none_is_in_a_docstring(tmp_path: Path) -> None:
    text = (
        '"""1 + 1"""\nx: "1 + 1" = 2\n\n\ndef f(a, b=True, *, ü=1):\n    """Say 1 + 1."""\n'
        "    ä = a.clamp(0.0, max=b) if a is not None and b else -a  # 1 + 1\n    if (a) == (b):\n"
        "        raise ValueError(a)\n    a.x = max(ä, b)\n    a += 1\n    return a // 2 in (b, ü)\n"
    )
    path = tmp_path / "module.py"
    path.write_text(text)
    found = mutation.mutants(path, tmp_path)
    assert len({mutant.key for mutant in found}) == len(found)
    programs = [mutant.apply(text) for mutant in found]
    for program in programs:
        compile(program, "module", "exec")
        assert program != text and "1 + 1" in program.splitlines()[0]
    kinds = {"comparison", "arithmetic", "boolean", "constant", "condition", "return", "bound", "sign or not"}
    assert kinds | {"statement removed"} == {mutant.kind for mutant in found}
    assert any("a is None" in program for program in programs) and any("a != b" or "(a) != (b)" in p for p in programs)
