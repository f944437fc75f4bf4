"""From the analog graph to a net of adaptive spiking neurons: places of filters, biases and heights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neurons.aan import AAN
from ..neurons.asn import AdaptiveSpikingNeuron
from ..neurons.precision import fold_height
from ..simulation.layers import module_of, rule_of, rule_of_node
from ..spikingjelly import ASNNode
from .canonicalize import AnalogNet
from .gates import gates
from .graph_tools import assign, calls, free_name, insert_behind, refuse, shape_of
from .modules import Scale
from .net import ConvertedNet

__all__ = ["READOUT", "adaptive_net"]

READOUT = "readout"
"""Name of the smoothed read-out, unless the net has a module of that name."""


def adaptive_net(
    analog_net: AnalogNet,
    constants: dict[str, dict[str, Any]],
    *,
    tau_phi: float,
    tau_readout: float,
    fold_scales: bool,
) -> ConvertedNet:
    """Return a spiking copy of an analog net whose maximum poolings stand before activations.

    Parameters
    ----------
    analog_net : AnalogNet
        From :func:`.canonicalize.canonicalize`, with ``pools="before"``.
    constants : dict of str to dict
        For each activation the arguments of its :class:`snn_ext.spikingjelly.ASNNode`.
    tau_phi, tau_readout : float
        Membrane filter of neurons and read-out in ms.
    fold_scales : bool
        Put the height of spikes into the weights that receive them; else neurons emit it.
    """
    for name in gates(analog_net.graph):
        refuse(f"the gate {name}", "method='data-norm' or 'spike-norm': adaptive neurons have no gates")
    graph, x = copy.deepcopy(analog_net.graph), analog_net.x
    net = ConvertedNet(graph, graph.graph)
    biases, analog = _Silent(net, constants).biases(x[:1]), _analog(net, constants)
    placed: dict[fx.Node, fx.Node] = {}  # filters by the node whose value they filter
    for node in list(net.graph.nodes):
        if calls(node, constants):
            name, given = str(node.target), constants[str(node.target)]
            source, pool = _behind_poolings(net, node)
            options: dict[str, Any] = {"analog_input": analog[source], "bias": biases[source], "tau_phi": tau_phi}
            if pool is not None:
                if source not in placed:
                    placed[source] = _filter(net, source, f"{name}_filter", [], _times(given) | options)
                pool.replace_input_with(source, placed[source])
                options = {"analog_input": True, "tau_phi": 0.0}
            assign(net, name, ASNNode(**given, **options, scale_output=not fold_scales))
        elif node.op == "output":
            source = node.args[0]
            if analog[source]:
                refuse("an output that no activation reaches", "activations between input and output")
            options = {"bias": biases[source], "tau_phi": tau_readout} | _times(next(iter(constants.values())))
            _filter(net, source, READOUT, [node], options)
    layers: list[Any] = [m for m in net.modules() if rule_of(m).weighted or isinstance(m, Scale)]
    for layer in layers:
        layer.bias = None
    if fold_scales and any(given.get("spike_height", "fixed") == "fixed" for given in constants.values()):
        _Heights(net).fold()
    net.to(x.device)
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    return net.eval()


# -- filters and poolings --------------------------------------------------------------------------------------------


def _behind_poolings(net: ConvertedNet, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Return the value before the poolings that lead to an activation, and the first of these poolings."""
    source: Any = node.args[0]
    first = None
    while _is_pooled_for_neurons(net, source):
        first, source = source, source.args[0]
    if isinstance(module_of(net, source), AdaptiveSpikingNeuron):
        source = source.args[0]  # the filter of another activation behind the same pooling is there already
    return source, first


def _is_pooled_for_neurons(net: ConvertedNet, node: fx.Node) -> bool:
    return node.op == "call_module" and rule_of_node(net, node).pooling is not None and all(
        isinstance(module_of(net, user), AdaptiveSpikingNeuron | nn.ReLU | AAN) or _is_pooled_for_neurons(net, user)
        for user in node.users
    )  # fmt: skip


def _filter(net: ConvertedNet, source: fx.Node, name: str, users: list[fx.Node], options: dict[str, Any]) -> fx.Node:
    """Put a membrane without spikes behind a node."""
    return insert_behind(net, source, free_name(net, name), ASNNode(readout=True, **options), users)


def _times(constants: dict[str, Any]) -> dict[str, Any]:
    return {name: constants[name] for name in ("tau_gamma", "tau_eta", "tau_beta", "dt") if name in constants}


def _analog(net: ConvertedNet, constants: dict[str, Any]) -> dict[fx.Node, bool]:
    """Return for each value whether it is made of the image, and not of spikes."""
    found: dict[fx.Node, bool] = {}
    for node in net.graph.nodes:
        kinds = {found[n] for n in node.all_input_nodes}
        if len(kinds) > 1:
            refuse(
                f"{node.name}, where the input meets spikes",
                "an activation on the input before: a snn_ext.BNAAN turns it into spikes",
            )
        spikes = calls(node, constants)
        found[node] = node.op == "placeholder" or (not spikes and kinds == {True})
    return found


# -- biases ----------------------------------------------------------------------------------------------------------


class _Silent(fx.Interpreter):
    """Runs the analog net with input and activations zero, which leaves the biases."""

    def __init__(self, net: fx.GraphModule, activations: dict[str, Any]) -> None:
        super().__init__(net, garbage_collect_values=False)
        self.activations = activations

    @torch.no_grad()
    def biases(self, x: Tensor) -> dict[fx.Node, Tensor | None]:
        """Return the bias of each value: ``[C]``, or ``[1, C, ...]`` where it depends on the position; None for 0."""
        self.run(torch.zeros_like(x))
        return {node: _bias(value) for node, value in self.env.items() if isinstance(value, Tensor)}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = super().call_module(target, args, kwargs)
        return torch.zeros_like(value) if target in self.activations else value


def _bias(value: Tensor) -> Tensor | None:
    if not bool(value.any()):
        return None
    channels = value[0].flatten(1)[:, 0] if value.ndim > 2 else value[0]
    constant = torch.equal(value, channels.reshape(1, -1, *[1] * (value.ndim - 2)).expand_as(value))
    return (channels if constant else value).clone()


# -- heights of spikes -----------------------------------------------------------------------------------------------


class _Heights:
    """Follows the spikes through the net: which neurons emit them, and in what sums they arrive.

    Weights that receive spikes get their height. They are told the name of a neuron that emits them
    (``spike_source``), and the number of fractional bits of the arriving sums (``spike_bits``). Where spikes reach a
    neuron or the output without weights, or spikes of several heights meet, a :class:`Scale` is put in between.
    """

    def __init__(self, net: ConvertedNet) -> None:
        self.net = net
        self.source: dict[fx.Node, str | None] = {}
        self.bits: dict[fx.Node, int | None] = {}

    def fold(self) -> None:
        for node in list(self.net.graph.nodes):
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        module: Any = module_of(self.net, node)
        inputs = node.all_input_nodes
        self.source[node], self.bits[node] = None, None
        if isinstance(module, AdaptiveSpikingNeuron) or node.op == "output":
            self._settle(node)
            if module is not None and module.emits_spikes:
                self.source[node], self.bits[node] = str(node.target), 0
        elif isinstance(module, Scale) or rule_of(module).weighted:
            self._feed(module, inputs[0])
        elif inputs:
            if len({self._height(n) for n in inputs}) > 1:
                self._settle(node)
            else:
                self.source[node], self.bits[node] = self.source[inputs[0]], self._bits_behind(node)

    def _height(self, node: fx.Node) -> Any:
        """Return what the height of the spikes at a node depends on."""
        name = self.source[node]
        if name is None:
            return None
        neuron: Any = self.net.get_submodule(name)
        constants = ("m_f", "theta_0", "v_threshold", "tau_gamma", "tau_eta", "tau_beta")
        return tuple(float(getattr(neuron, constant)) for constant in constants)

    def _feed(self, layer: Any, node: fx.Node) -> None:
        name = self.source[node]
        if name is None:
            return
        layer.register_buffer("analog_weight", layer.weight.detach().clone())
        layer.weight = copy.deepcopy(layer.weight)  # a copy: a tied weight would get the heights of several neurons
        layer.spike_source, layer.spike_bits = name, self.bits[node]
        neuron: Any = self.net.get_submodule(name)
        fold_height(layer, neuron.h)

    def _settle(self, user: fx.Node) -> None:
        """Put a synapse of weight 1 behind all spikes that reach a node."""
        for node in user.all_input_nodes:
            if self.source[node] is not None:
                name = free_name(self.net, f"{node.name}_scale")
                self._visit(insert_behind(self.net, node, name, Scale(torch.ones(1, dtype=torch.float32)), [user]))

    def _bits_behind(self, node: fx.Node) -> int | None:
        """Return how many fractional bits hold a value exactly, growth by summing included.

        None if there is no such number, as for an average over three.
        """
        inputs, rule = node.all_input_nodes, rule_of_node(self.net, node)
        bits = [self.bits[n] for n in inputs]
        more = rule.bits_behind(module_of(self.net, node), shape_of(inputs[0]), shape_of(node))
        return None if more is None or None in bits else max(b for b in bits if b is not None) + more
