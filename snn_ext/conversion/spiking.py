"""From the analog graph to a spiking one: neurons in the place of activations, with thresholds still to be set."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..hosts import is_neuron
from ..simulation.graph import MAX_POOLS
from ..spikingjelly import PCMPIFNode
from .canonicalize import Activation, assign, spread_shapes
from .modules import PoissonEncoder, Scale, SpikeMaxPool1d, SpikeMaxPool2d, SpikeMaxPool3d
from .net import ConvertedNet
from .quantized import START
from .weights import affine_of

__all__ = ["INPUT", "OUTPUT", "Thresholds", "neurons", "residual_units", "spiking_net"]

INPUT, OUTPUT = "input_spikes", "output_spikes"
"""Names of the encoder, and of the neurons on the output."""


def spiking_net(
    graph: fx.GraphModule,
    activations: dict[str, Activation],
    x: Tensor,
    *,
    encoder: str,
    seed: int,
    v_reset: float | None,
    precharge: float,
    channel_wise: bool,
) -> ConvertedNet:
    """Return a spiking copy of an analog graph, whose neurons scale their output by the threshold.

    With ``channel_wise`` each neuron has the threshold 1 and stands between two :class:`Scale`, ``.._before`` and
    ``.._after``, for thresholds per channel.
    """
    graph = copy.deepcopy(graph)
    net = ConvertedNet(graph, graph.graph)
    spread_shapes(net, x[:1])
    for node in list(net.graph.nodes):
        if node.op == "placeholder" and encoder != "direct":
            _encode(net, node, encoder, seed, v_reset, precharge)
        if node.op != "call_module":
            continue
        name, module = str(node.target), net.get_submodule(str(node.target))
        if name in activations:
            own = activations[name].quantized is not None
            assign(net, name, _neuron(activations[name], v_reset, precharge))
            if channel_wise and not own:
                _between_scales(net, node, name, x.dtype)
        elif isinstance(module, MAX_POOLS):
            assign(net, name, _POOLS[type(module)].like(module))
        elif isinstance(module, _BatchNorm):
            assign(net, name, Scale(*affine_of(module)).to(x.dtype))
    net.to(x.device)
    net.graph.lint()
    net.recompile()
    return net.eval()


_POOLS: dict[Any, Any] = dict(zip(MAX_POOLS, (SpikeMaxPool1d, SpikeMaxPool2d, SpikeMaxPool3d), strict=True))


class Thresholds:
    """Sets the thresholds of a net that :func:`spiking_net` has made, and reads them.

    Parameters
    ----------
    net : ConvertedNet
        The net.
    activations : dict of str to Activation
        Clips and quantised thresholds by name.
    """

    def __init__(self, net: ConvertedNet, activations: dict[str, Activation]) -> None:
        self.net, self.activations = net, activations

    def set(self, name: str, value: Tensor) -> Tensor:
        """Set the threshold of a layer, ``[1]`` or ``[C]``, and return it; a clip is not exceeded.

        The layer gets a copy: its own threshold may be scaled or lowered later, the one returned is a record. It is
        rounded to float32 in a net of float64 too: sums of spikes that carry it are exact there.
        """
        activation = self.activations.get(name, Activation())
        if activation.clip is not None:
            value = value.clamp_max(activation.clip)
        value = value.detach().float().reshape(-1)
        if activation.quantized is not None:
            value = activation.quantized.threshold.detach().reshape(1)
        neuron: Any = self.net.get_submodule(name)
        before = self._scale(name, "before")
        if before is None:
            neuron.v_threshold = value.to(neuron.v_threshold.device, copy=True)
        else:
            after: Any = self._scale(name, "after")
            before.weight, after.weight = (v.to(before.weight.dtype) for v in (value.double().reciprocal(), value))
            before.to(neuron.v_threshold.device)
            after.to(neuron.v_threshold.device)
        return value

    def _scale(self, name: str, place: str) -> Any:
        return dict(self.net.named_modules()).get(f"{name}_{place}")


def residual_units(graph: fx.GraphModule, activations: dict[str, Activation]) -> dict[str, str | None]:
    """Return the activations inside residual units, each with the one whose spikes enter the unit (None: the input).

    A unit reaches from where two branches part to the activation behind their addition, that one included.
    """
    nodes = list(graph.graph.nodes)
    place = {node: k for k, node in enumerate(nodes)}

    def before(node: fx.Node) -> set[fx.Node]:
        found, stack = {node}, [node]
        while stack:
            for source in stack.pop().all_input_nodes:
                if source not in found:
                    found.add(source)
                    stack.append(source)
        return found

    def is_activation(node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target) in activations

    entry: dict[str, str | None] = {}
    for junction in nodes:
        if junction.target is not operator.add or len(junction.all_input_nodes) < 2:
            continue
        branches = [before(source) for source in junction.all_input_nodes]
        common = set.intersection(*branches)
        fork = max(common, key=place.__getitem__)
        outer = [n for n in sorted(before(fork), key=place.__getitem__) if is_activation(n)]
        source = str(outer[-1].target) if outer else None
        source = entry.get(source, source) if source is not None else None
        inside = [n for n in set.union(*branches) - before(fork) if is_activation(n)]
        inside += _next_activations(junction, is_activation)
        entry.update({str(n.target): source for n in inside})
    return entry


def _next_activations(node: fx.Node, is_activation: Any) -> list[fx.Node]:
    """Return the activations that a sum reaches without another operation."""
    return [user for user in node.users if is_activation(user)]


def _neuron(activation: Activation, v_reset: float | None, precharge: float) -> PCMPIFNode:
    if activation.quantized is None:
        return PCMPIFNode(1.0, v_reset, precharge=precharge, scale_output=True)
    rounding = activation.quantized.rounding
    return PCMPIFNode(
        float(activation.quantized.threshold.detach()),
        v_reset,
        precharge=START[rounding],
        scale_output=True,
        fire_at_threshold=rounding != "ceil",
    )


def _encode(net: ConvertedNet, node: fx.Node, encoder: str, seed: int, v_reset: float | None, precharge: float) -> None:
    module: nn.Module = PoissonEncoder(seed) if encoder == "poisson" else PCMPIFNode(1.0, v_reset, precharge=precharge)
    users = list(node.users)
    net.add_submodule(INPUT, module)
    with net.graph.inserting_after(node):
        spikes = net.graph.call_module(INPUT, (node,))
    spikes.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, spikes)


def _between_scales(net: ConvertedNet, node: fx.Node, name: str, dtype: torch.dtype) -> None:
    channels = node.meta["shape"][1]
    for place in ("before", "after"):
        net.add_submodule(f"{name}_{place}", Scale(torch.ones(channels, dtype=dtype)))
    net.get_submodule(name).scale_output = False  # type: ignore[assignment]
    users = list(node.users)
    with net.graph.inserting_before(node):
        before = net.graph.call_module(f"{name}_before", (node.args[0],))
    node.args = (before,)
    with net.graph.inserting_after(node):
        after = net.graph.call_module(f"{name}_after", (node,))
    before.meta = after.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, after)


def neurons(net: fx.GraphModule) -> list[str]:
    """Return the names of the layers of neurons in the order of the forward pass."""
    called = [str(node.target) for node in net.graph.nodes if node.op == "call_module"]
    return [name for name in called if is_neuron(net.get_submodule(name))]
