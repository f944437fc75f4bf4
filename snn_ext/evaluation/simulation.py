"""Simulating a spiking net layer by layer, in chunks of time with carried state: fast, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_count
from ..ops.layout import dense
from ..replacement import is_neuron
from .trains import SpikeTrain

__all__ = ["Observer", "Program", "Simulation", "as_graph", "emits_spikes", "run_sequence", "spike_value"]

Observer = Callable[[str, nn.Module, Tensor], None]
"""``observe(name, module, spikes)``: the 0/1 spikes ``[T', N, ...]`` of one layer in the next T' steps."""

# Samples times steps in one chunk: enough for the convolutions, few enough to stay in the caches; more steps than
# MAX_STEPS gain nothing then. Of a small net, whose time is that of calls, as many as fit into the cache.
_SAMPLES_A_CHUNK, _MIN_STEPS, _MAX_STEPS = 32, 4, 32
_CACHE, _MAX_STEPS_OF_SMALL = 16 << 20, 512
# A layer's input and output are alive at once, and a convolution may reorder both.
_WORKSPACE = 3.0


class Simulation:
    """Run a net of SpikingJelly neurons under a constant input.

    Every layer gets a chunk of time steps at once: stateless layers with time flattened into the batch, neurons as a
    sequence with their potential carried from chunk to chunk. What does not depend on spikes is computed once. The
    states are the simulation's own: the net is neither reset nor changed, and the result is that of
    ``for t in range(T): net(x)`` in step mode "s" after a reset.

    Parameters
    ----------
    net : nn.Module
        A converted net, or any net in step mode "s" that can be traced.
    chunk : int, optional
        Time steps at a time; by default what is fastest and fits into ``memory``.
    memory : int
        Bytes that the activations of a chunk may take, beside the net itself and the states.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what is wanted.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext.evaluation import Simulation
    >>> from snn_ext.spikingjelly import PCMPIFNode
    >>> net = nn.Sequential(nn.Identity(), PCMPIFNode(1.0, precharge=0.5))
    >>> torch.cat(list(Simulation(net).run(torch.tensor([[0.5, 0.25]]), time_steps=4))).sum(0)
    tensor([[2., 1.]])
    """

    def __init__(self, net: nn.Module, *, chunk: int | None = None, memory: int = 1 << 30) -> None:
        if not isinstance(net, nn.Module):
            bad_type("net", net, "an nn.Module")
        if chunk is not None:
            check_count("chunk", chunk)
        check_count("memory", memory)
        self.net, self.chunk, self.memory = net, chunk, memory
        self.graph = as_graph(net)
        self._bytes_a_step: dict[tuple[int, ...], float] = {}

    def run(self, x: Tensor, time_steps: int, observe: Observer | None = None) -> Iterator[Tensor]:
        """Yield the output ``[T', N, ...]`` of chunk after chunk under the constant input ``x`` of shape ``[N, ...]``.

        Parameters
        ----------
        x : Tensor
            Input of every step.
        time_steps : int
            T, the sum of all T'.
        observe : callable, optional
            Gets the spikes of each spiking layer, chunk after chunk.
        """
        output = self.output()
        for values in self.stream(x, time_steps, [output], observe=observe):
            yield values[output]

    @torch.no_grad()
    def stream(
        self,
        x: Tensor,
        time_steps: int,
        targets: Sequence[Any],
        trains: Mapping[fx.Node, SpikeTrain] | None = None,
        *,
        observe: Observer | None = None,
        states: dict[fx.Node, tuple[Any, ...]] | None = None,
    ) -> Iterator[dict[fx.Node, Tensor]]:
        """Yield the values ``[T', N, ...]`` of some nodes of the graph, chunk after chunk.

        Parameters
        ----------
        x, time_steps, observe
            As in :meth:`run`.
        targets : sequence of fx.Node
            Whose values are wanted; only what they depend on runs.
        trains : dict, optional
            Spike trains that are known: what lies before them does not run.
        states : dict, optional
            Receives the states of the neurons by node.
        """
        check_count("time_steps", time_steps)
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 1:
            bad_value("x", x, "a tensor [N, ...] with at least one sample")
        trains = {} if trains is None else trains
        program = Program(self.graph, targets, frozenset(trains))
        states = {} if states is None else states
        with _as_it_is_simulated(self.net):
            constants = program.constants(x)
            step = self.steps(x)
        for start in range(0, time_steps, step):
            steps = min(step, time_steps - start)
            known = {node: train.read(start, start + steps).flatten(0, 1) for node, train in trains.items()}
            with _as_it_is_simulated(self.net):  # not while the caller has the chunk
                values = program.chunk(constants, known, steps, len(x), _carry(states), observe)
            yield values

    @torch.no_grad()
    def neuron(
        self, node: fx.Node, currents: Iterable[Tensor], states: dict[fx.Node, tuple[Any, ...]] | None = None
    ) -> Iterator[Tensor]:
        """Yield the output of one layer of neurons for a current that comes in chunks of time."""
        call = _carry({} if states is None else states)
        module = self.graph.get_submodule(str(node.target))
        for current in currents:
            yield call(node, module, current)

    def is_constant(self, node: Any) -> bool:
        """Whether a value is the same at every step: it depends on no neuron."""
        return node in Program(self.graph, [node]).steady

    def output(self) -> fx.Node:
        """Return the node whose value is the output."""
        output = next(node for node in self.graph.graph.nodes if node.op == "output").args[0]
        if not isinstance(output, fx.Node):
            bad_value("net", f"a net that returns {output!r}", "a net that returns one tensor")
        return output

    def steps(self, x: Tensor) -> int:
        """Return how many steps a chunk has for a batch ``x``."""
        if self.chunk is not None:
            return self.chunk
        shape = x.shape[1:]
        if shape not in self._bytes_a_step:
            self._bytes_a_step[shape] = Program(self.graph, [self.output()]).bytes_a_step(x)
        bytes_a_step = max(1.0, _WORKSPACE * self._bytes_a_step[shape] * len(x))
        fastest = min(_MAX_STEPS, max(_MIN_STEPS, math.ceil(_SAMPLES_A_CHUNK / len(x))))
        fastest = max(fastest, min(_MAX_STEPS_OF_SMALL, int(_CACHE / bytes_a_step)))
        affordable = self.memory / bytes_a_step
        return max(1, min(fastest, int(affordable)))


@dataclass
class Program:
    """The part of a graph that some values depend on, with what is constant in time set apart.

    Parameters
    ----------
    graph : fx.GraphModule
        The net.
    targets : sequence of fx.Node
        The values that are wanted.
    known : set of fx.Node
        Nodes whose values will be given.
    sequence : bool
        The input varies over time too.
    """

    graph: fx.GraphModule
    targets: Sequence[Any]
    known: frozenset[fx.Node] = frozenset()
    sequence: bool = False
    order: list[fx.Node] = field(init=False)  # varying in time, in the order of the forward pass
    steady: list[fx.Node] = field(init=False)  # constant in time
    _sequences: dict[tuple[fx.Node, int], Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.graph.named_modules())
        needed = _ancestors(self.targets, self.known)
        varying: set[fx.Node] = set()
        for node in self.graph.graph.nodes:
            given = node in self.known or (self.sequence and node.op == "placeholder")
            if given or _is_stateful(self._module(node)) or any(n in varying for n in node.all_input_nodes):
                varying.add(node)
        self.steady = [n for n in self.graph.graph.nodes if n in needed and n not in varying]
        self.order = [
            n
            for n in self.graph.graph.nodes
            if n in needed and n in varying and n not in self.known and n.op not in ("placeholder", "output")
        ]
        wanted = set(self.targets)
        self._last_use: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(self.order):
            done = [n for n in node.all_input_nodes if n in varying and n not in seen and n not in wanted]
            self._last_use[node] = done
            seen.update(done)

    def constants(self, x: Tensor) -> dict[fx.Node, Any]:
        """Compute what does not depend on time: everything before the first neuron."""
        env: dict[fx.Node, Any] = {}
        self._sequences.clear()
        for node in self.steady:
            env[node] = _channels_last(x) if node.op == "placeholder" else self._call(node, env)
        return env

    def chunk(
        self,
        constants: dict[fx.Node, Any],
        known: dict[fx.Node, Tensor],
        steps: int,
        samples: int,
        call: Callable[[fx.Node, nn.Module, Tensor], Tensor],
        observe: Observer | None = None,
        visit: Callable[[dict[fx.Node, Any]], None] | None = None,
    ) -> dict[fx.Node, Tensor]:
        """Compute the next steps; ``known`` is flattened to ``[T' N, ...]``, the result is ``[T', N, ...]``."""
        env: dict[fx.Node, Any] = dict(known)

        def value(node: fx.Node) -> Any:
            if node in env:
                return env[node]
            constant = constants[node]
            if isinstance(constant, Tensor):
                return _spread(constant, steps)
            return self._call(node, {n: size_of(n) for n in node.all_input_nodes})  # a size of the batch

        def size_of(node: fx.Node) -> Any:
            constant = constants[node]
            return _shape_of(constant, steps) if isinstance(constant, Tensor) else value(node)

        for node in self.order:
            module = self._module(node)
            if module is not None and _is_stateful(module):
                source: Any = node.args[0]
                x_seq = (
                    env[source].unflatten(0, (steps, samples))
                    if source in env
                    else self._repeated(constants, source, steps)
                )
                spikes = call(node, module, x_seq)
                if observe is not None and emits_spikes(module):
                    observe(str(node.target), module, _binary(module, spikes))
                env[node] = spikes.flatten(0, 1)
            else:
                env[node] = self._call(node, {n: value(n) for n in node.all_input_nodes})
            if visit is not None:
                visit(env)
            for done in self._last_use[node]:
                env.pop(done, None)
        return {
            n: env[n].unflatten(0, (steps, samples)) if n in env else constants[n].expand(steps, *constants[n].shape)
            for n in self.targets
        }

    def bytes_a_step(self, x: Tensor) -> float:
        """Return the bytes that are alive at once for one sample and step, by running one."""
        peak = 0

        def measure(env: dict[fx.Node, Any]) -> None:
            nonlocal peak
            peak = max(peak, sum(v.numel() * v.element_size() for v in env.values() if isinstance(v, Tensor)))

        self.chunk(self.constants(x[:1]), {}, 1, 1, _carry({}), visit=measure)
        return float(peak)

    def _repeated(self, constants: dict[fx.Node, Any], node: Any, steps: int) -> Tensor:
        """Return a constant at every step, in its own layout; kept, for each chunk needs it."""
        if (node, steps) not in self._sequences:
            x = constants[node]
            layout = (x.numel(), *dense(x.unsqueeze(0)).stride()[1:])
            x_seq = torch.empty_strided((steps, *x.shape), layout, dtype=x.dtype, device=x.device)
            self._sequences[node, steps] = x_seq.copy_(x)
        return self._sequences[node, steps]

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _call(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            # a view need not be possible in the layout in which layers run here
            method = "reshape" if node.target == "view" else str(node.target)
            return getattr(args[0], method)(*args[1:], **kwargs)
        if node.op == "get_attr":
            value: Any = self.graph
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        return node.target(*args, **kwargs)  # type: ignore[operator]


def run_sequence(graph: fx.GraphModule, x_seq: Tensor) -> Tensor:
    """Run a net on ``[T, N, ...]``: stateless layers with time flattened into the batch, neurons with their memories.

    The neurons have to be in step mode "m"; their states stay, as after any call of a host's net.
    """
    output = next(node for node in graph.graph.nodes if node.op == "output")
    program = Program(graph, output.args, sequence=True)
    inputs = next(node for node in graph.graph.nodes if node.op == "placeholder")
    steps, samples = x_seq.shape[:2]
    constants = program.constants(x_seq)
    known = {inputs: x_seq.flatten(0, 1)}
    return program.chunk(constants, known, steps, samples, lambda node, module, x: module(x))[output.args[0]]


def as_graph(net: nn.Module) -> fx.GraphModule:
    """Return a net as a graph whose leaves are layers and neurons; a converted net is one already."""
    if isinstance(net, fx.GraphModule):
        return net
    try:
        return fx.GraphModule(net, _LeafTracer().trace(net))
    except Exception as error:
        raise ValueError(
            f"net: got {type(net).__name__}, which can not be traced ({error}), "
            "want a net whose forward pass does not depend on values"
        ) from error


class _LeafTracer(fx.Tracer):
    """Traces through containers only."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_neuron(m) or not m._modules


def emits_spikes(module: nn.Module | None) -> bool:
    """Whether a module's output is a train of spikes: neurons but read-outs, encoders and poolings of spikes."""
    if module is None or isinstance(module, nn.ReLU):
        return False
    return bool(getattr(module, "emits_spikes", is_neuron(module)))


def _carry(states: dict[fx.Node, tuple[Any, ...]]) -> Callable[[fx.Node, nn.Module, Tensor], Tensor]:
    """Return a way to call a neuron with states of our own, by the host's contract of pure transitions."""

    def call(node: fx.Node, module: Any, x_seq: Tensor) -> Tensor:
        state = states.get(node)
        if state is None:
            state = tuple(module._memories_rv.values())
        state = module.materialize_states((x_seq,), state, "m")
        (spikes,), states[node] = module.multi_step_functional_forward((x_seq,), state)
        return spikes

    return call


@contextmanager
def _as_it_is_simulated(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, and stateless layers in step mode "s", which is what time flattened into the batch needs."""
    modes = {module: module.training for module in net.modules()}
    steps = [m for m in net.modules() if not _is_stateful(m) and m is not net and getattr(m, "step_mode", "s") == "m"]
    net.eval()
    for module in steps:
        module.step_mode = "s"  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module in steps:
            module.step_mode = "m"  # type: ignore[assignment]


def _is_stateful(module: nn.Module | None) -> bool:
    return module is not None and bool(getattr(module, "_memories", None))


def _ancestors(targets: Sequence[Any], known: frozenset[fx.Node]) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            if node not in known:
                stack.extend(node.all_input_nodes)
    return needed


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 and x.device.type == "cpu" else x


def _spread(value: Any, steps: int) -> Any:
    """Return a constant as ``[T' N, ...]``."""
    return value.expand(steps, *value.shape).flatten(0, 1) if isinstance(value, Tensor) and value.ndim else value


def _shape_of(value: Tensor, steps: int) -> Tensor:
    """Return something of the shape of a constant as ``[T' N, ...]``."""
    return value.new_empty(1).expand(steps * value.shape[0], *value.shape[1:])


def spike_value(module: Any) -> float | Tensor:
    """Return what a neuron emits when it fires: 1, or its threshold (``p_1``) with a scaled output."""
    if not getattr(module, "scale_output", False):
        return 1.0
    level: Tensor = module.quantizer(torch.zeros(1)).clip_level.detach()
    return level


def _binary(module: nn.Module, spikes: Tensor) -> Tensor:
    """Return 0/1 spikes: those with a value without it, the signed events of an encoder without their sign."""
    valued = getattr(module, "scale_output", False) or getattr(module, "spike_height", "fixed") == "adaptive"
    plain = is_neuron(module) and not valued
    return spikes if plain else (spikes != 0).to(spikes.dtype)
