"""The activations that a net calls: found by tracing, counted, and named."""

from __future__ import annotations

import dis
import inspect
import random
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator
from itertools import dropwhile
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from ._draws import Draws
from ._errors import bad_value
from ._tracing import ThreadTracer, is_reached, traced_graph
from .hosts import is_neuron, is_relu
from .neurons.quantized import QuantizedActivation
from .training import ConstantInputNet

__all__ = [
    "CallTracer", "Survey", "calls_relu", "functional_relu", "input_of", "is_activation", "later_readers", "owner_of",
    "survey", "traced_calls",
]  # fmt: skip

_FUNCTIONAL: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, torch.relu_: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU, F.relu6: nn.ReLU6,
}  # fmt: skip
"""Functions and methods of tensors that are called instead of a module, and that module."""

_BOUNDS: dict[str, dict[str, Any]] = {
    "clamp": {"min": None, "max": None}, "clamp_min": {"min": None}, "hardtanh": {"min_val": -1.0, "max_val": 1.0},
}  # fmt: skip
_BOUNDS["clip"] = _BOUNDS["clamp"]
"""Functions and methods that are a ReLU or a ReLU6 with some bounds; the arguments behind the input, and defaults."""

_ANALOG = {
    "celu", "clamp", "clamp_max", "clamp_min", "clip", "elu", "fmax", "fmin", "gelu", "glu", "hardsigmoid", "hardswish",
    "hardtanh", "leaky_relu", "logsigmoid", "maximum", "minimum", "mish", "prelu", "rrelu", "selu", "sigmoid", "silu",
    "softplus", "softsign", "tanh", "threshold",
}  # fmt: skip
_ANALOG_MODULES = tuple(
    getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name != "MultiheadAttention" and "Softm" not in name and name != "LogSoftmax"
)
_NAMES = {"relu", "relu_", "relu6", *_ANALOG, *(f"{name}_" for name in _ANALOG)}


class Survey(NamedTuple):
    """The activations of a net that cannot just be replaced where they are registered, each as text for a warning."""

    functional: list[str]
    """Functional ReLUs."""
    analog: list[str]
    """Activations of other kinds, functional or modules, for which no neuron stands."""
    overwriting: list[str]
    """ReLUs whose result is read from their input, into which they write; a neuron does not."""
    calls: Counter[nn.Module]
    """How often one forward pass calls each ReLU module; empty if the net cannot be traced."""


def survey(net: nn.Module) -> Survey:
    """Look for the activations of a net as far as it can be traced; nothing is raised."""
    found, named = Survey([], [], [], Counter()), set[str]()
    nodes: list[fx.Node] = []
    try:
        step = net.one_step() if isinstance(net, ConstantInputNet) else net
        nodes += traced_calls(step, net.training).nodes
    except Exception:  # control flow on values: what the code mentions has to do
        for name, module in net.named_modules():
            where = f"in {type(module).__name__}.forward" + (name and f" of {name}")
            for call in sorted(_mentioned(module)):
                (found.functional if call.startswith("relu") else found.analog).append(f"perhaps {call} {where}")
                named.add(name)
    for node in nodes:
        place = f"{_name(node)} ({node.meta.get('source') or 'unknown line'})"
        if functional_relu(node):
            found.functional.append(place)
            named.add(owner_of(node))
        elif _is_analog(node) and is_reached(node):
            found.analog.append(place)
            named.add(owner_of(node))
        elif calls_relu(net, node):
            found.calls[net.get_submodule(str(node.target))] += 1
            found.overwriting.extend([place] * bool(later_readers(net, node)))
    for name, module in net.named_modules():
        if isinstance(module, _ANALOG_MODULES) and not (is_activation(module) or module._modules or name in named):
            found.analog.append(f"{name} ({type(module).__name__})")
        elif getattr(getattr(module, "activation", None), "__name__", "") in _NAMES:  # of nn.TransformerEncoderLayer
            found.analog.append(f"{name}.activation ({type(module).__name__})")
    return found


def is_activation(module: nn.Module) -> bool:
    """Return True for an activation for which a spiking neuron may stand: a ReLU, or a quantised one."""
    return is_relu(module) or isinstance(module, QuantizedActivation)


# -- tracing -----------------------------------------------------------------------------------------------------------


class CallTracer(ThreadTracer):
    """Tracer that enters some modules by name, or all that may call an activation; layers and neurons stay whole."""

    proxy_buffer_attributes = True  # what is computed from a buffer follows its value

    def __init__(self, entered: set[str] | None = None) -> None:
        super().__init__()
        self._entered = entered
        self.lost: list[str] = []
        """What the graph leaves out, or fixes."""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._modes = _modes()
        before = _states()
        with Draws() as draws:
            graph = super().trace(root, concrete_args)
        drawn = [f"random numbers, drawn once ({line or 'unknown line'})" for line in draws.found]
        self.lost += drawn or ["random numbers, drawn once"] * (_states() != before)
        return graph

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        for name, value in _modes().items():
            if value != self._modes[name]:
                self.lost.append(f"{name} of its own for {_name(node)} ({node.meta['source'] or 'unknown line'})")
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._entered is not None:
            return module_qualified_name not in self._entered
        if is_activation(m) or is_neuron(m) or super().is_leaf_module(m, module_qualified_name):
            return True
        return not m._modules and not _mentioned(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Let an argument with a default have it, for a forward pass may ask which value it has."""
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for k, arg in enumerate(args):
            if isinstance(arg, fx.Proxy) and arg.node.args:
                args[k] = arg.node.args[0]
                if isinstance(args[k], bool | int | float | str | None):
                    self.create_proxy("call_function", _stays, (arg.node.target, arg, args[k]), {})
        return fn, args


def _states() -> list[Any]:
    """Return the states of the generators of Python and NumPy."""
    numpy = sys.modules.get("numpy.random")
    return [random.getstate(), str(numpy.get_state()) if numpy else None]


def _modes() -> dict[str, bool]:
    """Return the modes that contexts set, such as ``torch.no_grad``, and a graph does not hold."""
    autocast = {f"autocast on {kind}": torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    return {"a gradient mode": torch.is_grad_enabled(), **autocast}


def _stays(name: str, value: Any, default: Any) -> None:
    """Raise if an argument is given another value than the one that it was traced with."""
    if not isinstance(value, fx.Proxy) and (type(value) is not type(default) or value != default):
        bad_value(name, value, f"{default!r}, with which functional=True has traced the net")


def traced_calls(net: nn.Module, training: bool, tracer: CallTracer | None = None) -> fx.Graph:
    """Return the graph of a forward pass, in training or in evaluation; hooks do not see it, and nothing is set."""
    tracer = tracer or CallTracer()
    attributes = {"training": training, "_forward_hooks": OrderedDict(), "_forward_pre_hooks": OrderedDict()}
    holders = [
        (m, held) for m in net.modules() for held in (vars(m), vars(m).get("_buffers")) if isinstance(held, dict)
    ]
    before = [(module, held, dict(held)) for module, held in holders]
    try:
        for _, held, values in before:
            held.update({name: attributes[name] for name in attributes if name in values})
        return traced_graph(net, tracer, "net")
    finally:
        for module, held, values in before:
            for name in [name for name in {**held, **values} if held.get(name) is not values.get(name)]:
                if name not in attributes:
                    tracer.lost.append(f"attribute {name} of {type(module).__name__}, set in its forward pass")
                if name in values:
                    held[name] = values[name]
                else:
                    del held[name]


def _mentioned(module: nn.Module) -> set[str]:
    """Return the activations that a forward pass mentions, or a function or method that it calls."""
    found, seen = set[str](), set[FunctionType]()
    left: list[tuple[Any, bool]] = [(getattr(type(module), "forward", None), True)]  # a scripted module has none
    while left:
        value, is_method = left.pop()
        function = inspect.unwrap(value) if callable(value) else None
        if not isinstance(function, FunctionType) or function in seen or _is_foreign(function, type(module)):
            continue
        seen.add(function)
        for owner, name in _loaded(function.__code__):
            if owner in function.__code__.co_varnames[:is_method]:  # an attribute of the module itself
                value = inspect.getattr_static(module, name, None)
                left.append(
                    (getattr(value, "__func__", value), isinstance(value, FunctionType) and name not in vars(module))
                )
            else:
                found |= _NAMES & {name}
                value = function.__globals__.get(owner)
                value = getattr(value, name, None) if isinstance(value, ModuleType) else function.__globals__.get(name)
                left.append((value, False))
            found |= _NAMES & {getattr(value, "__name__", "")}
    return found


def _is_foreign(function: FunctionType, kind: type[nn.Module]) -> bool:
    """Return True for a function of torch, or of another library than that of a module."""
    own, other = (str(thing.__module__).partition(".")[0] for thing in (kind, function))
    return other == "torch" or (other != own and "site-packages" in function.__code__.co_filename)


def _loaded(code: CodeType) -> Iterator[tuple[Any, str]]:
    """Yield the names that code loads, each with what was loaded before it, of which it may be an attribute."""
    before = None
    for instruction in dis.get_instructions(code):
        if isinstance(instruction.argval, CodeType):
            yield from _loaded(instruction.argval)
        elif isinstance(instruction.argval, str) and instruction.opname.startswith("LOAD"):
            yield before, instruction.argval
        before = instruction.argval


# -- calls in a graph --------------------------------------------------------------------------------------------------


def functional_relu(node: fx.Node) -> type[nn.Module] | None:
    """Return the module for a call of a function that is a ReLU or a ReLU6 of something that depends on the input."""
    if node.op not in ("call_function", "call_method") or not is_reached(node):
        return None
    if node.target in _FUNCTIONAL:
        return _FUNCTIONAL[node.target]
    bounds = dict(_BOUNDS.get(_name(node).rstrip("_"), {}))
    bounds |= dict(zip(bounds, node.args[1:], strict=False)) | {k: node.kwargs[k] for k in bounds if k in node.kwargs}
    values = tuple(bounds.values())
    return nn.ReLU if values in ((0,), (0, None)) else nn.ReLU6 if values == (0, 6) else None


def calls_relu(net: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and is_activation(net.get_submodule(str(node.target)))


def _is_analog(node: fx.Node) -> bool:
    of_two = _name(node) in ("max", "min") and len(node.all_input_nodes) > 1  # with one it is a pooling
    return node.op in ("call_function", "call_method") and (_name(node).rstrip("_") in _ANALOG or of_two)


def input_of(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs["input"]


def later_readers(net: nn.Module, node: fx.Node) -> list[fx.Node]:
    """Return the calls that read the input of a ReLU after it has written its result into it."""
    if node.op == "call_module":
        in_place = getattr(net.get_submodule(str(node.target)), "inplace", False)
    else:
        in_place = _name(node).endswith("_") or node.kwargs.get("inplace", any(arg is True for arg in node.args[1:]))
    source = input_of(node)
    if not in_place or not isinstance(source, fx.Node):
        return []
    later = set(dropwhile(lambda other: other is not node, node.graph.nodes)) - {node}
    return [user for user in source.users if user in later]


def owner_of(node: fx.Node) -> str:
    """Return the name of the module that calls a function, or the module that is called."""
    return str(next(reversed(node.meta.get("nn_module_stack", {"": ("", None)}).values()))[0])


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
