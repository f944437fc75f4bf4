"""Time the operators that run here, forwards and backwards: ``snn-ext bench``; in a checkout also its studies by name.

``snn-ext bench --neurons 100000`` takes some seconds. ``snn-ext bench NAME ...`` is ``python -m benchmarks NAME ...``.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from .. import ops
from ..ops.registry import NAMES, use_implementation
from ..recipes.lib.cli import Argument, Count
from ..recipes.lib.command import command
from ..recipes.lib.options import device

__all__ = ["OPERATORS", "Options", "main", "measure", "timed"]

CHECKOUT = Path(__file__).resolve().parents[2]
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "integrate_and_fire": lambda x: ops.integrate_and_fire(x, 0.5, torch.ones(1, device=x.device))[0],
    "adaptive_spiking": lambda x: ops.adaptive_spiking(x)[0],
}
"""The timed call of each operator, with its defaults."""


@dataclass(kw_only=True)
class Options:
    """The call that is timed."""

    time_steps: Annotated[Count, Argument(metavar="T"), "steps of a sequence"] = 4
    neurons: Annotated[Count, "neurons of a batch, all samples together"] = 1_000_000
    rounds: Annotated[Count, "calls, of which the median counts"] = 9
    device: Annotated[str, device, "where the operators run"] = "cpu"


def main(argv: Sequence[str] | None = None) -> Any:
    """Run a study of the checkout if the first word names one, else time the operators."""
    words = sys.argv[1:] if argv is None else argv
    return _study(words) if words and not words[0].startswith("-") else measure(words)


@command
def measure(options: Options) -> list[dict[str, Any]]:
    """Time every implementation that can run, print a line for each, and return the milliseconds."""
    rows = []
    print(f"{options.neurons:,} neurons, T = {options.time_steps}, {options.device}, {torch.get_num_threads()} threads")
    for name, call in OPERATORS.items():
        unavailable = ops.implementation(name, options.device).unavailable
        for implementation in (other for other in NAMES if other not in unavailable):
            with use_implementation(implementation):
                forward, both = timed(call, options)
            rows.append({"operator": name, "implementation": implementation, "forward": forward, "both": both})
            print(f"{name:<20}{implementation:<12}{forward:9.2f} ms forward {both:9.2f} ms with backward", flush=True)
    return rows


def timed(call: Callable[[Tensor], Tensor], options: Options) -> tuple[float, float]:
    """Return the median milliseconds of the forward pass, and of it with the backward pass."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.time_steps, options.neurons, generator=generator).to(options.device).requires_grad_()
    times: list[tuple[float, float]] = []
    for _ in range(options.rounds + 1):
        began = _now(options.device)
        output = call(x)
        middle = _now(options.device)
        torch.autograd.grad(output, x, torch.ones_like(output))
        times.append((1e3 * (middle - began), 1e3 * (_now(options.device) - began)))
    forward, both = (statistics.median(column) for column in zip(*times[1:], strict=True))  # the first warms up
    return forward, both


def _now(place: str) -> float:
    if torch.device(place).type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter()


def _study(words: Sequence[str]) -> Any:
    if not (CHECKOUT / "benchmarks").is_dir():
        raise SystemExit(
            f"snn-ext bench: got {words[0]}, and the studies are in a checkout of the repository, with the tests that "
            "some of them run; want options, or none"
        )
    sys.path.insert(0, str(CHECKOUT))
    return import_module("benchmarks.__main__").main(list(words))
