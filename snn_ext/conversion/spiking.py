"""From the analog graph to a spiking one: neurons for activations, and the thresholds that are set in them."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..neurons import IntegrateAndFireNeuron
from ..neurons.quantized import NonUniformQuantizedReLU, QuantizedReLU
from ..simulation.layers import known_type, module_of
from ..simulation.plan import ancestors
from ..spikingjelly import ATIFnuNode, PCMPIFNode
from .activations import Activation
from .canonicalize import AnalogNet
from .gates import is_gate
from .graph_tools import assign, bypass, calls, calls_neuron, insert_behind, of_inputs, shape_of
from .modules import Gate, PoissonEncoder, Scale, SpikeMaxPool1d, SpikeMaxPool2d, SpikeMaxPool3d
from .net import ConvertedNet
from .report import Notes
from .thresholds import above_floor

__all__ = ["INPUT", "OUTPUT", "ThresholdSetter", "emit_ones", "neurons", "residual_units", "spiking_net"]

INPUT, OUTPUT = "input_spikes", "output_spikes"
"""Names of the encoder, and of the neurons on the output."""


def spiking_net(
    analog: AnalogNet, *, encoder: str, seed: int, v_reset: float | None, precharge: float, scales: bool
) -> ConvertedNet:
    """Return a spiking copy of an analog net, whose neurons scale their output by the threshold.

    With ``scales`` each neuron has the threshold 1 and stands between two :class:`Scale`, ``.._before`` and
    ``.._after``: thresholds per channel that are to be folded into the weights.
    """
    graph, dtype = copy.deepcopy(analog.graph), analog.x.dtype
    net = ConvertedNet(graph, graph.graph)
    steady = of_inputs(graph, analog.activations) if encoder == "direct" else set()
    for node in list(net.graph.nodes):
        module, name = module_of(net, node), str(node.target)
        if node.op == "placeholder" and encoder != "direct":
            neuron = PCMPIFNode(1.0, v_reset, precharge=precharge)
            insert_behind(net, node, INPUT, PoissonEncoder(seed) if encoder == "poisson" else neuron)
        elif module is not None and name in analog.activations:
            activation = analog.activations[name]
            assign(net, name, _neuron(activation, v_reset, precharge))
            if scales and activation.quantized is None:
                _put_between_scales(net, node, dtype)
        elif module is not None and is_gate(graph, node):
            assign(net, name, Gate(module))
        elif module is not None and known_type(module) in _POOLS and node not in steady:
            assign(net, name, _POOLS[known_type(module)].like(module))
    net.to(analog.x.device)
    net.graph.lint()
    net.recompile()
    return net.eval()


_POOLS: dict[Any, Any] = {
    nn.MaxPool1d: SpikeMaxPool1d, nn.MaxPool2d: SpikeMaxPool2d, nn.MaxPool3d: SpikeMaxPool3d
}  # fmt: skip


def _neuron(activation: Activation, v_reset: float | None, precharge: float) -> IntegrateAndFireNeuron:
    quantized = activation.quantized
    if activation.points is not None:
        return ATIFnuNode(torch.tensor(activation.points), T=len(activation.points), scale_output=True)
    if quantized is None:
        return PCMPIFNode(1.0, v_reset, precharge=precharge, scale_output=True)
    if isinstance(quantized, NonUniformQuantizedReLU):  # "cumulative" is exact wherever the points are
        points = quantized.quantization_points().detach()
        return ATIFnuNode(points, T=quantized.levels, recursion="cumulative", scale_output=True)
    return PCMPIFNode(
        float(quantized.clip_level().detach()),
        v_reset,
        precharge=quantized.v_init,
        scale_output=True,
        fire_at_threshold=quantized.fire_at_threshold,
    )


def _put_between_scales(net: ConvertedNet, node: fx.Node, dtype: torch.dtype) -> None:
    name, ones = str(node.target), torch.ones(shape_of(node)[1], dtype=dtype)
    net.get_submodule(name).scale_output = False  # type: ignore[assignment]
    insert_behind(net, node.all_input_nodes[0], f"{name}_before", Scale(ones), [node])
    insert_behind(net, node, f"{name}_after", Scale(ones))


def neurons(net: fx.GraphModule) -> list[str]:
    """Return the names of the layers of neurons in the order of the forward pass."""
    return [str(node.target) for node in net.graph.nodes if calls_neuron(net, node)]


def emit_ones(net: ConvertedNet, name: str) -> None:
    """Let one layer of neurons emit 0 and 1 in a net whose other neurons scale their output."""
    net.get_submodule(name).scale_output = False  # type: ignore[assignment]
    for node in list(net.graph.nodes):
        if node.target == f"{name}_after":
            bypass(node)
    net.delete_all_unused_submodules()
    net.recompile()


# -- thresholds --------------------------------------------------------------------------------------------------------


class ThresholdSetter:
    """Sets the thresholds of a net that :func:`spiking_net` has made, and records them.

    Parameters
    ----------
    net : ConvertedNet
        The net.
    activations : dict of str to Activation
        Clips and quantised thresholds by name.
    units : dict of str to (str or None), optional
        From :func:`residual_units`: layers that take over the threshold of another one.

    Attributes
    ----------
    values : dict of str to Tensor
        The thresholds that were set, ``[1]`` or ``[C]``, in the units of the analog net.
    rules : dict of str to str
        Where each comes from.
    errors : dict of str to (float, float)
        Relative errors of calibrated layers before and after their search.
    notes : Notes
        What the report of each layer has to say.
    """

    def __init__(
        self, net: ConvertedNet, activations: dict[str, Activation], units: dict[str, str | None] | None = None
    ) -> None:
        self.net, self.activations, self.units = net, activations, units or {}
        self.values: dict[str, Tensor] = {}
        self.rules: dict[str, str] = {}
        self.errors: dict[str, tuple[float, float]] = {}
        self.notes = Notes()

    def given(self, name: str) -> tuple[Tensor, str] | None:
        """Return threshold and rule of a layer for which none is to be found; ``None`` for any other layer."""
        quantized = self.activations[name].quantized
        if quantized is not None:
            rule = quantized.rounding if isinstance(quantized, QuantizedReLU) else f"{quantized.levels} points"
            return quantized.clip_level().detach().reshape(1), f"quantised, {rule}"
        if name in self.units:
            return self.values.get(self.units[name] or "", torch.ones(1)), "unit threshold"
        return None

    def set(self, name: str, value: Tensor, rule: str) -> None:
        """Set the threshold of a layer to a given one, or else to ``value``, ``[1]`` or ``[C]``, and at most its clip.

        The layer gets a copy: its own threshold may be scaled or lowered later, the record stays. It is rounded to
        float32 in a net of float64 too: sums of spikes that carry it are exact there.
        """
        given, clip = self.given(name), self.activations[name].clip
        value, rule = (value.detach().float().reshape(-1), rule) if given is None else given
        if clip is not None:
            value = value.clamp_max(clip)
            rule = f"{rule}, clip" if given is None and bool((value == clip).all()) else rule
        modules: dict[str, Any] = dict(self.net.named_modules())
        before, after = (modules.get(f"{name}_{place}") for place in ("before", "after"))
        neuron, device = modules[name], modules[name].v_init.device
        if before is None or after is None:
            value = above_floor(name, value, self.notes)
        self.values[name], self.rules[name] = value, rule
        if before is None or after is None:
            if not isinstance(neuron, ATIFnuNode):  # whose points are in the units of the analog net already
                neuron.v_threshold = value.to(device, copy=True)
        else:
            dtype = before.weight.dtype
            before.weight, after.weight = (v.to(device, dtype) for v in (value.double().reciprocal(), value))


def residual_units(analog: AnalogNet) -> dict[str, str | None]:
    """Return the activations inside residual units, each with the one whose spikes enter the unit (None: the input).

    A unit reaches from where two branches part to the activation behind their addition, that one included.
    """
    nodes = list(analog.graph.graph.nodes)
    place = {node: k for k, node in enumerate(nodes)}

    def is_activation(node: fx.Node) -> bool:
        return calls(node, analog.activations)

    entry: dict[str, str | None] = {}
    for junction in nodes:
        if junction.target is not operator.add or len(junction.all_input_nodes) < 2:
            continue
        branches = [ancestors([source]) for source in junction.all_input_nodes]
        fork = max(set.intersection(*branches), key=place.__getitem__)
        before = ancestors([fork])
        outer = max(filter(is_activation, before), key=place.__getitem__, default=None)
        source = None if outer is None else entry.get(str(outer.target), str(outer.target))
        inside = [*(set.union(*branches) - before), *junction.users]
        entry.update({str(n.target): source for n in inside if is_activation(n)})
    return entry
