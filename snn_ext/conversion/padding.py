"""Padding with -inf, as TensorFlow's "SAME" has it, as a part of the maximum pooling behind it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from ..simulation.layers import rule_of_node
from .graph_tools import Operation, assign, refuse, shape_of
from .obstacles import Obstacles

__all__ = ["PADDING", "absorb_padding"]

PADDING = "zero padding, or -inf before a maximum pooling"
"""What may be in place of a padding with other values."""


def absorb_padding(graph: fx.GraphModule, obstacles: Obstacles) -> None:
    """Give each padding with -inf to the maximum poolings behind it, and note one that they cannot have."""
    for pad in list(graph.graph.nodes):
        if pad.target is F.pad and Operation(graph, pad).argument(3, "value") == -math.inf:
            with obstacles.noted():
                for user in list(pad.users):
                    if not rule_of_node(graph, user).commutes_with_relu or not _absorbed(graph, pad, user):
                        refuse("a padding with -inf", PADDING, pad)


def _absorbed(graph: fx.GraphModule, pad: fx.Node, node: fx.Node) -> bool:
    """Let a pooling begin where the padding does; in ceiling mode it reaches as far beyond the end as it has to.

    The windows are the same then. Where there are more of them, the last are cut off.
    """
    pool: Any = copy.copy(graph.get_submodule(str(node.target)))
    source: Any = pad.args[0]
    wanted, sides = shape_of(node), [*Operation(graph, pad).argument(1, "pad")]
    dims = len(wanted) - 2
    before = tuple(reversed([*sides[::2], *[0] * dims][:dims]))
    if any(sides[2 * dims :]) or any(side < 0 for side in sides) or any(_each(pool.padding, dims)):
        return False
    pool.padding, pool.ceil_mode = before, True
    try:
        found = pool(torch.empty(shape_of(source), device="meta")).shape
    except RuntimeError:  # a pooling pads with at most half of its window
        return False
    if any(size < want for size, want in zip(found, wanted, strict=True)):
        return False
    assign(graph, str(node.target), pool)
    node.replace_input_with(pad, source)
    node.meta["shape"] = found
    for dim in [d for d, size in enumerate(found) if size > wanted[d]]:
        with graph.graph.inserting_after(node):
            cut = graph.graph.call_function(torch.narrow, (node, dim, 0, wanted[dim]))
        cut.meta = node.meta | {"shape": (*wanted[: dim + 1], *found[dim + 1 :])}
        for user in [user for user in node.users if user is not cut]:
            user.replace_input_with(node, cut)
        node = cut
    return True


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * dims
