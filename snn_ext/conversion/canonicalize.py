"""From a trained net to a graph of layers in which every activation is known: what can not be converted is refused."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from .._errors import bad_value
from .._tracing import ThreadTracer
from ..hosts import is_neuron
from ..neurons.aan import AAN
from ..simulation.graph import MAX_POOLS, WEIGHTED
from .quantized import QuantizedReLU, quantized_relu
from .weights import fold_batch_norm

__all__ = [
    "POOLS", "Activation", "assign", "check_copy", "finite_output", "own_modules", "plain_copy", "prepare", "refuse",
    "spread_shapes",
]  # fmt: skip

AVERAGE_POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
POOLS = (*MAX_POOLS, *AVERAGE_POOLS)
LINEAR = (*AVERAGE_POOLS, nn.Flatten, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad2d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

_RELUS = (torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
_CLAMPS = (torch.clamp, torch.clip, torch.clamp_, "clamp", "clip", "clamp_", "clip_")
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__radd__", "__iadd__")
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_AVERAGE_FUNCTIONS = (
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
)
_MAX_FUNCTIONS = {F.max_pool1d: nn.MaxPool1d, F.max_pool2d: nn.MaxPool2d, F.max_pool3d: nn.MaxPool3d} | {
    torch.max_pool1d: nn.MaxPool1d, torch.max_pool2d: nn.MaxPool2d, torch.max_pool3d: nn.MaxPool3d
}  # fmt: skip
_DROPOUT_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout)
_RESHAPES = (torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze")
_KEPT = {"contiguous", "detach", "clone", "float"}


@dataclass(frozen=True)
class Activation:
    """What stands in the place of one layer of neurons: a rectifier, perhaps clipped or quantised.

    Attributes
    ----------
    clip : float or None
        Largest value, of a ReLU6 or a clamp.
    quantized : QuantizedReLU or None
        The module, where the activation is quantised: its threshold and rounding are the neuron's.
    adaptive : AAN or None
        The module, where the activation is that of adaptive spiking neurons: its constants are the neuron's.
    """

    clip: float | None = None
    quantized: QuantizedReLU | None = None
    adaptive: AAN | None = None

    def module(self) -> nn.Module:
        """Return it as a module."""
        own = self.quantized or self.adaptive
        if own is not None:
            return own
        return nn.ReLU() if self.clip is None else nn.Hardtanh(0.0, self.clip)


def prepare(
    ann: nn.Module, x: Tensor, *, pools: Literal["behind", "before"] = "behind"
) -> tuple[fx.GraphModule, dict[str, Activation]]:
    """Copy a net into a graph of plain layers with batch norm folded, and find its activations.

    Parameters
    ----------
    ann : nn.Module
        A trained net of one input and one output; it is not changed.
    x : Tensor
        A few samples of its input.
    pools : {"behind", "before"}
        On which side of the activations maximum poolings are put.

    Returns
    -------
    graph : fx.GraphModule
        Layers of ``torch.nn``, each called once; activations stand in it as ``nn.ReLU`` (``nn.Hardtanh`` with a clip,
        :class:`QuantizedReLU`, :class:`snn_ext.AAN`).
    activations : dict of str to Activation
        By the name of their module, in the order of the forward pass.

    Raises
    ------
    ValueError
        Names what can not be converted, where it is, and what to do.
    """
    ann = plain_copy(ann)
    _check_dtypes(ann, x)
    x = x[:1].expand(2, *x.shape[1:])  # two samples: a reshape that mixes samples shows
    graph = _trace(ann)
    graph.graph.eliminate_dead_code()
    try:
        ann(x)
    except Exception as error:
        raise ValueError(
            f"calibration: got inputs {list(x.shape)[1:]}, want inputs that ann takes ({error})"
        ) from error
    ShapeProp(graph).propagate(x)
    own_modules(graph)
    activations: dict[str, Activation] = {}
    _compute_sizes(graph)
    for node in list(graph.graph.nodes):
        _normalise(graph, node, activations)
    graph.graph.eliminate_dead_code()
    _check_inputs(graph)
    _fold_batch_norm(graph)
    if pools == "behind":
        _pool_behind_activations(graph, activations)
    else:
        _pool_before_activations(graph, activations)
    if not activations:
        refuse("no activation at all", "a net with at least one ReLU, ReLU6, clamp, QuantizedReLU or AAN")
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    order = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    return graph, {name: activations[name] for name in order if name in activations}


def spread_shapes(graph: fx.GraphModule, x: Tensor) -> None:
    """Write the shape of every value into ``node.meta["shape"]``."""
    ShapeProp(graph).propagate(x)
    for node in graph.graph.nodes:
        if "tensor_meta" in node.meta and hasattr(node.meta["tensor_meta"], "shape"):
            node.meta["shape"] = node.meta["tensor_meta"].shape


# -- tracing ---------------------------------------------------------------------------------------------------------


class _Tracer(ThreadTracer):
    """Keeps layers whole, a host's layers and neurons too; looks into everything else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, QuantizedReLU | AAN | _BatchNorm) or is_neuron(m):
            return True
        known = type(m).forward.__module__.startswith(("torch.nn", "torch.ao.nn", "spikingjelly.", "snntorch."))
        contains = bool(m._modules) and not m.__module__.startswith("torch.")
        return known and not isinstance(m, nn.Sequential) and not contains


def _trace(ann: nn.Module) -> fx.GraphModule:
    try:
        return fx.GraphModule(ann, _Tracer().trace(ann))
    except Exception as error:
        raise ValueError(
            f"ann: got {type(ann).__name__}, which can not be traced ({error}), want a net whose forward pass does "
            "not depend on values"
        ) from error


def plain_copy(ann: nn.Module) -> nn.Module:
    """Copy a net in evaluation mode, with weights that a parametrisation computes turned into parameters."""
    for name, module in ann.named_modules():
        computed = isinstance(module, WEIGHTED) and "weight" not in module._parameters
        if computed and not parametrize.is_parametrized(module):
            refuse(f"{_kind(module)} {name} with a weight that is computed", "remove_weight_norm before")
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
    layers = [module for module in ann.modules() if isinstance(module, (*WEIGHTED, _BatchNorm))]
    tensors = (t for layer in layers for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point())
    found = sorted({str(t.dtype) for t in tensors})
    if len(found) > 1 or not set(found) <= {"torch.float32", "torch.float64"}:
        bad_value("ann", f"weights of {' and '.join(found)}", "torch.float32 or torch.float64: convert ann.float()")
    if found and str(x.dtype) != found[0]:
        bad_value("calibration", x, f"inputs of {found[0]}, as the weights of ann")


def _compute_sizes(graph: fx.GraphModule) -> None:
    """Put numbers in the place of sizes other than that of the batch, and of arithmetic with them."""
    for node in list(graph.graph.nodes):
        value = _size(node)
        if value is None and node.op == "call_function" and node.target in _ARITHMETIC and not node.all_input_nodes:
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
    elif node.target is operator.getitem and _is_size(node.args[0]) and isinstance(node.args[1], int):
        source, dim = node.args[0].args[0], node.args[1]  # type: ignore[union-attr]
    else:
        return None
    shape = _shape(source)
    return shape[dim] if isinstance(dim, int) and dim % len(shape) else None


def own_modules(graph: fx.GraphModule) -> None:
    """Give each call a module of its own: neurons have a state, and scales are folded into weights."""
    seen: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        seen[target] = seen.get(target, 0) + 1
        if seen[target] > 1:
            node.target = free_name(graph, f"{target}_{seen[target]}")
            graph.add_submodule(node.target, copy.deepcopy(graph.get_submodule(target)))


# -- one operation after the other ----------------------------------------------------------------------------------


def _normalise(graph: fx.GraphModule, node: fx.Node, activations: dict[str, Activation]) -> None:
    """Turn one operation into one that conversion knows, or refuse it."""
    match node.op:
        case "call_module":
            _normalise_module(graph, node, graph.get_submodule(str(node.target)), activations)
        case "call_function" | "call_method":
            _normalise_call(graph, node, activations)
        case "output":
            if not isinstance(node.args[0], fx.Node):
                refuse(f"an output of {node.args[0]!r}", "a net that returns one tensor")
        case "get_attr":
            pass  # of no use but to a quantised activation; what is left of them is refused at the end


def _normalise_module(
    graph: fx.GraphModule, node: fx.Node, module: nn.Module, activations: dict[str, Activation]
) -> None:
    name = str(node.target)
    if isinstance(module, nn.ReLU | nn.Identity | QuantizedReLU | AAN | nn.ReLU6 | nn.Hardtanh):
        if isinstance(module, nn.Identity):
            return _bypass(node)
        activation = Activation()
        if isinstance(module, QuantizedReLU):
            activation = Activation(quantized=module)
        elif isinstance(module, AAN):
            activation = Activation(adaptive=module)
        elif isinstance(module, nn.Hardtanh):  # ReLU6 is one
            activation = _clipped(node, module.min_val, module.max_val)
        return _set(graph, name, activation, activations)
    if isinstance(module, DROPOUTS):
        return _bypass(node)
    if isinstance(module, MAX_POOLS):
        if module.return_indices:
            refuse(f"{_kind(module)} {name} with return_indices=True", "return_indices=False", node)
        return assign(graph, name, _plain(module))
    if isinstance(module, _BatchNorm):
        if module.running_mean is None:
            refuse(f"{_kind(module)} {name} without running statistics", "track_running_stats=True", node)
        return assign(graph, name, _plain_batch_norm(module))
    if isinstance(module, WEIGHTED):
        if getattr(module, "padding_mode", "zeros") != "zeros":
            refuse(f"{_kind(module)} {name} with padding_mode={module.padding_mode!r}", "padding_mode='zeros'", node)
        return assign(graph, name, _plain(module))
    if isinstance(module, LINEAR):
        if _shape(node)[0] != _shape(node.args[0])[0]:
            refuse(f"{_kind(module)} {name}, which mixes samples", "the batch as the first dimension", node)
        return assign(graph, name, _plain(module))
    if is_neuron(module):
        refuse(f"{_kind(module)} {name}, a spiking neuron already", "a net of analog activations", node)
    hint = "a ReLU, ReLU6, clamp or QuantizedReLU in its place, and the net trained with it"
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Sigmoid) and _is_last(node):
        hint = "the net without it: convert what gives the logits, and apply it to the mean of the output"
    elif isinstance(module, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool3d):
        hint = "a MaxPool of fixed size"
    elif "Norm" in _kind(module):
        hint = "a batch norm, which is an affine function after training"
    refuse(f"{_kind(module)} {name}", hint, node)


def _normalise_call(graph: fx.GraphModule, node: fx.Node, activations: dict[str, Activation]) -> None:
    target: Any = node.target
    if _is_size(node):
        return  # of no use but to a reshape; what is left of them is refused at the end
    if target in _RELUS:
        _replace(graph, node, Activation(), activations)
    elif target is F.relu6:
        _replace(graph, node, Activation(clip=6.0), activations)
    elif target in (F.hardtanh, F.hardtanh_):
        low, high = (_argument(node, i, n, d) for i, n, d in ((1, "min_val", -1.0), (2, "max_val", 1.0)))
        _replace(graph, node, _clipped(node, low, high), activations)
    elif target in _CLAMPS:
        low, high = (_argument(node, i, n, None) for i, n in ((1, "min"), (2, "max")))
        _replace(graph, node, _clipped(node, low, high), activations)
    elif target in (torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"):
        _replace(graph, node, _clipped(node, _argument(node, 1, "min", None), None), activations)
    elif target is quantized_relu:
        threshold, levels, rounding = (
            _argument(node, i, n, None) for i, n in ((1, "threshold"), (2, "levels"), (3, "rounding"))
        )
        module = QuantizedReLU(levels, float(_attribute(graph, threshold)), rounding)
        _replace(graph, node, Activation(quantized=module), activations)
    elif target in _MAX_FUNCTIONS:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = {n: _argument(node, i, n, None) for i, n in enumerate(names, 1)}
        pool = _MAX_FUNCTIONS[target](**{k: v for k, v in given.items() if v is not None})
        _as_module(graph, node, pool)
    elif target in _DROPOUT_FUNCTIONS or target in _KEPT:
        _bypass(node)
    elif target in _RESHAPES:
        _normalise_reshape(graph, node)
    elif target in _ADDS:
        if len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args) or node.kwargs:
            refuse(f"{_name(node)} of other than two values", "x + y; a constant belongs into a bias", node)
        node.target, node.op = operator.add, "call_function"  # never in place: a neuron's spikes are used twice
    elif target in _CONCATENATIONS:
        dim = _argument(node, 1, "dim", 0)
        if dim % len(_shape(node)) == 0:
            refuse(f"{_name(node)} along the batch", "dim >= 1", node)
    elif target in (torch.mean, "mean"):
        _check_mean(node)
    elif target is operator.getitem:
        item = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        kept = item[0] in (slice(None), Ellipsis) and all(isinstance(i, slice) or i is Ellipsis for i in item)
        if not kept:
            refuse(f"{_name(node)}, an index into the batch or a single element", "slices that keep the batch", node)
    elif target in (F.pad, torch.nn.functional.pad):
        if _argument(node, 2, "mode", "constant") != "constant" or _argument(node, 3, "value", 0) not in (0, None):
            refuse(f"{_name(node)} with other values than 0", "zero padding", node)
    elif target in (F.interpolate, F.upsample) or target in _AVERAGE_FUNCTIONS:
        return
    else:
        refuse(f"the call of {_name(node)}", _hint_for_call(target), node)


_ARITHMETIC = (operator.add, operator.mul, operator.floordiv, operator.sub, operator.truediv, operator.neg)


def _hint_for_call(target: Any) -> str:
    if target in (F.conv1d, F.conv2d, F.conv3d, F.linear, F.batch_norm, torch.conv2d, torch.matmul, operator.matmul):
        return "an nn.Module for the layer, so that scales can be folded into its weights"
    if target in _ARITHMETIC or target in ("mul", "sub", torch.mul, torch.sub, torch.div):
        return "layers, addition and concatenation; a constant factor belongs into the weights of a layer"
    return "ReLU, ReLU6, clamp, average or maximum pooling, addition, concatenation, flattening or dropout"


def _normalise_reshape(graph: fx.GraphModule, node: fx.Node) -> None:
    """Accept a reshape that flattens all but the batch, or does nothing."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = _shape(source), _shape(node)
    if after == before:
        return _bypass(node)
    if len(after) == 2 and after[0] == before[0]:
        _as_module(graph, node, nn.Flatten(1))
        return
    if node.target in (torch.squeeze, "squeeze", torch.flatten, "flatten") and after[:2] == before[:2]:
        return
    refuse(f"{_name(node)} from {list(before)} to {list(after)}", "flattening of all dimensions but the batch", node)


def _check_mean(node: fx.Node) -> None:
    dims = _argument(node, 1, "dim", None)
    dims = (dims,) if isinstance(dims, int) else dims
    rank = len(_shape(node.args[0]))
    if dims is None or any(d % rank < 2 for d in dims):
        refuse(f"{_name(node)} over the batch or the channels", "a mean over spatial dimensions", node)


def _clipped(node: fx.Node, low: Any, high: Any) -> Activation:
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        refuse(f"{_name(node)} with bounds that are computed", "numbers", node)
    if low is None or float(low) != 0.0:
        refuse(f"{_name(node)} with a lower bound of {low}", "0, for a firing rate is not negative", node)
    if high is not None and not float(high) > 0:
        refuse(f"{_name(node)} with an upper bound of {high}", "a positive one", node)
    return Activation(clip=None if high is None or float(high) == float("inf") else float(high))


def _check_inputs(graph: fx.GraphModule) -> None:
    """Refuse what is left over: several inputs, parameters and sizes that enter a computation."""
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    used = [n for n in inputs if n.users]
    if len(used) != 1:
        refuse(f"{len(used)} inputs ({', '.join(map(str, used))})", "a net of one input")
    for node in inputs:
        if not node.users:
            graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            refuse(f"the parameter {node.target} in {_name(next(iter(node.users)))}", "it inside a layer", node)
        if _is_size(node):
            refuse(f"{_name(next(iter(node.users)))}, which depends on a size", "a net of fixed shapes", node)


# -- batch norm ------------------------------------------------------------------------------------------------------


def _fold_batch_norm(graph: fx.GraphModule) -> None:
    """Fold batch norm into the layer before it; one that has none stays, and is a layer of its own."""
    for node in list(graph.graph.nodes):
        norm = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        before = node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer = graph.get_submodule(str(before.target))
        if len(before.users) > 1 or not isinstance(layer, WEIGHTED):
            continue
        if isinstance(layer, nn.Linear) and len(_shape(node)) != 2:
            continue  # over [N, C, L] the norm runs along another dimension than the layer
        fold_batch_norm(layer, norm)
        _bypass(node)


def _pool_behind_activations(graph: fx.GraphModule, activations: dict[str, Activation]) -> None:
    """Put maximum pooling behind the activation: the two commute, and spikes can be pooled, currents can not."""
    moved = True
    while moved:
        moved = False
        for node in list(graph.graph.nodes):
            pool = node.args[0] if node.op == "call_module" and str(node.target) in activations else None
            if not isinstance(pool, fx.Node) or pool.op != "call_module" or len(pool.users) > 1:
                continue
            if isinstance(graph.get_submodule(str(pool.target)), MAX_POOLS):
                source = pool.args[0]
                node.replace_all_uses_with(pool)
                pool.args, node.args = (node,), (source,)
                node.append(pool)
                moved = True
    rectified: dict[fx.Node, bool] = {}
    for node in graph.graph.nodes:
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, MAX_POOLS) and not rectified[node.args[0]]:
            refuse(f"{_kind(module)} {node.target} of values that may be negative", "it behind an activation", node)
        inputs = [rectified[n] for n in node.all_input_nodes]
        weighted = isinstance(module, (*WEIGHTED, _BatchNorm))
        rectified[node] = str(node.target) in activations or (bool(inputs) and all(inputs) and not weighted)


def _pool_before_activations(graph: fx.GraphModule, activations: dict[str, Activation]) -> None:
    """Put maximum pooling before the activation, where adaptive neurons take it in; the two commute.

    An activation that is used without the pooling too gets a copy behind it.
    """
    moved = True
    while moved:
        moved = False
        for pool in list(graph.graph.nodes):
            if pool.op != "call_module" or not isinstance(graph.get_submodule(str(pool.target)), MAX_POOLS):
                continue
            before = pool.args[0]
            if before.op != "call_module" or str(before.target) not in activations:
                continue
            name, alone = str(before.target), len(before.users) == 1
            if not alone:
                name = free_name(graph, f"{name}_pooled")
                activations[name] = activations[str(before.target)]
                graph.add_submodule(name, activations[name].module())
            with graph.graph.inserting_after(pool):
                behind = graph.graph.call_module(name)
            behind.meta = dict(pool.meta)
            pool.replace_all_uses_with(behind)
            behind.args, pool.args = (pool,), (before.args[0],)
            if alone:
                graph.graph.erase_node(before)
            moved = True
    for node in graph.graph.nodes:
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, MAX_POOLS) and not all(_is_pooled_activation(graph, n, activations) for n in node.users):
            refuse(f"{_kind(module)} {node.target} without an activation beside it", "one before or behind it")


def _is_pooled_activation(graph: fx.GraphModule, node: fx.Node, activations: dict[str, Activation]) -> bool:
    """Whether a value is an activation, or a pooling of which nothing but activations are made."""
    if node.op == "call_module" and str(node.target) in activations:
        return True
    pool = node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), POOLS)
    return pool and all(_is_pooled_activation(graph, user, activations) for user in node.users)


# -- small tools -----------------------------------------------------------------------------------------------------


def refuse(got: str, want: str, node: fx.Node | None = None) -> NoReturn:
    place = "" if node is None else f" (at {node.format_node() if node.op == 'output' else node.name})"
    raise ValueError(f"ann: got {got}{place}, which can not be converted, want {want}")


def _set(graph: fx.GraphModule, name: str, activation: Activation, activations: dict[str, Activation]) -> None:
    activations[name] = activation
    assign(graph, name, activation.module())


def _replace(graph: fx.GraphModule, node: fx.Node, activation: Activation, found: dict[str, Activation]) -> None:
    found[_as_module(graph, node, activation.module())] = activation


def _as_module(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> str:
    """Call a module in the place of a function of one tensor."""
    source = node.args[0] if node.args else node.kwargs["input"]
    name = free_name(graph, node.name)
    graph.add_submodule(name, module)
    node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}
    return name


def _bypass(node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def finite_output(ann: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a net on some of the calibration data, which its copy is held against."""
    reference: Tensor = ann(x)
    if not bool(reference.isfinite().all()):
        bad_value("calibration", "inputs for which the output of ann is not finite", "finite values")
    return reference


def check_copy(result: Tensor, reference: Tensor) -> None:
    """Check that a copy computes what the net does."""
    error = float((result - reference).abs().max())
    if not error <= 1e-3 * (1.0 + float(reference.abs().max())):
        raise ValueError(
            f"ann: got a net whose copy of known layers differs from it by {error:.3g}, want layers that do in "
            "evaluation what their torch.nn base class does, and no operation in place on a value used again"
        )


def assign(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a place in a net."""
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)


def free_name(graph: fx.GraphModule, name: str) -> str:
    taken = dict(graph.named_modules())
    found, k = name, 1
    while found in taken or hasattr(graph, found):
        k += 1
        found = f"{name}_{k}"
    return found


def _plain(module: nn.Module) -> Any:
    """Return a host's layer as the ``torch.nn`` layer that it is."""
    base = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn"))
    if type(module) is not base:
        module.__class__ = base
        module.__dict__.pop("_step_mode", None)
    return module


def _plain_batch_norm(module: _BatchNorm) -> _BatchNorm:
    mean: Any = module.running_mean
    norm: Any = nn.BatchNorm1d(
        module.num_features, module.eps, affine=module.affine, device=mean.device, dtype=mean.dtype
    )
    norm.__class__ = next((kind for kind in _BATCH_NORMS if isinstance(module, kind)), nn.BatchNorm2d)
    norm.load_state_dict(module.state_dict(), strict=False)
    return norm.eval()


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _attribute(graph: fx.GraphModule, node: Any) -> Any:
    value: Any = graph
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _shape(node: Any) -> torch.Size:
    shape: torch.Size = node.meta["tensor_meta"].shape
    return shape


def _is_size(node: Any) -> bool:
    return isinstance(node, fx.Node) and "tensor_meta" not in node.meta and node.op in ("call_method", "call_function")


def _is_last(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))
