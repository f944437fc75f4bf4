"""Fused operators under the hosts' own neurons: :func:`accelerate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from ._errors import bad_type, bad_value
from ._together import all_or_nothing
from .hosts import host_of, kind_of
from .neurons import ThresholdNeuron

__all__ = ["Accelerated", "accelerate"]


def accelerate(net: nn.Module) -> Accelerated:
    """Let the hosts' own neurons of a net run by the fused operator, in place, with everything else as it was.

    ``IFNode``, ``LIFNode``, ``ParametricLIFNode``, ``HalfThresholdIFNode``, ``SimpleIFNode`` and ``SimpleLIFNode`` of
    SpikingJelly in step mode "m", and ``snn.Leaky`` in :func:`snn_ext.snntorch.run_steps` and ``bptt``, give way to
    fused twins. A twin is the same module under a subclass of its class: parameters, state dict, hooks, memories and
    surrogate stay the same objects, so that an optimizer goes on and checkpoints fit in both directions. On the CPU
    spikes and potential are those of the host to the last bit (of finite input), and gradients its own but for the
    order of sums. Step by step, with 16-bit input and under the host's operation counters the host's own code runs.

    Parameters
    ----------
    net : nn.Module
        Holds neurons of SpikingJelly or snnTorch, at any depth.

    Returns
    -------
    Accelerated
        What was swapped, what was left and why, and ``undo()``. Neurons that are fused twins already, as in a copy of
        such a net, count as swapped.

    Raises
    ------
    ValueError
        If the net has no neuron of a host. It is unchanged then.

    Notes
    -----
    There is no second derivative through the operator. A tool that asks for the very class of a neuron, and not for
    ``isinstance``, does not know a twin: ``undo()`` before it.

    Examples
    --------
    >>> import torch
    >>> from spikingjelly.activation_based import functional, layer, neuron
    >>> from snn_ext import accelerate
    >>> net = torch.nn.Sequential(layer.Linear(8, 8), neuron.LIFNode(), layer.Linear(8, 2), neuron.QIFNode())
    >>> functional.set_step_mode(net, "m")
    >>> done = accelerate(net)
    >>> done.swapped, done.left
    ({'1': 'LIFNode'}, {'3': 'QIFNode: dynamics that the operator does not have'})
    >>> done.undo()
    >>> type(net[1]).__name__
    'LIFNode'
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    done = Accelerated()
    changes: dict[nn.Module, type] = {}
    for name, neuron in _neurons(net):
        fused: Any = import_module(f".{host_of(neuron)}.fused", __package__)
        kind = kind_of(neuron)
        twin, is_twin = fused.TWINS.get(kind), kind is not type(neuron)
        reason = None if is_twin else _why_not(neuron, twin, fused)
        if reason is None:
            done.swapped[name], done._hosts[neuron] = kind.__name__, kind
            changes[neuron] = twin
        else:
            done.left[name] = f"{kind.__name__}: {reason}"
    if not done.swapped and not done.left:
        bad_value("net", type(net).__name__, "a net with at least one neuron of SpikingJelly or snnTorch")
    _set_classes(changes)
    return done


@dataclass(frozen=True)
class Accelerated:
    """What :func:`accelerate` did with a net.

    Attributes
    ----------
    swapped : dict
        Name of a neuron to the name of its host's class.
    left : dict
        Name of a neuron to its class and the reason.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _hosts: dict[nn.Module, type] = field(default_factory=dict, repr=False)

    def undo(self) -> None:
        """Give the swapped neurons their own classes back; everything else of them is theirs already."""
        for neuron, kind in self._hosts.items():
            if kind_of(neuron) is not kind:
                bad_value("net", type(neuron).__name__, f"the fused {kind.__name__} that accelerate made of it")
        _set_classes(self._hosts)

    def __str__(self) -> str:
        lines = [f"neurons swapped: {len(self.swapped)}, left: {len(self.left)}"]
        lines += [f"  {name}: {reason}" for name, reason in self.left.items()]
        slow = sum(getattr(neuron, "step_mode", "m") == "s" for neuron in self._hosts)
        return "\n".join(lines + [f"  {slow} of the swapped are in step mode 's': faster in 'm' only"] * (slow > 0))


def _neurons(module: nn.Module, name: str = "", seen: set[nn.Module] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Yield each neuron of a net once, with its name, but for what neurons are made of."""
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    if host_of(module) is not None:
        yield name, module
        return
    for key, child in module._modules.items():
        if child is not None:
            yield from _neurons(child, f"{name}.{key}".lstrip("."), seen)


def _why_not(neuron: nn.Module, twin: type | None, fused: Any) -> str | None:
    if twin is not None:
        reason: str | None = fused.why_not(neuron)
        return reason
    if isinstance(neuron, ThresholdNeuron):
        return "a neuron of snn_ext, which runs by the operator anyway"
    if host_of(neuron) != _module_of(neuron):
        return "a class of its own, whose forward pass may be another"
    return "dynamics that the operator does not have"


def _module_of(neuron: nn.Module) -> str:
    return type(neuron).__module__.split(".")[0]


def _set_classes(classes: dict[nn.Module, type]) -> None:
    with all_or_nothing((neuron, "__class__") for neuron in classes):
        for neuron, kind in classes.items():
            neuron.__class__ = kind
