"""From a trained net to a graph of known layers, pass by pass; a net that cannot be converted is refused by name."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, fx, nn

from .._errors import bad_value
from .._tracing import traced
from ..simulation.layers import module_of, rule_of
from .activations import Activation
from .constants import fold_constants
from .graph_tools import assign, bypass, free_name, name_of, refuse, shape_of
from .modules import Scale
from .obstacles import Obstacles
from .operations import canonicalize_operations, is_size
from .outputs import part_of, select_output
from .padding import absorb_padding
from .pooling import pool_before_activations, pool_behind_activations
from .preparation import TOLERANCE, plain_copy, relative_error
from .signs import split_signs
from .tracing import NetTracer
from .weights import fold_scale

__all__ = ["AnalogNet", "canonicalize", "own_modules"]


@dataclass
class AnalogNet:
    """A trained net as a graph of known layers, with samples and the output for them.

    Attributes
    ----------
    graph : fx.GraphModule
        Layers of ``torch.nn`` and :class:`.modules.Scale`, each called once, and activations (``nn.ReLU``,
        ``nn.Hardtanh`` with a clip, :class:`QuantizedReLU`, :class:`snn_ext.AAN`). ``node.meta["shape"]`` is the shape
        of a value, for two samples.
    activations : dict of str to Activation
        By the name of their module, in the order of the forward pass.
    x, output : Tensor
        Samples, and the output of the graph for them.
    notes : list of str
        What the report of each layer has to say about the copy.
    sized : bool
        The copy is the net for inputs of this size only: a size that the net asks for is a number in the copy.
    """

    graph: fx.GraphModule
    activations: dict[str, Activation]
    x: Tensor
    output: Tensor
    notes: list[str]
    sized: bool

    def watched(self, x: Tensor, see: Callable[[str, Tensor], object]) -> Tensor:
        """Return the output for some samples, and show the input of each activation on the way."""

        def show(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                see(name, inputs[0])

            return hook

        hooks = [self.graph.get_submodule(name).register_forward_pre_hook(show(name)) for name in self.activations]
        try:
            output: Tensor = self.graph(x)
            return output
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def canonicalize(
    ann: nn.Module,
    x: Tensor,
    *,
    pools: Literal["behind", "before"] = "behind",
    output: str | int | None = None,
) -> AnalogNet:
    """Copy a net into a graph of known layers with batch norm folded, and find its activations.

    Parameters
    ----------
    ann : nn.Module
        A trained net of one input; it is not changed.
    x : Tensor
        A few samples of its input, on the device where the copy is wanted: the copy has to compute on them what the
        net does.
    pools : {"behind", "before"}
        The side of the activations on which maximum poolings are put.
    output : str or int, optional
        Which of several outputs: a key of a dict, a field of a dataclass, or a place in a tuple.

    Raises
    ------
    ValueError
        If the net contains something that cannot be converted; says what, where it is, and what to do.
    """
    obstacles = Obstacles()
    ann, notes = plain_copy(ann, x, obstacles)
    _check_signature(ann)
    wanted = _run(ann, x)
    graph, activations = traced(ann, NetTracer(x), "ann"), dict[str, Activation]()
    wanted = select_output(graph, wanted, output)
    graph.graph.eliminate_dead_code()
    own_modules(graph)
    fold_constants(graph, x)
    split_signs(graph)
    canonicalize_operations(graph, activations, obstacles)
    absorb_padding(graph, obstacles)
    obstacles.raise_all()
    graph.graph.eliminate_dead_code()
    _check_inputs(graph)
    _fold_scales(graph, x.dtype)
    (pool_behind_activations if pools == "behind" else pool_before_activations)(graph, activations)
    if not activations:
        refuse("no activation at all", "a net with at least one ReLU, ReLU6, clamp, QuantizedReLU or AAN")
    graph = _rebuilt(graph)
    order = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    activations = {name: activations[name] for name in order if name in activations}
    if not bool(wanted.isfinite().all()):
        bad_value("calibration", "inputs for which the output of ann is not finite", "finite values")
    result = _checked_output(graph, x, wanted)
    return AnalogNet(graph, activations, x, result, notes, _is_sized(ann, graph, x, output))


# -- the copy, and what it computes ------------------------------------------------------------------------------------


def _check_signature(ann: nn.Module) -> None:
    """Refuse a net that needs several arguments, before its inputs are blamed."""
    given = inspect.signature(ann.forward).parameters.values()
    needed = [p.name for p in given if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) > 1:
        _refuse_inputs(needed)


def _refuse_inputs(names: Sequence[str]) -> NoReturn:
    want = "a net of one input, as a module around it that cuts them out of one: net(x[:, :3], x[:, 3:])"
    refuse(f"{len(names)} inputs ({', '.join(names)})", want)


def _run(ann: Callable[[Tensor], Any], x: Tensor) -> Any:
    try:
        return ann(x)
    except Exception as error:
        raise ValueError(
            f"calibration: got inputs {list(x.shape)[1:]}, want inputs that ann takes ({error})"
        ) from error


def _checked_output(graph: fx.GraphModule, x: Tensor, wanted: Tensor) -> Tensor:
    """Return the output of the copy, which has to be that of the net."""
    output: Tensor = graph.forward(x)  # a call would print what is wrong with a graph, where an error says so
    error = relative_error(output, wanted)
    if not error <= TOLERANCE:
        raise ValueError(
            f"ann: got a net whose copy of known layers differs from it by {error:.3g} of its output, want layers that "
            "do in evaluation what their torch.nn base class does, and no operation in place on a value used again"
        )
    return output


def _is_sized(ann: nn.Module, graph: fx.GraphModule, x: Tensor, output: str | int | None) -> bool:
    """Return True if the net takes inputs of other sizes, for which the copy does something else."""
    return any(not _does_the_same(ann, graph, other, output) for other in _other_sizes(x[:1]))


def _other_sizes(x: Tensor) -> Iterator[Tensor]:
    """Yield a sample in other sizes: larger and smaller ones, multiples and what is none."""
    if x.ndim < 3:
        return
    wide = x.repeat(1, 1, *[3] * (x.ndim - 2))
    for size_of in (lambda size: 2 * size, lambda size: size - 1, lambda size: size + 4, lambda size: size // 2, None):
        sizes = [slice(None if size_of is None else size_of(size)) for size in x.shape[2:]]
        other = wide[:, :, *sizes]
        if 0 < other.numel() <= 16 * x.numel():  # a video that is three times as large in each dimension takes too long
            yield other


def _does_the_same(ann: nn.Module, graph: fx.GraphModule, x: Tensor, output: str | int | None) -> bool:
    try:
        wanted = part_of(ann(x), output)
    except Exception:  # a linear layer behind, for example: it refuses such inputs, and so does the copy
        return True
    try:
        return _agrees(graph.forward(x), wanted)
    except Exception:
        return False


def _agrees(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and relative_error(found, wanted) <= TOLERANCE


# -- passes ----------------------------------------------------------------------------------------------------------


def own_modules(graph: fx.GraphModule) -> None:
    """Give each call a separate module: neurons have a state, and scales are folded into weights."""
    calls: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if node.op == "call_module":
            target = str(node.target)
            calls[target] += 1
            if calls[target] > 1:
                node.target = free_name(graph, f"{target}_{calls[target]}")
                graph.add_submodule(node.target, copy.deepcopy(graph.get_submodule(target)))


def _check_inputs(graph: fx.GraphModule) -> None:
    """Refuse several inputs, and parameters and sizes that enter a computation."""
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    used = [n for n in inputs if n.users]
    if len(used) != 1:
        _refuse_inputs([str(node) for node in used])
    for node in inputs:
        if not node.users:
            graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            refuse(f"the parameter {node.target} in {name_of(next(iter(node.users)))}", "it inside a layer", node)
        if is_size(node):
            refuse(f"{name_of(next(iter(node.users)))}, which depends on a size", "a net of fixed shapes", node)


def _fold_scales(graph: fx.GraphModule, dtype: torch.dtype) -> None:
    """Fold batch norm, and any factor, into the layer or the scale before it; without such a layer it stays."""
    for node in list(graph.graph.nodes):
        scale, before = module_of(graph, node), node.args[0] if node.args else None
        if not isinstance(scale, Scale):
            continue
        if isinstance(before, fx.Node) and len(before.users) == 1 and _takes_up(graph, before, node, scale):
            bypass(node)
    for module in graph.modules():
        if isinstance(module, Scale):
            module.to(dtype)


def _takes_up(graph: fx.GraphModule, before: fx.Node, node: fx.Node, scale: Scale) -> bool:
    """Fold a scale into the layer before it, if there is one."""
    layer: Any = module_of(graph, before)
    rule = rule_of(layer)
    if isinstance(layer, Scale):
        offset = None if layer.bias is None else layer.bias * scale.weight
        bias = scale.bias if offset is None else offset if scale.bias is None else offset + scale.bias
        assign(graph, str(before.target), Scale(layer.weight * scale.weight, bias))
        return True
    shape = shape_of(node)
    # A linear layer over [N, C, L] mixes another dimension than that along which the norm runs.
    numbers = all(v is None or len(v) == 1 for v in (scale.weight, scale.bias))
    if not rule.weighted or not (numbers or rule.feature_dim % len(shape) == 1):
        return False
    fold_scale(layer, scale.weight, scale.bias, shape[rule.feature_dim])
    return True


def _rebuilt(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with the modules that it calls, and nodes named as a trace of it names them."""
    new, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), made.__getitem__)
        made[node] = new.create_node(node.op, node.target, args, kwargs)
        made[node].meta = dict(node.meta)
    result = fx.GraphModule(graph, new)
    result.graph.lint()
    return result
