"""Time of a training step with a neuron against the same step with the host's IF neuron.

``python -m benchmarks step --width 0.125 --model vgg16 --neuron atif-u --out runs/step``
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from recipes import train_images
from recipes.data.images import Batches, channel_statistics, load_images
from recipes.lib.command import command, run_main
from recipes.lib.files import read_json, write_json
from recipes.lib.neurons import make_spiking


@dataclass(kw_only=True)
class Options(train_images.Options):
    """Net, as of ``recipes.train_images``."""


@command
def main(options: Options) -> dict[str, Any]:
    """Time a training step of the net with the host's IF neuron, then with the chosen one, on one batch."""
    data = load_images(options.data, options.data_dir)
    mean, std = channel_statistics(data.train[0])
    images, labels = next(iter(Batches(data.train, options.batch_size, mean, std, device=options.device)))
    nets = {}
    for name in dict.fromkeys(("if", options.neuron)):
        chosen = copy.copy(options)
        chosen.neuron = name
        nets[name] = train_images.build_net(options, len(data.classes), data.channels)
        if name != "relu":
            make_spiking(nets[name], chosen)
        nets[name].to(options.device)
    return report(benchmark_step(nets, images, labels), options)


def benchmark_step(
    nets: dict[str, nn.Module], images: Tensor, labels: Tensor, *, rounds: int = 7, steps: int = 3
) -> dict[str, Any]:
    """Time training steps of several nets in turn: forward, backward, SGD, reset.

    Parameters
    ----------
    nets : dict
        Name to net, on the device of the images; times are compared with those of the first.
    images, labels : Tensor
        One batch.
    rounds : int
        Each round times every net, so that a slow moment of the machine meets them all; one more goes before.
    steps : int
        Steps of a net in a round.

    Returns
    -------
    dict
        For each net the median, smallest and largest seconds of a step, and of the ratio to the first net by round.
    """
    optimizers = {name: torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9) for name, net in nets.items()}
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for each in range(rounds + 1):
        for name, net in nets.items():
            _wait(images)
            started = time.perf_counter()
            for _ in range(steps):
                loss = nn.functional.cross_entropy(net(images), labels)
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
                functional.reset_net(net)
            _wait(images)
            if each > 0:
                seconds[name].append((time.perf_counter() - started) / steps)
    first = seconds[next(iter(nets))]
    return {
        name: {"seconds": _spread(times), "ratio": _spread([a / b for a, b in zip(times, first, strict=True)])}
        for name, times in seconds.items()
    }


def report(result: dict[str, Any], args: Options) -> dict[str, Any]:
    """Print a benchmark and write it to ``step_time.json`` in ``args.out``."""
    for name, row in result.items():
        ms, ratio = {k: f"{1e3 * v:.1f}" for k, v in row["seconds"].items()}, row["ratio"]
        print(
            f"{name}: {ms['median']} ms a step ({ms['min']}..{ms['max']}), "
            f"{ratio['median']:.2f} times the first ({ratio['min']:.2f}..{ratio['max']:.2f})"
        )
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine()
    setting = {
        "model": args.model, "width": args.width, "batch_size": args.batch_size, "time_steps": args.time_steps,
        "device": where, "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    path = args.out / "step_time.json"
    if path.exists():  # the folder may be that of a run, but the file has to be ours
        read_json(path, "a benchmark of a step", "want another --out")
    write_json(path, {"setting": setting, "nets": result})
    return result


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    run_main(main)
