"""Random numbers that a forward pass draws: operations in it, beside the neurons and encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .._draws import Draws
from .advance import advance
from .graph import Interpreter, changes, is_stateful, module_of

__all__ = ["random_nodes"]


def random_nodes(graph: fx.GraphModule, x: Tensor) -> frozenset[fx.Node]:
    """Return the nodes that draw random numbers in a step for ``x``, ``[N, ...]``; encoders, which always do, left out.

    They are found by running the step, for any function, method or module may draw. States and generators stay as
    they are.
    """
    is_cpu = x.device.type == "cpu"
    with torch.random.fork_rng([] if is_cpu else [x.device], device_type="cuda" if is_cpu else x.device.type):
        run = _Step(graph)
        run.run(x.clone())  # an operation may write to it
    return frozenset(run.random)


class _Step(Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.random = set[fx.Node]()

    def run_node(self, n: fx.Node) -> Any:
        with Draws() as draws:
            value = super().run_node(n)
        if draws.any and not changes(module_of(self.module, n)):  # type: ignore[arg-type]
            self.random.add(n)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: Any = self.fetch_attr(target)
        if is_stateful(module):
            return advance(module, args[0].unsqueeze(0), None)[0][0]
        return super().call_module(target, args, kwargs)
