"""The plain simulation, ``for t in range(T): net(x)``: slow, and right for any net; faster ones are held against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..replacement import reset_neurons
from .graph import event_sources

__all__ = ["Observer", "StepwiseSimulation"]

Observer = Callable[[str, nn.Module, Tensor], None]
"""``observe(name, module, spikes)``: the 0/1 spikes ``[T', N, ...]`` of one layer in the next T' steps."""


class StepwiseSimulation:
    """Run a net of SpikingJelly neurons in step mode "s" one step at a time, the host's own way.

    Parameters
    ----------
    graph : fx.GraphModule
        The net; it is reset before and after each run.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph

    @torch.no_grad()
    def run(self, x: Tensor, time_steps: int, observe: Observer | None = None) -> Iterator[Tensor]:
        """Yield the output ``[1, N, ...]`` of each step under the constant input ``x``."""
        hooks = []

        def watch(name: str, module: nn.Module) -> None:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                assert observe is not None
                observe(name, module, (output != 0).to(output.dtype).unsqueeze(0))

            hooks.append(module.register_forward_hook(hook))

        if observe is not None:
            for name in event_sources(self.graph):
                watch(name, self.graph.get_submodule(name))
        reset_neurons(self.graph)
        try:
            for _ in range(time_steps):
                yield self.graph(x).unsqueeze(0)
        finally:
            reset_neurons(self.graph)
            for hook in hooks:
                hook.remove()
