"""The one of several outputs that is converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, fx

from .._errors import bad_type, bad_value
from .graph_tools import refuse

__all__ = ["part_of", "select_output"]


def select_output(graph: fx.GraphModule, result: Any, output: str | int | None) -> Tensor:
    """Leave one output in the graph of a net, and return its value.

    Parameters
    ----------
    graph : fx.GraphModule
        The net.
    result : object
        What the net returns: a tensor, or a dict, dataclass, tuple or list with tensors.
    output : str, int or None
        Which of them; ``None`` for the output of a net that has only one.
    """
    if output is not None and (isinstance(output, bool) or not isinstance(output, str | int)):
        bad_type("output", output, "a str, an int, or None")
    node = next(node for node in graph.graph.nodes if node.op == "output")
    values, parts = _parts(result), _parts(node.args[0])
    if output is None and isinstance(result, Tensor):
        return result
    names = ", ".join(f"output={name!r}" for name, value in values.items() if isinstance(value, Tensor))
    if output is None:
        refuse(f"an output that is a {type(result).__name__}", f"the name of the one to convert: {names}")
    value, part = values.get(output), parts.get(output)
    if not isinstance(value, Tensor) or not isinstance(part, fx.Node):
        bad_value("output", output, names or "None for a net that returns one tensor")
    node.args = (part,)
    return value


def part_of(result: Any, output: str | int | None) -> Any:
    """Return one of the outputs in what a net returns."""
    return result if output is None else _parts(result)[output]


def _parts(value: Any) -> dict[Any, Any]:
    """Return the parts of a result, or of what a graph returns, by key, field or place."""
    if isinstance(value, fx.Node) and isinstance(value.target, type):  # a dataclass, which the net makes from tensors
        names = [field.name for field in fields(value.target)] if is_dataclass(value.target) else []
        return dict(zip(names, value.args, strict=False)) | value.kwargs
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(enumerate(value)) if isinstance(value, tuple | list) else {}
