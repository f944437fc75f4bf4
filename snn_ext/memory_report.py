"""Count the bytes that a net keeps for the backward pass, by layer and kind: :func:`memory`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._errors import bad_type
from .hosts import fresh_copy, host_of, unwrapped
from .packing import Bytes, Pass

__all__ = ["KINDS", "Memory", "memory"]

KINDS = ("spikes", "currents, potentials", "norm inputs", "other")
"""Of few distinct values; otherwise of a neuron, of a normalisation, of anything else."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def memory(net: nn.Module, x: Any, *, forward: Callable[[nn.Module, Any], Any] | None = None) -> Memory:
    """Count what a training step of a net keeps for its backward pass, as it is and with :func:`pack_spikes`.

    A copy of the net, with its neurons reset, runs once in the net's mode, and every tensor that autograd saves is
    counted for the layer that saves it, each memory once and for the first. Parameters and buffers are not counted,
    for they are there anyway. The net itself and the random numbers stay as they are.

    Parameters
    ----------
    net : nn.Module
        Net of either host, packed or not; what is inside ``torch.compile`` and DDP counts as without.
    x : object
        Input of a training step.
    forward : callable, optional
        ``forward(net, x)`` if a step is more than ``net(x)``, as ``lambda net, x: run_steps(net, x, 25)``.

    Returns
    -------
    Memory
        Bytes by layer and kind; ``print`` it for a table.

    Raises
    ------
    TypeError
        If ``net`` is no module.

    Examples
    --------
    >>> from spikingjelly.activation_based import functional, layer
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(layer.Linear(8, 512), ATIFuNode(), layer.Linear(512, 10))
    >>> functional.set_step_mode(net, "m")
    >>> found = memory(net, torch.rand(4, 2, 8))
    >>> found.by_kind["spikes"].before, found.by_kind["spikes"].after
    (16384, 576)
    >>> found.rows["2", "spikes"] == found.by_kind["spikes"]
    True
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    net = unwrapped(net)
    trial = fresh_copy(net)
    watch = _Watch(trial)
    with torch.random.fork_rng(), torch.enable_grad(), watch:
        _ = trial(x) if forward is None else forward(trial, x)
    return Memory(watch.rows)


@dataclass(frozen=True)
class Memory:
    """Bytes that are kept for the backward pass.

    Attributes
    ----------
    rows : dict
        Name of a layer and kind, one of :data:`KINDS`, to what it keeps: ``tensors``, bytes ``before`` packing and
        ``after``. What is saved outside of all layers has the name "".
    """

    rows: dict[tuple[str, str], Bytes]

    @property
    def total(self) -> Bytes:
        """All that is kept."""
        return sum(self.rows.values(), Bytes())

    @property
    def by_kind(self) -> dict[str, Bytes]:
        """Bytes kept of each kind."""
        return {kind: sum((b for (_, k), b in self.rows.items() if k == kind), Bytes()) for kind in KINDS}

    @property
    def by_layer(self) -> dict[str, Bytes]:
        """Bytes kept by each layer, in the order in which they run."""
        names = dict.fromkeys(name for name, _ in self.rows)
        return {name: sum((b for (n, _), b in self.rows.items() if n == name), Bytes()) for name in names}

    def __str__(self) -> str:
        lines = [_line("layer", "kind", "kept", "packed")]
        lines += [_line(name or "(net)", kind, *_kilo(found)) for (name, kind), found in self.rows.items()]
        lines += [_line("all", kind, *_kilo(found)) for kind, found in self.by_kind.items() if found.tensors]
        return "\n".join([*lines, _line("all", "", *_kilo(self.total))])


def _line(name: str, kind: str, *numbers: str) -> str:
    name = name if len(name) <= 31 else f"...{name[-28:]}"
    return f"{name:<32}{kind:<22}" + "".join(f"{number:>13}" for number in numbers)


def _kilo(found: Bytes) -> tuple[str, str]:
    before, after = (f"{count / 1e3:,.1f} kB" for count in (found.before, found.after))
    return before, after


class _Watch(Pass):
    """Counts by layer and kind; packs nothing."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.rows: dict[tuple[str, str], Bytes] = {}
        self._running: list[tuple[str, nn.Module]] = [("", net)]
        for name, module in net.named_modules():
            if module is not net:
                module.register_forward_pre_hook(partial(self._start, name))
                module.register_forward_hook(self._stop, always_call=True)

    def note(self, tensor: Tensor, kind: str, after: int) -> None:
        name, module = self._running[-1]
        before = tensor.numel() * tensor.element_size()
        key = (name, _kind(tensor, module, 0 < after < before))
        self.rows[key] = self.rows.get(key, Bytes()) + Bytes(1, before, after)

    def _start(self, name: str, module: nn.Module, *_: Any) -> None:
        inside = self._running[-1]  # what a neuron is made of counts as the neuron
        self._running.append(inside if host_of(inside[1]) is not None else (name, module))

    def _stop(self, *_: Any) -> None:
        self._running.pop()


def _kind(tensor: Tensor, module: nn.Module, few_values: bool) -> str:
    if few_values and tensor.is_floating_point():
        return "spikes"
    if host_of(module) is not None:
        return "currents, potentials"
    return "norm inputs" if isinstance(module, _NORMS) else "other"
