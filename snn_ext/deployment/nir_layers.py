"""Layers as nodes of NIR, and back; what NIR cannot say of a layer is the text in its metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn

from .._description import build_module, describe_module, tensors_of
from .._errors import bad_value, first_line
from ..hosts import host_of
from ..neurons import AdaptiveSpikingNeuron, NonUniformIntegrateAndFireNeuron, ThresholdNeuron
from ..neurons.leak import BetaLeak, TauLeak

__all__ = ["module_from", "node_of"]

Shape = tuple[int, ...]
LAYER, STATE = "layer", "state_"
"""Keys of the metadata: class and arguments of a layer as JSON, and in front of the names of its tensors."""


def node_of(name: str, layer: Any, before: Shape, after: Shape, metadata: bool, dt: float) -> Any:
    """Return the node of a layer, a module or a node of a graph, that makes ``after`` of the shape ``before``."""
    if isinstance(layer, fx.Node):
        return _flatten_of(name, layer, before, after)
    if isinstance(layer, ThresholdNeuron):
        return _neuron(name, layer, after, metadata, dt)
    if host_of(layer) is not None:
        want = "neurons of snn_ext (replace_neurons makes them); the host's exporter writes its own"
        bad_value("net", f"{name}, a {type(layer).__name__}", want)
    write = next((function for kind, function in _LAYERS.items() if isinstance(layer, kind)), None)
    if getattr(layer, "is_affine", False):  # a Scale, whose class needs SpikingJelly
        write = _scale
    if write is None:
        return _refuse(name, type(layer).__name__)
    node = write(name, layer, before, after)
    if metadata:
        node.metadata = _described(name, layer, tensors=isinstance(node, nir.Scale))
    return node


def module_from(name: str, node: Any, dt: float) -> nn.Module:
    """Return the layer of a node: the one that its metadata describe, or else the one that NIR means."""
    if LAYER in node.metadata:
        try:
            return _restored(node)
        except Exception as error:  # of any kind, for what is damaged may be anything
            got = f"{name} with damaged metadata ({type(error).__name__}: {first_line(error)})"
            raise ValueError(f"graph: got {got}, want those of to_nir") from error
    read = _NODES.get(type(node))
    if read is None:
        kinds = ", ".join(kind.__name__ for kind in _NODES)
        return bad_value("graph", f"{name}, a {type(node).__name__}", f"nodes of {kinds}")
    return read(name, node, dt).eval()


# -- metadata ----------------------------------------------------------------------------------------------------------


def _described(name: str, layer: nn.Module, tensors: bool) -> dict[str, Any]:
    """Return class and arguments of a layer, and with ``tensors`` its parameters and buffers."""
    states = tensors_of(layer)
    about = {
        "module": describe_module(name, layer),
        "shapes": {key: list(value.shape) for key, value in states.items()},
        # Sums of a convolution depend on how its weights lie in memory.
        "channels last": [key for key, value in states.items() if value.ndim == 4 and not value.is_contiguous()],
    }
    arrays = {f"{STATE}{key}": np.atleast_1d(value.numpy()) for key, value in states.items()}  # HDF5 packs no scalars
    if not tensors:
        arrays = {}
    return {LAYER: json.dumps(about)} | arrays


def _restored(node: Any) -> nn.Module:
    about = json.loads(node.metadata[LAYER])
    state = {}
    for key, shape in about["shapes"].items():
        array = node.metadata[f"{STATE}{key}"] if f"{STATE}{key}" in node.metadata else _tensor_of(node, key)
        state[key] = torch.from_numpy(np.array(array)).reshape(shape)
        if key in about["channels last"]:
            state[key] = state[key].contiguous(memory_format=torch.channels_last)
    return build_module(about["module"], state)


def _tensor_of(node: Any, key: str) -> Any:
    """Return an array that NIR itself has, under the name that torch has for it."""
    return getattr(node, key)


# -- neurons -----------------------------------------------------------------------------------------------------------


def _neuron(name: str, neuron: Any, shape: Shape, metadata: bool, dt: float) -> Any:
    unsaid = [*_unsaid(neuron)]
    if unsaid and not metadata:
        want = "metadata=True: NIR has neurons with one threshold that reset to a value, and nothing else"
        bad_value("net", f"{name}, a {type(neuron).__name__} with {', '.join(unsaid)}", want)

    def full(value: Any) -> np.ndarray[Any, Any]:
        return np.full(shape, value, np.float32)

    if isinstance(neuron, AdaptiveSpikingNeuron):
        node = _adaptive(neuron, full)
    else:
        node = _integrate_and_fire(neuron, full, dt)
    if metadata:
        node.metadata = _described(name, neuron, tensors=True)
    return node


def _unsaid(neuron: Any) -> list[str]:
    """Return what NIR cannot say of a neuron."""
    if isinstance(neuron, AdaptiveSpikingNeuron):
        return ["a threshold that adapts"]
    found = []
    if isinstance(neuron, NonUniformIntegrateAndFireNeuron):
        found.append("a threshold for each step")
    elif neuron._reset_kind() != "zero":
        found.append("no reset" if neuron._reset_kind() == "none" else "a reset by subtraction")
    if bool(neuron.v_init.any()):
        found.append("a pre-charge")
    if neuron.scale_output:
        found.append("scale_output=True")
    return found


def _integrate_and_fire(neuron: Any, full: Callable[[Any], Any], dt: float) -> Any:
    threshold = full(neuron.thresholds().of_steps[0].detach().item())
    zero = full(0.0)
    if isinstance(neuron, BetaLeak) and neuron.leaks:
        beta = neuron.beta.detach().double().cpu()
        if beta.numel() > 1:
            beta = beta.reshape(-1, *[1] * (zero.ndim - 1))
        tau = (dt / (1.0 - beta.clamp(max=1.0 - 1e-12))).expand(zero.shape).numpy()
        return nir.LIF(tau=tau, r=tau / dt, v_leak=zero, v_threshold=threshold, v_reset=zero)
    if isinstance(neuron, TauLeak) and neuron.leaks:
        steps = neuron.tau if neuron.tau is not None else 1.0 / neuron.w.detach().sigmoid().item()
        r = 1.0 if neuron.decay_input else steps
        return nir.LIF(tau=full(steps * dt), r=full(r), v_leak=zero, v_threshold=threshold, v_reset=zero)
    return nir.IF(r=full(1.0 / dt), v_threshold=threshold, v_reset=zero)


def _adaptive(neuron: Any, full: Callable[[Any], Any]) -> Any:
    """Return the nearest thing that NIR has: the same two filters, and a threshold that stays at rest."""
    seconds = {name: full(max(getattr(neuron, name), neuron.dt) / 1000.0) for name in ("tau_beta", "tau_phi")}
    filters = {"tau_syn": seconds["tau_beta"], "tau_mem": seconds["tau_phi"], "r": full(1.0), "v_leak": full(0.0)}
    if neuron.readout:
        return nir.CubaLI(**filters)
    rest = 0.5 * float(neuron.theta_0.flatten()[0]) * neuron._raw_threshold().detach().item()
    return nir.CubaLIF(**filters, v_threshold=full(rest), v_reset=full(0.0))


def _read_if(name: str, node: Any, dt: float) -> nn.Module:
    _check(name, "r", node.r, 1.0 / dt)
    return _pcmp(name, node)


def _read_lif(name: str, node: Any, dt: float) -> nn.Module:
    tau = _one(name, "tau", node.tau) / dt
    r = _one(name, "r", node.r)
    _check(name, "v_leak", node.v_leak, 0.0)
    if tau <= 1.0:
        bad_value("graph", f"{name} with tau={tau * dt:g}", f"more than dt={dt:g}")
    if not (math.isclose(r, 1.0, rel_tol=1e-5) or math.isclose(r, tau, rel_tol=1e-5)):
        bad_value("graph", f"{name} with r={r:g}", f"1 or tau / dt, {tau:g}")
    return _pcmp(name, node, tau=tau, decay_input=math.isclose(r, 1.0, rel_tol=1e-5))


def _pcmp(name: str, node: Any, **leak: Any) -> nn.Module:
    from ..spikingjelly import PCMPIFNode

    _check(name, "v_reset", node.v_reset, 0.0)
    threshold = _one(name, "v_threshold", node.v_threshold)
    return PCMPIFNode(threshold, 0.0, precharge=0.0, fire_at_threshold=False, **leak)


def _one(name: str, key: str, values: Any) -> float:
    first = float(np.ravel(values)[0])
    if np.any(np.asarray(values) != np.ravel(values)[0]):
        bad_value("graph", f"{name} with several values of {key}", "one for all neurons of a layer")
    return first


def _check(name: str, key: str, values: Any, want: float) -> None:
    found = _one(name, key, values)
    if not math.isclose(found, want, rel_tol=1e-5, abs_tol=1e-12):
        hint = " (of the step dt)" if key == "r" else ""
        bad_value("graph", f"{name} with {key}={found:g}", f"{want:g}{hint}")


# -- other layers ------------------------------------------------------------------------------------------------------


def _linear(name: str, layer: Any, before: Shape, after: Shape) -> Any:
    if len(before) != 1:
        bad_value("net", f"{name}, a linear layer on samples {list(before)}", "vectors, as NIR takes them")
    weight = _array(layer.weight)
    return nir.Linear(weight) if layer.bias is None else nir.Affine(weight, _array(layer.bias))


def _convolution(name: str, layer: Any, before: Shape, after: Shape) -> Any:
    for key, only in (("groups", 1), ("padding_mode", "zeros")):
        if getattr(layer, key) != only:
            bad_value("net", f"{name} with {key}={getattr(layer, key)!r}", f"{only!r}: NIR has no other")
    bias = np.zeros(after[0], np.float32) if layer.bias is None else _array(layer.bias)
    kind: Any = nir.Conv2d if len(before) == 3 else nir.Conv1d
    size = {key: getattr(layer, key) for key in ("stride", "padding", "dilation")}
    if kind is nir.Conv1d:
        size = {key: value if isinstance(value, str) else value[0] for key, value in size.items()}
    shape = before[1:] if kind is nir.Conv2d else before[1]
    return kind(input_shape=shape, weight=_array(layer.weight), groups=1, bias=bias, **size)


def _average(name: str, pool: Any, before: Shape, after: Shape) -> Any:
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        if any(a % b for a, b in zip(before[1:], after[1:], strict=True)):
            bad_value("net", f"{name}, from {list(before[1:])} to {list(after[1:])}", "windows of one size")
        size = tuple(a // b for a, b in zip(before[1:], after[1:], strict=True))
        return nir.AvgPool2d(np.array(size), np.array(size), np.array((0, 0)))
    padded = np.any(pool.padding) and not pool.count_include_pad
    if pool.ceil_mode or padded or pool.divisor_override is not None:
        bad_value("net", f"{name}, {pool}", "windows of one size with padding counted: NIR has no other averages")
    return nir.AvgPool2d(*map(np.array, _geometry(pool)))


def _geometry(pool: Any) -> tuple[tuple[int, int], ...]:
    """Return size, stride and padding of a window."""
    pairs = (np.broadcast_to(value, 2).tolist() for value in (pool.kernel_size, pool.stride, pool.padding))
    return tuple((height, width) for height, width in pairs)


def _flatten(name: str, layer: Any, before: Shape, after: Shape) -> Any:
    if layer.start_dim != 1 or layer.end_dim not in (-1, len(before)):
        bad_value("net", f"{name}, {layer}", "start_dim=1, end_dim=-1")
    return nir.Flatten({"input": np.array(before)}, 0, -1)


def _flatten_of(name: str, node: fx.Node, before: Shape, after: Shape) -> Any:
    """Return a flatten for a function of the graph that makes vectors of samples, and does nothing else."""
    kind = getattr(node.target, "__name__", str(node.target))
    if kind not in ("flatten", "view", "reshape") or len(after) != 1 or math.prod(before) != after[0]:
        _refuse(name, kind)
    return nir.Flatten({"input": np.array(before)}, 0, -1)


def _scale(name: str, layer: Any, before: Shape, after: Shape) -> Any:
    if layer.bias is not None:
        bad_value("net", f"{name}, a scale with an offset", "a factor alone, as NIR has it")
    weight = _array(layer.weight)
    return nir.Scale(np.broadcast_to(weight.reshape(-1, *[1] * (len(before) - 1)), before).copy())


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    return value.detach().cpu().numpy().copy()


def _refuse(name: str, kind: str) -> NoReturn:
    reasons = {
        "MaxPool": "NIR has no maximum pooling: train or convert the net with average pooling",
        "BatchNorm": "NIR has no batch norm: fold it into the layer before it "
        "(torch.nn.utils.fusion.fuse_conv_bn_eval, fuse_linear_bn_eval), as convert does",
        "Gate": "NIR has no products of signals",
        "PoissonEncoder": "NIR has no random numbers: convert with encoder='direct' or 'if'",
        "Phased": "NIR has no neurons that wait: convert with schedule='streaming'",
    }
    found = [reason for part, reason in reasons.items() if part in kind]
    other = "NIR has linear layers, convolutions, average pooling, flatten, scales, sums and neurons"
    raise ValueError(f"net: got {name}, a {kind}, want another layer: {(found or [other])[0]}")


_LAYERS: dict[Any, Callable[..., Any]] = {
    nn.Linear: _linear,
    (nn.Conv1d, nn.Conv2d): _convolution,
    (nn.AvgPool2d, nn.AdaptiveAvgPool2d): _average,
    nn.Flatten: _flatten,
}


# -- nodes of other tools ----------------------------------------------------------------------------------------------


def _read_linear(name: str, node: Any, dt: float) -> nn.Module:
    bias = getattr(node, "bias", None)
    layer = nn.Linear(node.weight.shape[-1], node.weight.shape[-2], bias=bias is not None)
    return _filled(layer, node.weight, bias)


def _read_convolution(name: str, node: Any, dt: float) -> nn.Module:
    def plain(value: Any) -> Any:
        return value if isinstance(value, str) else np.asarray(value).tolist()

    kind: Any = nn.Conv2d if isinstance(node, nir.Conv2d) else nn.Conv1d
    groups = int(node.groups)
    options = {key: plain(getattr(node, key)) for key in ("stride", "padding", "dilation")}
    shape = node.weight.shape
    return _filled(kind(shape[1] * groups, shape[0], shape[2:], groups=groups, **options), node.weight, node.bias)


def _read_average(name: str, node: Any, dt: float) -> nn.Module:
    size, stride, padding = _geometry(node)
    return nn.AvgPool2d(size, stride, padding)


def _read_flatten(name: str, node: Any, dt: float) -> nn.Module:
    first, last = int(node.start_dim), int(node.end_dim)
    return nn.Flatten(first + 1 if first >= 0 else first, last + 1 if last >= 0 else last)


def _read_scale(name: str, node: Any, dt: float) -> nn.Module:
    from ..conversion.modules import Scale

    scale = np.asarray(node.scale, np.float32)
    channels = scale.reshape(scale.shape[0], -1)
    if np.any(channels != channels[:, :1]):
        bad_value("graph", f"{name} with factors that differ within a channel", "one, or one per channel")
    factors = channels[:, 0]
    factors = factors[:1] if np.all(factors == factors[0]) else factors
    return Scale(torch.from_numpy(factors.copy()))


def _filled(layer: Any, weight: Any, bias: Any) -> Any:
    layer.weight.data = torch.tensor(np.asarray(weight), dtype=torch.float32)
    if bias is not None:
        layer.bias.data = torch.tensor(np.asarray(bias), dtype=torch.float32)
    return layer


_NODES: dict[Any, Callable[..., nn.Module]] = {
    nir.Affine: _read_linear,
    nir.Linear: _read_linear,
    nir.Conv1d: _read_convolution,
    nir.Conv2d: _read_convolution,
    nir.AvgPool2d: _read_average,
    nir.Flatten: _read_flatten,
    nir.Scale: _read_scale,
    nir.IF: _read_if,
    nir.LIF: _read_lif,
}
"""By class of a node of NIR, how a layer is made of it."""
