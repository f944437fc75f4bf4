"""The layers that only one rectifier reads: they take up biases and corrections of weights."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ._tracing import traced_graph
from .hosts import LeafTracer
from .training import ConstantInputNet

__all__ = ["Before", "find_before"]

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Before:
    """The layers that compute a sum which one rectifier reads, in a net in evaluation mode.

    Attributes
    ----------
    biased : nn.Module
        Its bias adds to the sum: a layer, or the norm behind one.
    layer : nn.Module or None
        The convolution or linear layer whose weights can take up a correction.
    """

    biased: Any
    layer: Any = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return what :meth:`shift` and :meth:`correct` change."""
        return [self.biased.bias, *([] if self.layer is None else [self.layer.weight])]

    def shift(self, offset: Tensor) -> None:
        """Add one number per channel to the sum."""
        self.biased.bias.add_(offset.to(self.biased.bias))

    def correct(self, slope: Tensor, offset: Tensor) -> None:
        """Add ``slope x + offset`` to the sum, for the input x of the layer: ``[C_out, K]`` and ``[C_out]``."""
        if self.biased is not self.layer:  # the norm multiplies what the weights give
            gain = self.biased.weight / (self.biased.running_var + self.biased.eps).sqrt()
            slope = torch.where(gain == 0, 0.0, slope.to(gain).T / gain).T
        self.layer.weight.add_(slope.reshape(self.layer.weight.shape).to(self.layer.weight))
        self.shift(offset)


def find_before(net: nn.Module, relus: Iterable[nn.Module]) -> dict[nn.Module, Before]:
    """Return the layers before each rectifier that has some; under ``net`` those before the output."""
    try:
        graph = traced_graph(net.one_step() if isinstance(net, ConstantInputNet) else net, LeafTracer(), "net")
    except Exception:  # control flow on values: such a net cannot be traced, so that nothing is known
        return {}
    finder, wanted = _Finder(net, graph), set(relus)
    found: dict[nn.Module, Before | None] = {}
    for node in graph.nodes:
        if node.op == "output":
            found[net] = finder.find(node.args[0])
        elif node.op == "call_module" and node.args and finder.modules[str(node.target)] in wanted:
            found[finder.modules[str(node.target)]] = finder.find(node.args[0])
    return {module: before for module, before in found.items() if before is not None}


class _Finder:
    """Goes back from a sum, through additions."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        self.modules: Mapping[str, nn.Module] = dict(net.named_modules(remove_duplicate=False))
        calls = [self.modules[str(node.target)] for node in graph.nodes if node.op == "call_module"]
        self._calls = Counter(calls)
        self._owners = Counter(id(p) for m in set(calls) for p in m.parameters(recurse=False))

    def find(self, node: Any) -> Before | None:
        """Return the layers of a sum; of several that are added, the first that only this sum reads."""
        if not isinstance(node, fx.Node) or len(node.users) > 1:
            return None
        if node.op == "call_module":
            return self._of_module(node)
        sources = node.args if node.target in _ADDITIONS else ()
        return next((found for source in sources if (found := self.find(source)) is not None), None)

    def _of_module(self, node: fx.Node) -> Before | None:
        module: Any = self._own(node)
        bias: Any = getattr(module, "bias", None)
        if not self._is_own(bias) or bias.ndim != 1:
            return None
        behind = node
        if isinstance(module, _BatchNorm) and module.weight is not None and module.running_var is not None:
            behind = node.args[0]  # type: ignore[assignment]
        layer = self._own(behind) if isinstance(behind, fx.Node) and len(behind.users) == 1 else None
        return Before(module, layer if self._is_weighted(layer) else None)

    def _own(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if no other node calls it."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        return module if module is not None and self._calls[module] == 1 else None

    def _is_own(self, parameter: Any) -> bool:
        return isinstance(parameter, nn.Parameter) and self._owners[id(parameter)] == 1

    def _is_weighted(self, layer: Any) -> bool:
        """Return True for layers that compute what their class says, from weights of their own."""
        of_hosts = type(layer).__module__.startswith(("torch.nn.", "spikingjelly."))
        if not (of_hosts and isinstance(layer, _WEIGHTED) and self._is_own(layer.weight)):
            return False
        return getattr(layer, "padding_mode", "zeros") == "zeros"
