"""The studies of AdSNN from end to end on a few samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("sklearn")
torchvision = pytest.importorskip("torchvision")

from benchmarks.results import adsnn, adsnn_images, cross_validation  # noqa: E402
from benchmarks.results.adsnn_images import PAPER  # noqa: E402
from benchmarks.results.cross_validation import paired_p  # noqa: E402

SHORT = [
    "--device", "cpu", "--epochs", "1", "--batch-size", "16", "--time-steps", "130", "--m-f", "0.1", "0.3",
    "--error-shares", "95", "--calibration-images", "8",
]  # fmt: skip


def test_digits_are_trained_converted_and_aroused_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ["--train-images", "48", "--test-images", "12", "--eval-images", "12", "--arousal-images", "12"]
    command = [
        "--data",
        "digits",
        "--layout",
        "4c3-m2-d8",
        *SHORT,
        "--relu-m-f",
        "0.3",
        "--taus",
        "20",
        *images,
        "--out",
        str(tmp_path),
    ]
    report = adsnn_images.main(command)
    assert "Digits 8x8, sample of 48 + 12 images" in report and "paper: %" not in report
    for part in ("table 1: lowest rate", "table 2: low rate", "Plain ReLU net", "table SI1"):
        assert part in report
    names = {"accuracy_over_time", "accuracy_against_rate", "accuracy_against_precision", "rate_against_matching_time"}
    assert names <= {path.stem for path in tmp_path.glob("*.png")}
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    monkeypatch.setattr("recipes.adsnn.observe_margins", lambda *_, **__: pytest.fail("estimated again"))
    assert adsnn_images.main(command) == report


def test_cross_validation_counts_every_sample_once(tmp_path: Path) -> None:
    command = ["--data", "iris", "--layout", "d4", *SHORT, "--folds", "2", "--out", str(tmp_path)]
    report = cross_validation.main(command)
    assert "IRIS: 2-fold cross-validation" in report and "| 0.3 " in report
    pairs = [
        found["precisions"]["0.1"]["pairs"]
        for found in [json.loads(path.read_text())["value"] for path in sorted((tmp_path / "folds").glob("*.json"))]
    ]
    assert sum(map(sum, pairs)) == 150


def test_an_image_folder_is_read_as_it_is_needed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for part in ("train", "val"):
        for name in "abc":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(4):
                image = torch.randint(0, 256, (3, 40, 44), dtype=torch.uint8)
                torchvision.io.write_jpeg(image, str(tmp_path / "data" / part / name / f"{i}.jpg"))
    report = adsnn_images.main([
        "--data", "imagenet", "--data-dir", str(tmp_path / "data"), "--image-size", "16", "--width", "0.0625",
        *SHORT[:4], "--batch-size", "4", "--time-steps", "20", "--m-f", "0.1", "--relu-seeds", "--taus", "50",
        "--eval-images", "4", "--calibration-images", "4", "--out", str(tmp_path / "run"),
    ])  # fmt: skip
    assert "image folder, 3 classes, 12 test images" in report and "62.97 / 66 / 347" in report


def test_mcnemar() -> None:
    assert paired_p(5, 0) == 0.0625 and paired_p(3, 3) == 1.0 and paired_p(0, 0) == 1.0


def test_figures_of_the_paper_are_kept_to_their_data() -> None:
    assert PAPER["mnist"] == {"table 1": "99.56 / 67 / 291", "table 2": "99.12 / 10 / 209"}
    assert not {"digits", "fashion-mnist-subset", "fashion-mnist"} & PAPER.keys()
    assert set(adsnn.RUNS) == {"iris", "sonar", "digits", "fashion-mnist-subset"}
