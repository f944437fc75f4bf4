"""``to_nir`` and ``from_nir``: nets as graphs of the Neuromorphic Intermediate Representation."""

from __future__ import annotations

import functools
import json
import keyword
import operator
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_bool, check_real, first_line
from ..saving import about_of, net_of
from ..simulation.graph import Recorder, module_of, output_of
from ..simulation.layers import rule_of_node
from .function import one_step_of

if TYPE_CHECKING:
    import nir

__all__ = ["from_nir", "to_nir"]

ADDITIONS = ("add", "iadd", "add_", "__add__", "__radd__", "__iadd__")


def to_nir(net: nn.Module, x: Tensor, *, metadata: bool = True, dt: float = 1e-4) -> nir.NIRGraph:
    """Return a net as a NIR graph, for ``nir.write`` and for tools that read NIR.

    NIR knows integrate-and-fire neurons that fire above a threshold and are then reset to a value. What it cannot say
    of the neurons of this package, it carries as metadata: reset by subtraction, pre-charge, scale of the output,
    points, adaptation. :func:`from_nir` reads them, and the net is the same to the bit. A tool that overlooks them
    simulates other neurons; with ``metadata=False`` these are refused.

    Parameters
    ----------
    net : nn.Module
        A converted net, or a net of layers and neurons of this package, in either host, of one input and one output.
        Its layers are linear, convolutions in one or two dimensions, average pooling, flatten and sums.
    x : Tensor
        An input of one step, ``[N, ...]``: NIR keeps the shape of each layer.
    metadata : bool
        Keep what NIR cannot say in metadata. False refuses neurons and layers that NIR alone does not describe.
    dt : float
        Length of a step in seconds, from which NIR's time constants and resistances follow.

    Raises
    ------
    ImportError
        Without the package of ``snn_ext[nir]``.
    TypeError, ValueError
        If an argument is wrong, or NIR has no word for a layer; the error names it.

    Examples
    --------
    >>> import torch, snn_ext
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), ATIFuNode(0.5))
    >>> graph = snn_ext.to_nir(net, torch.rand(1, 4))
    >>> [type(node).__name__ for node in graph.nodes.values()]
    ['Input', 'Affine', 'IF', 'Output']
    >>> x = torch.ones(1, 4)
    >>> torch.equal(snn_ext.from_nir(graph)(x), net(x))
    True
    """
    _check_installed("to_nir")
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
        bad_value("x", x, "an input of one step, [N, ...]")
    check_bool("metadata", metadata)
    if check_real("dt", dt, "a number of seconds > 0") <= 0:
        bad_value("dt", dt, "a number of seconds > 0")
    about = about_of(net) | {"training": False}
    graph = one_step_of(net)
    with torch.no_grad():
        values = Recorder(graph).record(x)
    return _Writer(graph, values, metadata, float(dt)).write({"net": json.dumps(about)} if metadata else {})


def from_nir(graph: nir.NIRGraph, *, dt: float = 1e-4) -> Any:
    """Return the net of a NIR graph: one of :func:`to_nir` as it was, to the bit, or one of another tool.

    Neurons of other tools become :class:`snn_ext.spikingjelly.PCMPIFNode`, with a leak if they have one. Only layers of
    torch, of the hosts and of this package are made, and nothing that stands in the graph is executed.

    Parameters
    ----------
    graph : nir.NIRGraph
        One graph without cycles, with one input and one output; ``nir.read`` reads it from a file.
    dt : float
        Length of a step in seconds, for graphs of other tools.

    Returns
    -------
    ConvertedNet or fx.GraphModule
        The net of one step, in the state of a net that was reset.

    Raises
    ------
    ImportError
        Without the package of ``snn_ext[nir]``.
    TypeError, ValueError
        If this package has no layer for a node, or its metadata are damaged; the error names it.

    Examples
    --------
    >>> import nir, numpy as np, torch, snn_ext
    >>> neurons = nir.IF(r=np.full(3, 1e4), v_threshold=np.ones(3), v_reset=np.zeros(3))
    >>> net = snn_ext.from_nir(nir.NIRGraph.from_list(nir.Linear(np.eye(3)), neurons))
    >>> [net(torch.full((1, 3), 0.75)).sum().item() for _ in range(4)]
    [0.0, 3.0, 0.0, 3.0]
    """
    _check_installed("from_nir")
    import nir

    if not isinstance(graph, nir.NIRGraph):
        bad_type("graph", graph, "a nir.NIRGraph")
    check_real("dt", dt, "a number of seconds > 0", 0.0)
    return _Reader(graph, float(dt)).read()


def _check_installed(caller: str) -> None:
    if find_spec("nir") is None:
        raise ImportError(f"{caller} needs nir: pip install 'snn_ext[nir]'")


class _Writer:
    """Writes a graph of layers as nodes of NIR; a sum is a node with several edges to it."""

    def __init__(self, graph: fx.GraphModule, values: dict[fx.Node, Any], metadata: bool, dt: float) -> None:
        self.graph, self.values, self.metadata, self.dt = graph, values, metadata, dt
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[fx.Node, list[str]] = {}  # the nodes of NIR whose sum a value is, in the order of adding

    def write(self, metadata: dict[str, str]) -> nir.NIRGraph:
        import nir

        for node in self.graph.graph.nodes:
            if node.op == "placeholder" and node.users:
                self._add(node, "input", nir.Input(input_type={"input": self._shape(node)}), [])
            elif node.op not in ("placeholder", "output"):
                self._visit(node)
        output = output_of(self.graph)
        self._add(output, "output", nir.Output(output_type={"output": self._shape(output)}), self.sources[output])
        return nir.NIRGraph(self.nodes, self.edges, metadata=metadata)

    def _visit(self, node: fx.Node) -> None:
        from .nir_layers import node_of

        inputs = node.all_input_nodes
        if getattr(node.target, "__name__", node.target) in ADDITIONS and node.op != "call_module":
            self.sources[node] = self._sum(node)
        elif rule_of_node(self.graph, node).identity and len(inputs) == 1:
            self.sources[node] = self.sources[inputs[0]]
        else:
            name = str(node.target) if node.op == "call_module" else node.name
            name = node.name if name in self.nodes or name in ("input", "output") else name
            module = module_of(self.graph, node)
            shapes = self._shape(inputs[0]) if inputs else (), self._shape(node)
            written = node_of(name, node if module is None else module, *shapes, self.metadata, self.dt)
            self._add(node, name, written, self.sources[inputs[0]])

    def _sum(self, node: fx.Node) -> list[str]:
        """Return the terms of a sum; two sums are joined by a factor of 1, for adding has an order."""
        import nir
        import numpy as np

        terms = [n for n in node.args if isinstance(n, fx.Node)]
        if len(terms) != 2 or node.kwargs or len(node.args) != 2:
            bad_value("net", f"{node.name}, a sum with a number", "sums of the outputs of two layers")
        if self._shape(terms[0]) != self._shape(terms[1]):
            bad_value("net", f"{node.name}, a sum of {[*map(self._shape, terms)]}", "two of one shape, as in NIR")
        first, second = (self.sources[n] for n in terms)
        if len(second) > 1:  # a + b is b + a
            first, second = second, first
        if len(second) > 1 or set(first) & set(second):
            self._add(node, f"{node.name}_term", nir.Scale(np.ones(self._shape(terms[1]), np.float32)), second)
            second = self.sources.pop(node)
        return [*first, *second]

    def _add(self, node: fx.Node, name: str, written: Any, sources: list[str]) -> None:
        self.nodes[name] = written
        self.edges += [(source, name) for source in sources]
        self.sources[node] = [name]

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        value = self.values.get(node)
        if not isinstance(value, Tensor):
            bad_value("net", f"{node.name}, a {type(value).__name__}", "layers between tensors")
        return tuple(value.shape[1:])


class _Reader:
    """Reads nodes of NIR as a graph of layers."""

    def __init__(self, graph: nir.NIRGraph, dt: float) -> None:
        self.graph, self.dt = graph, dt
        self.ours = "net" in (graph.metadata or {})

    def read(self) -> nn.Module:
        import nir

        from .nir_layers import module_from

        for kind in (nir.Input, nir.Output):
            count = sum(isinstance(node, kind) for node in self.graph.nodes.values())
            if count != 1:
                bad_value("graph", f"{count} nodes of {kind.__name__}", "one")
        made, root = fx.Graph(), dict[str, Any]()
        values: dict[str, fx.Node] = {}
        for name in self._in_order():
            node, sources = self.graph.nodes[name], [values[a] for a, b in self.graph.edges if b == name]
            if isinstance(node, nir.Input):
                values[name] = made.placeholder("x")
                continue
            if not sources:
                bad_value("graph", f"{name} without an edge to it", "nodes that the input reaches")
            value = functools.reduce(lambda a, b: made.call_function(operator.add, (a, b)), sources)
            if isinstance(node, nir.Output):
                made.output(value)
            else:
                target = self._free_name(name, root)
                root[target] = module_from(name, node, self.dt)
                values[name] = made.call_module(target, (value,))
        return net_of(root, made, self._about())

    def _free_name(self, name: str, taken: dict[str, Any]) -> str:
        """Return the name of a module for a node: it becomes part of code, so it is a word."""
        words = name.split(".") if self.ours else [name]
        words = [re.sub(r"[^A-Za-z0-9_]", "_", word) or "_" for word in words]
        found = ".".join(f"{word}_" if keyword.iskeyword(word) else word for word in words)
        while found in taken:
            found += "_"
        return found

    def _about(self) -> dict[str, Any]:
        if not self.ours:
            return {"training": False, "step_mode": None}
        try:
            about: dict[str, Any] = json.loads(self.graph.metadata["net"])
            return about
        except (TypeError, ValueError) as error:
            raise ValueError(f"graph: got damaged metadata ({first_line(error)}), want those of to_nir") from error

    def _in_order(self) -> Iterator[str]:
        """Yield the nodes, each behind its sources."""
        before: dict[str, list[str]] = {name: [] for name in self.graph.nodes}
        for source, target in self.graph.edges:
            if not {source, target} <= before.keys():
                bad_value("graph", f"an edge from {source} to {target}", "edges between nodes of the graph")
            before[target].append(source)
        try:
            return iter(tuple(TopologicalSorter(before).static_order()))
        except CycleError:
            return bad_value("graph", "a cycle, as of a recurrent layer", "a graph without cycles")
