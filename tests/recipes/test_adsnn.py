"""The AdSNN recipe from end to end on a few samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("spikingjelly")
pytest.importorskip("sklearn")
pytest.importorskip("torchvision")

from recipes import adsnn  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402
from recipes.lib.evaluations import Evaluations  # noqa: E402
from snn_ext.evaluation import Arousal  # noqa: E402

SHORT = [
    "--data", "digits", "--layout", "4c3-m2-d8", "--device", "cpu", "--epochs", "1", "--batch-size", "16",
    "--time-steps", "130", "--m-f", "0.1", "0.3", "--error-shares", "95", "--calibration-images", "8",
    "--train-images", "48", "--test-images", "12", "--eval-images", "12", "--arousal-images", "12",
]  # fmt: skip


def test_digits_are_trained_converted_and_aroused_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SHORT, "--out", str(tmp_path)]
    sweep = adsnn.main(command)
    printed = capsys.readouterr().out
    assert (
        list(sweep) == [0.1, 0.3] and "Digits 8x8, sample of 48 + 12 images" in printed and "matching time" in printed
    )
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    monkeypatch.setattr("recipes.adsnn.observe_margins", lambda *_, **__: pytest.fail("estimated again"))
    adsnn.main(command)
    assert capsys.readouterr().out == re.sub("epoch 1/1: .*\n", "", printed)  # trained the first time alone


def test_relu_net_is_converted_with_adaptive_heights_beside_the_other(tmp_path: Path) -> None:
    sweep = adsnn.main([*SHORT, "--activation", "relu", "--m-f", "0.3", "--out", str(tmp_path)])
    assert sweep[0.3].firing_rate > 0 and [path.name for path in (tmp_path / "seed-0").iterdir() if path.is_dir()] == [
        "relu", "evaluations",
    ]  # fmt: skip


def test_estimate_of_arousal_belongs_to_both_precisions(tmp_path: Path) -> None:
    experiment: Any = adsnn.Experiment.__new__(adsnn.Experiment)
    experiment.options = parse(adsnn.Options, ["--out", "x", "--error-shares", "80", "95"])
    experiment.kept, experiment.analog, used = Evaluations(tmp_path), _Analog(), []

    class Margins:
        m_f_low = 0.6

        def estimate(self, m_f_high: float, errors: float) -> Arousal:
            return Arousal(m_f_low=0.6, m_f_high=m_f_high, wait=errors, window=1.0, threshold=0.1)

    experiment.margins = Margins()
    experiment.evaluate = lambda name, low, arousal: used.append((arousal.m_f_high, arousal.wait))
    for high in (0.2, 0.3, 0.2):
        experiment.arousal(0.6, high)
    assert used == [(high, share) for high in (0.2, 0.3, 0.2) for share in (80.0, 95.0)]


class _Analog:
    net = data = None
    title = ""

    def __init__(self) -> None:
        self.data = self

    def fingerprint(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing"], "--data"),
        (["--data", "digits", "--time-steps", "0"], "--time-steps: got 0, want an int >= 1"),
        (["--data", "digits", "--m-f", "0"], "--m-f: got 0, want a finite number > 0"),
        (["--data", "digits", "--layout", "8c3-m0"], "argument --layout: got 'm0' in '8c3-m0', want parts such as"),
    ],
)
def test_wrong_argument_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(adsnn.Options, ["--out", "x", *arguments])
    assert message in capsys.readouterr().err
