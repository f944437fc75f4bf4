"""From the analog graph to a net of adaptive spiking neurons: where currents, filters, biases and heights go."""

from __future__ import annotations

import copy
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..neurons import AdaptiveSpikingNeuron
from ..neurons.aan import AAN
from ..neurons.precision import fold_height
from ..simulation.graph import WEIGHTED
from ..spikingjelly import ASNNode
from .canonicalize import POOLS, assign, free_name, refuse, spread_shapes
from .modules import Scale
from .net import ConvertedNet
from .weights import affine_of

__all__ = ["READOUT", "adaptive_net"]

READOUT = "readout"
"""Name of the smoothed read-out, unless the net has a module of that name."""
_TIMES = ("tau_gamma", "tau_eta", "tau_beta", "dt")


def adaptive_net(
    graph: fx.GraphModule,
    constants: dict[str, dict[str, Any]],
    x: Tensor,
    *,
    tau_phi: float,
    tau_readout: float,
    fold_scales: bool,
) -> ConvertedNet:
    """Return a spiking copy of an analog graph whose maximum poolings stand before activations.

    Parameters
    ----------
    graph : fx.GraphModule
        From :func:`.surgery.prepare`.
    constants : dict of str to dict
        For each activation the arguments of its :class:`snn_ext.spikingjelly.ASNNode`.
    x : Tensor
        Inputs.
    tau_phi, tau_readout : float
        Membrane filter of neurons and read-out in ms.
    fold_scales : bool
        Put the height of spikes into the weights that receive them; else neurons emit it.
    """
    graph = copy.deepcopy(graph)
    net = ConvertedNet(graph, graph.graph)
    spread_shapes(net, x[:1])
    biases, analog = _Silent(net, constants).biases(x[:1]), _analog(net, constants)
    placed: dict[fx.Node, fx.Node] = {}  # filters by the node whose value they filter
    for node in list(net.graph.nodes):
        if node.op == "call_module" and str(node.target) in constants:
            name, given = str(node.target), constants[str(node.target)]
            source, pool = _behind_poolings(net, node)
            options: dict[str, Any] = {"analog_input": analog[source], "bias": biases[source], "tau_phi": tau_phi}
            if pool is not None:
                if source not in placed:
                    times = {k: v for k, v in given.items() if k in _TIMES}
                    placed[source] = _filter(net, source, free_name(net, f"{name}_filter"), **times, **options)
                pool.replace_input_with(source, placed[source])
                options = {"analog_input": True, "tau_phi": 0.0}
            assign(net, name, ASNNode(**given, **options, scale_output=not fold_scales))
        elif node.op == "output":
            source, times = node.args[0], {k: v for k, v in next(iter(constants.values())).items() if k in _TIMES}
            options = {"bias": biases[source], "tau_phi": tau_readout, **times}
            if analog[source]:
                refuse("an output that no activation reaches", "activations between input and output")
            node.replace_input_with(source, _filter(net, source, free_name(net, READOUT), **options))
    _remove_biases(net, x.dtype)
    if fold_scales and any(given.get("spike_height", "fixed") == "fixed" for given in constants.values()):
        _Heights(net).fold()
    net.to(x.device)
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    return net.eval()


# -- filters and poolings --------------------------------------------------------------------------------------------


def _behind_poolings(net: ConvertedNet, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Return the value of which an activation is made, behind the poolings right before it, and the first of these."""
    source: Any = node.args[0]
    first = None
    while _is_pooled_for_neurons(net, source):
        first, source = source, source.args[0]
    if source.op == "call_module" and isinstance(net.get_submodule(str(source.target)), AdaptiveSpikingNeuron):
        source = source.args[0]  # the filter of another activation behind the same pooling is there already
    return source, first


def _is_pooled_for_neurons(net: ConvertedNet, node: fx.Node) -> bool:
    def module_of(node: fx.Node) -> nn.Module | None:
        return net.get_submodule(str(node.target)) if node.op == "call_module" else None

    return isinstance(module_of(node), POOLS) and all(
        isinstance(module_of(user), AdaptiveSpikingNeuron | nn.ReLU | AAN) or _is_pooled_for_neurons(net, user)
        for user in node.users
    )


def _filter(net: ConvertedNet, source: fx.Node, name: str, **options: Any) -> fx.Node:
    """Make a membrane without spikes behind a node."""
    net.add_submodule(name, ASNNode(readout=True, **options))
    with net.graph.inserting_after(source):
        node = net.graph.call_module(name, (source,))
    node.meta = dict(source.meta)
    return node


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
        spikes = node.op == "call_module" and str(node.target) in constants
        found[node] = node.op == "placeholder" or (not spikes and kinds == {True})
    return found


# -- biases ----------------------------------------------------------------------------------------------------------


class _Silent(fx.Interpreter):
    """Runs the analog net with no input and no activation: what is left are the biases."""

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


def _remove_biases(net: ConvertedNet, dtype: torch.dtype) -> None:
    for node in list(net.graph.nodes):
        module: Any = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, WEIGHTED):
            module.bias = None
        elif isinstance(module, _BatchNorm):
            assign(net, str(node.target), Scale(affine_of(module)[0]).to(dtype))


# -- heights of spikes -----------------------------------------------------------------------------------------------


class _Heights:
    """Goes through the net with what each value consists of: the spikes of which neurons, and in what sums.

    Weights that receive spikes are told whose (``spike_source``) and with how many bits behind the point
    (``spike_bits``), and get their height. Where spikes reach a neuron or the output without weights, or spikes of
    several heights meet, a :class:`Scale` is put in between.
    """

    def __init__(self, net: ConvertedNet) -> None:
        self.net = net
        self.source: dict[fx.Node, str | None] = {}
        self.bits: dict[fx.Node, int | None] = {}

    def fold(self) -> None:
        for node in list(self.net.graph.nodes):
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        module: Any = self.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        inputs = node.all_input_nodes
        self.source[node], self.bits[node] = None, None
        if isinstance(module, AdaptiveSpikingNeuron) or node.op == "output":
            self._settle(node)
            if module is not None and module.emits_spikes:
                self.source[node], self.bits[node] = str(node.target), 0
        elif isinstance(module, (*WEIGHTED, Scale)):
            self._feed(module, inputs[0])
        elif inputs:
            kinds = {self._height(n) for n in inputs}
            if len(kinds) > 1:
                self._settle(node)
                return
            self.source[node] = self.source[inputs[0]]
            self.bits[node] = self._bits_behind(node, module, [self.bits[n] for n in inputs])

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
        layer.weight = copy.deepcopy(layer.weight)  # its own: a tied one would get the heights of several neurons
        layer.spike_source, layer.spike_bits = name, self.bits[node]
        neuron: Any = self.net.get_submodule(name)
        fold_height(layer, neuron.h)

    def _settle(self, user: fx.Node) -> None:
        """Put a synapse of weight 1 behind all spikes that reach a node."""
        for node in user.all_input_nodes:
            if self.source[node] is None:
                continue
            name = free_name(self.net, f"{node.name}_scale")
            self.net.add_submodule(name, Scale(torch.ones(1, dtype=torch.float32)))
            with self.net.graph.inserting_before(user):
                scale = self.net.graph.call_module(name, (node,))
            scale.meta = dict(node.meta)
            user.replace_input_with(node, scale)
            self._visit(scale)

    def _bits_behind(self, node: fx.Node, module: Any, bits: list[int | None]) -> int | None:
        """Return how many bits a value needs behind the point, larger sums counted in; None for thirds and such."""
        if any(b is None for b in bits):
            return None
        most = max(b for b in bits if b is not None)
        if node.target is operator.add:
            return most + 1
        if isinstance(module, POOLS):
            window = _window(module, node)
            return None if window is None or window & (window - 1) else most + int(math.log2(window))
        names = ("mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate")
        averages = getattr(node.target, "__name__", node.target) in names or isinstance(module, nn.Upsample)
        return None if averages or "adaptive" in str(node.target) else most


def _window(pool: Any, node: fx.Node) -> int | None:
    """Return over how many values a pooling takes the mean, None if it is not the same number everywhere."""
    source: Any = node.args[0]
    before, after = source.meta["shape"][2:], node.meta["shape"][2:]
    if not hasattr(pool, "kernel_size"):  # adaptive
        return None if any(a % b for a, b in zip(before, after, strict=True)) else math.prod(before) // math.prod(after)
    size = pool.kernel_size
    whole = not getattr(pool, "ceil_mode", False) and getattr(pool, "count_include_pad", True)
    return (size ** len(before) if isinstance(size, int) else math.prod(size)) if whole else None
