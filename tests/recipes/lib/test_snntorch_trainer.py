"""The same net in both hosts: the same spikes, and the same training where the hosts mean the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("snntorch")
pytest.importorskip("torchvision")

from recipes.lib import snntorch_trainer  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402
from recipes.lib.neurons import make_spiking, replace_activations  # noqa: E402
from recipes.lib.snntorch_trainer import assert_same_spikes, snntorch_neuron  # noqa: E402
from recipes.models.vgg import vgg16  # noqa: E402
from recipes.train_images import Options, SnnTorchImageTrainer, load_net, main  # noqa: E402

SNNTORCH = ["--host", "snntorch"]
TINY = [
    "--width", "0.0625", "--time-steps", "3", "--train-images", "32", "--test-images", "20", "--batch-size", "16",
    "--epochs", "2", "--device", "cpu", "--v-threshold", "0.5",
]  # fmt: skip


@pytest.mark.parametrize("options", [["atif-u"], ["atif-nu"], ["if", "--output", "binary"], ["pcmp"]])
def test_spikes_of_both_hosts_are_equal(options: list[str]) -> None:
    args = parse(Options, ["--out", "x", *TINY, "--neuron", *options])
    twin = vgg16(10, 1, width=0.0625)
    net = vgg16(10, 1, width=0.0625)
    net.load_state_dict(twin.state_dict())
    make_spiking(twin, args)
    replace_activations(net, snntorch_neuron, args)
    assert assert_same_spikes(net, twin, torch.randn(4, 1, 28, 28), 3) > 1000


def test_a_different_spike_is_found() -> None:
    args = parse(Options, ["--out", "x", *TINY])
    net, twin = vgg16(10, 1, width=0.0625), vgg16(10, 1, width=0.0625)
    make_spiking(twin, args)
    replace_activations(net, snntorch_neuron, args)
    with pytest.raises(AssertionError, match=r"body\.0: snnTorch and SpikingJelly differ in \d+ spikes"):
        assert_same_spikes(net, twin, torch.randn(4, 1, 28, 28), 3)


def test_trainers_of_both_hosts_reach_the_same_net(tmp_path: Path) -> None:
    """Without batch norm, which sees other batches in each of them, and with snnTorch's detached reset in both."""
    options = [*TINY, "--no-norm", "--neuron", "atif-nu", "--opt", "sgd", "--lr", "0.01"]
    main([*options, "--detach-reset", "--out", str(tmp_path / "spikingjelly")])
    for trainer in ("snn_ext", "host"):
        main([*options, *SNNTORCH, "--trainer", trainer, "--out", str(tmp_path / trainer)])
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("spikingjelly", "snn_ext", "host")]
    for result in results[1:]:
        assert result["train_loss"] == pytest.approx(results[0]["train_loss"], rel=1e-4)
        assert result["theta"] == pytest.approx(results[0]["theta"], rel=1e-2)


def test_spikes_are_compared_also_without_assert_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(snntorch_trainer.__file__)
    optimised = {"__name__": "recipes.lib.optimised", "__package__": "recipes.lib"}
    exec(compile(path.read_text(encoding="utf-8"), path, "exec", optimize=1), optimised)  # as python -O does
    args = parse(Options, ["--out", "x", *TINY])
    net, twin = vgg16(10, 1, width=0.0625), vgg16(10, 1, width=0.0625)
    make_spiking(twin, args)
    replace_activations(net, snntorch_neuron, args)
    with pytest.raises(AssertionError, match="differ in"):
        optimised["assert_same_spikes"](net, twin, torch.randn(4, 1, 28, 28), 3)


def test_command_runs_as_documented_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = parse(Options, [*SNNTORCH, "--model", "resnet18", "--neuron", "atif-nu", "--out", "x"])
    assert (options.device, options.amp, options.log_every) == ("cuda", False, 0)


def test_diverging_training_ends_before_anything_is_saved(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="want a finite one: try a smaller --lr"):
        main([*TINY, *SNNTORCH, "--opt", "sgd", "--lr", "1e30", "--no-norm", "--out", str(tmp_path / "run")])
    assert not [*(tmp_path / "run").glob("*.pt")] and not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--amp"], ["--clip-grad-norm", "1"], ["--neuron", "relu"], ["--detach-reset"], ["--log-every", "5"],
        ["--label-smoothing", "0.1"], ["--grad-scale", "lsq"],
    ],
)  # fmt: skip
def test_what_the_host_does_not_have_is_named(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Options, [*SNNTORCH, "--out", "x", *option])
    assert f"argument {option[0]}: got" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["if", "--output", "binary"], ["pcmp"], ["atif-u"], ["atif-nu"]])
def test_checkpoint_is_loaded_as_the_net_of_spikingjelly_that_was_measured(tmp_path: Path, options: list[str]) -> None:
    trainer = SnnTorchImageTrainer()
    command = [*TINY, *SNNTORCH, "--epochs", "1", "--neuron", *options, "--out", str(tmp_path)]
    trainer.main(parse(Options, command))
    net, measured = load_net(tmp_path / "last.pt").state_dict(), trainer.twin.state_dict()
    assert net.keys() == measured.keys() and all(torch.equal(net[name], value) for name, value in measured.items())
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["model"].pop("classifier.stem.0.weight")
    torch.save(content, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"less\.pt: damaged or not a checkpoint of recipes\.train_images"):
        load_net(tmp_path / "less.pt")
