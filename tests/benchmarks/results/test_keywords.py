"""The table of keyword nets and its page."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")
pytest.importorskip("soundfile")

from benchmarks.results import keywords as table_keywords  # noqa: E402
from benchmarks.results import listener  # noqa: E402
from benchmarks.results.images import Cell  # noqa: E402
from benchmarks.results.keyword_page import page  # noqa: E402
from benchmarks.results.keyword_plots import Line, lines_of_page, not_beaten  # noqa: E402
from recipes.data import speech_commands  # noqa: E402
from recipes.data.speech_commands import OFFICIAL, SYNTHETIC, WORDS  # noqa: E402
from recipes.lib.cli import parse_known  # noqa: E402
from recipes.lib.files import write_json  # noqa: E402
from recipes.spot_keywords import main  # noqa: E402
from tests.recipes.keyword_corpus import write_corpus  # noqa: E402

TINY = ["--width", "0.0625", "--time-steps", "2", "--batch-size", "8", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("words"))


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_DATA", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.mark.parametrize(
    ("data", "said", "not_said"),
    [
        (OFFICIAL, f"for {OFFICIAL};", "no figures of Google"),
        (SYNTHETIC, "split by voice. They are no figures of Google Speech Commands", "speaker"),
        ("mine (24 clips)", "no figures of Google Speech Commands", "by voice"),
    ],
)
def test_page_says_what_its_figures_are_for(data: str, said: str, not_said: str) -> None:
    result = {
        "data": data, "accuracy": 0.5, "energy_nj": 1.0, "parameters": 1, "epochs": "1", "time_steps": 4,
        "confusion": [[1, 1], [0, 2]], "words": ["yes", "no"],
    }  # fmt: skip
    text = page([Line("separable", "IF", 1, [result])], "command", [0])
    about = text.split("## Nets")[0]
    assert said in about and not_said not in about and "voices that are in no training" not in text


def test_lines_that_are_not_beaten_are_those_without_a_better_one_in_both() -> None:
    def line(row: str, accuracy: float, energy: float) -> Line:
        return Line("separable", row, 1, [{"accuracy": accuracy, "energy_nj": energy}])

    found = [line("a", 0.9, 10), line("b", 0.8, 5), line("c", 0.8, 6), line("d", 0.7, 7), Line("x", "y", 1, [])]
    assert [line.row for line in not_beaten(found)] == ["b", "a"]
    assert [line.row for line in not_beaten([line("a", 0.9, 5), line("b", 0.9, 5)])] == ["a", "b"]


def test_a_picture_is_drawn_from_the_page_as_from_the_runs() -> None:
    about = {
        "data": "x", "parameters": 1, "epochs": "1", "time_steps": 4, "words": ["yes", "no"],
        "confusion": [[1, 1], [0, 2]],
    }  # fmt: skip
    figures = [(0.5, 9.0), (0.625, 7.0), (0.25, 11.0)]
    results = [{**about, "accuracy": accuracy, "energy_nj": energy} for accuracy, energy in figures]
    runs = [Line("separable", "IF", 3, results), Line("resnet8", "ReLU", 1, results[:1]), Line("a", "b", 2, [])]
    for run, read in zip(runs, lines_of_page(page(runs, "command", [0])), strict=True):
        assert (read.model, read.row, read.wanted) == (run.model, run.row, run.wanted)
        for name in ("accuracy", "energy_nj"):
            assert sorted(read.values(name)) == pytest.approx(sorted(run.values(name)), abs=2e-4)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows of the cells that were run."""
    rows: list[str] = []

    def run(cell: Cell, *_: object) -> bool:  # in this process: a new one takes seconds to import
        rows.append(cell.row)
        main([*cell.options, "--out", str(cell.folder), "--resume"])
        write_json(cell.folder / "command.json", cell.command)
        return True

    monkeypatch.setattr(Cell, "run", run)
    return rows


def test_table_runs_what_is_missing_and_names_the_data(corpus: Path, tmp_path: Path, ran: list[str]) -> None:
    page = tmp_path / "page.md"
    command = [*TINY, "--data", str(corpus), "--rows", "ReLU", "ATIF-u", "--out", str(tmp_path / "table")]
    command += ["--recurrent", "0", "--fine-tune-epochs", "1", "--markdown", str(page)]
    table_keywords.main(command)
    assert ran == [table_keywords.START, "ReLU", "ATIF-u"]
    text = page.read_text()
    assert f"{corpus.name} (36 clips)" in text and "no figures of Google Speech Commands" in text
    assert "ReLU, converted" in text and (tmp_path / "pictures" / "keyword-spotting-pareto.png").exists()
    assert text.count("| 1 + 1 ") == 5  # epochs before and after the start, of two trained nets and three conversions
    table_keywords.main(command)
    assert len(ran) == 3 and page.read_text() == text


def test_one_command_does_all_with_a_corpus_in_googles_layout(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chords = {word: (300.0 + 40.0 * i, 900.0 + 60.0 * i) for i, word in enumerate(WORDS)}
    packed = tmp_path / "served.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(write_corpus(tmp_path / "original", clips=1, more=chords), ".")
    monkeypatch.setattr(speech_commands, "ARCHIVE_URL", packed.as_uri())
    monkeypatch.setattr(speech_commands, "ARCHIVE_SHA256", hashlib.sha256(packed.read_bytes()).hexdigest())
    monkeypatch.setattr(speech_commands, "OFFICIAL_SIZES", (140, 35, 35))
    monkeypatch.setenv("SNN_EXT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(listener, "LISTENED", ("silence",))
    command = [*TINY, "--data", "speech-commands", "--rows", "ReLU", "ATIF-u, calibrated", "--recurrent", "0"]
    command += ["--fine-tune-epochs", "1", "--hours", "0.003", "--out", str(tmp_path / "run")]
    table_keywords.main(command)
    assert ran == [table_keywords.START, "ReLU", "ATIF-u, calibrated"]
    text = (tmp_path / "run" / "table.md").read_text()
    assert f"All figures of this page are for {OFFICIAL};" in text and "## Listening" in text
    assert "| separable | ATIF-u, calibrated | swapped " in " ".join(text.split())
    table_keywords.main(command)  # all of it is kept, what was heard too
    assert len(ran) == 3 and (tmp_path / "run" / "table.md").read_text() == text


def test_calibrated_rows_are_those_that_start_from_a_net_and_others_are_fitted_to_inputs(tmp_path: Path) -> None:
    def rows(*options: str) -> dict[str, tuple[str, ...]]:
        made = parse_known(table_keywords.Options, ["--recurrent", "0", "--out", str(tmp_path), *options])
        return {cell.row: cell.options for cell in table_keywords.cells(*made)}

    plain = rows()
    assert not any(row.endswith(", calibrated") for row in plain) and not any("--swap" in o for o in plain.values())
    tuned = rows("--fine-tune-epochs", "2")
    assert {row for row, options in tuned.items() if "--swap" in options} == {
        "ATIF-u", "ATIF-nu", "ATIF-u, pre-charged"
    }  # fmt: skip
    assert {*tuned} - {*plain} == {table_keywords.START, "IF, calibrated", "ATIF-u, calibrated", "ATIF-nu, calibrated"}
