"""A graph of layers as JSON values, and back: layers by class and arguments, operations by their public names.

Reading executes nothing: a class has to be a module of a known package, a function one of those listed here.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from ._errors import bad_value
from .functional import surrogates
from .functional.surrogates import Surrogate, as_surrogate
from .hosts import kind_of
from .neurons.base import MIN_THRESHOLD
from .norms import LeaveRecipe
from .simulation.layers import RULES

__all__ = ["build_graph", "build_module", "describe_graph", "describe_module", "tensors_of"]

PACKAGES = (
    "torch.nn", "spikingjelly.activation_based.layer", "spikingjelly.activation_based.neuron",
    "spikingjelly.activation_based.surrogate", "snntorch", "snn_ext", "snn_ext.spikingjelly", "snn_ext.snntorch",
    "snn_ext.conversion.modules", "snn_ext.conversion.phased", "snn_ext.conversion.quantized",
)  # fmt: skip
"""Where the classes of layers are looked up, by their names."""
METHODS = ("dim", "expand", "mul", "permute", "repeat", "size", "sum", "transpose", "unsqueeze")
FUNCTIONS = (operator.mul, operator.sub, operator.truediv, torch.mul, torch.sum, torch.unsqueeze, getattr)
"""Operations beside those of the table of layer types: none of them does anything but compute."""
_NOT_STORED = ("backend", "device", "dtype")
"""Arguments of constructors that say nothing about a layer that exists."""


# -- layers ------------------------------------------------------------------------------------------------------------


def describe_module(name: str, module: nn.Module) -> dict[str, Any]:
    """Return class and arguments of a layer; ``name`` is its place in the net, for errors."""
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        if not all(isinstance(hook, LeaveRecipe) for hook in getattr(module, hooks).values()):
            bad_value("net", f"{name} with a forward hook", "layers without hooks: a file holds no code")
    return {
        "class": _class_name(name, module),
        "arguments": {key: _value(name, module, key, value) for key, value in _arguments(name, module).items()},
        "parameters": {key: value.requires_grad for key, value in module.named_parameters()},
        "training": module.training,
        "step_mode": getattr(module, "step_mode", None),
    }


def build_module(description: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Return the layer with the tensors of ``state``."""
    kind = _class_of(description["class"])
    arguments = {key: _from_value(value, state) for key, value in description["arguments"].items()}
    threshold = arguments.get(getattr(kind, "threshold_name", ""))
    if isinstance(threshold, Tensor):  # it may have been trained to below what a constructor takes; the state has it
        threshold.clamp_(min=2 * MIN_THRESHOLD)  # that rounds to less in float32
    with torch.device(
        "meta" if kind.__module__.startswith("torch.nn") else "cpu"
    ):  # no room for what is not in the file
        module = kind(**arguments)
    for name, value in state.items():
        _put(module, name, value, description["parameters"].get(name))
    module.training = description["training"]
    if description["step_mode"] is not None:
        module.step_mode = description["step_mode"]
    missing = [key for key, value in module.state_dict().items() if key not in state and isinstance(value, Tensor)]
    if missing:
        raise ValueError(f"no {missing[0]} of {description['class']}")
    return module


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a layer, as copies on the CPU."""
    return {
        name: value.detach().cpu().clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)
    }


def _class_name(name: str, module: nn.Module) -> str:
    kind = kind_of(module)
    for package in PACKAGES:
        if package.split(".")[0] == kind.__module__.split(".")[0]:
            if getattr(import_module(package), kind.__name__, None) is kind:
                return f"{package}.{kind.__name__}"
    bad_value(
        "net", f"{name}, of the class {kind.__module__}.{kind.__qualname__}", "layers of torch.nn, the hosts or snn_ext"
    )


def _class_of(name: str) -> Any:
    package, _, kind = name.rpartition(".")
    if package not in PACKAGES:
        raise ValueError(f"the class {name}")
    found = getattr(import_module(package), kind)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name}, no layer")
    return found


def _arguments(name: str, module: nn.Module) -> dict[str, Any]:
    """Return the arguments of the constructor: attributes of the same name, as layers have them."""
    found = {}
    for key, parameter in inspect.signature(type(module).__init__).parameters.items():
        if key == "self" or key in _NOT_STORED or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, key, inspect.Parameter.empty)
        if isinstance(parameter.default, bool) and not isinstance(value, bool):  # bias=True, and bias is a tensor
            value = value is not None and value is not inspect.Parameter.empty
        if isinstance(value, Tensor) and parameter.annotation in ("float", float):  # and the state replaces it
            value = float(value)
        if value is not inspect.Parameter.empty:
            found[key] = value
        elif parameter.default is inspect.Parameter.empty:
            bad_value(
                "net",
                f"{name}, a {type(module).__name__} without an attribute {key}",
                "layers that keep their arguments",
            )
    return found


def _value(name: str, module: nn.Module, key: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        for own, tensor in module.state_dict(keep_vars=True).items():
            if tensor is value:  # by identity: the argument may have another name than the tensor
                return {"state": own}
        bad_value("net", f"{key} of {name}, a tensor apart", "layers whose tensors are in their state_dict")
    if isinstance(value, nn.Module):
        return {"module": describe_module(f"{name}.{key}", value)}
    if callable(value) and not isinstance(value, type):
        known = as_surrogate(value)
        if not isinstance(known, Surrogate):
            bad_value(
                "net", f"{key} of {name}, a function", "a surrogate that as_surrogate knows: a file holds no code"
            )
        return {"surrogate": type(known).__name__, "alpha": known.alpha, "gain": known.gain}
    return _encoded(value)


def _from_value(value: Any, state: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and "state" in value:
        return state[value["state"]].clone()
    if isinstance(value, dict) and "module" in value:
        return build_module(value["module"], {})
    if isinstance(value, dict) and "surrogate" in value:
        kind = {curve.__name__: curve for curve in surrogates.SURROGATES}[value["surrogate"]]
        return kind(value["alpha"], gain=value["gain"])
    return _decoded(value, {})


def _put(module: nn.Module, name: str, value: Tensor, trained: bool | None) -> None:
    """Make a tensor of a layer the parameter, trained or not, or the buffer that it was (``trained=None``)."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    owner._parameters.pop(leaf, None)
    owner._buffers.pop(leaf, None)
    if trained is None:
        owner.register_buffer(leaf, value)
    else:
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=trained))


# -- graphs ------------------------------------------------------------------------------------------------------------


def describe_graph(graph: fx.Graph) -> list[dict[str, Any]]:
    """Return the nodes of a graph, in their order."""
    return [
        {
            "name": node.name,
            "op": node.op,
            "target": _target_name(node),
            "args": _encoded(node.args),
            "kwargs": _encoded(dict(node.kwargs)),
        }
        for node in graph.nodes
    ]


def build_graph(nodes: list[dict[str, Any]]) -> fx.Graph:
    """Return the graph of such nodes."""
    graph, known = fx.Graph(), dict[str, fx.Node]()
    for node in nodes:
        op, name = node["op"], node["name"]
        if op not in ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output"):
            raise ValueError(f"the operation {op}")
        target = _target(op, node["target"])
        args, kwargs = _decoded(node["args"], known), _decoded(node["kwargs"], known)
        attributes = args[1:] if target is getattr else ()
        for word in (node["target"], *kwargs, *attributes):  # they become part of the code of the graph
            if not re.fullmatch(r"\*{0,2}[A-Za-z0-9_.]+", word):
                raise ValueError(f"the name {word!r}")
        known[name] = graph.create_node(op, target, args, kwargs, name=name)
    graph.lint()
    return graph


def _target_name(node: fx.Node) -> str:
    if node.op == "call_function":
        names = [name for name, function in _functions().items() if function is node.target]
        if not names:
            bad_value(
                "net",
                f"the function {getattr(node.target, '__name__', node.target)}",
                "operations of the table of layer types",
            )
        return names[0]
    if node.op == "call_method" and node.target not in _methods():
        bad_value("net", f"the method {node.target}", "operations of the table of layer types")
    return str(node.target)


def _target(op: str, name: str) -> Any:
    if op == "call_function":
        return _functions()[name]
    if op == "call_method" and name not in _methods():
        raise ValueError(f"the method {name}")
    return name


@functools.cache
def _functions() -> dict[str, Any]:
    """Return the functions that a graph may call, by their public names."""
    known = {id(key) for key in RULES if not isinstance(key, str | type)} | {id(function) for function in FUNCTIONS}
    found: dict[str, Any] = {}
    for prefix, namespace in (
        ("torch", torch),
        ("functional", functional),
        ("operator", operator),
        ("", {"getattr": getattr}),
    ):
        names = namespace if isinstance(namespace, dict) else vars(namespace)
        found |= {f"{prefix}.{name}": value for name, value in names.items() if id(value) in known}
    return found


@functools.cache
def _methods() -> frozenset[str]:
    return frozenset(METHODS) | {key for key in RULES if isinstance(key, str)}


# -- values ------------------------------------------------------------------------------------------------------------


def _encoded(value: Any) -> Any:
    """Return plain arguments as JSON values."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(part) for part in value]}
    if isinstance(value, list):
        return [_encoded(part) for part in value]
    if isinstance(value, dict):
        return {"dict": {key: _encoded(part) for key, part in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encoded(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is Ellipsis:
        return {"ellipsis": True}
    bad_value("net", value, "arguments that are numbers, strings and containers of them")


def _decoded(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decoded(part, nodes) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "tuple":
        return tuple(_decoded(part, nodes) for part in content)
    if kind == "dict":
        return {key: _decoded(part, nodes) for key, part in content.items()}
    if kind == "slice":
        return slice(*(_decoded(part, nodes) for part in content))
    if kind == "dtype":
        found = getattr(torch, content)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"the dtype {content}")
        return found
    if kind == "ellipsis":
        return Ellipsis
    raise ValueError(f"a value of the kind {kind}")
