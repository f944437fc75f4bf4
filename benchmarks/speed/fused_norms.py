"""Batch norm and neuron as one operator against one after the other: time of a step and bytes that it keeps.

All nets run in one process, in turns, by one thread; the processor's time counts, for others may keep the machine busy.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import sew_resnet
from torch import Tensor, nn

from recipes.lib.cli import Count, NewFile
from recipes.lib.command import command, run_main
from recipes.lib.files import save_text
from snn_ext import accelerate, fuse_norms, memory

from .measuring import measure, ratio


@dataclass(kw_only=True)
class Options:
    """Options."""

    rounds: Count = 9
    out: Annotated[NewFile | None, "write the figures as JSON"] = None


@command
def main(options: Options) -> list[dict[str, Any]]:
    """Time norm and neuron alone and in two nets, in both layouts, in training and evaluation."""
    torch.set_num_threads(1)
    rows = []
    for name, (make, shape) in NETS.items():
        for layout in ("contiguous", "channels_last"):
            torch.manual_seed(0)
            host = make()
            functional.set_step_mode(host, "m")
            x = torch.randn(shape)
            if layout == "channels_last":
                host = host.to(memory_format=torch.channels_last)
                x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, shape[:2])
            rows += _compare(name, layout, host, x, options.rounds)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, {options.rounds} rounds, seed 0")
    if options.out is not None:
        save_text(json.dumps(rows, indent=1), options.out)
    return rows


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256):
        for _ in range(2):
            layers += [layer.Conv2d(channels, width, 3, padding=1, bias=False), layer.BatchNorm2d(width)]
            layers += [neuron.IFNode(detach_reset=True)]
            channels = width
        layers += [layer.MaxPool2d(2)]
    return nn.Sequential(*layers, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, 10))


def _resnet() -> nn.Module:
    net: nn.Module = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=10)
    return net


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "norm and neuron": (lambda: nn.Sequential(layer.BatchNorm2d(64), neuron.IFNode()), (4, 16, 64, 32, 32)),
    "VGG, 6 convolutions": (_vgg, (4, 4, 3, 32, 32)),
    "SEW ResNet-18": (_resnet, (4, 2, 3, 64, 64)),
}
"""Functions that make a net, and the shape of its input [T, N, C, H, W]."""


def _compare(name: str, layout: str, host: nn.Module, x: Tensor, rounds: int) -> list[dict[str, Any]]:
    accelerated = copy.deepcopy(host)
    accelerate(accelerated)
    fused = copy.deepcopy(accelerated)
    done = fuse_norms(fused, x)
    kept = [memory(net, x).total.before for net in (accelerated, fused)]
    nets = {"host": host, "accelerated": accelerated, "fused": fused}
    rows = []
    for step in (_train, _evaluate):
        contenders = {k: partial(step, net, x) for k, net in nets.items()}
        times = measure(contenders, rounds, clock=time.process_time)
        found = {k: ratio(times[k], times["fused"]) for k in ("host", "accelerated")}
        label = step.__name__.removeprefix("_")
        print(
            f"{name} {list(x.shape)}, {layout}, {label}: {1e3 * times['fused'].median:.0f} ms, "
            f"{found['accelerated']} times as fast as accelerated, {found['host']} as the host; "
            f"keeps {kept[1] / 1e6:.1f} MB instead of {kept[0] / 1e6:.1f}; "
            f"{len(done.fused)} fused, {len(done.left)} left",
            flush=True,
        )
        seconds = {k: timing.seconds for k, timing in times.items()}
        rows.append({"net": name, "layout": layout, "step": label, "seconds": seconds, "kept": kept})
    return rows


def _train(net: nn.Module, x: Tensor) -> None:
    functional.reset_net(net.train())
    net(x).sum().backward()


@torch.no_grad()
def _evaluate(net: nn.Module, x: Tensor) -> None:
    functional.reset_net(net.eval())
    net(x)


if __name__ == "__main__":
    run_main(main)
