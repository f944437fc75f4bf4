"""The analog net that a spiking net approximates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..neurons import AdaptiveSpikingNeuron
from .graph import Interpreter, as_graph, is_delay, is_filter, is_gate, is_max_pool, is_spiking, spike_value, unit_of
from .layers import known_type

__all__ = ["AnalogTwin"]


class AnalogTwin(Interpreter):
    """Runs the graph of a spiking net with rectifiers in units of the thresholds instead of its neurons.

    Parameters
    ----------
    graph : fx.GraphModule
        A converted net, whose clipped activations stay clipped, or any net of spiking neurons.
    time_steps : int, optional
        Quantise each rectifier, as T steps of its neuron do under constant current: the phased schedule, and the first
        layer of the streaming one, count exactly this. For neurons of this package with one threshold.
    keep : bool
        Keep the activations, not only their sums.

    Attributes
    ----------
    activations : dict of str to Tensor
        Activations for the last input, by the name of the layer: ``max(0, current) / threshold``, which the firing rate
        approaches, or the rate of an adaptive neuron, which is its transfer function.
    sums : dict of str to float
        Their sums.
    """

    def __init__(self, graph: fx.GraphModule, time_steps: int | None = None, *, keep: bool = True) -> None:
        super().__init__(as_graph(graph))
        self.time_steps, self.keep = time_steps, keep
        self.activations: dict[str, Tensor] = {}
        self.sums: dict[str, float] = {}
        self._clips: dict[str, Any] = getattr(graph, "clips", {})

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Any:
        """Return the output of the analog net for ``x``, ``[N, ...]``."""
        self.activations, self.sums = {}, {}
        return self.run(x)

    def rates(self, x: Tensor) -> dict[str, Tensor]:
        """Return the activations for ``x``: the rate that each neuron approaches."""
        self(x)
        return self.activations

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: Any = self.fetch_attr(target)
        if is_max_pool(module):  # a pooling of spikes too: the rates are values
            return known_type(module).forward(module, args[0])
        if is_gate(module):
            return module.gate(args[0])
        if is_delay(module):  # or a gate, of the phased schedule
            return args[0]
        if is_filter(module):
            return module.analog(args[0])[1].to(args[0].dtype)
        if not is_spiking(module):
            return super().call_module(target, args, kwargs)
        rate, output = self._transfer(str(target), module, args[0])
        self.sums[str(target)] = float(rate.sum(dtype=torch.float64))
        if self.keep:
            self.activations[str(target)] = rate
        return output.to(args[0].dtype)  # thresholds are float32 also for 16 bits

    def _transfer(self, name: str, neuron: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the activation of a layer in units of its threshold, and its output."""
        if isinstance(neuron, AdaptiveSpikingNeuron):
            return neuron.analog(x)
        if not any(hasattr(neuron, name) for name in ("thresholds", "threshold", "v_threshold")):  # an encoder
            events = x.clamp(-1.0, 1.0)  # they have a sign
            return events.abs(), events
        value = unit_of(neuron, x.shape)
        if self.time_steps is not None:
            rate = neuron.counts(x * self.time_steps, self.time_steps) / self.time_steps
        else:
            rate = (x / value).clamp_min(0.0)
            if name in self._clips:
                clip = torch.tensor(self._clips[name], device="cpu").to(x)
                rate = rate.minimum(clip if clip.ndim == 0 else clip.reshape(-1, *[1] * (x.ndim - 2)))
        return rate, rate * spike_value(neuron, x.shape)
