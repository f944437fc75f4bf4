"""Nets with all neurons of a host, on a grid on which every sum is exact: equal means equal there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.hosts import Host, reset_neurons
from snn_ext.neurons import NEURONS

T = 8


def on_grid(net: Any, bits: int = 6) -> Any:
    """Round all that a net computes with, so that no order of adding matters."""
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point():
                value.copy_((value * 2**bits).round() / 2**bits)
    return net


def all_neurons(host: Host, options: bool = True) -> nn.Sequential:
    """Return a net in which each neuron of a host sees the same currents, and ties; with its ``options`` too."""
    hidden = {"init_hidden": True} if host == "snntorch" else {}
    kinds: dict[str, Callable[..., Any]] = {name: neuron.of(host) for name, neuron in NEURONS.items()}
    layers = (
        kinds["atif-u"](0.75, v_init=0.25, **hidden),
        kinds["atif-nu"](torch.tensor([1.5, 1.25, 1.0, 0.75, 0.5, 0.375, 0.25, 0.125]), T=T, **hidden),
        kinds["pcmp"](0.75, precharge=torch.linspace(0, 1, 12), scale_output=True, **hidden),
        kinds["asn"](m_f=0.25, analog_input=True, spike_height="adaptive", bias=torch.ones(12) / 4, **hidden),
        kinds["asn"](m_f=0.25, tau_phi=5.0, **hidden),
        kinds["asn"](readout=True, **hidden),
        kinds["atif-u"](0.75, **({"beta": 0.5} if hidden else {"tau": 2.0}), **hidden),
    )
    return nn.Sequential(nn.Linear(5, 12), Beside(layers if options else layers[:4]))


class Beside(nn.Module):
    """Layers beside each other, their outputs behind each other."""

    def __init__(self, layers: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], 1)


@torch.no_grad()
def loop(net: Any, x_seq: Tensor) -> Tensor:
    """Return the outputs of all steps, one call each, from a reset on."""
    reset_neurons(net)
    outputs = torch.stack([net(x) for x in x_seq])
    reset_neurons(net)
    return outputs


def inputs(time_steps: int, samples: int, seed: int = 0) -> Tensor:
    """Return random currents on a 1/16 grid."""
    return torch.randint(-16, 33, (time_steps, samples, 5), generator=torch.Generator().manual_seed(seed)) / 16
