"""Random numbers that a forward pass draws: operations in it, beside the neurons and encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .._draws import Draws
from .advance import advance
from .graph import Interpreter, changes, is_stateful, module_of

__all__ = ["Drawing", "random_nodes"]


def random_nodes(graph: fx.GraphModule, x: Tensor) -> frozenset[fx.Node]:
    """Return the nodes that draw random numbers in a step for ``x``, ``[N, ...]``; encoders, which always do, left out.

    They are found by running the step, for any function, method or module may draw. States and generators stay as
    they are.
    """
    run, before = _Step(graph), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
    run.run(x.clone())  # an operation may write to it
    if run.random:  # else nothing was drawn, unless by another thread
        torch.set_rng_state(before)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, x.device)
    return frozenset(run.random)


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
        if draws.any:
            self.random.add(n)
        return value


class _Step(Drawing):
    """Runs one step, and leaves the states as they are."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: Any = self.fetch_attr(target)
        if is_stateful(module):
            return advance(module, args[0].unsqueeze(0), None)[0][0]
        return args[0] if changes(module) else super().call_module(target, args, kwargs)  # an encoder keeps the shape
