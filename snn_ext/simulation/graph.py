"""A net as a graph of layers: which of them emit spikes, and what arrives where."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value
from ..hosts import LeafTracer, is_neuron, reset_neurons
from ..neurons.asn import AdaptiveNeuron
from .layers import RULES, known_type, module_of, rule_of

__all__ = [
    "CONVOLUTIONS", "MAX_POOLS", "TRANSPOSED_CONVOLUTIONS", "WEIGHTED", "Recorder", "as_graph", "emits_spikes",
    "event_sources", "is_delay", "is_filter", "is_max_pool", "is_spiking", "is_stateful", "layer_names", "module_of",
    "origins", "smoothed_readout", "step_length", "unit_of",
]  # fmt: skip

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = tuple(kind for kind, rule in RULES.items() if rule.weighted)
MAX_POOLS = tuple(kind for kind, rule in RULES.items() if rule.pooling == "max")


def as_graph(net: nn.Module, name: str = "net") -> fx.GraphModule:
    """Return a net as a graph of one step whose leaves are layers; a converted net is one already.

    Raises
    ------
    TypeError
        If it is no module.
    ValueError
        If it can not be traced, with the reason, or calls a neuron twice; ``name`` is what the caller calls the
        argument.
    """
    if not isinstance(net, nn.Module):
        bad_type(name, net, "an nn.Module")
    if hasattr(net, "one_step"):  # a converted net or a ConstantInputNet, whose forward pass may be that of T steps
        net = net.one_step()  # type: ignore[operator]
    graph = net if isinstance(net, fx.GraphModule) else _traced(net, name)
    called: set[nn.Module] = set()
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if module is not None and is_stateful(module):
            if module in called:
                bad_value(
                    name, f"{node.target}, one neuron for two calls of a step", "a neuron of its own for each call"
                )
            called.add(module)
    return graph


class _Tracer(LeafTracer):
    """Keeps layers whole that the table knows, whatever they consist of."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return known_type(m) is not None or super().is_leaf_module(m, module_qualified_name)


def _traced(net: nn.Module, name: str) -> fx.GraphModule:
    try:
        return fx.GraphModule(net, _Tracer().trace(net))
    except Exception as error:
        raise ValueError(
            f"{name}: got {type(net).__name__}, which can not be traced ({error}), "
            "want a net whose forward pass does not depend on values"
        ) from error


def is_stateful(module: nn.Module | None) -> bool:
    """Whether a module has memories: neurons, encoders, poolings of spikes, delays."""
    return bool(getattr(module, "_memories", None))


def emits_spikes(module: nn.Module | None) -> bool:
    """Whether a module's output is a train of spikes: neurons but read-outs, encoders and poolings of spikes."""
    if module is None or isinstance(module, nn.ReLU):
        return False
    return bool(getattr(module, "emits_spikes", is_neuron(module)))


def is_spiking(module: nn.Module | None) -> bool:
    """Whether a module is a layer of spiking neurons, or an encoder."""
    return emits_spikes(module) and not is_max_pool(module)


def event_sources(graph: fx.GraphModule) -> dict[str, str]:
    """Return the layers that emit spikes by name, in the order of the forward pass, with what they are.

    "neuron" is a layer of spiking neurons, "input" one that the image reaches unweighted (an encoder), "pool" a max
    pooling of spikes, which lets some of them pass.
    """
    sources: dict[str, str] = {}
    raw = {node: node.op == "placeholder" for node in graph.graph.nodes}
    arriving, names = origins(graph), layer_names(graph)
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        before = node.all_input_nodes
        if is_spiking(module):
            sources[names[node]] = "input" if any(raw[n] for n in before) else "neuron"
        elif is_max_pool(module) and any(arriving[n] for n in before):
            sources[names[node]] = "pool"
        elif not rule_of(module).weighted:
            raw[node] |= any(raw[n] for n in before)
    return sources


def origins(graph: fx.GraphModule) -> dict[fx.Node, frozenset[str]]:
    """Return for each node the layers whose spikes arrive there unweighted; none of an analog current."""
    found: dict[fx.Node, frozenset[str]] = {}
    names = layer_names(graph)
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        arriving = frozenset[str]().union(*(found[n] for n in node.all_input_nodes))
        if is_spiking(module) or (is_max_pool(module) and arriving):  # a pooling of spikes emits them anew
            arriving = frozenset((names[node],))
        found[node] = frozenset() if rule_of(module).weighted or is_filter(module) else arriving
    return found


def layer_names(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """Return for each call of a module its name in the net; later calls of one module get a number, "pool (2)"."""
    calls: dict[str, int] = {}
    names: dict[fx.Node, str] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            target = str(node.target)
            calls[target] = calls.get(target, 0) + 1
            names[node] = target if calls[target] == 1 else f"{target} ({calls[target]})"
    return names


def smoothed_readout(graph: fx.GraphModule) -> bool:
    """Whether the output of a net is that of adaptive neurons without spikes, which filter it themselves."""
    output = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    return isinstance(output, fx.Node) and is_filter(module_of(graph, output))


def step_length(graph: fx.GraphModule) -> float | None:
    """Return the length of a step in ms; None for a net without adaptive neurons, whose steps have no length."""
    lengths = {m.dt for m in graph.modules() if isinstance(m, AdaptiveNeuron)}
    if len(lengths) > 1:
        bad_value("snn", f"neurons with steps of {sorted(lengths)} ms", "one dt for the whole net")
    return lengths.pop() if lengths else None


def is_delay(module: nn.Module | None) -> bool:
    """Whether a module has a state and emits no spikes of its own: it passes on what it got, perhaps later."""
    return is_stateful(module) and not emits_spikes(module) and not is_filter(module)


def is_filter(module: nn.Module | None) -> bool:
    """Whether a module is a membrane without spikes: the read-out of adaptive neurons, or what is before a pooling."""
    return isinstance(module, AdaptiveNeuron) and not emits_spikes(module)


def is_max_pool(module: nn.Module | None) -> bool:
    """Whether a module pools by the maximum."""
    return rule_of(module).pooling == "max"


def unit_of(neuron: Any, x_seq: Tensor) -> Any:
    """Return the input that one spike stands for: the threshold, ``p_1`` of ATIF-nu; ``x_seq`` is ``[T, N, ...]``."""
    return neuron.quantizer(x_seq).clip_level if hasattr(neuron, "quantizer") else neuron.v_threshold


class Recorder(fx.Interpreter):
    """Runs one step and keeps what every node of the graph returned."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)

    def record(self, x: Tensor) -> dict[fx.Node, Any]:
        reset_neurons(self.module)
        try:
            self.run(x)
        finally:
            reset_neurons(self.module)
        return self.env
