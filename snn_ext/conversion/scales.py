"""Moving the value of a spike into the weights that follow, so that spikes are 0 and 1."""

from __future__ import annotations

import copy
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_value
from ..neurons.integrate_and_fire import IntegrateAndFireNeuron
from ..simulation.graph import as_graph
from ..simulation.layers import known_type, module_of, rule_of_node
from .canonicalize import own_modules
from .graph_tools import bypass, free_name, insert_behind, shape_of
from .modules import Scale, over_channels
from .net import ConvertedNet
from .weights import multiply, scale_columns, scale_rows, shift_rows

__all__ = ["arriving_spikes", "fold", "fold_scales"]


def fold_scales(net: nn.Module) -> ConvertedNet:
    """Return a net whose neurons emit 0 and 1, with the value of their spikes moved into the weights that follow.

    A net that was trained with ``scale_output=True`` computes the same; its products are rounded elsewhere, so isolated
    spikes may differ. Where spikes reach a neuron, an addition or the output without weights, as by an identity
    shortcut, a :class:`Scale` with a name keeps their value.

    Parameters
    ----------
    net : nn.Module
        Of layers and neurons of :mod:`snn_ext.spikingjelly`, in step mode "s"; it is not changed.

    Raises
    ------
    ValueError
        If the net cannot be traced, or no neuron of it scales its output.

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
        behind = [module_of(net, user) for user in node.users]
        if isinstance(module_of(net, node), Scale) and any(isinstance(m, IntegrateAndFireNeuron) for m in behind):
            _push_back(net, node)
    _Fold(net).run(keep_output)
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    return net


# -- backwards -------------------------------------------------------------------------------------------------------


def _push_back(net: fx.GraphModule, node: fx.Node) -> None:
    """Fold a scale into the rows of the layer before it, through additions; its bias into one of them."""
    scale: Any = module_of(net, node)
    source = node.all_input_nodes[0]
    if len(source.users) > 1:
        return
    if source.target is operator.add:
        bias = scale.bias
        for operand in sorted(source.all_input_nodes, key=lambda n: not rule_of_node(net, n).weighted):
            times = source.args.count(operand)  # x + x has its bias twice
            inserted = _insert_scale(net, operand, source, scale.weight)
            module_of(net, inserted).bias, bias = None if bias is None else bias / times, None  # type: ignore
            _push_back(net, inserted)
    elif rule_of_node(net, source).weighted and (len(scale.weight) == 1 or _mixes_channels(net, source)):
        scale_rows(module_of(net, source), scale.weight)
        if scale.bias is not None:
            shift_rows(module_of(net, source), scale.bias)
    else:
        return
    bypass(node)


def _mixes_channels(net: fx.GraphModule, node: fx.Node) -> bool:
    """Return False for a linear layer on ``[N, C, ..., F]``, whose weights belong to features and not to channels."""
    dim = rule_of_node(net, node).feature_dim
    return dim == 1 or dim % len(shape_of(node)) == 1


# -- forwards --------------------------------------------------------------------------------------------------------

_ONE = torch.ones(1, dtype=torch.float64)


class _Fold:
    """Propagates the unit of every value: the factor, ``[1]`` or ``[C]``, that turns it into the analog net's value."""

    def __init__(self, net: ConvertedNet) -> None:
        self.net = net
        self.units: dict[fx.Node, Tensor] = {}
        self.sizes: set[fx.Node] = set()  # values that are no tensors, and parameters

    def run(self, keep_output: bool) -> None:
        for node in list(self.net.graph.nodes):
            if node.op == "placeholder":
                self.units[node] = _ONE
            elif node.op == "output":
                if keep_output:
                    self._settle(node)
            else:
                self.units[node] = self._unit_behind(node)

    def _unit_behind(self, node: fx.Node) -> Tensor:
        """Return the unit of what an operation returns; weights and thresholds take up the unit of its input."""
        module, rule = module_of(self.net, node), rule_of_node(self.net, node)
        units = [self.units[source] for source in node.all_input_nodes if source not in self.sizes]
        if not units or node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
            self.sizes.add(node)
            return _ONE
        if isinstance(module, IntegrateAndFireNeuron):
            return self._neuron(node, module, units[0])
        if isinstance(module, Scale):
            return self._scale(node, module, units[0])
        if rule.weighted:
            if len(units[0]) > 1 and not _mixes_channels(self.net, node):
                self._settle(node)
            elif not _is_one(units[0]):
                scale_columns(module, units[0])
            return _ONE
        if rule.passes_unit and _are_equal(units) and len(units[0]) == 1:
            return units[0]
        if node.target is operator.mul and len(units) == 2 and _is_one(units[1]):  # by a gate, which has no unit
            return units[0]
        found = self._units_moved(node) if rule.passes_unit else None
        if found is None:
            self._settle(node)
        return _ONE if found is None else found

    def _units_moved(self, node: fx.Node) -> Tensor | None:
        """Return the units per channel behind an operation, found by running it; ``None`` if it has none."""
        if any("shape" not in source.meta for source in node.all_input_nodes):
            return None
        generator = torch.Generator().manual_seed(0)
        plain, scaled = dict[fx.Node, Tensor](), dict[fx.Node, Tensor]()
        for source in node.all_input_nodes:  # integers, so that sums with units of float32 are exact
            plain[source] = torch.randint(1, 1 << 12, shape_of(source), generator=generator).double()
            scaled[source] = plain[source] * over_channels(self.units[source], plain[source].ndim)
        before, behind = (_run(self.net, node, values) for values in (plain, scaled))
        # what is 0 has any unit
        ratio = torch.where(before == 0, torch.nan, behind / before).transpose(0, 1).flatten(1)
        units = ratio.nan_to_num(0.0).amax(1)
        fits = bool(((ratio == units.unsqueeze(1)) | ratio.isnan()).all())
        units = torch.where(units == 0, 1.0, units)
        return (units[:1] if bool((units == units[0]).all()) else units) if fits else None

    def _neuron(self, node: fx.Node, neuron: Any, unit: Tensor) -> Tensor:
        if len(unit) > 1:
            self._settle(node)
            unit = _ONE
        elif not _is_one(unit):  # the current comes in this unit, and so does the threshold
            multiply(neuron, neuron.threshold_name, 1.0 / unit)
        if not neuron.scale_output:
            return _ONE
        level: Tensor = neuron.thresholds().clip_level.detach().double().cpu()
        neuron.scale_output = False
        return level * unit

    def _scale(self, node: fx.Node, scale: Any, unit: Tensor) -> Tensor:
        multiply(scale, "weight", unit)
        source = node.all_input_nodes[0]
        if scale.bias is None and len(source.users) == 1 and bool((scale.weight > 0).all()):
            self.units[source] = scale.weight.double().cpu()
            bypass(node)
        return _ONE

    def _settle(self, user: fx.Node) -> None:
        """Bring all that reaches an operation into the units of the analog net, by a scale before it."""
        for source in user.all_input_nodes:
            if not _is_one(self.units[source]):
                self.units[_insert_scale(self.net, source, user, self.units[source])] = _ONE


def _run(net: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor:
    """Run one operation that passes units, in float64; a pooling of spikes pools values."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    target: Any = node.target
    if node.op == "call_module":
        module: Any = module_of(net, node)
        result: Tensor = known_type(module).forward(module, *args, **kwargs)
    else:
        result = getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
    return result


def _insert_scale(net: fx.GraphModule, source: fx.Node, user: fx.Node, unit: Tensor) -> fx.Node:
    before = str(source.target).replace(".", "_") if source.op == "call_module" else source.name
    like = next((p for p in (*net.parameters(), *net.buffers()) if p.is_floating_point()), torch.ones(1))
    return insert_behind(net, source, free_name(net, f"{before}_scale"), Scale(unit.to(like)), [user])


def _is_one(unit: Tensor) -> bool:
    return bool((unit == 1).all())


def _are_equal(units: list[Tensor]) -> bool:
    return all(torch.equal(units[0], unit) for unit in units)


# -- for the report --------------------------------------------------------------------------------------------------


def arriving_spikes(net: ConvertedNet, thresholds: dict[str, Tensor], encoder: str) -> dict[str, float | None]:
    """Return for each layer what one spike that arrives stands for; None for a current or spikes of several values.

    Call it before the scales are folded; ``encoder`` is the name of the layer whose spikes stand for 1.
    """
    values: dict[fx.Node, set[float]] = {}
    found: dict[str, float | None] = {}
    for node in net.graph.nodes:
        name, arriving = str(node.target), set().union(*(values[n] for n in node.all_input_nodes)) or {math.nan}
        if name == encoder or name in thresholds:
            value = next(iter(arriving))
            found[name] = None if len(arriving) > 1 or math.isnan(value) else value
            threshold = thresholds.get(name, _ONE)
            arriving = {float(threshold) if len(threshold) == 1 else math.nan}
        values[node] = arriving
    return found
