"""``save`` and ``load``: a whole net in one file that is safe to open, whoever wrote it.

A file holds the graph of the net and the arguments of its layers as text, and its tensors. Nothing in it is executed:
:func:`load` builds layers of torch, of the hosts and of this package, and connects them by functions that it knows.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from ._description import build_graph, build_module, describe_graph, describe_module, tensors_of
from ._errors import bad_type, bad_value
from ._files import intact, load_tensors, save_tensors
from .hosts import is_neuron
from .simulation.graph import as_graph
from .simulation.layers import known_type
from .training import ConstantInputNet

__all__ = ["about_of", "load", "net_of", "save"]

FORMAT = "snn_ext net, format 1"


def save(net: nn.Module, path: str | Path, *, notes: Mapping[str, Any] | None = None) -> None:
    """Write a net to one file: structure, weights, report and versions.

    Parameters
    ----------
    net : nn.Module
        A converted net, in either host, or any net of layers of torch, neurons of the hosts and of this package whose
        ``forward`` can be traced by ``torch.fx``.
    path : str or Path
        The file; an old one is replaced, whole or not at all.
    notes : mapping, optional
        JSON values to be kept with the net, such as the settings of its training; :func:`load` puts them into
        ``net.notes``.

    Raises
    ------
    ValueError
        If a layer or an operation of the net cannot be described; the error names it. Nothing is written then.

    Examples
    --------
    >>> import tempfile, torch, snn_ext
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), ATIFuNode(0.5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     snn_ext.save(net, f"{folder}/net.pt")
    ...     again = snn_ext.load(f"{folder}/net.pt")
    >>> torch.equal(again(torch.ones(1, 4)), net(torch.ones(1, 4)))
    True
    """
    content = _content(net, dict(notes or {}))
    _build(content)  # a file that cannot be read is not written
    save_tensors(content, Path(path))


def load(path: str | Path) -> Any:
    """Read a net that :func:`save` has written, to the CPU.

    Returns
    -------
    ConvertedNet or fx.GraphModule
        The net as it was saved: parameters, step mode, training mode, report; in the state of a net that was reset.
        ``notes`` are those of :func:`save`.

    Raises
    ------
    DamagedFileError
        If the file is damaged, or is no net of this package.
    """
    kind = "a net of snn_ext.save", "restore a copy of it"
    content = load_tensors(path, *kind)
    if isinstance(content, dict) and isinstance(content.get("format"), str) and content["format"] > FORMAT:
        bad_value("path", f"{path}, of {content['format']}", f"{FORMAT}: install the version of snn_ext that wrote it")
    with intact(path, *kind):
        return _build(content)


def _content(net: nn.Module, notes: dict[str, Any]) -> dict[str, Any]:
    from . import __version__

    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    if isinstance(net, ConstantInputNet):
        parts = {name: _content(getattr(net, name), {}) for name in ("stem", "body")}
        return {"format": FORMAT, "constant_input": net.time_steps, "notes": json.dumps(notes), **parts}
    alone = known_type(net) is not None or is_neuron(net)  # tracing would look into it
    graph = as_graph(nn.Sequential(net) if alone else net)
    names = {
        op: [str(node.target) for node in graph.graph.nodes if node.op == op] for op in ("call_module", "get_attr")
    }
    modules = {name: graph.get_submodule(name) for name in names["call_module"]}
    tensors = {name: operator.attrgetter(name)(graph) for name in names["get_attr"]}
    description = {
        "nodes": describe_graph(graph.graph),
        "modules": {name: describe_module(name, module) for name, module in modules.items()},
        "about": about_of(net),
        "versions": {"snn_ext": __version__, "torch": torch.__version__},
        "notes": notes,
    }
    states = {name: tensors_of(module) for name, module in modules.items()}
    return {"format": FORMAT, "description": json.dumps(description), "states": states, "tensors": tensors}


def about_of(net: Any) -> dict[str, Any]:
    """Return what a net has beside its graph."""
    about = {"training": net.training, "step_mode": getattr(net, "step_mode", None)}
    if hasattr(net, "report"):  # a converted net; its class needs SpikingJelly
        about["report"] = net.report.to_json()
        about |= {name: getattr(net, name) for name in ("schedule", "time_steps", "wait", "clips")}
    return about


def _build(content: Any) -> nn.Module:
    if content["format"] != FORMAT:
        raise ValueError(f"{content['format']}, want {FORMAT}")
    if "constant_input" in content:
        twin: Any = ConstantInputNet(_build(content["body"]), content["constant_input"], stem=_build(content["stem"]))
        twin.notes = json.loads(content["notes"])
        return twin
    description = json.loads(content["description"])
    about, states = description["about"], content["states"]
    root: dict[str, Any] = dict(content["tensors"])
    for name, one in description["modules"].items():
        root[name] = build_module(one, states[name])
    net: Any = net_of(root, build_graph(description["nodes"]), about)
    net.notes = description["notes"]
    return net


def net_of(root: dict[str, Any], graph: fx.Graph, about: dict[str, Any]) -> nn.Module:
    """Return the net of a graph and its modules, with what :func:`about_of` has found; a converted net is one again."""
    net: Any
    if "report" in about:
        from .conversion.net import ConvertedNet, join_resets
        from .conversion.report import Report

        net = ConvertedNet(root, graph)
        net.report = Report.from_json(about["report"])
        net.schedule, net.time_steps, net.clips = about["schedule"], about["time_steps"], about["clips"]
        net.wait = about["wait"]
        join_resets(net)
    else:
        net = fx.GraphModule(root, graph)
    net.training = about["training"]  # that of each layer is its own
    if about["step_mode"] is not None:
        net.step_mode = about["step_mode"]
    return net
