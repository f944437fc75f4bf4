"""All neurons of the table, for the tests of what both hosts and PyTorch's own tools expect of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snn_ext.hosts import Host
from snn_ext.neurons import NEURONS as TABLE
from snn_ext.neurons import IntegrateAndFireNeuron

COMPILER = tuple(map(int, torch.__version__.split(".")[:2]))
"""Release of torch: the older ones that are supported compile less."""
POINTS = [1.0, 0.6, 0.3, 0.1]

ARGUMENTS: dict[str, dict[str, Any]] = {  # by name in the table, where the defaults show too little; in both hosts
    "atif-u": {"threshold": 0.75, "v_init": 0.25},
    "atif-nu": {"threshold": torch.tensor(POINTS), "T": 4, "v_init": 0.25},
    "pcmp": {"threshold": 0.75, "precharge": 0.25},
    "asn": {"m_f": 0.2},
}
HABITS: dict[str, dict[str, Any]] = {  # what makes an nn.Module of one input and one output of it, all of it trained
    "spikingjelly": {},
    "snntorch": {"init_hidden": True},
}


def factories(host: Host) -> dict[str, Callable[..., Any]]:
    """Return functions that make the neurons of a host, by the name of the class."""

    def factory(name: str) -> Callable[..., Any]:
        kind, arguments = TABLE[name].of(host), dict(ARGUMENTS.get(name, {}))
        positional = [arguments.pop("threshold")] if "threshold" in arguments else []
        trained = {"learn_threshold": True} if (host, name) == ("snntorch", "pcmp") else {}
        return lambda **options: kind(*positional, **HABITS[host] | arguments | trained | options)

    return {getattr(neuron, host): factory(name) for name, neuron in TABLE.items()}


NODES, NEURONS = factories("spikingjelly"), factories("snntorch")
INTEGRATE_AND_FIRE = [
    getattr(neuron, host)
    for host in ("spikingjelly", "snntorch")
    for neuron in TABLE.values()
    if issubclass(neuron.of(host), IntegrateAndFireNeuron)  # type: ignore[arg-type]
]


def make(name: str, **options: Any) -> Any:
    """Make a neuron by the name of its class."""
    return (NODES | NEURONS)[name](**options)


def grid(time_steps: int = 4, shape: tuple[int, ...] = (2, 3), seed: int = 0) -> Tensor:
    """Return input on a 1/16 grid, where charges meet the threshold of 0.75 exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 20, (time_steps, *shape), generator=generator) / 16


def steps(neuron: Any, x_seq: Tensor) -> Tensor:
    """Run step by step."""
    return torch.stack([neuron(x) for x in x_seq])


def reset(neuron: Any) -> None:
    """Start a fresh sequence, in either host."""
    (neuron.reset_mem if hasattr(neuron, "reset_mem") else neuron.reset)()
