"""The choices of the CPU kernels, on this processor: spikes or windows, sizes of blocks, memory made present.

Layers behind spikes run both ways, beside torch's layer, and the share of spikes at which the simulation changes from
one to the other stands beside them. The neurons run in blocks of other sizes, and without memory that is made present
before it is written; there figures are how many times as fast that is as what the package does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from recipes.lib.cli import Count, NewFile
from recipes.lib.command import command, run_main
from recipes.lib.files import save_text
from snn_ext import ops
from snn_ext.ops import registry
from snn_ext.ops.registry import select

from .cases import Settings
from .measuring import measure, ratio
from .report import environment, measured_with

LAYERS = ((8, 16, 14, 64), (32, 32, 32, 16), (32, 64, 16, 32), (64, 64, 16, 32), (128, 128, 8, 64), (256, 256, 4, 64))
"""Inputs, outputs, pixels of a side and samples of the layers, of 3 x 3 weights."""
PERCENT = (5, 10, 20, 30, 40)
NEURONS = (
    ("integrate_and_fire", 4096, ((4, 524288), (32, 131072), (255, 32768))),
    ("adaptive_spiking", 2048, ((32, 65536), (100, 6272))),
)
"""Operator, the size of its blocks, and steps and neurons of its inputs."""
BLOCKS = (512, 1024, 2048, 4096, 8192, 16384)
CPU = torch.device("cpu")


@dataclass(kw_only=True)
class Options:
    """Options."""

    rounds: Count = 9
    cases: Annotated[list[str], CASES] = field(default_factory=lambda: list(CASES))
    markdown: Annotated[NewFile | None, "file for the tables"] = None


@command
def main(options: Options) -> int:
    """Return the exit status."""
    tables = []
    for name in options.cases:
        print(f"{name} ...", file=sys.stderr, flush=True)
        tables.append(tabulate(CASES[name](options), headers="keys", tablefmt="github"))
    page = f"{measured_with(environment(Settings(options.rounds)))}\n\n" + "\n\n".join(tables) + "\n"
    print(page)
    if options.markdown is not None:
        save_text("# Kernels on the CPU\n\n    python -m benchmarks kernels\n\n" + page, options.markdown)
    return 0


def layers(options: Options) -> list[dict[str, Any]]:
    """Measure both ways of layers behind spikes, in ms, and the share of spikes at which the simulation changes."""
    rows = []
    for inputs, outputs, size, samples in LAYERS:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
        run: Any = select("spike_convolution", CPU, torch.float32).prepare(layer)
        if run is layer:
            raise RuntimeError(
                f"spike_convolution: {ops.implementation('spike_convolution', 'cpu').unavailable['cpu']}"
            )
        contenders: dict[str, Callable[[], object]] = {}
        for percent in PERCENT:
            x = (torch.rand(samples, inputs, size, size) < percent / 100).float()
            x = x.contiguous(memory_format=torch.channels_last)
            contenders[f"{percent} %"] = lambda x=x, run=run: run.convolve(x, 1.0)
        contenders["windows"] = lambda x=x, run=run: run.convolve(x, -1.0)
        contenders["torch"] = lambda x=x, layer=layer: layer(x)
        times = measure(contenders, options.rounds, clock=time.process_time)
        shares = sorted(100 * run._measured((size, size)) for _ in range(5))
        row: dict[str, Any] = {"layer": f"{inputs} to {outputs}, {size} x {size}, N = {samples}"}
        row |= {name: round(1e3 * timing.best, 2) for name, timing in times.items()}
        rows.append(row | {"changes at, %": f"{shares[0]:.0f} to {shares[-1]:.0f}"})
    return rows


def neurons(options: Options) -> list[dict[str, Any]]:
    """Measure forward passes in other blocks, and with memory as it comes: times as fast as they are."""
    rows = []
    for operator, own, shapes in NEURONS:
        changes = {str(size): (f"BLOCK = {own}", f"BLOCK = {size}") for size in BLOCKS if size != own}
        changes["memory as it comes"] = ("    make_present(call->", "    if (0) make_present(call->")
        kernels = {"own": select(operator, CPU, torch.float32)}
        kernels |= {name: _changed(kernels["own"], *change) for name, change in changes.items()}
        for steps, width in shapes:
            x = torch.randn(steps, width)
            contenders = {name: _forward(operator, x, kernel) for name, kernel in kernels.items()}
            times = measure(contenders, options.rounds, clock=time.process_time)
            row: dict[str, Any] = {"operator": operator, "steps x neurons": f"{steps} x {width}", "block": own}
            row["own, ms"] = round(1e3 * times["own"].median, 2)
            rows.append(row | {name: round(ratio(times["own"], times[name]).median, 2) for name in changes})
    return rows


CASES: dict[str, Callable[[Options], list[dict[str, Any]]]] = {"layers": layers, "neurons": neurons}


def _changed(kernel: Any, old: str, new: str) -> Any:
    """Return an implementation from a source that is changed in one respect."""
    sources = {name: text.replace(old, new) for name, text in kernel.sources().items()}
    if sources == kernel.sources():
        raise RuntimeError(f"{kernel.op.name}: {old!r} is not in its source")
    changed = type(kernel)(kernel._package, kernel._agreement, sources)
    reason = changed.why_not(CPU, torch.float32)
    if reason is not None:
        raise RuntimeError(f"{kernel.op.name}, {new!r}: {reason}")
    return changed


def _forward(operator: str, x: Tensor, kernel: Any) -> Callable[[], object]:
    """Return a forward pass by an implementation."""

    @torch.no_grad()
    def call() -> object:
        registry.IMPLEMENTATIONS[operator]["cpu"] = kernel
        registry._select.cache_clear()
        if operator == "adaptive_spiking":
            return ops.adaptive_spiking(x)
        return ops.integrate_and_fire(x, 0.0, torch.ones(1))

    return call


if __name__ == "__main__":
    run_main(main)
