"""Moving the value of a spike into the weights that follow, so that only 0/1 spikes travel."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_value
from ..neurons import IntegrateAndFireNeuron
from ..simulation.graph import MAX_POOLS, WEIGHTED, as_graph, emits_spikes
from .canonicalize import DROPOUTS, LINEAR, free_name, own_modules
from .modules import Scale
from .net import ConvertedNet
from .weights import multiply, scale_columns, scale_rows

__all__ = ["fold", "fold_scales"]

_TRANSPARENT = (*LINEAR, *MAX_POOLS, *DROPOUTS, nn.Identity)


def fold_scales(net: nn.Module) -> ConvertedNet:
    """Return a net whose neurons emit 0 and 1, with the value of their spikes moved into the weights that follow.

    A net that was trained with ``scale_output=True`` computes the same; the first rounding of its products is another,
    so isolated spikes may differ. Where spikes reach a neuron, an addition or the output without weights, as by an
    identity shortcut, a :class:`Scale` keeps their value as a synapse with a name.

    Parameters
    ----------
    net : nn.Module
        Of layers and neurons of :mod:`snn_ext.spikingjelly`, in step mode "s"; it is not changed.

    Raises
    ------
    ValueError
        If the net can not be traced, or no neuron of it scales its output.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(nn.Linear(2, 3), ATIFuNode(0.5, scale_output=True), nn.Linear(3, 1))
    >>> torch.equal(fold_scales(net).get_submodule("2").weight, net[2].weight * 0.5)
    True
    """
    graph = copy.deepcopy(as_graph(net))
    own_modules(graph)
    if not any(getattr(m, "scale_output", False) for m in graph.modules()):
        bad_value("net", type(net).__name__, "a net with neurons of scale_output=True")
    folded = graph if isinstance(graph, ConvertedNet) else ConvertedNet(graph, graph.graph)
    return fold(folded)


@torch.no_grad()
def fold(net: ConvertedNet, keep_output: bool = True) -> ConvertedNet:
    """Fold in place: scales before a neuron into the weights before them, all others into the weights behind.

    Parameters
    ----------
    net : ConvertedNet
        Each layer called once.
    keep_output : bool
        Put a scale at the end if the output consists of spikes; without it they are counted as they are.
    """
    for node in list(net.graph.nodes):
        if _module(net, node, Scale) is not None and any(_module(net, u, IntegrateAndFireNeuron) for u in node.users):
            _push_back(net, node)
    _Fold(net).run(keep_output)
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    return net


# -- backwards -------------------------------------------------------------------------------------------------------


def _push_back(net: fx.GraphModule, node: fx.Node) -> None:
    """Fold a scale into the rows of the layer before it, through additions."""
    scale: Any = net.get_submodule(str(node.target))
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) > 1 or scale.bias is not None:
        return
    if source.target is operator.add:
        for operand in source.all_input_nodes:
            part = _insert_scale(net, operand, source, scale.weight)
            _push_back(net, part)
    elif _module(net, source, WEIGHTED) is None or (len(scale.weight) > 1 and _is_wide(net, source)):
        return
    else:
        scale_rows(net.get_submodule(str(source.target)), scale.weight)
    node.replace_all_uses_with(source)
    net.graph.erase_node(node)


def _is_wide(net: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a linear layer works on ``[N, C, ..., F]``: its weights belong to features then, not to channels."""
    return _module(net, node, nn.Linear) is not None and len(node.meta["shape"]) != 2


# -- forwards --------------------------------------------------------------------------------------------------------


class _Fold:
    """Goes through the net with the unit of each value: what its number 1 stands for, ``[1]`` or ``[C]``."""

    def __init__(self, net: ConvertedNet) -> None:
        self.net = net
        self.units: dict[fx.Node, Tensor] = {}

    def run(self, keep_output: bool) -> None:
        for node in list(self.net.graph.nodes):
            if node.op == "placeholder":
                self.units[node] = torch.ones(1, dtype=torch.float64)
            elif node.op == "output":
                if keep_output:
                    self._settle(node, node.args[0])
            else:
                self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        module = self.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        inputs = node.all_input_nodes
        one = torch.ones(1, dtype=torch.float64)
        if isinstance(module, IntegrateAndFireNeuron):
            unit = self.units[inputs[0]]
            if len(unit) > 1:
                self._settle(node, inputs[0])
            elif not _is_one(unit):  # the current comes in this unit, and so does the threshold
                multiply(module, module.threshold_name, 1.0 / unit)
            self.units[node] = one
            if module.scale_output:
                level = module.thresholds().clip_level.detach().double().cpu()
                module.scale_output = False
                self.units[node] = level * (unit if len(unit) == 1 else one)
        elif isinstance(module, Scale):
            multiply(module, "weight", self.units[inputs[0]])
            self.units[node] = one
            if module.bias is None and len(inputs[0].users) == 1:
                self.units[inputs[0]] = module.weight.double().cpu()
                node.replace_all_uses_with(inputs[0])
                self.net.graph.erase_node(node)
        elif isinstance(module, WEIGHTED):
            unit = self.units[inputs[0]]
            if len(unit) > 1 and _is_wide(self.net, node):
                self._settle(node, inputs[0])
            elif not _is_one(unit):
                scale_columns(module, unit)
            self.units[node] = one
        elif node.target is operator.add or (isinstance(node.target, str) and node.target in ("add", "add_")):
            self._join(node, inputs)
        elif node.target in (torch.cat, torch.concat, torch.concatenate):
            self._concatenate(node, inputs)
        elif emits_spikes(module) and not isinstance(module, _TRANSPARENT):  # a host's neuron, an encoder
            self._settle(node, inputs[0])
            self.units[node] = one
        else:
            self._pass(node, module, inputs)

    def _pass(self, node: fx.Node, module: nn.Module | None, inputs: list[fx.Node]) -> None:
        unit = self.units[inputs[0]] if inputs else torch.ones(1, dtype=torch.float64)
        known = isinstance(module, _TRANSPARENT) or module is None
        if len(unit) > 1 and isinstance(module, nn.Flatten):
            channels, values = len(unit), node.meta["shape"][1]
            self.units[node] = unit.repeat_interleave(values // channels)
            return
        moves_channels = node.target is operator.getitem or getattr(node.target, "__name__", "") == "pad"
        if not known or (len(unit) > 1 and moves_channels):
            for source in inputs:
                self._settle(node, source)
            unit = torch.ones(1, dtype=torch.float64)
        self.units[node] = unit

    def _join(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Add values of one unit as they are, bring others into the units of the analog net."""
        first = self.units[inputs[0]]
        if all(torch.equal(first, self.units[source]) for source in inputs):
            self.units[node] = first
            return
        for source in inputs:
            self._settle(node, source)
        self.units[node] = torch.ones(1, dtype=torch.float64)

    def _concatenate(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        units = [self.units[source] for source in inputs]
        rank = len(inputs[0].meta["shape"]) if "shape" in inputs[0].meta else None
        if all(torch.equal(units[0], unit) for unit in units) and len(units[0]) == 1:
            self.units[node] = units[0]
        elif rank is not None and dim in (1, 1 - rank):
            sources: Any = node.args[0] if node.args else node.kwargs["tensors"]
            parts = [self.units[s].expand(s.meta["shape"][1]) for s in sources]
            self.units[node] = torch.cat(parts)
        else:
            self._join(node, inputs)

    def _settle(self, user: fx.Node, source: Any) -> None:
        """Put a scale between two nodes, unless the unit is 1."""
        if not _is_one(self.units[source]):
            node = _insert_scale(self.net, source, user, self.units[source])
            self.units[node] = torch.ones(1, dtype=torch.float64)


def _insert_scale(net: fx.GraphModule, source: fx.Node, user: fx.Node, unit: Tensor) -> fx.Node:
    before = str(source.target).replace(".", "_") if source.op == "call_module" else source.name
    name = free_name(net, f"{before}_scale")
    like = next((p for p in (*net.parameters(), *net.buffers()) if p.is_floating_point()), torch.ones(1))
    net.add_submodule(name, Scale(unit.to(like)))
    with net.graph.inserting_before(user):
        node = net.graph.call_module(name, (source,))
    node.meta = dict(source.meta)
    user.replace_input_with(source, node)
    return node


def _is_one(unit: Tensor) -> bool:
    return bool((unit == 1).all())


def _module(net: fx.GraphModule, node: Any, kind: Any) -> nn.Module | None:
    module = net.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, kind) else None
