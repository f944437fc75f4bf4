"""Tables of numbers, their folds, and the files that they come from."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from recipes.data.tables import _RData, digits, folds, load_table  # noqa: E402


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
