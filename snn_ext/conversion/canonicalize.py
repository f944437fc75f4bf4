"""From a trained net to a graph of known layers, pass by pass; a net that cannot be converted is refused by name."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from .._errors import bad_value
from .._tracing import ThreadTracer, traced
from ..hosts import is_neuron
from ..neurons.aan import AAN
from ..simulation.layers import RULES, module_of, rule_of
from .activations import Activation
from .constants import fold_constants
from .graph_tools import assign, bypass, free_name, kind_of, name_of, refuse, shape_of
from .modules import Scale
from .operations import canonicalize_operations, is_size
from .outputs import select_output
from .pooling import pool_before_activations, pool_behind_activations
from .quantized import QuantizedReLU
from .signs import split_signs
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
    """

    graph: fx.GraphModule
    activations: dict[str, Activation]
    x: Tensor
    output: Tensor

    def currents(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the input of each activation for some samples, and the output."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, inputs: found.update({name: inputs[0]})

        hooks = [self.graph.get_submodule(name).register_forward_pre_hook(keep(name)) for name in self.activations]
        try:
            return found, self.graph(x)
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
    _check_signature(ann)
    ann = _plain_copy(ann).to(x.device)
    _check_dtypes(ann, x)
    wanted = _run(ann, x)
    graph, activations = traced(ann, _Tracer(), "ann"), dict[str, Activation]()
    wanted = select_output(graph, wanted, output)
    graph.graph.eliminate_dead_code()
    own_modules(graph)
    _run(partial(fold_constants, graph), x)
    split_signs(graph)
    canonicalize_operations(graph, activations)
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
    return AnalogNet(graph, activations, x, _checked_output(graph, x, wanted))


# -- the copy and its trace ------------------------------------------------------------------------------------------


def _plain_copy(ann: nn.Module) -> nn.Module:
    """Copy a net in evaluation mode, with weights that a parametrisation computes turned into parameters."""
    for name, module in ann.named_modules():
        computed = rule_of(module).weighted and "weight" not in module._parameters
        if computed and not parametrize.is_parametrized(module):
            refuse(f"{kind_of(module)} {name} with a weight that is computed", "remove_weight_norm before")
    ann = copy.deepcopy(ann).eval()
    for module in ann.modules():
        if parametrize.is_parametrized(module):
            # Not by remove_parametrizations: a copy shares its class with the original, and would spoil that too.
            names = list(module.parametrizations)  # type: ignore[arg-type]
            weights = {name: getattr(module, name).detach().clone() for name in names}
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight))
    return ann


def _check_signature(ann: nn.Module) -> None:
    """Refuse a net that needs several arguments, before its inputs are blamed."""
    given = inspect.signature(ann.forward).parameters.values()
    needed = [p.name for p in given if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) > 1:
        _refuse_inputs(needed)


def _refuse_inputs(names: Sequence[str]) -> NoReturn:
    want = "a net of one input, as a module around it that cuts them out of one: net(x[:, :3], x[:, 3:])"
    refuse(f"{len(names)} inputs ({', '.join(names)})", want)


def _check_dtypes(ann: nn.Module, x: Tensor) -> None:
    """Refuse 16-bit nets, whose folded weights would be rounded far more than the net itself, and mixed ones."""
    layers = [module for module in ann.modules() if rule_of(module).weighted or isinstance(module, _BatchNorm)]
    tensors = (t for layer in layers for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point())
    found = sorted({str(t.dtype) for t in tensors})
    if len(found) > 1 or not set(found) <= {"torch.float32", "torch.float64"}:
        bad_value("ann", f"weights of {' and '.join(found)}", "torch.float32 or torch.float64: convert ann.float()")
    if found and str(x.dtype) != found[0]:
        bad_value("calibration", x, f"inputs of {found[0]}, as the weights of ann")


def _run(ann: Callable[[Tensor], Any], x: Tensor) -> Any:
    try:
        return ann(x)
    except Exception as error:
        raise ValueError(
            f"calibration: got inputs {list(x.shape)[1:]}, want inputs that ann takes ({error})"
        ) from error


class _Tracer(ThreadTracer):
    """Keeps layers and neurons whole, a host's too; traces through everything else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in RULES or isinstance(m, QuantizedReLU | AAN | _BatchNorm) or is_neuron(m):
            return True
        known = type(m).forward.__module__.startswith(("torch.nn", "torch.ao.nn", "spikingjelly.", "snntorch."))
        contains = bool(m._modules) and not m.__module__.startswith("torch.")
        return known and not isinstance(m, nn.Sequential) and not contains


def _checked_output(graph: fx.GraphModule, x: Tensor, wanted: Tensor) -> Tensor:
    """Return the output of the copy, which has to be that of the net."""
    output: Tensor = graph(x)
    error = float((output - wanted).abs().max())
    if not error <= 1e-3 * (1.0 + float(wanted.abs().max())):
        raise ValueError(
            f"ann: got a net whose copy of known layers differs from it by {error:.3g}, want layers that do in "
            "evaluation what their torch.nn base class does, and no operation in place on a value used again"
        )
    return output


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
