"""Measurement of a spiking net as it was trained: its accuracy, and the spikes and the SQNR of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_count
from ..functional import sqnr
from ..hosts import host_of, reset_neurons
from ..neurons import AdaptiveSpikingNeuron
from ..simulation.graph import unit_of
from .batches import numbered
from .decisions import Metric, decision

__all__ = ["LayerActivity", "NetActivity", "measure_activity"]


@dataclass
class LayerActivity:
    """Activity of one spiking layer on a data set.

    Attributes
    ----------
    name : str
        Of the module in the net.
    neurons : int
        For one sample.
    spikes_per_neuron : float
        Mean number of spikes of a neuron in the T steps of one sample.
    sqnr_db : float
        Signal to quantisation noise ratio of the layer in its place in the net, in dB. Signal is the neuron's input,
        averaged over time, where that is >= 0 (so it is the ReLU of it); noise is the difference to the decoded
        value, firing rate times threshold (``p_1`` for ATIF-nu). Over the sample of inputs; NaN if all of them are
        negative, and for adaptive neurons, whose rate is not their input.
    inputs : Tensor
        Evenly spaced sample of the inputs, averaged over time, flat, negative ones included.
    """

    name: str
    neurons: int
    spikes_per_neuron: float
    sqnr_db: float
    inputs: Tensor


@dataclass
class NetActivity:
    """Accuracy of a net (0..1), and its spiking layers in the order of ``net.modules()``."""

    accuracy: float
    layers: list[LayerActivity]

    @property
    def spikes_per_neuron(self) -> float | None:
        """Mean over all spiking neurons of the net; ``None`` for an analog net."""
        neurons = sum(layer.neurons for layer in self.layers)
        return sum(layer.spikes_per_neuron * layer.neurons for layer in self.layers) / neurons if neurons else None


@torch.no_grad()
def measure_activity(
    net: nn.Module, loader: Iterable[Any], *, metric: Metric = "class", limit: int = 20_000
) -> NetActivity:
    """Measure the accuracy of a net, and the spikes and the SQNR of each of its spiking layers.

    The net runs as it is, in eval mode, and is reset before and after every batch; the training flag of every module is
    restored. :func:`snn_ext.evaluate` gives latency, synaptic operations and energy.

    Parameters
    ----------
    net : nn.Module
        ``[N, ...]`` to scores ``[N, classes]``, such as a :class:`snn_ext.ConstantInputNet`: its spiking layers, of
        either host, get whole sequences ``[T, N, ...]``. An analog net has an accuracy and no layers.
    loader : iterable
        Batches ``(inputs, labels)``.
    metric : str or callable
        Which decisions are right, as in :func:`snn_ext.evaluate`.
    limit : int
        Number of inputs kept of a layer and batch for its SQNR.

    Returns
    -------
    NetActivity

    Raises
    ------
    ValueError
        If the loader is empty, or a spiking layer gets single steps, or none.

    Examples
    --------
    >>> from snn_ext import ConstantInputNet
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> body = nn.Sequential(ATIFuNode(0.5, step_mode="m"), nn.Linear(6, 2))
    >>> net = ConstantInputNet(body, time_steps=4, stem=nn.Linear(3, 6))
    >>> activity = measure_activity(net, [(torch.rand(8, 3), torch.arange(8) % 2)])
    >>> [(layer.name, layer.neurons) for layer in activity.layers]
    [('body.0', 6)]
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    check_count("limit", limit)
    rule = decision(metric)
    probes = {module: _Probe(name, limit) for name, module in net.named_modules() if host_of(module) is not None}
    for module, probe in probes.items():
        if getattr(module, "step_mode", "s") != "m":
            bad_value("net", f"{probe.name} in step mode 's'", "spiking layers in step mode 'm'")
    correct, samples = 0.0, 0
    modes = {module: module.training for module in net.modules()}
    device = next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))
    hooks: list[Any] = []
    try:
        hooks += (module.register_forward_hook(probe) for module, probe in probes.items())
        net.eval()
        for _, x, labels in numbered(loader):
            if labels is None:
                bad_type("loader", x, "batches (inputs, labels)")
            reset_neurons(net)
            scores = net(x.to(device))
            labels = rule.check(labels.to(device), scores)
            correct += float(rule.count(scores.unsqueeze(0), labels, torch.ones(1, device="cpu")))
            samples += len(labels)
    finally:
        reset_neurons(net)
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    if samples == 0:
        bad_value("loader", "no batch", "at least one")
    return NetActivity(correct / samples, [probe.result(samples) for probe in probes.values()])


class _Probe:
    """Forward hook of one spiking layer."""

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit = name, limit
        self.spikes = self.neurons = 0
        self.inputs: list[Tensor] = []
        self.decoded: list[Tensor] = []

    def __call__(self, neuron: Any, arguments: tuple[Tensor, ...], spike_seq: Tensor) -> None:
        self.spikes += int(spike_seq.count_nonzero())
        self.neurons = spike_seq[0, 0].numel()
        stride = -(-spike_seq[0].numel() // self.limit)
        rate = spike_seq.flatten(1)[:, ::stride].mean(0)
        self.inputs.append(arguments[0].flatten(1)[:, ::stride].mean(0))
        if isinstance(neuron, AdaptiveSpikingNeuron):
            rate = rate * math.nan
        elif not getattr(neuron, "scale_output", False):
            unit = torch.as_tensor(unit_of(neuron, spike_seq.shape[1:]))
            rate = rate * (unit if unit.numel() == 1 else unit.expand(spike_seq.shape[1:]).flatten()[::stride])
        self.decoded.append(rate)

    def result(self, samples: int) -> LayerActivity:
        if not self.inputs:
            bad_value("net", f"a forward pass that does not reach {self.name}", "one that runs every spiking layer")
        inputs, decoded = torch.cat(self.inputs), torch.cat(self.decoded)
        signal = inputs >= 0
        ratio = float(sqnr(inputs[signal], decoded[signal])) if bool(signal.any()) else math.nan
        return LayerActivity(self.name, self.neurons, self.spikes / (samples * self.neurons), ratio, inputs)
