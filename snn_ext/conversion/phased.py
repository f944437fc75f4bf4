"""The phased schedule: each layer first integrates all T inputs in silence, then fires at most T spikes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, fx, nn

from .._errors import bad_value
from ..neurons import IFState, Thresholds
from ..ops import integrate_and_fire
from ..simulation.layers import module_of
from ..spikingjelly import PCMPIFNode
from ..spikingjelly.host import CopiedMemories
from .graph_tools import assign, calls_neuron
from .modules import PoissonEncoder
from .net import ConvertedNet

__all__ = ["PhasedDelay", "PhasedIFNode", "PhasedReadout", "phased"]

States = tuple[Any, ...]


def phased(net: ConvertedNet, time_steps: int) -> ConvertedNet:
    """Turn a streaming net into a phased one.

    A neuron of depth d (with d - 1 layers of neurons before it) integrates in phase d - 1 and fires in phase d, each of
    ``time_steps`` steps; the output belongs to the last phase. A shortcut that skips layers waits for them. Each neuron
    then has the count of :func:`snn_ext.functional.staircase`: the net is the quantised analog net, at any depth, for a
    latency of (depth + 1) T steps.
    """
    graph = net.graph
    depths: dict[fx.Node, int] = {}  # the phase in which a value is available; 0 for a constant current
    for node in graph.nodes:
        if isinstance(module_of(net, node), PoissonEncoder):
            bad_value("encoder", "poisson", "'direct' or 'if' with schedule='phased'")
        depths[node] = max((depths[n] for n in node.all_input_nodes), default=0) + calls_neuron(net, node)
    last = max(depths.values())
    _Rebuilder(net, depths, time_steps, last + 1).run()
    net.schedule, net.time_steps = "phased", time_steps
    return net


class _Rebuilder:
    """Copies the graph so that all inputs of an operation are available in the same phase."""

    def __init__(self, net: ConvertedNet, depths: dict[fx.Node, int], time_steps: int, phases: int) -> None:
        self.net, self.depths, self.time_steps, self.phases = net, depths, time_steps, phases
        self.graph = fx.Graph()
        self.made: dict[tuple[fx.Node, int], fx.Node] = {}

    def run(self) -> None:
        old = self.net.graph
        for node in old.nodes:
            if node.op == "placeholder":
                self.made[node, 0] = self.graph.node_copy(node)
            elif node.op == "output":
                result = self._at(node.args[0], self.phases - 1)
                gate = self._add("phased_readout", PhasedReadout(self.time_steps, self.phases), result)
                self.graph.output(gate)
        self.net.graph = self.graph
        self.net.delete_all_unused_submodules()
        self.net.graph.lint()

    def _at(self, node: Any, phase: int) -> fx.Node:
        """Return the node of the new graph for a value of the old graph in a phase."""
        phase = phase if self.depths[node] else 0  # a constant is available in every phase
        if (node, phase) in self.made:
            return self.made[node, phase]
        module, fires = module_of(self.net, node), calls_neuron(self.net, node)
        name, depth = str(node.target).replace(".", "_"), self.depths[node]
        if fires and phase == depth:
            source = self._at(node.args[0], depth - 1)
            assign(self.net, str(node.target), PhasedIFNode.like(module, self.time_steps, depth))
            made = self.graph.call_module(str(node.target), (source,))
        elif fires:
            delay = PhasedDelay(self.time_steps, depth, phase)
            made = self._add(f"{name}_delay_{phase - depth}", delay, self._at(node, depth))
        elif isinstance(module, base.MemoryModule) and phase > depth:  # pools the delayed spikes once more
            source = self._at(node.args[0], phase)
            made = self._add(f"{name}_delay_{phase - depth}", copy.deepcopy(module), source)
        else:
            made = self.graph.node_copy(node, lambda source: self._at(source, phase))
        made.meta = dict(node.meta)
        self.made[node, phase] = made
        return made

    def _add(self, name: str, module: nn.Module, source: fx.Node) -> fx.Node:
        self.net.add_submodule(name, module)
        return self.graph.call_module(name, (source,))


class PhasedIFNode(PCMPIFNode):
    """A PCMP IF neuron that integrates in one phase of ``time_steps`` steps and fires in the next.

    Parameters
    ----------
    v_threshold, precharge, fire_at_threshold, step_mode
        As in :class:`snn_ext.spikingjelly.PCMPIFNode`.
    time_steps : int
        T, the length of a phase.
    phase : int
        The phase in which it fires; it integrates in the phase before.

    Examples
    --------
    >>> import torch
    >>> node = PhasedIFNode(1.0, precharge=0.0, time_steps=2, phase=1, step_mode="m")
    >>> node(torch.tensor([[1.75], [-0.75], [5.0], [5.0]])).flatten()      # the charge is 1 when the phase ends
    tensor([0., 0., 1., 0.])
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        *,
        precharge: float | Tensor = 0.0,
        fire_at_threshold: bool = True,
        step_mode: str = "s",
        time_steps: int,
        phase: int,
    ) -> None:
        super().__init__(v_threshold, precharge=precharge, fire_at_threshold=fire_at_threshold, step_mode=step_mode)
        self.time_steps, self.phase = time_steps, phase
        self.register_memory("t", 0)

    @classmethod
    def like(cls, neuron: Any, time_steps: int, phase: int) -> PhasedIFNode:
        """Return a phased neuron with the parameters of a streaming one."""
        node = cls(1.0, fire_at_threshold=neuron.fire_at_threshold, time_steps=time_steps, phase=phase)
        node.v_threshold, node.v_init = neuron.v_threshold.detach().clone(), neuron.v_init.detach().clone()
        node.scale_output = neuron.scale_output
        return node

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance a sequence: ``((x_seq,), (v, t)) -> ((spike_seq,), (v, t))``."""
        x_seq, thresholds = inputs[0], self.thresholds()
        v, t = self._state(x_seq, states, thresholds)
        start, fire, stop = (_clip((self.phase + k) * self.time_steps - t, len(x_seq)) for k in (-1, 0, 1))
        spike_seq, v = torch.zeros_like(x_seq), v.expand(x_seq.shape[1:])
        if start < fire:
            for x in x_seq[start:fire]:
                v = v + x
        if fire < stop:
            silence = torch.zeros_like(x_seq[fire:stop])
            scale = thresholds.clip_level if self.scale_output else None
            spike_seq[fire:stop], v = integrate_and_fire(
                silence, v, thresholds.of_steps, fire_at_threshold=self.fire_at_threshold, scale=scale
            )
        return (spike_seq,), (v, t + len(x_seq))

    def start(self, x_seq: Tensor, thresholds: Thresholds) -> IFState:
        return super().start(x_seq, thresholds)._replace(t=0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, time_steps={self.time_steps}, phase={self.phase}"


class PhasedDelay(CopiedMemories):
    """Repeats the number of spikes of an earlier phase in a later one.

    Parameters
    ----------
    time_steps : int
        T, the length of a phase.
    source, phase : int
        The phase in which spikes arrive, and the phase in which they leave.

    Examples
    --------
    >>> import torch
    >>> delay = PhasedDelay(2, source=0, phase=1)
    >>> [delay(torch.tensor([[s]])).item() for s in (0.0, 1.0, 0.0, 0.0)]
    [0.0, 0.0, 1.0, 0.0]
    """

    emits_spikes = False  # only a delay: the spikes were emitted and counted before

    def __init__(self, time_steps: int, source: int, phase: int) -> None:
        super().__init__()
        self.time_steps, self.source, self.phase = time_steps, source, phase
        self.register_memory("count", 0.0)
        self.register_memory("t", 0)

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        count, t = states
        if not isinstance(count, Tensor) or count.shape != x.shape:
            return torch.zeros_like(x), 0
        return count, t

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Take in or let out one step: ``((x,), (count, t)) -> ((spike,), (count, t))``."""
        x, (count, t) = inputs[0], states
        phase = t // self.time_steps
        if phase == self.source:
            return (torch.zeros_like(x),), (count + x, t + 1)
        if phase != self.phase:
            return (torch.zeros_like(x),), (count, t + 1)
        spike = (count > 0.5).to(x.dtype)
        return (spike,), (count - spike, t + 1)

    def extra_repr(self) -> str:
        return f"from phase {self.source} to {self.phase}, time_steps={self.time_steps}, step_mode={self.step_mode}"


class PhasedReadout(base.MemoryModule):
    """Passes the output of the last phase, times the number of phases: the mean over all steps is the answer."""

    def __init__(self, time_steps: int, phases: int) -> None:
        super().__init__()
        self.time_steps, self.phases = time_steps, phases
        self.register_memory("t", 0)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Gate one step: ``((x,), (t,)) -> ((y,), (t + 1,))``."""
        x, t = inputs[0], states[0]
        is_last = t // self.time_steps == self.phases - 1
        return (x * self.phases if is_last else torch.zeros_like(x),), (t + 1,)

    def extra_repr(self) -> str:
        return f"phases={self.phases}, time_steps={self.time_steps}, step_mode={self.step_mode}"


def _clip(t: int, steps: int) -> int:
    return min(max(t, 0), steps)
