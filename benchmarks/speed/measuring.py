"""Times of several contenders in one process, round by round, so that a noisy machine is as unkind to each of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Ratio", "Timing", "kept_bytes", "measure", "peak_memory", "ratio"]


@dataclass(frozen=True)
class Timing:
    """Times of one contender in seconds, a round each."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """Speed-up over the baseline: the quartiles over the rounds, and best time against best time."""

    low: float
    median: float
    high: float
    best: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f}), best {self.best:.2f}"


def measure(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    repeat: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every contender once a round, after two rounds to warm up, in another order each time.

    Who comes after one that has freed much memory pays for it.

    Parameters
    ----------
    contenders : dict of str to callable
        What to time, by name.
    rounds : int
        Number of times each.
    repeat : int
        Calls a time, for what is too short for the clock.
    clock : callable
        ``time.process_time`` counts the processor's time alone, where others keep the machine busy.

    Examples
    --------
    >>> len(measure({"nothing": lambda: None}, rounds=3)["nothing"].seconds)
    3
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    shuffled = random.Random(0)
    for turn in range(rounds + 2):
        for name in shuffled.sample(list(contenders), len(contenders)):
            function = contenders[name]
            start = clock()
            for _ in range(repeat):
                function()
            seconds = (clock() - start) / repeat
            if turn >= 2:
                times[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in times.items()}


def ratio(baseline: Timing, timing: Timing) -> Ratio:
    """Compare two contenders of one measurement, round by round.

    Examples
    --------
    >>> str(ratio(Timing((2.0, 4.0, 6.0)), Timing((1.0, 1.0, 2.0))))
    '3.00 (2.50-3.50), best 2.00'
    """
    ratios = [a / b for a, b in zip(baseline.seconds, timing.seconds, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(low, median, high, baseline.best / timing.best)


def kept_bytes(function: Callable[[], object]) -> int:
    """Return how many bytes a forward pass keeps for the backward pass, each storage counted once."""
    with _saved_storages() as storages:
        result = function()
    del result
    return sum(storages.values())


@contextmanager
def _saved_storages() -> Iterator[dict[int, int]]:
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # a freed address would be counted once for two tensors

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


def peak_memory() -> int:
    """Return the most bytes that this process has held so far (Linux).

    ``ru_maxrss`` would not do: a process has it from the one that started it, however large that was.
    """
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
