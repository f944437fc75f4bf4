"""The layers that only one rectifier reads: they take up biases and corrections of weights."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from ._tracing import traced_graph
from .hosts import LeafTracer
from .simulation.graph import not_training
from .training import ConstantInputNet

__all__ = ["Before", "can_be_corrected", "find_before", "summands"]

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OF_CHANNELS = (_ConvNd, _NormBase, nn.GroupNorm)
"""Layers whose bias belongs to the second dimension, however many there are."""


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


def find_before(net: nn.Module, sums: Mapping[nn.Module, torch.Size]) -> dict[nn.Module, Before]:
    """Return the layers before each rectifier that has some, and under ``net`` those before the output.

    Parameters
    ----------
    net : nn.Module
        With the rectifiers in it.
    sums : dict of nn.Module to torch.Size
        The shape ``[N, C, ...]`` of what each rectifier reads, and of the output under ``net``.
    """
    step = net.one_step() if isinstance(net, ConstantInputNet) else net
    try:
        with not_training([*step.modules()]):
            graph = traced_graph(step, LeafTracer(), "net")
    except Exception:  # control flow on values: such a net cannot be traced, so that nothing is known
        return {}
    finder = _Finder(net, graph)
    found: dict[nn.Module, Before | None] = {}
    for node in graph.nodes:
        if node.op == "output" and net in sums:
            found[net] = finder.find(node.args[0], sums[net])
        elif node.op == "call_module" and (module := finder.modules[str(node.target)]) in sums:
            found[module] = finder.find(node.all_input_nodes[0], sums[module])
    return {module: before for module, before in found.items() if before is not None}


def summands(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the values of which a value is the sum and that nothing else reads; one that is no sum is its own.

    A value that is added twice or with a factor is left out: what a layer adds to it arrives multiplied.
    """
    if len(node.users) > 1:
        return
    if node.op == "call_module" or node.target not in _ADDITIONS:
        yield node
        return
    for source in node.args[: 1 if "alpha" in node.kwargs else None]:  # torch.add(x, y, alpha=2)
        if isinstance(source, fx.Node) and node.args.count(source) == 1:
            yield from summands(source)


def can_be_corrected(layer: Any, shape: torch.Size) -> bool:
    """Return True for a convolution or linear layer whose outputs are the channels of a sum ``[N, C, ...]``."""
    is_known = isinstance(layer, _WEIGHTED) and (len(shape) == 2 or not isinstance(layer, nn.Linear))
    return is_known and len(layer.weight) == shape[1]


class _Finder:
    """Goes back from a sum to the layers that nothing but it needs."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        self.modules: Mapping[str, nn.Module] = dict(net.named_modules(remove_duplicate=False))
        calls = [self.modules[str(node.target)] for node in graph.nodes if node.op == "call_module"]
        self._calls = Counter(calls)
        self._owners = Counter(id(p) for m in set(calls) for p in m.parameters(recurse=False))

    def find(self, node: Any, shape: torch.Size) -> Before | None:
        """Return the layers of a sum; of several those with the most weights, as :func:`.conversion.refit.feeder`."""
        nodes = summands(node) if isinstance(node, fx.Node) else ()
        found = [before for n in nodes if (before := self._of_node(n, shape)) is not None]
        return max(found, key=lambda b: 0 if b.layer is None else b.layer.weight.numel(), default=None)

    def _of_node(self, node: fx.Node, shape: torch.Size) -> Before | None:
        module: Any = self._own(node)
        bias: Any = getattr(module, "bias", None)
        of_channels = isinstance(module, _OF_CHANNELS) or len(shape) == 2
        if not (self._is_own(bias) and of_channels and bias.shape == shape[1:2]):
            return None
        behind = node
        if isinstance(module, _BatchNorm) and module.weight is not None and module.running_var is not None:
            behind = node.all_input_nodes[0]
        layer = self._own(behind) if len(behind.users) == 1 else None
        return Before(module, layer if self._means_its_weights(layer) and can_be_corrected(layer, shape) else None)

    def _own(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if no other node calls it."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        return module if module is not None and self._calls[module] == 1 else None

    def _is_own(self, parameter: Any) -> bool:
        return isinstance(parameter, nn.Parameter) and self._owners[id(parameter)] == 1

    def _means_its_weights(self, layer: Any) -> bool:
        """Return True for a layer of torch or a host with weights of its own, which computes what its class says."""
        of_hosts = type(layer).__module__.startswith(("torch.nn.", "spikingjelly."))
        is_own = of_hosts and self._is_own(getattr(layer, "weight", None))
        return is_own and getattr(layer, "padding_mode", "zeros") == "zeros"
