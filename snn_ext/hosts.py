"""Spiking neurons of SpikingJelly and snnTorch: which modules they are, whose, and how they are reset."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal

from torch import Tensor, nn

from ._tracing import InputTracer

__all__ = [
    "Host", "LeafTracer", "fresh_copy", "host_of", "is_container", "is_encoder", "is_neuron", "is_relu", "kind_of",
    "need", "reset_neurons", "unwrapped",
]  # fmt: skip

Host = Literal["spikingjelly", "snntorch"]


def need(host: Host, part: str) -> None:
    """Import a host for a part of this package that is nothing without it; where it is missing, say what to install."""
    try:
        import_module(host)
    except ModuleNotFoundError as error:
        if error.name != host:
            raise
        text = f"{part} needs {host}, want it installed: pip install 'snn_ext[{host}]'"
        raise ModuleNotFoundError(text, name=host) from None


def host_of(module: nn.Module) -> Host | None:
    """Return the host whose neuron a module is, ours included; no host needs to be installed.

    Examples
    --------
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> host_of(ATIFuNode()), host_of(nn.ReLU())
    ('spikingjelly', None)
    """
    return _host_of(type(module).__mro__)


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module; that of its host for a neuron that :func:`snn_ext.accelerate` has swapped."""
    kind: type[nn.Module] = vars(type(module)).get("twin_of", type(module))  # not of a subclass: that is its own
    return kind


def is_neuron(module: nn.Module) -> bool:
    """Return True for an ``nn.ReLU`` and for a spiking neuron of either host, ours included."""
    return (isinstance(module, nn.ReLU) and is_relu(module)) or host_of(module) is not None


def is_relu(module: nn.Module) -> bool:
    """Return True for an ``nn.ReLU`` or ``nn.ReLU6``, and for a subclass that has no forward pass of its own."""
    base = next((kind for kind in (nn.ReLU, nn.ReLU6) if isinstance(module, kind)), None)
    return base is not None and type(module).forward is base.forward and "forward" not in vars(module)


def is_encoder(module: nn.Module) -> bool:
    """Return True for a module of SpikingJelly that turns values into spikes, at random or by a state."""
    return _is_encoder(type(module).__mro__)


def is_container(module: nn.Module | None) -> bool:
    """Return True for a sequence of layers of SpikingJelly that runs them on a batch, or step by step."""
    kind = type(module)
    return isinstance(module, nn.Sequential) and kind.__module__ == "spikingjelly.activation_based.layer.container"


def unwrapped(net: nn.Module) -> nn.Module:
    """Return the module inside ``nn.DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    inner: Any = net
    while isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = inner.module
    original = getattr(inner, "_orig_mod", None)
    return inner if original is None else unwrapped(original)


def reset_neurons(net: nn.Module) -> None:
    """Reset every spiking neuron of a net, of either host."""
    hosts = {host_of(module) for module in net.modules()}
    if "spikingjelly" in hosts:
        from spikingjelly.activation_based import functional

        functional.reset_net(net)
    if "snntorch" in hosts:
        from .snntorch import reset

        reset(net)


def fresh_copy(net: nn.Module) -> Any:
    """Return a copy of a net whose neurons are reset, whatever they hold."""
    twin = copy.deepcopy(net, {id(t): t.detach().clone() for t in _computed(net)})
    reset_neurons(twin)
    return twin


def _computed(net: nn.Module) -> Iterator[Tensor]:
    """Yield the states of neurons that autograd has computed, which torch does not copy."""
    for module in net.modules():
        for value in vars(module).values():
            for one in value.values() if isinstance(value, dict) else [value]:
                if isinstance(one, Tensor) and not one.is_leaf:
                    yield one


class LeafTracer(InputTracer):
    """Symbolic tracer that enters containers only: neurons and layers stay single nodes of the graph."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_neuron(m) or not m._modules


@lru_cache(maxsize=256)
def _is_encoder(bases: tuple[type, ...]) -> bool:
    return any(base.__module__ == "spikingjelly.activation_based.encoding" for base in bases)


@lru_cache(maxsize=256)  # a simulation asks about every module of every batch
def _host_of(bases: tuple[type, ...]) -> Host | None:
    for base in bases:
        if base.__module__.startswith("spikingjelly.activation_based.neuron"):
            return "spikingjelly"
        if base.__module__.startswith("snntorch._neurons"):
            return "snntorch"
    return None
