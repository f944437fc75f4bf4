"""A net as a function without a state inside: of all time steps, or of one step with its states in and out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_bool, check_count
from ..hosts import reset_neurons
from ..simulation.graph import compute, is_stateful, module_of, output_of
from ..simulation.steps import steps_of
from .states import States, check_layer, forget, start, transition

__all__ = ["SequenceFunction", "StepFunction", "function_of", "one_step_of"]


def function_of(
    net: nn.Module, x: Tensor, time_steps: int | None, streaming: bool, mean: bool
) -> SequenceFunction | StepFunction:
    """Return a net as a function, after a check of the arguments; the net stays as it is."""
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        bad_type("x", x, "a floating tensor, an input of net")
    check_bool("streaming", streaming)
    check_bool("mean", mean)
    if time_steps is not None:
        check_count("time_steps", time_steps)
    for name, value, other in (("time_steps", time_steps, None), ("mean", mean, False)):
        if streaming and value != other:
            bad_value(name, value, f"{other} with streaming=True, which takes one step at a time")
    least = 2 if time_steps is not None or streaming else 3
    if x.ndim < least or not x.numel():
        bad_value("x", x, "[N, ...] with time_steps or streaming=True, else a sequence [T, N, ...], and no size of 0")
    graph = one_step_of(net)
    for name, module in graph.named_modules():
        if is_stateful(module):
            check_layer(name, module, streaming)
            if getattr(module, "grad_scale", None) is not None:
                module.grad_scale = None  # no effect here; "lsq" asks for the steps
    return StepFunction(graph) if streaming else SequenceFunction(graph, time_steps, mean)


def one_step_of(net: nn.Module) -> fx.GraphModule:
    """Return a copy of a net of one step, reset and in evaluation mode, as a graph."""
    reset = copy.deepcopy(net)
    reset_neurons(reset)
    for module in reset.modules():
        module.training = False
        forget(module)
    steps = steps_of(reset)
    if steps.time_steps is not None or steps.frames is not None or steps.last:
        want = "the net of one step: snn_ext.one_step(net, x), with time_steps=... if it always sees the same input"
        bad_value("net", "a forward pass that loops over the steps", want)
    return steps.graph


class SequenceFunction(nn.Module):
    """All steps of a net from a reset on: ``[T, N, ...]``, or ``[N, ...]`` shown at each of T steps.

    It returns what each step returns, ``[T, N, ...]``, or the mean over the steps, ``[N, ...]``.
    """

    def __init__(self, graph: fx.GraphModule, time_steps: int | None, mean: bool) -> None:
        super().__init__()
        self.net, self.time_steps, self.mean = graph, time_steps, mean
        self.samples = 1 if time_steps is None else 0  # dimension of the input

    def forward(self, x: Tensor) -> Tensor:
        y_seq = _Run(self.net, lambda name, module, x_seq: transition(module, x_seq, None)[0])(x, self.time_steps)
        return y_seq.mean(0) if self.mean else y_seq


class StepFunction(nn.Module):
    """One step of a net: input, a flag that starts a sequence, and states by name; output and states come back."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.net, self.samples = graph, 0

    def forward(self, x: Tensor, reset: Tensor, states: States) -> tuple[Tensor, States]:
        after: States = {}

        def advance(name: str, module: nn.Module, x_seq: Tensor) -> Tensor:
            given = {
                state: torch.where(reset, first, states[f"{name}.{state}"])
                for state, first in start(module, x_seq).items()
            }
            emitted, end = transition(module, x_seq, given)
            after.update({f"{name}.{state}": part for state, part in end.items()})
            return emitted

        y = _Run(self.net, advance)(x.unsqueeze(0), None)[0]
        return y, after

    def initial_states(self, x: Tensor) -> States:
        """Return the states at the start, for an input ``[N, ...]``."""
        found: States = {}

        def advance(name: str, module: nn.Module, x_seq: Tensor) -> Tensor:
            found.update({f"{name}.{state}": part for state, part in start(module, x_seq).items()})
            return transition(module, x_seq, None)[0]

        _Run(self.net, advance)(x.unsqueeze(0), None)
        return found


class _Run:
    """Runs a graph of one step on all steps, with time folded into the batch.

    What comes before all states is computed once if every step sees the same input.
    """

    def __init__(self, graph: fx.GraphModule, advance: Callable[[str, nn.Module, Tensor], Tensor]) -> None:
        self.graph, self.advance = graph, advance
        self.layers = fx.Interpreter(graph)
        self.of_input, self.varying = set[fx.Node](), set[fx.Node]()
        self.once, self.folded = dict[fx.Node, Any](), dict[fx.Node, Any]()

    def __call__(self, x: Tensor, time_steps: int | None) -> Tensor:
        """Return the output ``[T, N, ...]`` for a sequence, or for an input that T steps see."""
        self.steps, self.samples = x.shape[:2] if time_steps is None else (time_steps, x.shape[0])
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self._enter(node, x, time_steps is not None)
            elif node.op != "output":
                self._visit(node)
        return self._sequence(output_of(self.graph))

    def _enter(self, node: fx.Node, x: Tensor, same: bool) -> None:
        if not node.users:  # an optional argument
            return
        self.of_input.add(node)
        if same:
            self.once[node] = x
        else:
            self.varying.add(node)
            self.folded[node] = x.flatten(0, 1)

    def _visit(self, node: fx.Node) -> None:
        module = module_of(self.graph, node)
        if self.of_input.intersection(node.all_input_nodes):
            self.of_input.add(node)
        if is_stateful(module):
            self.varying.add(node)
            emitted = self.advance(str(node.target), module, self._sequence(node.args[0]))  # type: ignore[arg-type]
            self.folded[node] = emitted.flatten(0, 1)
        elif self.varying.intersection(node.all_input_nodes):
            self.varying.add(node)
            self.folded[node] = self._compute(node, self._folded)
        else:
            self.once[node] = self._compute(node, self.once.__getitem__)

    def _sequence(self, node: Any) -> Tensor:
        """Return a value as ``[T, N, ...]``."""
        if node in self.varying:
            value: Tensor = self.folded[node]
            return value.reshape(self.steps, self.samples, *value.shape[1:])
        value = self.once[node]
        return value.expand(self.steps, *value.shape)

    def _folded(self, node: fx.Node) -> Any:
        """Return a value as ``[T * N, ...]``; what does not come from the input stays as it is."""
        if node not in self.folded:
            value = self.once[node]
            if node not in self.of_input:
                return value
            tensor = isinstance(value, Tensor)
            self.folded[node] = self._sequence(node).flatten(0, 1) if tensor else self._compute(node, self._folded)
        return self.folded[node]

    def _compute(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg(node.args, value_of), fx.map_arg(node.kwargs, value_of)
        if node.op in ("call_function", "call_method"):
            return compute(node, args, kwargs)
        return getattr(self.layers, node.op)(node.target, args, kwargs)
