"""The values of a graph for some samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from .graph_tools import Refusal, name_of, refuse

__all__ = ["SIZES", "Values", "reads_values", "repeated"]

SIZES = 2, 11
"""Batches on which a net is asked for what does not depend on their size; divisions tell them apart as well."""
_DESCRIPTIONS = {
    "device", "dim", "dtype", "element_size", "get_device", "is_complex", "is_contiguous", "is_cuda",
    "is_floating_point", "is_tensor", "layout", "len", "ndim", "ndimension", "nelement", "numel", "requires_grad",
    "shape", "size", "stride", "type",
}  # fmt: skip
"""Attributes, methods and functions that tell something about a tensor whatever its values are."""


class Values(fx.Interpreter):
    """Computes the values of a graph, as far as they are asked for.

    Parameters
    ----------
    net : nn.Module
        With the modules that the graph calls.
    x : Tensor
        Samples.
    graph : fx.Graph
        It may still grow.
    """

    def __init__(self, net: nn.Module, x: Tensor, graph: fx.Graph) -> None:
        super().__init__(net, garbage_collect_values=False, graph=graph)
        self.args_iter, self._samples = iter([x]), len(x)

    def value(self, node: fx.Node) -> Any:
        """Return the value of a node; operations run in the order of the graph, for some change values in place."""
        for n in self.graph.nodes:
            if n not in self.env:
                self.env[n] = self.run_node(n)
            if n is node:
                break
        return self.env[node]

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except Refusal:
            raise
        except Exception as error:
            refuse(f"{name_of(n)}, which fails for {self._samples} samples ({error})", "a net for any batch size", n)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """Return the arguments of a call, which may change a list: the graph's own lists refuse that."""
        return tuple(_own_lists(value) for value in super().fetch_args_kwargs_from_env(n))


def reads_values(node: fx.Node) -> bool:
    """Return True if an operation may look at the values of a tensor, of one that returns no tensor."""
    return str(node.args[1] if node.target is getattr else name_of(node)) not in _DESCRIPTIONS


def _own_lists(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_own_lists, value))
    if type(value) is tuple:
        return tuple(map(_own_lists, value))
    return {key: _own_lists(v) for key, v in value.items()} if isinstance(value, dict) else value


def repeated(x: Tensor, samples: int) -> Tensor:
    """Return a batch of a size: the first sample, repeated."""
    return x[:1].repeat(samples, *[1] * (x.ndim - 1))
