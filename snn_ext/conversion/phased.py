"""Layers that wait for inputs before they decide: from a few steps to all T inputs, the phased schedule."""

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
from ..spikingjelly import ATIFnuNode, PCMPIFNode
from ..spikingjelly.host import CopiedMemories
from .graph_tools import assign, calls_neuron
from .modules import PoissonEncoder
from .net import ConvertedNet

__all__ = ["PhasedATIFnuNode", "PhasedDelay", "PhasedIFNode", "PhasedReadout", "phased"]

States = tuple[Any, ...]


def phased(net: ConvertedNet, time_steps: int, wait: int) -> ConvertedNet:
    """Let the layers of a streaming net wait.

    A layer of depth l (with l - 1 layers of neurons before it) takes in T = ``time_steps`` inputs from step
    ``wait (l - 1)`` on, and makes T decisions from step ``wait l`` on: after ``wait + 1`` inputs. A shortcut that skips
    layers waits for them. The output is complete after T + ``wait`` L steps, for L layers.

    With ``wait = T - 1`` no decision is made before all inputs are there. Each neuron then has the count of
    :func:`snn_ext.functional.staircase`: the net is the quantised analog net, at any depth.
    """
    graph = net.graph
    depths: dict[fx.Node, int] = {}  # of a constant current 0
    for node in graph.nodes:
        if isinstance(module_of(net, node), PoissonEncoder):
            bad_value("encoder", "poisson", "'direct' or 'if' for a net that waits")
        depths[node] = max((depths[n] for n in node.all_input_nodes), default=0) + calls_neuron(net, node)
    _Rebuilder(net, depths, time_steps, wait).run()
    net.schedule, net.time_steps, net.wait = "phased" if wait == time_steps - 1 else "waiting", time_steps, wait
    return net


class _Rebuilder:
    """Copies the graph so that all inputs of an operation are of the same depth."""

    def __init__(self, net: ConvertedNet, depths: dict[fx.Node, int], time_steps: int, wait: int) -> None:
        self.net, self.depths, self.time_steps, self.wait = net, depths, time_steps, wait
        self.graph = fx.Graph()
        self.made: dict[tuple[fx.Node, int], fx.Node] = {}

    def run(self) -> None:
        old = self.net.graph
        for node in old.nodes:
            if node.op == "placeholder":
                self.made[node, 0] = self.graph.node_copy(node)
            elif node.op == "output":
                last = max(self.depths.values())
                readout = PhasedReadout(self.time_steps, self.wait * last)
                gate = self._add("phased_readout", readout, self._at(node.args[0], last))
                self.graph.output(gate)
        self.net.graph = self.graph
        self.net.delete_all_unused_submodules()
        self.net.graph.lint()

    def _at(self, node: Any, depth: int) -> fx.Node:
        """Return the node of the new graph for a value of the old graph, as late as values of some depth come."""
        own = self.depths[node]
        depth = depth if own and self.wait else own  # a constant is always there
        if (node, depth) in self.made:
            return self.made[node, depth]
        module, fires = module_of(self.net, node), calls_neuron(self.net, node)
        name = str(node.target).replace(".", "_")
        if fires and depth == own:
            source = self._at(node.args[0], own - 1)
            kind = PhasedATIFnuNode if isinstance(module, ATIFnuNode) else PhasedIFNode
            neuron = kind.like(module, self.time_steps, self.wait * own, self.wait)
            assign(self.net, str(node.target), neuron)
            made = self.graph.call_module(str(node.target), (source,))
        elif fires:
            delay = PhasedDelay(self.wait * (depth - own))
            made = self._add(f"{name}_delay_{depth - own}", delay, self._at(node, own))
        elif isinstance(module, base.MemoryModule) and depth > own:  # pools the delayed spikes once more
            source = self._at(node.args[0], depth)
            made = self._add(f"{name}_delay_{depth - own}", copy.deepcopy(module), source)
        else:
            made = self.graph.node_copy(node, lambda source: self._at(source, depth))
        made.meta = dict(node.meta)
        self.made[node, depth] = made
        return made

    def _add(self, name: str, module: nn.Module, source: fx.Node) -> fx.Node:
        self.net.add_submodule(name, module)
        return self.graph.call_module(name, (source,))


class _WaitingNode:
    """Takes in T inputs and makes T decisions, the first one after ``wait + 1`` inputs."""

    time_steps: int
    first: int
    wait: int

    def _init_waiting(self, time_steps: int, first: int, wait: int) -> None:
        self.time_steps, self.first, self.wait = time_steps, first, wait

    def multi_step_functional_forward(
        self: Any, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance a sequence: ``((x_seq,), (v, t)) -> ((spike_seq,), (v, t))``."""
        x_seq, thresholds = inputs[0], self.thresholds()
        v, t = self._state(x_seq, states, thresholds)
        first = self.first - t
        opens, closes = first - self.wait, first - self.wait + self.time_steps
        opens, fires, closes, ends = (_clip(s, len(x_seq)) for s in (opens, first, closes, first + self.time_steps))
        spike_seq, v = torch.zeros_like(x_seq), v.expand(x_seq.shape[1:])
        for x in x_seq[opens:fires]:
            v = v + x
        if fires < ends:
            current = x_seq[fires:ends]
            if closes < ends:
                current = current.clone()
                current[max(0, closes - fires) :] = 0.0
            spike_seq[fires:ends], v = integrate_and_fire(
                current,
                v,
                self._of_decisions(thresholds, fires - first, ends - first, x_seq),
                reset=self._reset_kind(),
                fire_at_threshold=self.fire_at_threshold,
                scale=thresholds.clip_level if self.scale_output else None,
            )
        return (spike_seq,), (v, t + len(x_seq))

    def _of_decisions(self: Any, thresholds: Thresholds, start: int, stop: int, x_seq: Tensor) -> Tensor:
        return self._for_operator(thresholds, None, x_seq)

    def start(self: Any, x_seq: Tensor, thresholds: Thresholds) -> IFState:
        return IFState(self.initial_potential(x_seq, thresholds), 0)

    def extra_repr(self: Any) -> str:
        described = super().extra_repr()  # type: ignore[misc]
        return f"{described}, time_steps={self.time_steps}, first={self.first}, wait={self.wait}"


class PhasedIFNode(_WaitingNode, PCMPIFNode):
    """A PCMP IF neuron that takes in T inputs and makes T decisions, the first one after ``wait + 1`` inputs.

    Parameters
    ----------
    v_threshold, precharge, fire_at_threshold, step_mode
        As in :class:`snn_ext.spikingjelly.PCMPIFNode`.
    time_steps : int
        T.
    first : int
        The step of its first decision.
    wait : int
        The steps between its first input and its first decision.

    Examples
    --------
    >>> import torch
    >>> node = PhasedIFNode(1.0, precharge=0.0, time_steps=2, first=1, wait=1, step_mode="m")
    >>> node(torch.tensor([[1.75], [-0.75], [5.0], [5.0]])).flatten()      # the charge is 1 at the first decision
    tensor([0., 1., 0., 0.])
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        *,
        precharge: float | Tensor = 0.0,
        fire_at_threshold: bool = True,
        step_mode: str = "s",
        time_steps: int,
        first: int,
        wait: int,
    ) -> None:
        super().__init__(v_threshold, precharge=precharge, fire_at_threshold=fire_at_threshold, step_mode=step_mode)
        self._init_waiting(time_steps, first, wait)
        self.register_memory("t", 0)

    @classmethod
    def like(cls, neuron: Any, time_steps: int, first: int, wait: int) -> PhasedIFNode:
        """Return a neuron that waits, with the parameters of a streaming one."""
        node = cls(1.0, fire_at_threshold=neuron.fire_at_threshold, time_steps=time_steps, first=first, wait=wait)
        node.v_threshold, node.v_init = neuron.v_threshold.detach().clone(), neuron.v_init.detach().clone()
        node.scale_output = neuron.scale_output
        return node


class PhasedATIFnuNode(_WaitingNode, ATIFnuNode):
    """An ATIF-nu neuron that takes in T inputs and makes T decisions, the first one after ``wait + 1`` inputs.

    The lowest point is decided on first, so that spikes come one after the other from the first decision on: with n
    inputs there, a point is reached if the charge is at least n times that point. Nothing is subtracted. The count is
    that of the points, for any points, under constant current, and under any if all inputs are waited for.

    Parameters
    ----------
    v_threshold, step_mode
        As in :class:`snn_ext.spikingjelly.ATIFnuNode`.
    time_steps, first, wait
        As in :class:`PhasedIFNode`; T is the number of points.

    Examples
    --------
    >>> import torch
    >>> node = PhasedATIFnuNode(torch.tensor([1.0, 0.25]), time_steps=2, first=1, wait=1, step_mode="m")
    >>> node(torch.tensor([[1.75], [-0.75], [5.0], [5.0]])).flatten().tolist()  # the mean, 0.5, reaches one point
    [0.0, 1.0, 0.0, 0.0]
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        *,
        step_mode: str = "s",
        time_steps: int,
        first: int,
        wait: int,
    ) -> None:
        super().__init__(v_threshold, T=time_steps, recursion="cumulative", step_mode=step_mode)
        self._init_waiting(time_steps, first, wait)

    @classmethod
    def like(cls, neuron: Any, time_steps: int, first: int, wait: int) -> PhasedATIFnuNode:
        """Return a neuron that waits, with the points of a streaming one."""
        node = cls(1.0, time_steps=time_steps, first=first, wait=wait)
        node.p = nn.Parameter(neuron.p.detach().clone(), neuron.p.requires_grad)
        node.scale_output = neuron.scale_output
        return node

    def _of_decisions(self, thresholds: Thresholds, start: int, stop: int, x_seq: Tensor) -> Tensor:
        there = torch.arange(self.wait + 1, self.wait + 1 + self.time_steps).clamp(max=self.time_steps)
        points = self.quantization_points().flip(0)
        return (points * there.to(points.device))[start:stop]


class PhasedDelay(CopiedMemories):
    """Passes on what it gets, some steps later.

    Parameters
    ----------
    delay : int
        The steps.

    Examples
    --------
    >>> import torch
    >>> delay = PhasedDelay(2)
    >>> [delay(torch.tensor([[s]])).item() for s in (1.0, 2.0, 3.0, 4.0)]
    [0.0, 0.0, 1.0, 2.0]
    """

    emits_spikes = False  # they were emitted and counted before

    def __init__(self, delay: int) -> None:
        super().__init__()
        self.delay = delay
        self.register_memory("queue", 0.0)

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        queue = states[0]
        if not isinstance(queue, Tensor) or queue.shape[1:] != x.shape:
            queue = x.new_zeros(self.delay, *x.shape)
        return (queue,)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance one step: ``((x,), (queue,)) -> ((y,), (queue,))``."""
        (y_seq,), states = self.multi_step_functional_forward((inputs[0].unsqueeze(0),), states)
        return (y_seq[0],), states

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Advance a sequence: ``((x_seq,), (queue,)) -> ((y_seq,), (queue,))``."""
        values = torch.cat((states[0], inputs[0]))
        return (values[: len(inputs[0])],), (values[len(inputs[0]) :],)

    def extra_repr(self) -> str:
        return f"delay={self.delay}, step_mode={self.step_mode}"


class PhasedReadout(base.MemoryModule):
    """Passes the output of T steps, scaled so that the mean over all steps is the mean over these.

    Parameters
    ----------
    time_steps : int
        T.
    first : int
        The first of them.
    """

    def __init__(self, time_steps: int, first: int) -> None:
        super().__init__()
        self.time_steps, self.first = time_steps, first
        self.register_memory("t", 0)

    @property
    def latency(self) -> int:
        """All steps."""
        return self.first + self.time_steps

    @property
    def scale(self) -> float:
        """The factor on the output."""
        return self.latency / self.time_steps

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Gate one step: ``((x,), (t,)) -> ((y,), (t + 1,))``."""
        x, t = inputs[0], states[0]
        passes = 0 <= t - self.first < self.time_steps
        return (x * self.scale if passes else torch.zeros_like(x),), (t + 1,)

    def extra_repr(self) -> str:
        return f"first={self.first}, time_steps={self.time_steps}, step_mode={self.step_mode}"


def _clip(t: int, steps: int) -> int:
    return min(max(t, 0), steps)
