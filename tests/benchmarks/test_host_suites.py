"""A test of a host that ends differently with our neuron has to be explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from benchmarks import host_suites  # noqa: E402

SUITE = """
import torch
import snntorch as snn

def test_threshold():
    spk, mem = snn.Leaky(beta=0.5, threshold=2.0)(torch.tensor([1.0]))
    assert spk == 0 and mem == 1

def test_leak():
    neuron = snn.Leaky(beta=0.5)
    spk, mem = neuron(torch.tensor([0.5]))
    assert neuron(torch.tensor([0.0]), mem)[1] == 0.25

def test_of_another_neuron():
    assert "Leaky" not in type(snn.Alpha(alpha=0.9, beta=0.5)).__name__
"""


def test_differences_are_found_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_neuron.py").write_text(SUITE)
    monkeypatch.setitem(
        host_suites.HOSTS, "snntorch", host_suites.Host("tests", host_suites.HOSTS["snntorch"].names, ("PCMPIF",))
    )
    command = ["--snntorch", str(tmp_path), "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(host_suites, "EXPLANATIONS", {})
    assert host_suites.main(command) == 1
    printed = capsys.readouterr().out
    assert "| snntorch | (the host's own) | 3 | - | 3 | 0 | 0 | 0 |" in printed
    assert "| snntorch | PCMPIF | 3 | 2 | 2 | 1 | 0 | 1 |" in printed
    assert "test_leak: passed -> failed\n    NO EXPLANATION" in printed


def test_a_difference_with_an_explanation_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(checkout: Path, host: Any, neuron: str, *_: Any) -> dict[str, Any]:
        return {"tests": {"a::test_leak": ["failed" if neuron else "passed", "0.5 is not 0.25"]}, "used": 1}

    monkeypatch.setattr(host_suites, "run", run)
    command = ["--spikingjelly", str(tmp_path), "--out", str(tmp_path / "found.json")]
    for explanations, status in (({}, 1), ({"test_leak .*0.25": "no leak"}, 0), ({"test_other": "no leak"}, 1)):
        monkeypatch.setattr(host_suites, "EXPLANATIONS", explanations)
        assert host_suites.main(command) == status


def test_an_explanation_says_something() -> None:
    assert all(len(why) > 20 for why in host_suites.EXPLANATIONS.values())
