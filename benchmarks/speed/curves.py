"""Losses of a training that keeps less, over those of the plain net: ``python -m benchmarks curves``.

A small convolutional net is trained on the embedded images of Fashion-MNIST, once for each contender of the study
``memory``, from the same weights and on the same batches. The picture has the losses one over the other.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from spikingjelly.activation_based import functional, layer
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from recipes.data.images import Batches, channel_statistics, load_images
from recipes.lib.cli import Count, NewFile, Rate, Seed
from recipes.lib.command import command, run_main
from recipes.lib.files import save_figure
from snn_ext import fuse_norms
from snn_ext.plots.style import finish, look, new_figure

from .cases import Settings
from .memory import HOST, Block, contenders
from .report import environment, measured_with

FUSED = "accelerated, norms fused: sums in another order"


@dataclass(kw_only=True)
class Options:
    """Options."""

    steps: Annotated[Count, "of each training"] = 100
    batch_size: Count = 16
    time_steps: Count = 4
    lr: Annotated[Rate, "of SGD with momentum"] = 0.05
    seed: Seed = 0
    picture: Annotated[NewFile | None, "file for the picture"] = None


@command
def main(options: Options) -> dict[str, list[float]]:
    """Train, draw the picture, print the largest differences, and return the losses by name."""
    data = load_images("fashion-mnist-subset")
    torch.manual_seed(options.seed)
    batches = Batches(
        data.train, options.batch_size, *channel_statistics(data.train[0]), train=True, seed=options.seed
    )  # fmt: skip
    if len(batches) < options.steps:
        raise ValueError(f"--steps: got {options.steps}, want at most {len(batches)}, the batches of one pass")
    first, _ = next(iter(batches))
    x = first.expand(options.time_steps, *first.shape)
    nets = contenders(small, Block, x)
    fused = copy.deepcopy(nets["accelerated"][0])
    fuse_norms(fused, x)
    nets[FUSED] = (fused, "accelerated")
    losses = {
        name: trained(net, batches, options) for name, (net, _) in tqdm(nets.items(), unit="net", disable=None)
    }  # fmt: skip
    references = {name: reference for name, (_, reference) in nets.items()}
    print(measured_with(environment(Settings(0, options.seed))) + "\n")
    print(tabulate(differences(losses, references), "keys", "github"))
    if options.picture is not None:
        save_figure(overlaid(losses, references), options.picture)
    return losses


def small(node: type[nn.Module]) -> nn.Module:
    """Return a net of three blocks and a linear layer, for images of 28 x 28."""
    channels = (1, 16, 32, 32)
    blocks = []
    for a, b in itertools.pairwise(channels):
        block = Block(layer.Conv2d(a, b, 3, padding=1), layer.BatchNorm2d(b), node(v_reset=None))
        blocks += [block, layer.MaxPool2d(2)]
    return nn.Sequential(*blocks, layer.Flatten(), layer.Linear(9 * channels[-1], 10))


def trained(net: nn.Module, batches: Batches, options: Options) -> list[float]:
    """Train a net, and return the loss of each step."""
    optimizer = torch.optim.SGD(net.parameters(), options.lr, momentum=0.9)
    batches.set_epoch(0)
    found = []
    for (x, labels), _ in zip(batches, range(options.steps), strict=False):
        functional.reset_net(net)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x.expand(options.time_steps, *x.shape)).mean(0), labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def differences(losses: Mapping[str, Sequence[float]], references: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each net: its last loss, and by how much its losses differ from those of its reference."""

    def largest(name: str, other: str) -> str:
        return f"{max(abs(a - b) for a, b in zip(losses[name], losses[other], strict=True)):.2g}"

    return [
        {
            "": name,
            "last loss": f"{found[-1]:.4f}",
            "compared with": references[name],
            "largest difference": largest(name, references[name]),
            f"to {HOST}": largest(name, HOST),
        }
        for name, found in losses.items()
    ]


def overlaid(losses: Mapping[str, Sequence[float]], references: Mapping[str, str]) -> Any:
    """Draw a panel for each reference: its losses as a broad line, those that are compared with it on top."""
    plain = [name for name, reference in references.items() if name == reference]
    figure = new_figure(4.4 * len(plain), 4.6, "Losses of a small net, step by step")
    panels = figure.subplots(1, len(plain), sharey=True, squeeze=False)[0]
    for axes, reference in zip(panels, plain, strict=True):
        names = [name for name in losses if references[name] == reference and name != reference]
        axes.plot(losses[reference], color="#BBBBBB", lw=7, label=reference)
        for place, name in enumerate(names):
            every = (place * 3, 3 * len(names))
            axes.plot(losses[name], markevery=every, label=name, **look(place) | {"lw": 1.0})
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0.0)
        finish(axes)
    panels[0].set_ylabel("loss")
    return figure


if __name__ == "__main__":
    run_main(main)
