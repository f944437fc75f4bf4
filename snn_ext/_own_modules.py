"""A module of its own for each call of an activation: the forward pass of a net is rewritten by its graph."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import chain, count
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ._calls import (
    CallTracer,
    calls_relu,
    functional_relu,
    input_of,
    is_activation,
    later_readers,
    owner_of,
    traced_calls,
)
from ._errors import bad_value
from .training import ConstantInputNet

__all__ = ["module_for_each_call"]

_ITERATED = nn.Sequential, nn.ModuleList, nn.ModuleDict
"""Modules that run or count their children: another child would be one too many."""


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
            _find_callers(net, traced_calls(net, training), callers)
        for name, owners in callers.items():
            _rewrite(net, name, owners)
        yield
    except BaseException:
        _restore(before)
        raise


def _restore(before: dict[nn.Module, tuple[type[nn.Module], set[str], dict[str, Any]]]) -> None:
    for module, (kind, names, children) in before.items():
        module.__class__ = kind
        for name in {*module.__dict__, *module._buffers} - names:
            delattr(module, name)
        module._modules.clear()
        module._modules.update(children)


# -- which forward passes have to change -------------------------------------------------------------------------------


def _find_callers(net: nn.Module, graph: fx.Graph, found: dict[str, set[str]]) -> None:
    """Find the modules whose forward pass has to change, and those inside from which the calls come.

    They run once, with nothing but required arguments.
    """
    stacks = {node: node.meta.get("nn_module_stack", {}) for node in graph.nodes}
    again = {path for stack in stacks.values() for call, (path, _) in stack.items() if "@" in call}
    calls = Counter[Any]()
    for node, stack in stacks.items():
        if functional_relu(node) or calls_relu(net, node):
            calls[node.target] += 1
            if node.op != "call_module" or calls[node.target] > 1 or later_readers(net, node):
                around = ["", *(path for path, _ in stack.values())]
                owner = caller = around[-2] if node.op == "call_module" else around[-1]
                while caller and (caller in again or not _is_plain(net.get_submodule(caller))):
                    caller = caller.rpartition(".")[0]
                found.setdefault(caller, set()).add(owner)


def _is_plain(module: nn.Module) -> bool:
    """Return True for a module that may get children and another forward pass, whatever calls it."""
    arguments = inspect.signature(type(module).forward).parameters.values()
    return not isinstance(module, _ITERATED) and all(argument.default is argument.empty for argument in arguments)


# -- changing them -----------------------------------------------------------------------------------------------------


def _split_places(net: nn.Module) -> None:
    seen = set[nn.Module]()
    for parent in list(net.modules()):
        for name, child in parent._modules.items():
            if child is not None and is_activation(child):
                parent._modules[name] = copy.deepcopy(child) if child in seen else child
                seen.add(child)


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


def _whole_graph(net: nn.Module, training: bool, entered: set[str]) -> fx.Graph:
    """Return a graph that can stand for a forward pass, or raise if it would leave something out or fix it.

    It is traced with gradient and without, for a context of the net that changes nothing at the moment does not show.
    """
    for usual in (False, True):
        tracer = CallTracer(entered)
        with torch.set_grad_enabled(usual), torch.autocast("cpu", enabled=not usual):
            graph = traced_calls(net, training, tracer)
        if tracer.lost:
            bad_value(
                "net",
                tracer.lost[0],
                "none with functional=True: a graph has no contexts, sets nothing and fixes what is random",
            )
    return graph


def _give_modules(net: nn.Module, graph: fx.Graph, names: dict[Any, str]) -> bool:
    """Let a graph call a module of its own at each place of a ReLU; return whether that changes it.

    ``names`` are the modules by place, which training and evaluation share: a module at its first place is kept.
    """
    relus = [node for node in graph.nodes if functional_relu(node) or calls_relu(net, node)]
    changed, visits = False, Counter[Any]()
    for node in relus:
        for user in later_readers(net, node):
            user.replace_input_with(input_of(node), node)
            changed = True
    for node in relus:
        place = node.op, node.target, owner_of(node), node.meta.get("source")
        visits[place] += 1
        key = place, visits[place]
        if key not in names:
            is_new = node.op != "call_module" or node.target in names.values()
            names[key] = _add_module(net, node) if is_new else str(node.target)
        if (node.op, node.target) != ("call_module", names[key]):  # a method may have the name of the new module
            source, changed = input_of(node), True
            node.op, node.target, node.args, node.kwargs = "call_module", names[key], (source,), {}
    return changed


def _add_module(net: nn.Module, node: fx.Node) -> str:
    """Add a module for a call beside the one that was called, or to the module that calls a function."""
    if node.op == "call_module":
        owner, _, base = str(node.target).rpartition(".")
        module = copy.deepcopy(net.get_submodule(str(node.target)))
    else:
        kind = cast(type[nn.Module], functional_relu(node))
        owner, base, module = owner_of(node), kind.__name__.lower(), kind()
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
