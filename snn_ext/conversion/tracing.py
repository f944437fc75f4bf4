"""Tracing a trained net: layers stay whole, and what its forward pass asks of sizes is answered by samples."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, Proxy, TraceError
from torch.utils._pytree import tree_leaves, tree_map

from .._tracing import LOCK, InputTracer, described, is_reached, source_of, traceable
from ..hosts import is_neuron
from ..neurons.aan import AAN
from ..neurons.quantized import QuantizedActivation
from ..simulation.layers import RULES
from .values import SIZES, Values, reads_values, repeated

__all__ = ["NetTracer"]


class NetTracer(InputTracer):
    """Keeps layers and neurons whole, a host's too, and what cannot be traced; traces through everything else.

    The class of a layer may have a forward of its own, which is traced. A branch, a length or an index takes the value
    that it has for samples, if that is the same for every batch.

    Parameters
    ----------
    x : Tensor
        Samples of the input.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self._x = x

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._runs: tuple[Values, ...] = ()
        try:
            with LOCK, _len_recorded(root):
                return super().trace(root, concrete_args)
        finally:
            self._runs = ()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in RULES or (is_neuron(m) and not isinstance(m, nn.ReLU)):
            return "forward" not in vars(m)
        home = type(m).forward.__module__
        if "forward" in vars(m) or not home.startswith((*_HOMES, "torch.ao.nn", "spikingjelly.", "snntorch.")):
            return False
        contains = bool(m._modules) and not m.__module__.startswith("torch.")
        return isinstance(m, QuantizedActivation | AAN) or not (isinstance(m, nn.Sequential) or contains)

    def call_own_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        stack = dict(self.module_stack)
        try:
            return super().call_own_module(m, forward, args, kwargs)
        except Exception as error:  # the module becomes a node, so that the obstacles behind it are found as well
            self.module_stack.clear()
            self.module_stack.update(stack)
            proxy = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
            proxy.node.meta |= {"untraced": described(error), "traceable": traceable(error), "source": source_of(error)}
            return proxy

    # -- what Python asks of a value -----------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> Proxy:
        return _Value(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        return self.asked("a branch", obj.node, bool)

    def iter(self, obj: Proxy) -> Iterator[Proxy]:
        length = self.asked("a loop", obj.node, len)
        return iter([self.create_proxy("call_function", operator.getitem, (obj, k), {}) for k in range(length)])

    def asked(self, what: str, node: fx.Node, question: Callable[[Any], Any]) -> Any:
        """Return the answer of the value of a node, if every batch has it."""
        if not self._runs:
            self._runs = tuple(Values(self.root, repeated(self._x, n), self.graph) for n in SIZES)
        with self.outside():
            values = [run.value(node) for run in self._runs]
        if self._is_read(node, question is len):
            raise TraceError(f"{what} that depends on the values of a tensor")
        first, second = map(question, values)
        differ = question is not len and not isinstance(values[0], Tensor) and values[0] != values[1]
        if first != second or differ or any(self._compares_the_batch(n) for n in (node, *node.all_input_nodes)):
            raise TraceError(f"{what} that depends on the size of the batch")
        return first

    def _is_read(self, node: fx.Node, is_size: bool) -> bool:
        """Return True for tensors that are computed from the samples, and for a number that comes from their values."""
        if self._holds_tensors(node):
            return not is_size and is_reached(node)
        tensors = [n for n in node.all_input_nodes if self._holds_tensors(n)]
        if reads_values(node) and any(map(is_reached, tensors)):
            return True
        return any(self._is_read(n, False) for n in node.all_input_nodes if n not in tensors)

    def _holds_tensors(self, node: fx.Node) -> bool:
        return any(isinstance(leaf, Tensor) for leaf in tree_leaves(self._runs[0].env[node]))

    def _compares_the_batch(self, node: fx.Node) -> bool:
        """Return True for a comparison of what depends on the size of the batch with what does not."""
        if node.target not in _COMPARISONS:
            return False
        sides = [[run.env[side] if isinstance(side, fx.Node) else side for run in self._runs] for side in node.args]
        return len({isinstance(two, Tensor) or two == three for two, three in sides}) > 1


_HOMES = ("torch.nn", __name__.partition(".")[0])
_COMPARISONS = (operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge)


class _Value(Proxy):
    """A value whose length and index samples tell."""

    tracer: NetTracer

    def __getattr__(self, k: str) -> Attribute:
        if k.startswith("__array"):  # numpy asks whether it is an array
            raise AttributeError(k)
        return _Attribute(self, k)

    def __len__(self) -> int:
        length: int = self.tracer.asked("a length", self.node, len)
        return length

    def __index__(self) -> int:
        index: int = self.tracer.asked("a number", self.node, operator.index)
        return index

    def __int__(self) -> int:
        number: int = self.tracer.asked("a number", self.node, int)
        return number

    def __float__(self) -> float:
        number: float = self.tracer.asked("a number", self.node, float)
        return number

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.asked("a number", self.node, lambda value: round(value, digits))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Compute a function of numpy, as the product of a shape."""

        def value(leaf: Any) -> Any:
            return self.tracer.asked(func.__name__, leaf.node, lambda v: v) if isinstance(leaf, Proxy) else leaf

        args, kwargs = tree_map(value, (args, kwargs))
        result = func(*args, **kwargs)
        return result.item() if hasattr(result, "item") and not result.ndim else result


class _Attribute(Attribute, _Value):
    """An attribute of a value."""


@contextmanager
def _len_recorded(net: nn.Module) -> Iterator[None]:
    """Record ``len(x)`` in the code of a net: what ``__len__`` returns becomes a number, and the batch is none."""
    forwards = (inspect.unwrap(type(module).forward) for module in net.modules())
    spaces = [getattr(forward, "__globals__", {}) for forward in forwards]
    spaces = list({id(space): space for space in spaces if "len" not in space}.values())
    for space in spaces:
        space["len"] = _len
    try:
        yield
    finally:
        for space in spaces:
            del space["len"]


def _len(value: Any) -> Any:
    return value.tracer.create_proxy("call_function", len, (value,), {}) if isinstance(value, Proxy) else len(value)
