"""A net as a graph of layers: which of them emit spikes, and where these arrive."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._draws import Draws
from .._errors import bad_type, bad_value
from .._tracing import traced
from ..hosts import LeafTracer, host_of, is_container, is_encoder, is_neuron, reset_neurons
from ..neurons import AdaptiveSpikingNeuron
from ..neurons.base import per_channel
from .advance import Potential, advance, runs_step_by_step
from .layers import known_type, module_of, rule_of

__all__ = [
    "Events", "Interpreter", "Recorder", "as_graph", "changes", "compute", "emits_spikes", "evaluating",
    "events_of", "graph_of", "in_step_mode", "is_delay", "is_filter", "is_gate", "is_max_pool", "is_spiking",
    "is_stateful", "module_of", "not_training", "output_of", "size_dim", "smoothed_readout", "spike_value",
    "step_length", "unit_of",
]  # fmt: skip


def as_graph(net: nn.Module, name: str = "net") -> fx.GraphModule:
    """Return a net as a graph of one step whose leaves are layers; a converted net is one already.

    Raises
    ------
    TypeError
        If it is no module.
    ValueError
        If it cannot be traced, with the reason, has several inputs, or calls a neuron twice; ``name`` is the
        caller's argument.
    """
    graph = _without_containers(graph_of(net, name))
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder" and (node.users or not node.args)]
    if len(inputs) > 1:
        got = f"a forward pass of several inputs, {', '.join(str(node.target) for node in inputs)}"
        bad_value(name, got, "one input, and defaults of the arguments behind it")
    called: set[nn.Module] = set()
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if module is not None and is_stateful(module):
            if module in called:
                bad_value(name, f"{node.target}, one neuron for two calls of a step", "one neuron for each call")
            if not runs_step_by_step(module):
                kind = type(module).__name__
                bad_value(name, f"{node.target}, a {kind}", "neurons of snnTorch that run step by step, as snn.Leaky")
            called.add(module)
    return graph


def graph_of(net: nn.Module, name: str = "net", frames: int | None = None) -> fx.GraphModule:
    """Return the graph of a forward pass, which may call a neuron at every step of so many frames.

    ``meta["frame_dims"]`` are the dimensions of the input that it was told to have that size.
    """
    if not isinstance(net, nn.Module):
        bad_type(name, net, "an nn.Module")
    if hasattr(net, "one_step"):  # a converted net or a ConstantInputNet, whose forward pass may be that of T steps
        net = net.one_step()  # type: ignore[operator]
    if isinstance(net, fx.GraphModule):
        return net
    tracer = _Tracer(frames)
    with not_training([*net.modules()]), Draws() as draws:  # the forward pass may ask for the mode
        graph = traced(net, tracer, name)
    if draws.found:
        got = f"{type(net).__name__}, whose forward pass draws random numbers without regard to its input"
        raise ValueError(f"{name}: got {got}, want torch.rand_like(x), torch.rand(x.shape), or a layer that draws them")
    graph.meta["frame_dims"] = tracer.dims
    return graph


class _Tracer(LeafTracer):
    """Tracer that keeps whole any layer in the table of layer types, whatever it consists of.

    Loops over frames have their number from the input: over a size of it, its length, or the frames themselves.
    """

    def __init__(self, frames: int | None = None) -> None:
        super().__init__()
        self.frames, self.dims = frames, set[int]()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return super().proxy(node) if self.frames is None else _Frames(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return super().iter(obj) if self.frames is None else iter([obj[t] for t in range(len(obj))])  # type: ignore[index]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return known_type(m) is not None or is_container(m) or super().is_leaf_module(m, module_qualified_name)


def _without_containers(graph: fx.GraphModule) -> fx.GraphModule:
    """Call what is inside of containers that turn sequences into batches, or into steps: in one step, nothing else."""
    if not any(is_container(module_of(graph, node)) for node in graph.graph.nodes):
        return graph
    inner, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if module is not None and is_container(module):
            value = copies[node.args[0]]
            for child, _ in module.named_children():
                value = inner.call_module(f"{node.target}.{child}", (value,))
            copies[node] = value
        else:
            copies[node] = inner.node_copy(node, copies.__getitem__)
    used = {str(node.target) for node in inner.nodes if node.op in ("call_module", "get_attr")}
    flat = fx.GraphModule({target: operator.attrgetter(target)(graph) for target in used}, inner)
    return _without_containers(flat)  # for one may be in another


class _Frames(fx.Proxy):
    """A value that has the number of frames as its length, if it is the input, or as its number, if it is a size."""

    def __len__(self) -> int:
        return self._count(0 if self.node.op == "placeholder" else None)

    def __index__(self) -> int:
        return self._count(size_dim(self.node))

    def _count(self, dim: Any) -> int:
        if dim not in (0, 1):
            raise TypeError(f"the number of {self.node} is not known while the net is traced")
        tracer: Any = self.tracer
        tracer.dims.add(dim)
        frames: int = tracer.frames
        return frames


def size_dim(node: fx.Node) -> int | None:
    """Return the dimension of the input whose size a value is: ``x.size(0)``, ``x.shape[0]``, ``x.shape[:2][0]``."""
    dims = _dims(node)
    return dims if isinstance(dims, int) else None


def _dims(node: fx.Node) -> Any:
    """Return the dimension of the input whose size a value is, or the range of those whose sizes it is."""
    source, *where = [*node.args, *node.kwargs.values()] or [None]
    if not isinstance(source, fx.Node):
        return None
    if node.target is operator.getitem:
        dims, index = _dims(source), where[0]
        return dims[index] if isinstance(dims, range) and isinstance(index, int | slice) else None
    if source.op != "placeholder" or not (node.target == "size" or (node.target is getattr and where == ["shape"])):
        return None
    return where[0] if node.target == "size" and where else range(_MOST_DIMS)


_MOST_DIMS = 64  # of a tensor


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode, and step mode "s" for what has one: time is flattened into the batch. Both are restored."""
    with not_training(modules), in_step_mode("s", modules):
        yield


@contextmanager
def in_step_mode(mode: str, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Set the step mode of what has one; it is restored."""
    others = [(module, module.step_mode) for module in modules if getattr(module, "step_mode", mode) != mode]
    try:
        for module, _ in others:
            module.step_mode = mode  # type: ignore[assignment]
        yield
    finally:
        for module, own in others:
            module.step_mode = own


@contextmanager
def not_training(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode; it is restored."""
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def is_stateful(module: nn.Module | None) -> bool:
    """Return True for a module with a state: neurons, encoders, poolings of spikes, delays."""
    if module is None:
        return False
    return bool(getattr(module, "_memories", None)) or isinstance(module, Potential) or host_of(module) == "snntorch"


def changes(module: nn.Module | None) -> bool:
    """Return True for a module whose output changes from step to step while its input does not."""
    return is_stateful(module) or (module is not None and is_encoder(module))


def emits_spikes(module: nn.Module | None) -> bool:
    """Return True if the output is a train of spikes: of neurons (no read-outs), encoders, poolings of spikes."""
    if module is None or isinstance(module, nn.ReLU):
        return False
    return bool(getattr(module, "emits_spikes", is_neuron(module) or is_encoder(module)))


def is_spiking(module: nn.Module | None) -> bool:
    """Return True for a layer of spiking neurons, and for an encoder."""
    return emits_spikes(module) and not is_max_pool(module)


@dataclass(frozen=True)
class Events:
    """Layers of a net that emit spikes, and where their spikes arrive.

    Attributes
    ----------
    names : dict of fx.Node to str
        For each call of a module its name in the net; later calls of one module get a number, "pool (2)".
    kinds : dict of str to str
        The layers that emit spikes by name, in the order of the forward pass. "neuron" is a layer of spiking neurons,
        "input" one that the image reaches unweighted (an encoder), "pool" a max pooling of spikes, which lets some of
        them pass.
    arriving : dict of fx.Node to frozenset of str
        For each node the layers whose spikes arrive there unweighted; none where there is an analog current.
    """

    names: dict[fx.Node, str]
    kinds: dict[str, str]
    arriving: dict[fx.Node, frozenset[str]]

    @property
    def sources(self) -> dict[fx.Node, str]:
        """Nodes that emit spikes, with their names."""
        return {node: name for node, name in self.names.items() if name in self.kinds}


def events_of(graph: fx.GraphModule) -> Events:
    """Find the layers of a net that emit spikes."""
    found, calls = Events({}, {}, {}), dict[str, int]()
    raw: dict[fx.Node, bool] = {}  # the image, unweighted
    for node in graph.graph.nodes:
        module, before = module_of(graph, node), node.all_input_nodes
        rule = rule_of(module)
        if module is not None:
            target = str(node.target)
            calls[target] = calls.get(target, 0) + 1
            found.names[node] = target if calls[target] == 1 else f"{target} ({calls[target]})"
        arriving = frozenset[str]().union(*(found.arriving[n] for n in before))
        is_raw = node.op == "placeholder" or any(raw[n] for n in before)
        raw[node] = is_raw and not rule.weighted
        pools = rule.pooling == "max" and bool(arriving)  # emits a new train
        if pools or is_spiking(module):
            name, raw[node] = found.names[node], False
            found.kinds[name] = "pool" if pools else "input" if is_raw else "neuron"
            arriving = frozenset((name,))
        found.arriving[node] = frozenset() if rule.weighted or is_filter(module) else arriving
    return found


def output_of(graph: fx.GraphModule) -> Any:
    """Return what a graph returns, as nodes."""
    return next(node for node in graph.graph.nodes if node.op == "output").args[0]


def smoothed_readout(graph: fx.GraphModule) -> bool:
    """Return True if the output of a net is that of adaptive neurons without spikes, which filter it themselves."""
    output = output_of(graph)
    return isinstance(output, fx.Node) and is_filter(module_of(graph, output))


def step_length(graph: fx.GraphModule) -> float | None:
    """Return the length of a step in ms; None for a net without adaptive neurons, whose steps have no length."""
    lengths = {m.dt for m in graph.modules() if isinstance(m, AdaptiveSpikingNeuron)}
    if len(lengths) > 1:
        bad_value("snn", f"neurons with steps of {sorted(lengths)} ms", "one dt for the whole net")
    return lengths.pop() if lengths else None


def is_delay(module: nn.Module | None) -> bool:
    """Return True for a module with a state that passes on what it gets, perhaps later."""
    return is_stateful(module) and not emits_spikes(module) and not is_filter(module) and not is_gate(module)


def is_gate(module: nn.Module | None) -> bool:
    """Return True for a factor from the mean of a current, with the attribute ``gate``, its function."""
    return is_stateful(module) and isinstance(getattr(module, "gate", None), nn.Module)


def is_filter(module: nn.Module | None) -> bool:
    """Return True for a membrane without spikes: the read-out of adaptive neurons, or the filter before a pooling."""
    return isinstance(module, AdaptiveSpikingNeuron) and not emits_spikes(module)


def is_max_pool(module: nn.Module | None) -> bool:
    """Return True for a maximum pooling, of spikes or of values."""
    return rule_of(module).pooling == "max"


def unit_of(neuron: Any, shape: torch.Size | None = None) -> Any:
    """Return the input that one spike stands for: the threshold, ``p_1`` of ATIF-nu.

    With the ``shape`` of a step one value for each channel comes in a shape that broadcasts to it.
    """
    if hasattr(neuron, "thresholds"):
        level = neuron.thresholds().clip_level
        return level if shape is None or level.numel() == 1 else per_channel(neuron.threshold_name, level, shape)
    return neuron.threshold if host_of(neuron) == "snntorch" else neuron.v_threshold


def spike_value(module: Any, shape: torch.Size | None = None) -> float | Tensor:
    """Return the value of an emitted spike: 1, a grade, or the threshold (``p_1``) of one that scales its output.

    It comes as that of :func:`unit_of`.
    """
    if not getattr(module, "scale_output", False):
        return getattr(module, "graded_spikes_factor", 1.0)
    level: Tensor = unit_of(module, shape).detach()
    return level


def compute(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call the function or method of a node on batches of any layout and size.

    Layers run in other layouts here, in which a view may be impossible. And one sample stays a batch: ``x.squeeze()``
    means the dimensions behind the first, as it does for several samples.
    """
    name, source = node.target, node.all_input_nodes[:1]
    if name in ("squeeze", torch.squeeze) and len(args) == 1 and not kwargs and source[0].op != "get_attr":
        return args[0].squeeze(tuple(range(1, args[0].ndim)))
    if isinstance(name, str):
        return getattr(args[0], "reshape" if name == "view" else name)(*args[1:], **kwargs)
    return name(*args, **kwargs)


class Interpreter(fx.Interpreter):
    """Runs a graph on batches of any layout and size."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("call_method", "call_function"):
            return compute(n, *self.fetch_args_kwargs_from_env(n))
        return super().run_node(n)


class Recorder(Interpreter):
    """Runs one step and keeps the result of every node of the graph."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)

    def record(self, x: Tensor) -> dict[fx.Node, Any]:
        """Return the results for an input ``[N, ...]``; the neurons are reset before and after."""
        reset_neurons(self.module)
        try:
            self.run(x)
        finally:
            reset_neurons(self.module)
        return self.env

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if host_of(module) == "snntorch":  # which may return its potential too
            return advance(module, args[0].unsqueeze(0), None)[0][0]
        return super().call_module(target, args, kwargs)
