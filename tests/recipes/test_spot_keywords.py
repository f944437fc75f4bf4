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

from recipes.data.features import to_float  # noqa: E402
from recipes.data.speech_commands import load  # noqa: E402
from recipes.lib import run_folder
from recipes.lib.cli import parse
from recipes.lib.spotter import Spotter, digit_accuracy, load_spotter, save_spotter  # noqa: E402
from recipes.spot_keywords import Options, main  # noqa: E402
from tests.recipes.keyword_corpus import write_corpus  # noqa: E402

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
        (["--swap", "inputs"], "--swap: got inputs, want it with --from and a neuron that is fitted"),
        (["--from", __file__, "--swap", "calibrated", "--v-init", "0.5"], "--v-init: got 0.5 with --swap calibrated"),
        (["--from", __file__, "--neuron", "if", "--swap", "inputs"], "--swap: got inputs, want it with --from and a"),
        (["--distillation", "0.5"], "--distillation: got 0.5, want --from, a spiking neuron and SpikingJelly"),
        (["--from", __file__, "--host", "snntorch", "--distillation", "1"], "--distillation: got 1.0, want --from"),
        (["--words", "yes", "no", "--unheard", "no"], "--unheard: got no, which is one of --words"),
        (["--words", "yes", "yes"], "--words: got yes yes, want different ones"),
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


def test_screen_shows_the_corpus_and_the_accuracy_of_each_epoch(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, tmp_path / "run", "--neuron", "relu")
    out, err = capsys.readouterr()
    assert "words: " in out and "speakers for validation" in out and not err  # no bar where there is no terminal
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    for record in (record for record in log if "validation_acc1" in record):
        epoch = f"epoch {record['epoch'] + 1}/"
        assert f"validation accuracy {record['validation_acc1']:.2%}" in out.split(epoch)[1].splitlines()[0]


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize("neuron", ["atif-u", "atif-nu", "pcmp"])
def test_net_that_starts_calibrated_is_loaded_as_it_was_and_measured_before(
    host: str, neuron: str, corpus: Path, tmp_path: Path
) -> None:
    train(corpus, tmp_path / "relu", "--neuron", "relu")
    start = ["--from", str(tmp_path / "relu" / "last.pt"), "--host", host, "--neuron", neuron, "--epochs", "1"]
    result = train(corpus, tmp_path / "run", *start)
    test = load(str(corpus)).test
    spotter = load_spotter(tmp_path / "run" / "last.pt")
    charges = [m.v_init for m in spotter.net.modules() if hasattr(m, "v_init")]
    assert len(charges) == 9 and all(charge.numel() > 1 for charge in charges)  # one for each channel
    found = spotter(to_float(test.waveforms)).argmax(1)
    assert float((found == test.labels).double().mean()) == pytest.approx(result["accuracy"], abs=1e-9)
    weights = [torch.load(tmp_path / run / "last.pt", weights_only=True)["model"] for run in ("relu", "run")]
    means = [[value for name, value in w.items() if name.endswith("running_mean")] for w in weights]
    kept = [torch.equal(one, other) for one, other in zip(*means, strict=True)]
    assert kept == [host == "spikingjelly"] * 9  # the corrections of the calibration are for these statistics
    if host == "spikingjelly":
        assert 0 <= result["swapped"]["accuracy"] <= 1 and len(result["swapped"]["layers"]) == 9


def test_norms_learn_new_statistics_where_they_may(corpus: Path, tmp_path: Path) -> None:
    train(corpus, tmp_path / "relu", "--neuron", "relu", "--epochs", "1")
    start = ["--from", str(tmp_path / "relu" / "last.pt"), "--epochs", "1"]
    train(corpus, tmp_path / "run", *start, "--no-keep-norms")
    weights = [torch.load(tmp_path / run / "last.pt", weights_only=True)["model"] for run in ("relu", "run")]
    means = [[value for name, value in w.items() if name.endswith("running_mean")] for w in weights]
    assert len(means[0]) == 9 and not any(torch.equal(one, other) for one, other in zip(*means, strict=True))


def test_teacher_changes_the_training_and_is_wanted_until_its_end(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(corpus, tmp_path / "relu", "--neuron", "relu", "--epochs", "6")
    start = ["--from", str(tmp_path / "relu" / "last.pt"), "--swap", "inputs", "--time-steps", "4", "--epochs", "2"]
    losses = []
    for share in ("0", "0.5", "1"):
        losses.append(train(corpus, tmp_path / share, *start, "--distillation", share)["train_loss"])
    assert len(set(losses)) == 3
    assert train(corpus, tmp_path / "usual", *start)["train_loss"] == losses[1]
    save = run_folder.RunFolder.save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder.RunFolder, "save", save_and_stop)
        train(corpus, tmp_path / "run", *start)
    (tmp_path / "relu" / "last.pt").rename(tmp_path / "moved.pt")
    with pytest.raises(SystemExit, match="--from: got .*last.pt, want a checkpoint that exists"):
        train(corpus, tmp_path / "run", *start, "--resume")
    (tmp_path / "moved.pt").rename(tmp_path / "relu" / "last.pt")
    result = train(corpus, tmp_path / "run", *start, "--resume")
    assert result["train_loss"] == losses[1] and result["swapped"]["accuracy"] > 0


def test_known_unknown_and_unheard_words_are_kept_with_the_net(corpus: Path, tmp_path: Path) -> None:
    options = ["--neuron", "relu", "--words", "yes", "no"]
    result = train(corpus, tmp_path / "run", *options)
    spotter = load_spotter(tmp_path / "run" / "last.pt")
    assert spotter.words == ("no", "yes") and result["words"] == ["no", "yes"]
    assert result["data"].endswith("(36 clips), 2 of its 3 words") and spotter.settings["unheard"] == []
    train(corpus, tmp_path / "unheard", *options, "--unheard", "stop")
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("run", "unheard")]
    assert logs[0].split('"seconds"')[0] != logs[1].split('"seconds"')[0]  # there, "stop" is in the batches
    with pytest.raises(SystemExit, match=r"with words=\['yes', 'no'\], want \[\]"):
        train(corpus, tmp_path / "other", "--from", str(tmp_path / "run" / "last.pt"))
    with pytest.raises(SystemExit, match="--words: got 'stopp', want words of"):
        train(corpus, tmp_path / "typo", "--words", "yes", "stopp")


def test_digits_want_a_net_that_knows_them(corpus: Path) -> None:
    clips = load(str(corpus)).test
    spotter = Spotter(torch.nn.Identity(), ("yes", "no"), torch.zeros(10), torch.ones(10))
    with pytest.raises(ValueError, match="knows no eight, five"):
        digit_accuracy(spotter, clips)


def test_paper_preset_is_the_paper() -> None:
    args = parse(Options, ["--out", "x", "--preset", "paper"])
    assert (args.opt, args.lr, args.lr_scheduler, args.lr_step_size, args.lr_gamma) == ("sgd", 1e-3, "step", 20, 0.1)
    assert (args.epochs, args.mixup_alpha, args.time_steps, args.model, args.frames) == (80, 1.0, 4, "resnet18", 48)


def test_corpus_and_checkpoint_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--data: got 'nowhere', want 'sample'"):
        main([*TINY, "--data", "nowhere", "--out", str(tmp_path / "run")])
    with pytest.raises(ValueError, match="checkpoint: got .*no.pt, want a checkpoint that exists"):
        load_spotter(tmp_path / "no.pt")
    torch.save({"settings": {}, "model": {}}, tmp_path / "images.pt")
    with pytest.raises(ValueError, match="images.pt: damaged or not a checkpoint of recipes.spot_keywords"):
        load_spotter(tmp_path / "images.pt")
