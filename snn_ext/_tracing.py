"""Symbolic tracing beside other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

__all__ = ["ThreadTracer", "traced"]

_LOCK = threading.RLock()


class ThreadTracer(fx.Tracer):
    """A tracer that sees the modules of its own thread only.

    While fx traces, it patches calls and attributes of ``nn.Module`` for all threads: without this class, other threads
    would record their calls into the graph. One thread traces at a time, so that patches come off in order.
    """

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _LOCK:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def traced(net: nn.Module, tracer: ThreadTracer, name: str) -> fx.GraphModule:
    """Return the graph of a net; ``name`` is the argument that an error names."""
    try:
        return fx.GraphModule(net, tracer.trace(net))
    except Exception as error:
        raise ValueError(
            f"{name}: got {type(net).__name__}, which cannot be traced ({error}), "
            "want a net whose forward pass does not depend on values"
        ) from error
