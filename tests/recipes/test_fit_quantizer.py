"""What the figures of the quantiser must show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("spikingjelly")

from recipes.data.distributions import input_samples  # noqa: E402
from recipes.fit_quantizer import NEURONS, fit, main, optima  # noqa: E402


def test_optima_for_a_gaussian_are_those_of_the_specification() -> None:
    expected = {
        "IF, threshold 1, T = 4": 0.45, "IF, threshold 1, T = 8": 4.12, "IF, threshold 1, T = 16": 9.44,
        "IF, threshold 1, T = 20": 11.26, "IF, threshold 1, T = 24": 12.75, "ATIF-u": 11.10, "ATIF-nu": 14.63,
        "ATIF-u, pre-charged 0.25": 13.43, "ATIF-u, pre-charged": 15.13,
    }  # fmt: skip
    found = optima(input_samples()["Gaussian"])
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(expected, abs=0.1)
    assert found["ATIF-u"][1][0] == pytest.approx(0.173, abs=0.002)


def test_samples_have_one_power() -> None:
    for x in input_samples().values():
        assert float(x.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-3)
        assert torch.equal(x, x.sort().values)


def test_training_gains_ten_decibels_by_a_threshold_and_nearly_three_more_by_points() -> None:
    x = input_samples()["Gaussian"]
    fixed = optima(x)["IF, threshold 1, T = 4"][0]
    u, nu = (fit(NEURONS[name], x, n, every=n).sqnr_db[-1] for name, n in (("ATIF-u", 1000), ("ATIF-nu", 2200)))
    assert u >= fixed + 10.0
    assert nu >= u + 2.7


def test_figure_and_numbers_are_written(tmp_path: Path) -> None:
    main(["--iterations", "20", "--out", str(tmp_path)])
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "results.json").stat().st_size > 1000
