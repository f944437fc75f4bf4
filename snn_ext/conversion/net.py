"""The converted net: a graph of layers and neurons that runs step by step or over a whole sequence."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from .._errors import bad_value
from .._together import all_or_nothing
from ..hosts import host_of
from ..neurons import AdaptiveSpikingNeuron, NonUniformIntegrateAndFireNeuron
from ..replacement import new_neurons, swap_neurons
from ..simulation.graph import is_stateful, module_of
from .graph_tools import free_name
from .report import Numbers, Report

__all__ = ["ConvertedNet", "join_resets"]

_KEPT = ("report", "schedule", "time_steps", "wait", "clips", "_step_mode")


class ConvertedNet(fx.GraphModule, base.StepModule):
    """A spiking net as a ``torch.fx`` graph of plain ``torch.nn`` layers and SpikingJelly neurons.

    In step mode "s" it takes one step, ``[N, ...]``, in "m" a sequence ``[T, N, ...]``: stateless layers then see time
    flattened into the batch. ``graph`` is the function that the net computes in its step mode, so that an
    ``fx.Interpreter``, ``torch.export`` and ``torch.compile`` see the same; :meth:`one_step` is the net of one step in
    both modes.

    Give the net the same input at every step, and reset it before each sample, or before it is exported
    (``spikingjelly.activation_based.functional.reset_net``). The mean of its output over time approaches the output of
    the analog net, in that net's units.

    Attributes
    ----------
    report : Report
        A list of :class:`LayerReport`, one for each layer of neurons; it travels with pickles and state dicts.
    schedule : {"streaming", "waiting", "phased"}
        All but "streaming" need exactly ``latency`` steps for their answer.
    time_steps : int or None
        The T of the conversion.
    wait : int
        Steps between the first input and the first decision of a layer.
    clips : dict of str to float or list of float
        Largest value of each clipped activation, in units of the threshold.
    """

    report: Report
    schedule: str
    time_steps: int | None
    wait: int
    clips: dict[str, Numbers]

    def __init__(self, root: nn.Module | dict[str, Any], graph: fx.Graph, class_name: str = "ConvertedNet") -> None:
        self._step_mode = "s"
        self._step_graph: fx.Graph | None = None  # the graph of one step while ``graph`` is that of a sequence
        super().__init__(root, graph, class_name)
        self.report, self.schedule, self.clips = Report(), "streaming", {}
        self.time_steps, self.wait = None, 0

    @property
    def step_mode(self) -> str:
        """``"s"`` for one step ``[N, ...]``, ``"m"`` for a sequence ``[T, N, ...]``."""
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        inner = [m for m in self.modules() if m is not self and isinstance(m, base.MemoryModule)]
        own = [(self, name) for name in ("_step_mode", "_step_graph", "graph")]
        with all_or_nothing([*own, *((module, "step_mode") for module in inner)]):
            base.StepModule.step_mode.fset(self, value)
            for module in inner:
                module.step_mode = value
            self._follow_step_mode()

    def _follow_step_mode(self) -> None:
        if self._step_mode == "m" and self._step_graph is None:
            self._step_graph, self.graph = self.graph, _sequence_graph(self)
        elif self._step_mode == "s" and self._step_graph is not None:
            self.graph, self._step_graph = self._step_graph, None

    def one_step(self) -> ConvertedNet:
        """Return the net of one step: this one in step mode "s", else a view of it with the same modules."""
        if self._step_graph is None:
            return self
        view: ConvertedNet = ConvertedNet.__new__(ConvertedNet)
        view.__dict__.update(self.__dict__, _step_mode="s", _step_graph=None)
        view.graph = self._step_graph
        return view

    @property
    def latency(self) -> int | None:
        """Steps until the answer is complete; ``None`` for the streaming schedule, whose answer improves with time."""
        if self.schedule == "streaming":
            return None
        readout = next(node for node in self.one_step().graph.nodes if node.op == "output").args[0]
        latency: int = self.get_submodule(str(readout.target)).latency  # type: ignore[assignment]
        return latency

    def to_snntorch(self) -> ConvertedNet:
        """Return a copy with the neurons of :mod:`snn_ext.snntorch`, to be run step by step.

        It starts afresh, wherever this net is in a sequence. :func:`snn_ext.snntorch.reset` resets it, and so does
        ``snntorch.utils.reset``, which sees the top level of a net only: there the neurons are, the one of the layer
        ``"features.1"`` as ``"features_1"``, in ``report`` too.
        """
        if self.schedule != "streaming":
            bad_value("schedule", self.schedule, "'streaming': snnTorch has no neurons that wait")
        from ..snntorch import ASN, PCMPIF, ATIFnu

        twin = copy.deepcopy(self)
        twin.step_mode = "s"

        def factory(old: Any) -> nn.Module:
            if isinstance(old, AdaptiveSpikingNeuron):
                return ASN(
                    old._raw_threshold().detach(), m_f=old.m_f, theta_0=old.theta_0, bias=old.bias, **old.options()
                )
            if isinstance(old, NonUniformIntegrateAndFireNeuron):
                points = old.quantization_points().detach()
                return ATIFnu(points, T=old.T, recursion=old.recursion, v_init=old.v_init.detach(), init_hidden=True)
            reset = "subtract" if old.v_reset is None else "zero"
            return PCMPIF(precharge=old.v_init.detach(), reset_mechanism=reset, init_hidden=True)

        reset_net(twin)
        swap_neurons(twin, new_neurons(twin, factory))
        _lift_neurons(twin)
        join_resets(twin)
        return twin

    # The report travels as bytes in a tensor: readers of state dicts expect tensors.

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(self.report.to_json().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.report = Report.from_json(bytes(state.tolist()).decode())

    def __deepcopy__(self, memo: dict[int, Any]) -> ConvertedNet:
        twin: Any = super().__deepcopy__(memo)
        return _with(twin, {name: copy.deepcopy(getattr(self, name), memo) for name in (*_KEPT, "_step_graph")})

    def _deepcopy_init(self) -> Any:
        return ConvertedNet.__init__

    def __reduce__(self) -> tuple[Any, ...]:
        build, arguments = fx.GraphModule.__reduce__(self.one_step())
        return _restore, (build, arguments, {name: getattr(self, name) for name in _KEPT})


def _lift_neurons(net: ConvertedNet) -> None:
    """Move neurons to the top level of a net, where snnTorch looks for them."""
    nested = [name for name, module in net.named_modules() if "." in name and host_of(module) == "snntorch"]
    names: dict[str, str] = {}
    for name in nested:
        names[name] = free_name(net, name.replace(".", "_"))
        net.add_module(names[name], net.get_submodule(name))
        net.delete_submodule(name)
    for node in net.graph.nodes:
        node.target = names.get(node.target, node.target)
    net.recompile()
    net.report = Report(replace(layer, name=names.get(layer.name, layer.name)) for layer in net.report)
    net.clips = {names.get(name, name): clip for name, clip in net.clips.items()}


def join_resets(net: nn.Module) -> None:
    """Let the first neuron of snnTorch in a net reset the poolings and encoders as well, which that host overlooks."""
    neuron: Any = next((module for module in net.modules() if host_of(module) == "snntorch"), None)
    if neuron is not None:
        neuron.resets_too = tuple(module for module in net.modules() if getattr(module, "_memories", None))


def _restore(build: Any, arguments: tuple[Any, ...], kept: dict[str, Any]) -> ConvertedNet:
    plain = build(*arguments)
    net = ConvertedNet(plain, plain.graph)
    net.train(plain.training)
    _with(net, kept)._follow_step_mode()
    return net


def _with(net: ConvertedNet, kept: dict[str, Any]) -> ConvertedNet:
    for name, value in kept.items():
        object.__setattr__(net, name, value)
    return net


def _sequence_graph(net: fx.GraphModule) -> fx.Graph:
    """Return the graph of a sequence ``[T, N, ...]``: modules without a state see time in the batch."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    sizes: tuple[fx.Node, ...] = ()

    def as_sequence(node: fx.Node) -> fx.Node:
        return graph.call_method("unflatten", (values[node], 0, sizes))

    def flat(x_seq: fx.Node) -> fx.Node:
        return graph.call_method("flatten", (x_seq, 0, 1))

    for node in net.graph.nodes:
        if node.op == "placeholder":
            x_seq = graph.node_copy(node)
            sizes = sizes or tuple(graph.call_method("size", (x_seq, dim)) for dim in (0, 1))
            values[node] = flat(x_seq)
        elif node.op == "output":
            graph.output(fx.map_arg(node.args[0], as_sequence))
        elif is_stateful(module_of(net, node)):
            values[node] = flat(graph.node_copy(node, as_sequence))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
            if node.op == "call_method" and node.target == "view":  # a view may be impossible there
                values[node].target = "reshape"
    return graph
