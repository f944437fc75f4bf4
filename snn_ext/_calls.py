"""The activations that a net calls: found by tracing, counted, and given a module for each call."""

from __future__ import annotations

import copy
import dis
import inspect
import random
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import chain, count, dropwhile
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ._draws import Draws
from ._errors import bad_value
from ._tracing import ThreadTracer, is_reached, traced_graph
from .hosts import is_neuron, is_relu
from .neurons.quantized import QuantizedActivation
from .training import ConstantInputNet

__all__ = ["Survey", "is_activation", "module_for_each_call", "survey"]

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
_ITERATED = nn.Sequential, nn.ModuleList, nn.ModuleDict
"""Modules that run or count their children: another child would be one too many."""


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
        nodes += _traced(step, net.training).nodes
    except Exception:  # control flow on values: what the code mentions has to do
        for name, module in net.named_modules():
            where = f"in {type(module).__name__}.forward" + (name and f" of {name}")
            for call in sorted(_mentioned(module)):
                (found.functional if call.startswith("relu") else found.analog).append(f"perhaps {call} {where}")
                named.add(name)
    for node in nodes:
        place = f"{_name(node)} ({node.meta.get('source') or 'unknown line'})"
        if _functional_relu(node):
            found.functional.append(place)
            named.add(_owner(node))
        elif _is_analog(node) and is_reached(node):
            found.analog.append(place)
            named.add(_owner(node))
        elif _calls_relu(net, node):
            found.calls[net.get_submodule(str(node.target))] += 1
            found.overwriting.extend([place] * bool(_later_readers(net, node)))
    for name, module in net.named_modules():
        if isinstance(module, _ANALOG_MODULES) and not (is_activation(module) or module._modules or name in named):
            found.analog.append(f"{name} ({type(module).__name__})")
        elif getattr(getattr(module, "activation", None), "__name__", "") in _NAMES:  # of nn.TransformerEncoderLayer
            found.analog.append(f"{name}.activation ({type(module).__name__})")
    return found


def is_activation(module: nn.Module) -> bool:
    """Return True for an activation for which a spiking neuron may stand: a ReLU, or a quantised one."""
    return is_relu(module) or isinstance(module, QuantizedActivation)


@contextmanager
def module_for_each_call(net: nn.Module) -> Iterator[None]:
    """Give each call of a ReLU in a net's forward pass a module of its own; undone if the block fails.

    A ReLU in several places of the net is copied into each. A module whose forward pass calls functions, or one module
    several times, gets a subclass of its class, whose forward pass is that of its traced graph; or the module around it
    does, if it is called several times itself. All others stay what they are, under their names.

    Raises
    ------
    ValueError
        If the net cannot be traced.
    """
    if isinstance(net, fx.GraphModule):
        bad_value("net", type(net).__name__, "the net that it was traced from: its graph is its forward pass already")
    with ExitStack() as stack:
        for part in (net.stem, net.body) if isinstance(net, ConstantInputNet) else (net,):
            stack.enter_context(_module_for_each_call(part))
        yield


@contextmanager
def _module_for_each_call(net: nn.Module) -> Iterator[None]:
    modules = [module for module in net.modules() if isinstance(module._modules, dict)]  # no scripted ones
    before = {m: (type(m), {*m.__dict__, *m._buffers}, dict(m._modules)) for m in modules}
    try:
        _split_places(net)
        callers: dict[str, set[str]] = {}
        for training in (True, False):
            _find_callers(net, _traced(net, training), callers)
        for name, owners in callers.items():
            _rewrite(net, name, owners)
        yield
    except BaseException:
        _restore(before)
        raise


# -- tracing -----------------------------------------------------------------------------------------------------------


class _CallTracer(ThreadTracer):
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


def _traced(net: nn.Module, training: bool, tracer: _CallTracer | None = None) -> fx.Graph:
    """Return the graph of a forward pass, in training or in evaluation; hooks do not see it, and nothing is set."""
    tracer = tracer or _CallTracer()
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


def _whole_graph(net: nn.Module, training: bool, entered: set[str]) -> fx.Graph:
    """Return a graph that can stand for a forward pass, or raise if it would leave something out or fix it.

    It is traced with gradient and without, for a context of the net that changes nothing at the moment does not show.
    """
    for usual in (False, True):
        tracer = _CallTracer(entered)
        with torch.set_grad_enabled(usual), torch.autocast("cpu", enabled=not usual):
            graph = _traced(net, training, tracer)
        if tracer.lost:
            bad_value(
                "net",
                tracer.lost[0],
                "none with functional=True: a graph has no contexts, sets nothing and fixes what is random",
            )
    return graph


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


def _functional_relu(node: fx.Node) -> type[nn.Module] | None:
    """Return the module for a call of a function that is a ReLU or a ReLU6 of something that depends on the input."""
    if node.op not in ("call_function", "call_method") or not is_reached(node):
        return None
    if node.target in _FUNCTIONAL:
        return _FUNCTIONAL[node.target]
    bounds = dict(_BOUNDS.get(_name(node).rstrip("_"), {}))
    bounds |= dict(zip(bounds, node.args[1:], strict=False)) | {k: node.kwargs[k] for k in bounds if k in node.kwargs}
    values = tuple(bounds.values())
    return nn.ReLU if values in ((0,), (0, None)) else nn.ReLU6 if values == (0, 6) else None


def _is_analog(node: fx.Node) -> bool:
    of_two = _name(node) in ("max", "min") and len(node.all_input_nodes) > 1  # with one it is a pooling
    return node.op in ("call_function", "call_method") and (_name(node).rstrip("_") in _ANALOG or of_two)


def _calls_relu(net: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and is_activation(net.get_submodule(str(node.target)))


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _source(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs["input"]


def _later_readers(net: nn.Module, node: fx.Node) -> list[fx.Node]:
    """Return the calls that read the input of a ReLU after it has written its result into it."""
    if node.op == "call_module":
        in_place = getattr(net.get_submodule(str(node.target)), "inplace", False)
    else:
        in_place = _name(node).endswith("_") or node.kwargs.get("inplace", any(arg is True for arg in node.args[1:]))
    source = _source(node)
    if not in_place or not isinstance(source, fx.Node):
        return []
    later = set(dropwhile(lambda other: other is not node, node.graph.nodes)) - {node}
    return [user for user in source.users if user in later]


def _find_callers(net: nn.Module, graph: fx.Graph, found: dict[str, set[str]]) -> None:
    """Find the modules whose forward pass has to change, and those inside from which the calls come.

    They run once, with nothing but required arguments.
    """
    stacks = {node: node.meta.get("nn_module_stack", {}) for node in graph.nodes}
    again = {path for stack in stacks.values() for call, (path, _) in stack.items() if "@" in call}
    calls = Counter[Any]()
    for node, stack in stacks.items():
        if _functional_relu(node) or _calls_relu(net, node):
            calls[node.target] += 1
            if node.op != "call_module" or calls[node.target] > 1 or _later_readers(net, node):
                around = ["", *(path for path, _ in stack.values())]
                owner = caller = around[-2] if node.op == "call_module" else around[-1]
                while caller and (caller in again or not _is_plain(net.get_submodule(caller))):
                    caller = caller.rpartition(".")[0]
                found.setdefault(caller, set()).add(owner)


def _is_plain(module: nn.Module) -> bool:
    """Return True for a module that may get children and another forward pass, whatever calls it."""
    arguments = inspect.signature(type(module).forward).parameters.values()
    return not isinstance(module, _ITERATED) and all(argument.default is argument.empty for argument in arguments)


# -- changing the net --------------------------------------------------------------------------------------------------


def _rewrite(net: nn.Module, name: str, owners: set[str]) -> None:
    """Change the forward pass of a module, or of the one around it, if it cannot be traced by itself."""
    module, names = net.get_submodule(name), dict[Any, str]()
    entered = {other for other, _ in module.named_modules() if any(_is_inside(o, f"{name}.{other}") for o in owners)}
    try:
        graphs = _whole_graph(module, True, entered), _whole_graph(module, False, entered)
    except ValueError:
        if not name:
            raise
        _rewrite(net, name.rpartition(".")[0], owners)
        return
    if any([_give_modules(module, graph, names) for graph in graphs]):
        kept: dict[str, Any] = {}
        for graph in graphs:
            _keep_constants(module, graph, kept)
        module.__class__ = _class_of(type(module), graphs)


def _is_inside(name: str, other: str) -> bool:
    """Return True for the name of a module, or of one inside it."""
    return f"{name}.".startswith(f"{other.strip('.')}.") or other == "."


def _split_places(net: nn.Module) -> None:
    seen = set[nn.Module]()
    for parent in list(net.modules()):
        for name, child in parent._modules.items():
            if child is not None and is_activation(child):
                parent._modules[name] = copy.deepcopy(child) if child in seen else child
                seen.add(child)


def _give_modules(net: nn.Module, graph: fx.Graph, names: dict[Any, str]) -> bool:
    """Let a graph call a module of its own at each place of a ReLU; return whether that changes it.

    ``names`` are the modules by place, which training and evaluation share: a module at its first place is kept.
    """
    relus = [node for node in graph.nodes if _functional_relu(node) or _calls_relu(net, node)]
    changed, visits = False, Counter[Any]()
    for node in relus:
        for user in _later_readers(net, node):
            user.replace_input_with(_source(node), node)
            changed = True
    for node in relus:
        place = node.op, node.target, _owner(node), node.meta.get("source")
        visits[place] += 1
        key = place, visits[place]
        if key not in names:
            is_new = node.op != "call_module" or node.target in names.values()
            names[key] = _add_module(net, node) if is_new else str(node.target)
        if (node.op, node.target) != ("call_module", names[key]):  # a method may have the name of the new module
            source, changed = _source(node), True
            node.op, node.target, node.args, node.kwargs = "call_module", names[key], (source,), {}
    return changed


def _owner(node: fx.Node) -> str:
    """Return the name of the module that calls a function, or the module that is called."""
    return str(next(reversed(node.meta.get("nn_module_stack", {"": ("", None)}).values()))[0])


def _add_module(net: nn.Module, node: fx.Node) -> str:
    """Add a module for a call beside the one that was called, or to the module that calls a function."""
    if node.op == "call_module":
        owner, _, base = str(node.target).rpartition(".")
        module = copy.deepcopy(net.get_submodule(str(node.target)))
    else:
        kind = cast(type[nn.Module], _functional_relu(node))
        owner, base, module = _owner(node), kind.__name__.lower(), kind()
    while owner and isinstance(net.get_submodule(owner), _ITERATED):
        owner, _, last = owner.rpartition(".")
        base = f"{last}_{base}"
    parent = net.get_submodule(owner)
    name = _free_name(parent, base)
    module.training = parent.training
    parent.add_module(name, module)
    return f"{owner}.{name}".lstrip(".")


def _free_name(module: nn.Module, base: str) -> str:
    return next(name for name in chain([base], (f"{base}_{k}" for k in count(1))) if not hasattr(module, name))


def _keep_constants(net: nn.Module, graph: fx.Graph, kept: dict[str, Any]) -> None:
    """Let a net hold the tensors that its forward pass makes; each pass copies them, for it may write into them.

    ``kept`` are those by name, which training and evaluation share. They follow the device of the net.
    """
    copies: dict[Any, fx.Node] = {}
    for node in [node for node in graph.nodes if "constant" in node.meta]:
        if node.target in copies:
            node.replace_all_uses_with(copies[node.target])
            graph.erase_node(node)
            continue
        value, made = node.meta["constant"], node.target
        if (name := next((name for name, other in kept.items() if _is_same(value, other)), None)) is None:
            kept[name := _free_name(net, "constant")] = value
            net.register_buffer(name, value, persistent=False)
        node.target = name
        with graph.inserting_after(node):
            copies[made] = graph.call_method("clone", (node,))
        node.replace_all_uses_with(copies[made], lambda user, copied=copies[made]: user is not copied)


def _is_same(x: Tensor, y: Tensor) -> bool:
    return x is y or (x.dtype == y.dtype and x.device == y.device != torch.device("meta") and torch.equal(x, y))


def _class_of(kind: type[nn.Module], graphs: tuple[fx.Graph, fx.Graph]) -> type[nn.Module]:
    """Return a class of nets whose forward pass is that of a graph, one in training and one in evaluation."""
    base: Any = getattr(kind, "_written", kind)
    for graph in graphs:
        for node in graph.nodes:
            node.meta.clear()
    texts = [graph.python_code("self") for graph in graphs]
    functions = [_function(text.src, text.globals) for text in texts]
    train, evaluation = functions

    @wraps(evaluation)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (train if self.training else evaluation)(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _blank, (base, graphs), *base.__reduce_ex__(self, protocol)[2:]

    same = texts[0].src == texts[1].src
    own: dict[str, Any] = {"forward": evaluation if same else forward, "__reduce_ex__": reduce, "_written": base}
    own["code"] = texts[1].src if same else texts[0].src + texts[1].src  # as of an fx.GraphModule, to compare nets by
    own |= {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return cast(type[nn.Module], type(base)(base.__name__, (base,), own))


def _function(text: str, names: dict[str, Any]) -> Callable[..., Any]:
    scope = dict(names)
    exec(compile(text, "<forward pass traced by snn_ext>", "exec"), scope)
    return cast(Callable[..., Any], scope["forward"])


def _blank(base: type[nn.Module], graphs: tuple[fx.Graph, fx.Graph]) -> nn.Module:
    """Return a net without a state, for a copy or a pickle to fill."""
    kind = _class_of(base, graphs)
    return kind.__new__(kind)


def _restore(before: dict[nn.Module, tuple[type[nn.Module], set[str], dict[str, Any]]]) -> None:
    for module, (kind, names, children) in before.items():
        module.__class__ = kind
        for name in {*module.__dict__, *module._buffers} - names:
            delattr(module, name)
        module._modules.clear()
        module._modules.update(children)
