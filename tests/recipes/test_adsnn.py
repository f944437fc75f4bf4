"""The AdSNN recipe from end to end on a few samples, and the data that it reads."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")
pytest.importorskip("sklearn")
torchvision = pytest.importorskip("torchvision")

from benchmarks.results import adsnn as adsnn_results  # noqa: E402
from benchmarks.results.adsnn_report import PAPER  # noqa: E402
from benchmarks.results.adsnn_tables import paired_p  # noqa: E402
from recipes import adsnn  # noqa: E402
from recipes.data.tables import _RData, digits, folds, load_table  # noqa: E402
from recipes.models.adaptive import LAYOUTS, layout_net  # noqa: E402
from snn_ext import AAN  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = [
    "--device", "cpu", "--epochs", "1", "--batch-size", "16", "--time-steps", "130", "--m-f", "0.1", "0.3",
    "--relu-m-f", "0.3", "--error-shares", "95", "--taus", "20", "--calibration-images", "8",
]  # fmt: skip


def test_digits_are_trained_converted_and_aroused_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ["--train-images", "48", "--test-images", "12", "--eval-images", "12", "--arousal-images", "12"]
    command = ["--data", "digits", "--layout", "4c3-m2-d8", *SHORT, *images, "--out", str(tmp_path)]
    report = adsnn.main(command)
    assert "Digits 8x8, sample of 48 + 12 images" in report and "paper: %" not in report
    for part in ("table 1: lowest rate", "table 2: low rate", "Plain ReLU net", "table SI1"):
        assert part in report
    names = {"accuracy_over_time", "accuracy_against_rate", "accuracy_against_precision", "rate_against_matching_time"}
    assert names <= {path.stem for path in tmp_path.glob("*.png")}
    monkeypatch.setattr("recipes.lib.evaluations.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    monkeypatch.setattr("recipes.adsnn.observe_margins", lambda *_, **__: pytest.fail("estimated again"))
    assert adsnn.main(command) == report


def test_cross_validation_counts_every_sample_once(tmp_path: Path) -> None:
    command = ["--data", "iris", "--layout", "d4", *SHORT, "--folds", "2", "--out", str(tmp_path)]
    report = adsnn.main(command)
    assert "IRIS: 2-fold cross-validation" in report and "| 0.3 " in report
    pairs = [found["precisions"]["0.1"]["pairs"] for found in _folds(tmp_path)]
    assert sum(map(sum, pairs)) == 150


def _folds(folder: Path) -> list[dict]:
    import json

    return [json.loads(path.read_text())["value"] for path in sorted((folder / "folds").glob("*.json"))]


def test_an_image_folder_is_read_as_it_is_needed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for part in ("train", "val"):
        for name in "abc":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(4):
                image = torch.randint(0, 256, (3, 40, 44), dtype=torch.uint8)
                torchvision.io.write_jpeg(image, str(tmp_path / "data" / part / name / f"{i}.jpg"))
    report = adsnn.main([
        "--data", "imagenet", "--data-dir", str(tmp_path / "data"), "--image-size", "16", "--width", "0.0625",
        *SHORT[:4], "--batch-size", "4", "--time-steps", "20", "--m-f", "0.1", "--relu-seeds", "--taus", "50",
        "--eval-images", "4", "--calibration-images", "4", "--out", str(tmp_path / "run"),
    ])  # fmt: skip
    assert "image folder, 3 classes, 12 test images" in report and "62.97 / 66 / 347" in report


def test_layouts_have_the_neurons_of_the_papers_nets() -> None:
    for name, thousands, inputs in (("mnist", 100.7, (1, 28, 28)), ("cifar10", 270.8, (3, 32, 32))):
        net, found = layout_net(LAYOUTS[name], inputs, 10), list[int]()
        layers = [module for module in net if isinstance(module, nn.Conv2d | nn.Linear)]
        for module in layers[:-1]:  # later work counts them without input and read-out
            module.register_forward_hook(lambda m, i, o, found=found: found.append(o[0].numel()))
        net.eval()(torch.rand(1, *inputs))
        assert round(sum(found) / 1e3, 1) == thousands
    with pytest.raises(ValueError, match="layout: got 'x3' in 'd4-x3'"):
        layout_net("d4-x3", (4,), 2)
    pooled = [type(m).__name__ for m in layout_net("4c3-m2-d8", (1, 8, 8), 2)]
    assert pooled[2:6] == ["Conv2d", "BatchNorm2d", "MaxPool2d", "AAN"] and AAN


def test_a_data_frame_of_r_is_read() -> None:
    def ints(*values: int) -> bytes:
        return struct.pack(f">{len(values)}i", *values)

    def text(word: str) -> bytes:
        return ints(9, len(word)) + word.encode()

    def words(*all_: str) -> bytes:
        return ints(16, len(all_)) + b"".join(map(text, all_))

    def symbol(word: str) -> bytes:
        return ints(1) + text(word)

    factor = ints(13 | 0x200, 3) + ints(2, 1, 2) + ints(2 | 0x400) + symbol("levels") + words("M", "R") + ints(254)
    frame = ints(19 | 0x200, 2) + ints(14, 3) + struct.pack(">3d", 0.5, 1.0, -2.0) + factor
    frame += ints(2 | 0x400) + symbol("names") + words("V1", "Class") + ints(254)
    content = b"RDX2\nX\n" + ints(2, 0, 0) + ints(2 | 0x400) + symbol("Sonar") + frame + ints(254)
    for packed in (content, gzip.compress(content)):
        columns = _RData(packed).data_frame()
        assert np.array_equal(columns["V1"], [0.5, 1.0, -2.0]) and columns["Class"] == ["R", "M", "R"]
    with pytest.raises(ValueError, match="another format"):
        _RData(b"nothing")


def test_tables_and_folds(tmp_path: Path) -> None:
    table = load_table("iris")
    seen = torch.zeros(150)
    for train, test in folds(table, 10, 0):
        assert len(test[1]) == 15 and len(train[1]) == 135 and train[0].mean(0).abs().max() < 1e-5
        assert test[1].bincount().tolist() == [5, 5, 5]
        seen[:15] += 1
    assert digits().test[1].bincount().min() >= 34
    rows = "\n".join(",".join(["0.5"] * 60 + ["RM"[i % 2]]) for i in range(208))
    (tmp_path / "sonar.all-data").write_text(rows)
    assert load_table("sonar", tmp_path).labels.sum() == 104
    for wrong in (
        rows.replace("0.5", "nan", 1), rows.replace("R", "X", 1), rows.replace("0.5", "many", 1),
        rows.rsplit(",", 30)[0], rows.replace("0.5", "1.5", 1), rows[: rows.rindex("\n")],
    ):  # fmt: skip
        (tmp_path / "sonar.all-data").write_text(wrong)
        with pytest.raises(ValueError, match="sonar.all-data: damaged or not the file of SONAR"):
            load_table("sonar", tmp_path)
    (tmp_path / "sonar.all-data").unlink()
    for content in (b"", b"RDX2", b"RDX2\nX\n" + bytes(5), gzip.compress(b"RDX2\nX\n")[:-9], bytes(range(256))):
        (tmp_path / "Sonar.rda").write_bytes(content)
        with pytest.raises(ValueError, match="Sonar.rda: damaged or not the file of SONAR"):
            load_table("sonar", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds neither sonar.all-data"):
        load_table("sonar", tmp_path / "nowhere")


def test_mcnemar() -> None:
    assert paired_p(5, 0) == 0.0625 and paired_p(3, 3) == 1.0 and paired_p(0, 0) == 1.0


def test_figures_of_the_paper_are_kept_to_their_data() -> None:
    assert PAPER["mnist"] == {"table 1": "99.56 / 67 / 291", "table 2": "99.12 / 10 / 209"}
    assert not {"digits", "fashion-mnist-subset", "fashion-mnist"} & PAPER.keys()
    assert set(adsnn_results.RUNS) == {"iris", "sonar", "digits", "fashion-mnist-subset"}


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
        adsnn.parse_arguments(["--out", "x", *arguments])
    assert message in capsys.readouterr().err
