"""Training on words: the same on both hosts and after an interruption, and a checkpoint that is the net it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")
pytest.importorskip("soundfile")

from benchmarks.results import keywords as table_keywords
from benchmarks.results.images import Cell  # noqa: E402
from recipes.lib.clip_cost import clip_cost, confusion  # noqa: E402
from benchmarks.results.keyword_page import page  # noqa: E402
from benchmarks.results.keyword_plots import not_beaten  # noqa: E402
from benchmarks.results.keywords import Line  # noqa: E402
from recipes.data.features import to_float  # noqa: E402
from recipes.data.speech_commands import OFFICIAL, SYNTHETIC, load  # noqa: E402
from recipes.lib import run_folder
from recipes.lib.cli import parse
from recipes.lib.files import write_json  # noqa: E402
from recipes.lib.spotter import Spotter, digit_accuracy, load_spotter, save_spotter  # noqa: E402
from recipes.models.keyword_nets import RecurrentLIF  # noqa: E402
from recipes.spot_keywords import Options, main  # noqa: E402
from tests.recipes.keyword_corpus import write_corpus  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ["--width", "0.0625", "--time-steps", "2", "--batch-size", "8", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("words"))


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNN_EXT_DATA", str(tmp_path_factory.getbasetemp() / "data"))


def train(corpus: Path, out: Path, *options: str) -> dict[str, Any]:
    return main([*TINY, "--data", str(corpus), "--out", str(out), *options])


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_checkpoint_is_the_net_that_was_measured(host: str, corpus: Path, tmp_path: Path) -> None:
    result = train(corpus, tmp_path / "run", "--host", host, "--neuron", "atif-nu")
    save_spotter(tmp_path / "run" / "last.pt", tmp_path / "small.pt")
    test = load(str(corpus)).test
    for path in (tmp_path / "run" / "last.pt", tmp_path / "small.pt"):
        spotter = load_spotter(path)
        found = spotter(to_float(test.waveforms)).argmax(1)
        assert float((found == test.labels).double().mean()) == pytest.approx(result["accuracy"], abs=1e-9)
    counts = torch.tensor(result["confusion"])
    assert counts.sum() == len(test) and counts.diag().sum() == round(result["accuracy"] * len(test))
    assert 0 < result["synops"] and result["energy_nj"] == pytest.approx(
        (0.9 * result["synops"] + 4.6 * result["macs"]) / 1e3
    )
    neurons = sum(layer["neurons"] for layer in result["layers"])
    pooled = sum(layer["theta"] * layer["neurons"] for layer in result["layers"]) / neurons
    assert result["spikes_per_neuron"] == pytest.approx(2 * pooled, rel=1e-3)


def test_interrupted_run_ends_in_the_same_bits(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--neuron", "atif-u", "--v-init", "0.5", "--mixup-alpha", "1"]
    train(corpus, tmp_path / "whole", *options)
    save = run_folder.RunFolder.save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder.RunFolder, "save", save_and_stop)
        train(corpus, tmp_path / "run", *options)
    train(corpus, tmp_path / "run", *options, "--resume")
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("whole", "run")]
    assert results[0] == results[1]
    weights = [torch.load(tmp_path / run / "last.pt", weights_only=True)["model"] for run in ("whole", "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--neuron", "lif"], "--neuron: got lif with --model separable"),
        (["--model", "recurrent-lif", "--neuron", "if"], "--neuron: got if with --model recurrent-lif"),
        (["--model", "recurrent-lif", "--v-init", "0.5"], "--v-init: got 0.5 with --neuron lif"),
        (["--model", "recurrent-lif", "--host", "snntorch"], "--host: got snntorch with --model recurrent-lif"),
        (["--host", "snntorch", "--neuron", "relu"], "--neuron: got relu, want a spiking neuron"),
        (["--host", "snntorch", "--clip-grad-norm", "1"], "--clip-grad-norm: got 1.0, want None"),
        (["--trainer", "host"], "--trainer: got host with --host spikingjelly"),
        (["--background", "1.5"], "--background: got 1.5, want a finite number >= 0 and <= 1"),
        (["--frames", "50"], "--frames"),
        (["--from", "nowhere.pt"], "--from: got nowhere.pt, want a checkpoint that exists"),
    ],
)
def test_wrong_argument_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Options, ["--out", "x", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("data", ["sample", "my/words"])
def test_folder_that_would_not_be_read_is_refused(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Options, ["--out", "x", "--data", data, "--data-dir", "elsewhere"])
    assert f"argument --data-dir: got elsewhere with --data {data}" in capsys.readouterr().err


def test_digits_want_a_net_that_knows_them(corpus: Path) -> None:
    clips = load(str(corpus)).test
    spotter = Spotter(torch.nn.Identity(), ("yes", "no"), torch.zeros(10), torch.ones(10))
    with pytest.raises(ValueError, match="knows no eight, five"):
        digit_accuracy(spotter, clips)


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


def test_paper_preset_is_the_paper() -> None:
    args = parse(Options, ["--out", "x", "--preset", "paper"])
    assert (args.opt, args.lr, args.lr_scheduler, args.lr_step_size, args.lr_gamma) == ("sgd", 1e-3, "step", 20, 0.1)
    assert (args.epochs, args.mixup_alpha, args.time_steps, args.model, args.frames) == (80, 1.0, 4, "resnet18", 48)


def test_corpus_and_checkpoint_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="got 'nowhere', want 'sample'"):
        main([*TINY, "--data", "nowhere", "--out", str(tmp_path / "run")])
    with pytest.raises(ValueError, match="checkpoint: got .*no.pt, want a checkpoint that exists"):
        load_spotter(tmp_path / "no.pt")
    torch.save({"settings": {}, "model": {}}, tmp_path / "images.pt")
    with pytest.raises(ValueError, match="images.pt: damaged or not a checkpoint of recipes.spot_keywords"):
        load_spotter(tmp_path / "images.pt")


def test_recurrent_layer_pays_every_spike_at_both_layers_behind_it() -> None:
    torch.manual_seed(0)
    net = RecurrentLIF(classes=3, coefficients=4, neurons=5, time_steps=7)
    net.input.weight.data *= 4
    features = torch.randn(2, 1, 6, 4)
    cost = clip_cost(net, [(features[:1], torch.zeros(1)), (features[1:], torch.zeros(1))], 7)
    current, spikes, v = net.input(features[:, 0]), torch.zeros(2, 5), torch.zeros(2, 5)
    total = 0.0
    for t in range(7):  # the definition: soft reset, decay of v by 1/tau, input not decayed
        v = v * 0.9 + current[:, t * 6 // 7] + spikes @ net.recurrent.weight.T
        spikes = (v >= 1).float()
        v = v - spikes
        total += float(spikes.sum())
    assert total > 0 and cost["spikes"] == total / 2 and cost["synops"] == total / 2 * (5 + 3)
    assert cost["macs"] == 6 * 4 * 5


def test_confusion_counts_rows_as_said_and_columns_as_heard() -> None:
    scores = torch.tensor([[9.0, 0, 0], [0, 0, 9], [0, 9, 0]])
    counts = confusion(torch.nn.Identity(), [(scores, torch.tensor([0, 1, 1]))])
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_lines_that_are_not_beaten_are_those_without_a_better_one_in_both() -> None:
    def line(row: str, accuracy: float, energy: float) -> Line:
        return Line("separable", row, 1, [{"accuracy": accuracy, "energy_nj": energy}])

    found = [line("a", 0.9, 10), line("b", 0.8, 5), line("c", 0.8, 6), line("d", 0.7, 7), Line("x", "y", 1, [])]
    assert [line.row for line in not_beaten(found)] == ["b", "a"]
    assert [line.row for line in not_beaten([line("a", 0.9, 5), line("b", 0.9, 5)])] == ["a", "b"]


def test_table_runs_what_is_missing_and_names_the_data(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(cell: Cell, *_: object) -> bool:  # in this process: a new one takes seconds to import
        ran.append(cell.row)
        main([*cell.options, "--out", str(cell.folder), "--resume"])
        write_json(cell.folder / "command.json", cell.command)
        return True

    monkeypatch.setattr(Cell, "run", run)
    page = tmp_path / "page.md"
    command = [*TINY, "--data", str(corpus), "--rows", "ReLU", "ATIF-u", "--out", str(tmp_path / "table")]
    command += ["--recurrent", "0", "--fine-tune-epochs", "1", "--markdown", str(page)]
    table_keywords.main(command)
    assert ran == [table_keywords.START, "ReLU", "ATIF-u"]
    text = page.read_text()
    assert f"{corpus.name} (36 clips)" in text and "no figures of Google Speech Commands" in text
    assert "ReLU, converted" in text and (tmp_path / "keyword-spotting-pareto.png").exists()
    assert text.count("| 2 + 1 ") == 3  # epochs before and after the start
    table_keywords.main(command)
    assert len(ran) == 3 and page.read_text() == text
