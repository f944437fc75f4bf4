"""Random numbers that a forward pass draws: operations in it, beside the neurons and encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from .._draws import Draws
from .graph import Interpreter, changes, module_of

__all__ = ["Drawing", "as_before"]


@contextmanager
def as_before(device: torch.device) -> Iterator[None]:
    """Give the generators back the state that they had before, if random numbers are drawn inside."""
    on_cpu = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    with Draws() as draws:
        yield
    if draws.found:  # else another thread may have drawn
        torch.set_rng_state(on_cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)


class Drawing(Interpreter):
    """Runs a graph and keeps in ``random`` the nodes that draw random numbers, neurons and encoders left out."""

    def __init__(self, graph: fx.GraphModule, *, keep: bool = False) -> None:
        super().__init__(graph, garbage_collect_values=not keep)
        self.random = set[fx.Node]()

    def run_node(self, n: fx.Node) -> Any:
        if changes(module_of(self.module, n)):  # type: ignore[arg-type]
            return super().run_node(n)
        with Draws() as draws:
            value = super().run_node(n)
        if draws.found:
            self.random.add(n)
        return value
