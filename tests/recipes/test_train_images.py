"""The command line of the training, fine-tuning, thresholds under FSDP2."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytest.importorskip("spikingjelly")
pytest.importorskip("torchvision")

from recipes.data.images import channel_statistics, load_images  # noqa: E402
from recipes.lib.cli import parse  # noqa: E402
from recipes.lib.neurons import make_spiking  # noqa: E402
from recipes.models.resnet import resnet18  # noqa: E402
from recipes.train_images import ImageTrainer, Options, load_net, main  # noqa: E402

TINY = [
    "--width", "0.0625", "--time-steps", "2", "--train-images", "48", "--test-images", "20", "--batch-size", "16",
    "--epochs", "1", "--device", "cpu", "--model", "resnet18", "--calibration-images", "100",
]  # fmt: skip


def test_paper_preset_is_the_paper_and_an_option_goes_before_it() -> None:
    args = parse(Options, ["--out", "x", "--preset", "paper", "--batch-size", "128"])
    assert (args.opt, args.lr, args.lr_scheduler, args.lr_step_size, args.lr_gamma) == ("sgd", 0.08, "step", 30, 0.9)
    assert (args.epochs, args.crop, args.flip, args.mixup_alpha, args.time_steps) == (900, 4, True, 1.0, 4)
    assert args.batch_size == 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--neuron", "lif"], "--neuron"),
        (["--time-steps", "0"], "--time-steps: got 0, want an int >= 1"),
        (["--neuron", "if", "--v-init", "0.5"], "--v-init: got 0.5 with --neuron if"),
        (["--neuron", "relu", "--output", "binary"], "--output: got binary with --neuron relu"),
        (["--neuron", "pcmp", "--grad-scale", "lsq"], "--grad-scale: got lsq with --neuron pcmp"),
        (["--epochs", "-1"], "--epochs: got -1, want an int >= 1"),
        (["--from", "nowhere.pt"], "--from: got nowhere.pt, want a checkpoint that exists"),
        (["--thresold-lr", "1"], "--thresold-lr"),
        (["--crop", "-1"], "--crop: got -1, want an int >= 0"),
        (["--mixup-alpha", "-1"], "--mixup-alpha: got -1, want a finite number >= 0"),
        (["--lr", "nan"], "--lr: got nan, want a finite number >= 0"),
        (["--width", "-3"], "--width: got -3, want a finite number > 0"),
        (["--device", "foo"], "--device: got foo, want cpu or another device"),
        (["--lr-step-size", "0"], "--lr-step-size: got 0, want an int >= 1"),
        (["--lr-warmup-epochs", "5", "--epochs", "1"], "--lr-warmup-epochs: got 5, want fewer than --epochs, 1"),
        (["--pool", "avg", "--model", "resnet18"], "--pool: got avg with --model resnet18"),
    ],
)
def test_wrong_argument_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Options, ["--out", "x", *arguments])
    assert message in capsys.readouterr().err


def test_cuda_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse(Options, ["--out", "x", "--device", "cuda"])
    assert "--device: got cuda, want cpu or another device" in capsys.readouterr().err


def test_batch_larger_than_the_data_is_named_and_the_folder_stays_free(tmp_path: Path) -> None:
    options = [*TINY, "--neuron", "relu", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="--batch-size: got 64, want at most 48"):
        main([*options, "--batch-size", "64"])
    with pytest.raises(SystemExit, match="not found"):
        main([*options, "--data", "cifar10-jpeg", "--data-dir", str(tmp_path / "nowhere")])
    assert main(options)["train_loss"] > 0


@pytest.mark.parametrize("neuron", ["atif-u", "atif-nu"])
def test_thresholds_get_no_weight_decay_and_their_own_rate(neuron: str) -> None:
    args = parse(Options, ["--out", "x", *TINY, "--neuron", neuron, "--wd", "0.1", "--threshold-lr", "0.5"])
    trainer = ImageTrainer()
    trainer.model = resnet18(10, 1, width=0.0625)
    trainer.neurons = make_spiking(trainer.model, args)
    weights, thresholds = trainer.set_optimizer(args, None).param_groups
    assert (thresholds["weight_decay"], thresholds["lr"], weights["weight_decay"]) == (0.0, 0.5, 0.1)
    assert len(thresholds["params"]) == 25
    assert len(weights["params"]) + 25 == len(list(trainer.model.parameters()))


def test_fine_tuning_starts_from_calibrated_thresholds_and_refuses_another_net(tmp_path: Path) -> None:
    main([*TINY, "--neuron", "relu", "--out", str(tmp_path / "relu")])
    start = ["--from", str(tmp_path / "relu" / "last.pt")]
    nu = [*TINY, *start, "--neuron", "atif-nu", "--swap", "inputs", "--lr", "0", "--out", str(tmp_path / "nu")]
    main(nu)
    trained = torch.load(tmp_path / "relu" / "last.pt", weights_only=True)["model"]
    tuned = torch.load(tmp_path / "nu" / "last.pt", weights_only=True)["model"]
    assert torch.equal(trained["body.1.residual.0.weight"], tuned["body.1.residual.0.weight"])
    points = [value for name, value in tuned.items() if name.endswith(".p")]
    assert len(points) == 25 and not any(torch.equal(p, torch.tensor([1.0, 0.5])) for p in points)
    with pytest.raises(SystemExit, match="with train_images=48, want 40"):  # other images, another normalisation
        main([*TINY, *start, "--train-images", "40", "--out", str(tmp_path / "sample")])
    (tmp_path / "relu" / "last.pt").rename(tmp_path / "relu" / "moved.pt")
    (tmp_path / "nu" / "result.json").unlink()
    assert main([*nu, "--resume"])["theta"]
    with pytest.raises(SystemExit, match="want a checkpoint that exists"):
        main([*TINY, *start, "--out", str(tmp_path / "new"), "--resume"])
    (tmp_path / "relu" / "moved.pt").rename(tmp_path / "relu" / "last.pt")
    with pytest.raises(SystemExit, match="with width=0.0625, want 0.125"):
        main([*TINY, *start, "--width", "0.125", "--out", str(tmp_path / "wide")])
    with pytest.raises(SystemExit, match="with neuron='atif-nu', want 'relu'"):
        main([*TINY, "--from", str(tmp_path / "nu" / "last.pt"), "--out", str(tmp_path / "twice")])


@pytest.mark.parametrize("options", [["--amp"], ["--clip-grad-norm", "1", "--grad-scale", "lsq"], ["--no-norm"]])
def test_options_of_the_training_run_on_a_cpu(tmp_path: Path, options: list[str]) -> None:
    result = main([*TINY, *options, "--train-images", "16", "--out", str(tmp_path / "run")])
    assert result["train_loss"] > 0 and len(result["layers"]) == 25


@pytest.mark.parametrize("neuron", ["relu", "atif-nu"])
def test_net_of_a_checkpoint_has_the_accuracy_of_the_run(neuron: str, tmp_path: Path) -> None:
    result = main([*TINY, "--neuron", neuron, "--out", str(tmp_path)])
    data = load_images("fashion-mnist-subset").first(48, 20)
    net, (images, labels) = load_net(tmp_path / "last.pt"), data.test
    mean, std = channel_statistics(data.train[0])
    with torch.no_grad():
        found = net((images / 255 - mean[:, None, None]) / std[:, None, None]).argmax(1)
    assert (found == labels).double().mean() == pytest.approx(result["accuracy"], abs=1e-9)
    with pytest.raises(ValueError, match="path: got .*nothing.pt, want a checkpoint that exists"):
        load_net(tmp_path / "nothing.pt")


def test_diverging_training_ends_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="want a finite one: try a smaller --lr"):
        main([*TINY, "--opt", "sgd", "--lr", "1e30", "--no-norm", "--neuron", "relu", "--out", str(tmp_path / "run")])


def _sharded_step(rank: int, port: int, processes: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    net, loss = _net_and_loss("atif-nu")
    fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (processes,)))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    loss().backward()
    optimizer.step()
    thresholds = {name: p.full_tensor().detach() for name, p in net.named_parameters() if name.endswith(".p")}
    if rank == 0:
        torch.save(thresholds, f"{folder}/thresholds.pt")
    dist.destroy_process_group()


def _net_and_loss(neuron: str):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net = resnet18(10, 1, width=0.0625, norm=False)
    make_spiking(net, parse(Options, ["--out", "x", "--neuron", neuron]))
    images, labels = torch.rand(4, 1, 16, 16), torch.arange(4)
    return net, lambda: nn.functional.cross_entropy(net(images), labels)


def test_thresholds_pass_fsdp2(tmp_path: Path) -> None:
    """Two processes of which each holds half of the points end a step where one process does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_sharded_step, (port, 2, str(tmp_path)), nprocs=2)
    net, loss = _net_and_loss("atif-nu")
    loss().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    thresholds = torch.load(tmp_path / "thresholds.pt", weights_only=True)
    assert len(thresholds) == 25
    for name, p in net.named_parameters():
        if name in thresholds:
            torch.testing.assert_close(thresholds[name], p.detach(), rtol=1e-5, atol=1e-6)
