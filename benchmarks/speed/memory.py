"""Memory that a training step keeps for its backward pass: ``python -m benchmarks memory``.

ResNet-18 and VGG-16 of SpikingJelly for images of 32 x 32, T = 4, in float32 and under autocast to bfloat16: with the
host's neurons as they are, by its ``memopt``, and by this package. All that the forward pass has made and that lives at
its end is counted, whoever holds it; the output and the states of neurons are part of it, and counted once more without
the states, which a reset drops. Gradients are compared bit by bit. With ``--rounds``, steps are timed in turns, in this
process, by the processor's time.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from spikingjelly.activation_based import functional, layer, memopt, neuron
from spikingjelly.activation_based.model import spiking_resnet, spiking_vgg
from tabulate import tabulate
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recipes.lib.cli import Argument, Count, NewFile, Seed, Whole
from recipes.lib.command import command, run_main
from recipes.lib.files import save_text
from snn_ext import accelerate, pack_spikes, recompute_norms
from snn_ext.spikingjelly import ATIFuNode

from .cases import Settings
from .measuring import measure, ratio
from .report import environment, measured_with

ROOT = Path(__file__).resolve().parents[2]
HOST = "SpikingJelly IFNode"


@dataclass(kw_only=True)
class Options:
    """Options."""

    batch_size: Count = 16
    time_steps: Count = 4
    cases: Annotated[list[str], Argument(metavar="TEXT"), "only cases whose name contains a TEXT"] = field(
        default_factory=list
    )
    contenders: Annotated[
        list[str], Argument(metavar="TEXT"), "only contenders whose name contains a TEXT, beside the host's"
    ] = field(default_factory=list)
    rounds: Annotated[Whole, "rounds of timing; 0: memory alone"] = 0
    seed: Seed = 0
    out: NewFile = ROOT / "runs" / "benchmarks" / "memory.json"


@command
def main(options: Options) -> None:
    """Measure, print the tables and write them."""
    about = environment(Settings(options.rounds, options.seed))
    rows: list[dict[str, Any]] = []
    for name, (make, block) in NETS.items():
        for dtype in (torch.float32, torch.bfloat16):
            case = f"{name}, T = {options.time_steps}, {str(dtype).removeprefix('torch.')}"
            if not options.cases or any(text in case for text in options.cases):
                print(f"{case} ...", file=sys.stderr, flush=True)
                rows += [{"case": case, **row} for row in measured(make, block, dtype, options)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", options.out)
    print(measured_with(about) + "\n")
    print(tabulate(rows, "keys", "github"))


# -- nets --------------------------------------------------------------------------------------------------------------


class Block(nn.Sequential):
    """Convolution, norm and neuron of a VGG: what the host's memopt may repeat."""


def resnet18(node: type[nn.Module]) -> nn.Module:
    """Return the host's ResNet-18 with a stem for small images."""
    net = spiking_resnet.spiking_resnet18(spiking_neuron=node, num_classes=10, v_reset=None)
    net.conv1, net.maxpool = layer.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def vgg16(node: type[nn.Module]) -> nn.Module:
    """Return the host's VGG-16 with batch norm and one layer behind the convolutions, in blocks."""
    net = spiking_vgg.spiking_vgg16_bn(spiking_neuron=node, num_classes=10, v_reset=None, init_weights=False)
    layers, features = iter(net.features), nn.Sequential()
    for first in layers:
        features.append(first if isinstance(first, layer.MaxPool2d) else Block(first, next(layers), next(layers)))
    net.features, net.avgpool = features, layer.AdaptiveAvgPool2d(1)
    net.classifier = nn.Sequential(layer.Linear(512, 10))
    return net


NETS: dict[str, tuple[Callable[[type[nn.Module]], nn.Module], type[nn.Module]]] = {
    "ResNet-18": (resnet18, spiking_resnet.BasicBlock),
    "VGG-16": (vgg16, Block),
}


# -- what is measured --------------------------------------------------------------------------------------------------


def measured(
    make: Callable[[type[nn.Module]], nn.Module], block: type[nn.Module], dtype: torch.dtype, options: Options
) -> list[dict[str, Any]]:
    """Return a row for each contender."""
    torch.manual_seed(options.seed)
    x = torch.randn(options.time_steps, options.batch_size, 3, 32, 32)
    labels = torch.randint(10, (options.batch_size,))
    nets = contenders(make, block, x)
    if options.contenders:
        wanted = {name for name in nets for text in options.contenders if text in name} | {HOST}
        wanted |= {nets[name][1] for name in wanted}
        nets = {name: net for name, net in nets.items() if name in wanted}

    def loss(net: nn.Module) -> Tensor:
        functional.reset_net(net)
        net.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return nn.functional.cross_entropy(net(x).mean(0).float(), labels)

    kept, without, gradients = dict[str, int](), dict[str, int](), dict[str, list[Tensor]]()
    for name, (net, _) in nets.items():
        with living() as bytes_of:
            found = loss(net)
        kept[name] = bytes_of()
        functional.reset_net(net)
        without[name] = bytes_of()
        found.backward()
        gradients[name] = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    rows = [
        {
            "": name,
            "kept": f"{kept[name] / 1e6:.1f} MB",
            "share": f"{kept[name] / kept[HOST]:.3f}",
            "without states": f"{without[name] / 1e6:.1f} MB",
            "share of it": f"{without[name] / without[HOST]:.3f}",
            "gradients": _compared(gradients[name], gradients[reference]),
        }
        for name, (_, reference) in nets.items()
    ]
    if options.rounds:
        steps = {name: _step(loss, net) for name, (net, _) in nets.items()}
        timings = measure(steps, options.rounds, clock=time.process_time)
        for row in rows:
            row["time of a step"] = str(ratio(timings[row[""]], timings[HOST]))
    return rows


def contenders(
    make: Callable[[type[nn.Module]], nn.Module], block: type[nn.Module], x: Tensor
) -> dict[str, tuple[nn.Module, str]]:
    """Return nets of the same weights by name, each with the name of the one whose gradients it has to have.

    Levels 2 to 4 of memopt need a GPU.
    """
    net, ours = make(neuron.IFNode), make(ATIFuNode)
    ours.load_state_dict(net.state_dict())
    for each in (net, ours):
        functional.set_step_mode(each, "m")
    found = {HOST: (net, HOST)}
    for budget in ("speed", "balanced", "memory"):
        optimized = memopt.optimize_memory(
            copy.deepcopy(net), block, lambda net: _forward(net, x), level=1, checkpoint_budget=budget
        )
        found[f"memopt level 1, {budget}: repeats forward passes"] = (optimized, HOST)
    fused = copy.deepcopy(net)
    accelerate(fused)
    for name, each in ((HOST, net), ("accelerated", fused), ("ATIFuNode", ours)):
        packed = copy.deepcopy(each)
        pack_spikes(packed)
        found |= {name: (each, name), f"{name}, packed": (packed, name)}
        if each is not net:  # the host's own code keeps more than its input
            for convolutions, text in ((False, "norms computed again"), (True, "convolutions too")):
                again = copy.deepcopy(packed)
                recompute_norms(again, convolutions=convolutions)
                found[f"{name}, packed, {text}"] = (again, name)
    return found


def _forward(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    with torch.no_grad():
        out: Tensor = net(x)
    functional.reset_net(net)
    return out


def _step(loss: Callable[[nn.Module], Tensor], net: nn.Module) -> Callable[[], None]:
    return lambda: loss(net).backward()


def _compared(found: list[Tensor], want: list[Tensor]) -> str:
    return "the same bits" if all(map(torch.equal, found, want)) else "other bits"


@contextmanager
def living() -> Iterator[Callable[[], int]]:
    """Yield what counts, after the block, the bytes that were made in it and are still there."""
    made: dict[StorageWeakRef, int] = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for t in tree_leaves(result):
                if isinstance(t, Tensor) and t.untyped_storage()._cdata not in before:  # no view of what was given
                    made[StorageWeakRef(t.untyped_storage())] = t.untyped_storage().nbytes()
            return result

    with Watch():
        yield lambda: sum(size for storage, size in made.items() if not storage.expired())


if __name__ == "__main__":
    run_main(main)
