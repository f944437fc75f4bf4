"""The analog net beside a spiking one: what its firing rates are to approach."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..replacement import is_neuron
from .modules import PoissonEncoder, per_channel
from .net import ConvertedNet
from .spiking import INPUT, OUTPUT
from .surgery import MAX_POOLS, prepare

__all__ = ["AnalogTwin", "activations_of"]


class AnalogTwin(fx.Interpreter):
    """Runs the graph of a spiking net with rectifiers in the place of its neurons.

    Parameters
    ----------
    net : fx.GraphModule
        A converted net.
    time_steps : int, optional
        Then each rectifier is quantised, as T steps of its neuron under constant current: the phased schedule, and the
        first layer of the streaming one, count exactly this.
    """

    def __init__(self, net: fx.GraphModule, time_steps: int | None = None) -> None:
        super().__init__(net)
        self.time_steps = time_steps
        self.found: dict[str, Tensor] = {}
        self.clips: dict[str, Any] = getattr(net, "clips", {})

    @torch.no_grad()
    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Return the activation of each layer of neurons in units of its threshold: the rate it stands for."""
        self.found = {}
        self.run(x)
        return self.found

    @torch.no_grad()
    def result(self, x: Tensor) -> Tensor:
        """Return the output of the analog net."""
        result: Tensor = self.run(x)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: Any = self.fetch_attr(target)
        x = args[0]
        if isinstance(module, PoissonEncoder):
            return x.clamp(-1.0, 1.0)
        if isinstance(module, MAX_POOLS):
            return _max_pool(module, x)
        if isinstance(module, base.MemoryModule) and not is_neuron(module):  # a delay or a gate of the phased schedule
            return x
        if not is_neuron(module):
            return super().call_module(target, args, kwargs)
        x_seq = x.unsqueeze(0)
        theta, value = module.quantizer(x_seq)
        if self.time_steps is None:
            rate = (x / theta).clamp_min(0.0)
            if str(target) in self.clips:
                rate = rate.minimum(per_channel(torch.tensor(self.clips[str(target)]).to(x), x.ndim))
        else:
            steps = self.time_steps
            level = (x * steps + module.initial_potential(x_seq)) / theta
            count = level.floor() if module.fire_at_threshold else level.ceil() - 1.0
            rate = count.clamp(0.0, steps) / steps
        self.found[str(target)] = rate
        return rate * value if module.scale_output else rate


def _max_pool(module: Any, x: Tensor) -> Tensor:
    functions = zip(MAX_POOLS, (F.max_pool1d, F.max_pool2d, F.max_pool3d), strict=True)
    pool = next(function for kind, function in functions if isinstance(module, kind))
    return pool(x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)


def activations_of(ann: nn.Module, snn: ConvertedNet, x: Tensor) -> dict[str, Tensor]:
    """Return the activations of the net that a spiking one was converted from, in units of its thresholds."""
    graph, activations = prepare(ann, x)
    record: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: record.update({name: output.detach()})

    for name in activations:
        graph.get_submodule(name).register_forward_hook(keep(name))
    output = graph(x)
    found: dict[str, Tensor] = {}
    for layer in snn.report:
        source = {INPUT: x.clamp(0.0, 1.0), OUTPUT: output.relu()}.get(layer.name, record.get(layer.name))
        if source is None:
            raise ValueError(
                f"ann: got {type(ann).__name__} without the activation {layer.name}, want the net that snn was "
                "converted from"
            )
        found[layer.name] = source / per_channel(torch.tensor(layer.scale).to(x), source.ndim)
    return found
