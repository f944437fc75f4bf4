"""Symbolic tracing beside other threads."""

from __future__ import annotations

import inspect
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

__all__ = [
    "LOCK", "InputTracer", "ThreadTracer", "described", "innermost", "is_reached", "source_of", "traceable", "traced",
    "traced_graph",
]  # fmt: skip

LOCK = threading.RLock()
_TOOLS = tuple(f"{Path(module).parent}{os.sep}" for module in (torch.__file__, __file__))


class ThreadTracer(fx.Tracer):
    """A tracer that sees the modules of its own thread only.

    While fx traces, it patches calls and attributes of ``nn.Module`` for all threads: without this class, other threads
    would record their calls into the graph. One thread traces at a time, so that patches come off in order.
    """

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with LOCK:
            self._thread: int | None = threading.get_ident()
            return super().trace(root, concrete_args)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Compute something in the thread that traces, and record nothing."""
        thread, self._thread = self._thread, None
        try:
            yield
        finally:
            self._thread = thread

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return self.call_own_module(m, forward, args, kwargs)

    def call_own_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record the call of a module in the thread that traces, or trace through it."""
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node; ``meta["source"]`` is the line of the net that it comes from."""
        node = super().create_node(*args, **kwargs)
        node.meta["source"] = innermost(traceback.walk_stack(None))
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class InputTracer(ThreadTracer):
    """A tracer of nets with one input, the first argument; those behind it take their defaults."""

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        positional, named = [self.root], dict[str, Any]()
        for k, argument in enumerate([*inspect.signature(root_fn).parameters.values()][1:]):
            kind, value = argument.kind, argument.default
            if kind is argument.VAR_KEYWORD or (k and kind is argument.VAR_POSITIONAL):
                continue
            if not k or value is argument.empty:
                value = self.create_proxy("placeholder", argument.name, (), {})
            if kind is argument.KEYWORD_ONLY:
                named[argument.name] = value
            else:
                positional.append(value)
        return lambda *args: root_fn(*args, **named), positional


def traced(net: nn.Module, tracer: ThreadTracer, name: str) -> fx.GraphModule:
    """Return a net as a module of its graph; ``name`` is the argument that an error names."""
    with _without_constants(net):
        return fx.GraphModule(net, _trace(net, tracer, name))  # which copies the constants


def traced_graph(net: nn.Module, tracer: ThreadTracer, name: str) -> fx.Graph:
    """Return the graph of a net; ``name`` is the argument that an error names.

    A tensor that the forward pass makes is ``meta["constant"]`` of the nodes that read it.
    """
    before = set(vars(net))
    with _without_constants(net):
        graph = _trace(net, tracer, name)
        for node in graph.nodes:
            if node.op == "get_attr" and node.target in vars(net) and node.target not in before:
                node.meta["constant"] = getattr(net, node.target)
        return graph


def _trace(net: nn.Module, tracer: ThreadTracer, name: str) -> fx.Graph:
    try:
        return tracer.trace(net)
    except Exception as error:
        place = source_of(error)
        raise ValueError(
            f"{name}: got {type(net).__name__}, which cannot be traced ({described(error)}{place and f'; {place}'}), "
            f"want {traceable(error)}"
        ) from error


def described(error: Exception) -> str:
    """Return what an error says, or its kind."""
    return str(error) or type(error).__name__


def traceable(error: Exception) -> str:
    """Return what a forward pass has to be instead of one in whose trace an error was raised."""
    if isinstance(error, fx.proxy.TraceError):
        return "a forward pass that does not branch on values or on the batch size"
    return "a forward pass that torch.fx can trace: layers made before, and no look at the type or values of its input"


@contextmanager
def _without_constants(net: nn.Module) -> Iterator[None]:
    """Take the tensors that a forward pass makes, which fx keeps in the net, out of it again."""
    before = set(vars(net))
    try:
        yield
    finally:
        for constant in set(vars(net)) - before:
            delattr(net, constant)


def is_reached(node: fx.Node) -> bool:
    """Return True for a value that is computed from an input of the graph, not from parameters alone."""
    seen, left = {node}, [node]
    while left:
        new = set(left.pop().all_input_nodes) - seen
        seen |= new
        left += new
    return any(other.op == "placeholder" for other in seen)


def source_of(error: Exception) -> str:
    """Return the line of the net in which an error was raised, as ``"net.py, line 3"``, or ``""``."""
    return innermost(reversed(list(traceback.walk_tb(error.__traceback__))))


def innermost(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Return the first of some frames, innermost first, that belongs neither to torch nor to this package."""
    for frame, line in frames:
        if frame.f_code is ThreadTracer.trace.__code__:
            break
        if not frame.f_code.co_filename.startswith(_TOOLS):
            return f"{Path(frame.f_code.co_filename).name}, line {line}"
    return ""
