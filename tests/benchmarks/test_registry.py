"""Every study is in the one list, and runs by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks
from benchmarks.__main__ import STUDIES, about, main

ROOT = Path(benchmarks.__file__).parent


def test_every_module_that_runs_is_in_the_list() -> None:
    there = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in ROOT.rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text("utf-8")
    }
    assert there - {"__main__"} == set(STUDIES.values())


def test_list_says_what_each_study_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES) and all(map(about, STUDIES.values()))


def test_study_gets_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["operators", "--list"]) == 0 and "training" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["quickstart", "--help"])
    assert "--seeds SEEDS [SEEDS ...]" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["no-such-study"])
    assert "argument NAME: invalid choice: 'no-such-study'" in capsys.readouterr().err
