"""Making the neurons known to the hosts: :func:`register` and :func:`unregister`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .hosts import Host
from .neurons import NEURONS

__all__ = ["register", "unregister"]

_NAMESPACES: dict[Host, str] = {"spikingjelly": "spikingjelly.activation_based.neuron", "snntorch": "snntorch"}


def register() -> dict[str, list[str]]:
    """Make the neurons attributes of the hosts, beside their own.

    Afterwards ``spikingjelly.activation_based.neuron.ATIFuNode`` and ``snntorch.ATIFu`` exist, and SpikingJelly's
    ``NeuronConfig("snn_ext.spikingjelly.neurons.ATIFuNode", kwargs=...)`` resolves. A host that is not installed is
    skipped. The classes keep their own module path, so pickles load without this call. Calling it again does
    nothing; :func:`unregister` undoes it.

    Returns
    -------
    dict
        Names of the registered classes by host.

    Raises
    ------
    ImportError
        If neither host is installed.
    RuntimeError
        If a host already has something else under one of the names; nothing is changed then.

    Examples
    --------
    >>> import snn_ext
    >>> snn_ext.register()["spikingjelly"][:3]
    ['ATIFuNode', 'ATIFnuNode', 'PCMPIFNode']
    >>> snn_ext.unregister()
    """
    entries = list(_entries())
    if not entries:
        raise ImportError(
            "snn_ext.register: found neither spikingjelly nor snntorch, want at least one; "
            "pip install 'snn_ext[spikingjelly]' or 'snn_ext[snntorch]'"
        )
    for _, namespace, name, cls in entries:
        if getattr(namespace, name, cls) is not cls:
            raise RuntimeError(f"snn_ext.register: {namespace.__name__}.{name} is already {getattr(namespace, name)!r}")
    registered: dict[str, list[str]] = {}
    for host, namespace, name, cls in entries:
        setattr(namespace, name, cls)
        registered.setdefault(host, []).append(name)
        if host == "spikingjelly":
            _registry().register_neuron_class(cls)
    return registered


def unregister() -> None:
    """Remove the neurons that :func:`register` has put into the hosts.

    Examples
    --------
    >>> import snn_ext
    >>> snn_ext.unregister()        # also when nothing is registered
    """
    for host, namespace, name, cls in _entries():
        if getattr(namespace, name, None) is cls:
            delattr(namespace, name)
        if host == "spikingjelly":
            # The host has no public way back.
            getattr(_registry(), "_NEURON_REGISTRY", {}).pop(f"{cls.__module__}.{cls.__qualname__}", None)


def _entries() -> Iterator[tuple[Host, Any, str, Any]]:
    """Yield host, module of the host, name there and class of every neuron of the hosts that are installed."""
    for host, namespace in _NAMESPACES.items():
        if find_spec(host) is not None:
            for neuron in NEURONS.values():
                yield host, import_module(namespace), getattr(neuron, host), neuron.of(host)


def _registry() -> Any:
    return import_module("spikingjelly.activation_based.distributed.vision.config")
