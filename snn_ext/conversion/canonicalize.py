"""From a trained net to a graph of known layers, pass by pass; a net that cannot be converted is refused by name."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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
from .graph_tools import bypass, free_name, kind_of, name_of, refuse, shape_of
from .operations import ARITHMETIC, canonicalize_operations, is_size
from .pooling import pool_before_activations, pool_behind_activations
from .quantized import QuantizedReLU
from .weights import fold_batch_norm

__all__ = ["AnalogNet", "canonicalize", "own_modules"]


@dataclass
class AnalogNet:
    """A trained net as a graph of known layers, with samples and the output for them.

    Attributes
    ----------
    graph : fx.GraphModule
        Layers of ``torch.nn``, each called once, and activations (``nn.ReLU``, ``nn.Hardtanh`` with a clip,
        :class:`QuantizedReLU`, :class:`snn_ext.AAN`). ``node.meta["shape"]`` is the shape of a value, for two samples.
    activations : dict of str to Activation
        By the name of their module, in the order of the forward pass.
    x, output : Tensor
        Samples, and the output of the graph for them.
    """

    graph: fx.GraphModule
    activations: dict[str, Activation]
    x: Tensor
    output: Tensor

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
def canonicalize(ann: nn.Module, x: Tensor, *, pools: Literal["behind", "before"] = "behind") -> AnalogNet:
    """Copy a net into a graph of known layers with batch norm folded, and find its activations.

    Parameters
    ----------
    ann : nn.Module
        A trained net of one input and one output; it is not changed.
    x : Tensor
        A few samples of its input, on the device where the copy is wanted: the copy has to compute on them what the
        net does.
    pools : {"behind", "before"}
        The side of the activations on which maximum poolings are put.

    Raises
    ------
    ValueError
        If the net contains something that cannot be converted; says what, where it is, and what to do.
    """
    ann = _plain_copy(ann).to(x.device)
    _check_dtypes(ann, x)
    output = _run(ann, x)
    graph, activations = traced(ann, _Tracer(), "ann"), dict[str, Activation]()
    graph.graph.eliminate_dead_code()
    _run(_Shapes(graph).run, x[:1].expand(2, *x.shape[1:]))  # two samples: a reshape that mixes samples shows
    own_modules(graph)
    _fold_sizes(graph)
    canonicalize_operations(graph, activations)
    graph.graph.eliminate_dead_code()
    _check_inputs(graph)
    _fold_batch_norms(graph)
    (pool_behind_activations if pools == "behind" else pool_before_activations)(graph, activations)
    if not activations:
        refuse("no activation at all", "a net with at least one ReLU, ReLU6, clamp, QuantizedReLU or AAN")
    graph = _rebuilt(graph)
    order = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    activations = {name: activations[name] for name in order if name in activations}
    if not bool(output.isfinite().all()):
        bad_value("calibration", "inputs for which the output of ann is not finite", "finite values")
    return AnalogNet(graph, activations, x, _checked_output(graph, x, output))


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


class _Shapes(fx.Interpreter):
    """Writes the shape of every tensor into ``node.meta["shape"]``."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = value.shape
        return value


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


def _fold_sizes(graph: fx.GraphModule) -> None:
    """Constant-fold ``x.size(i)`` and ``x.shape[i]`` for i > 0, and arithmetic on them; the batch size stays a node."""
    for node in list(graph.graph.nodes):
        value = _size(node)
        if value is None and node.op == "call_function" and node.target in ARITHMETIC and not node.all_input_nodes:
            value = node.target(*node.args)
        if value is not None:
            for user in list(node.users):
                _put_number(user, node, value)


def _put_number(user: fx.Node, node: fx.Node, value: Any) -> None:
    def number(argument: Any) -> Any:
        return value if argument is node else argument

    user.args, user.kwargs = fx.node.map_aggregate((user.args, user.kwargs), number)


def _size(node: fx.Node) -> int | None:
    """Return the size that a node asks for, unless it is that of the batch."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        source, dim = node.args
    elif node.target is operator.getitem and is_size(node.args[0]) and isinstance(node.args[1], int):
        source, dim = node.args[0].args[0], node.args[1]  # type: ignore[union-attr]
    else:
        return None
    shape = shape_of(source)
    return shape[dim] if isinstance(dim, int) and dim % len(shape) else None


def _check_inputs(graph: fx.GraphModule) -> None:
    """Refuse several inputs, and parameters and sizes that enter a computation."""
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    used = [n for n in inputs if n.users]
    if len(used) != 1:
        refuse(f"{len(used)} inputs ({', '.join(map(str, used))})", "a net of one input")
    for node in inputs:
        if not node.users:
            graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            refuse(f"the parameter {node.target} in {name_of(next(iter(node.users)))}", "it inside a layer", node)
        if is_size(node):
            refuse(f"{name_of(next(iter(node.users)))}, which depends on a size", "a net of fixed shapes", node)


def _fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold batch norm into the layer before it; without such a layer it stays, as a layer."""
    for node in list(graph.graph.nodes):
        norm, before = module_of(graph, node), node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        layer = module_of(graph, before)
        rule = rule_of(layer)
        # A linear layer over [N, C, L] mixes another dimension than that along which the norm runs.
        if rule.weighted and rule.feature_dim % len(shape_of(node)) == 1:
            fold_batch_norm(layer, norm)
            bypass(node)


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
