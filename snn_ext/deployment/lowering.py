"""A program in operations that ONNX has: constants computed beforehand, neurons as loops over their definition."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.scan import scan_op  # not public yet; the exporter makes a Scan of it

from ..functional import ASNState, integrate_and_fire
from ..functional.asn import Constants, adaptive_step, filter_step
from ..functional.integrate_and_fire import state_dtype
from ..functional.surrogates import Sigmoid

__all__ = ["lowered"]


@torch.no_grad()
def lowered(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the graph of a program, changed in place."""
    _fold(graph)
    for node in list(graph.graph.nodes):
        loop = _LOOPS.get(node.target) if node.op == "call_function" else None
        if loop is not None:
            node.target = loop
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


# -- constants ---------------------------------------------------------------------------------------------------------


def _fold(graph: fx.GraphModule) -> None:
    """Compute all that does not depend on the input: thresholds and decays, in the rounding of torch."""
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(graph)
            if isinstance(value, Tensor):
                values[node] = value
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    for node in list(graph.graph.nodes):
        used = any(user not in values for user in node.users)
        if node.op == "call_function" and used and isinstance(values.get(node), Tensor):
            name = f"_constant_{len(graph._buffers)}"
            graph.register_buffer(name, values[node].detach().clone())
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(name), lambda user: user not in values)
    for node in reversed(graph.graph.nodes):
        if node in values and not node.users:
            graph.graph.erase_node(node)


# -- neurons -----------------------------------------------------------------------------------------------------------


def _integrate_and_fire(
    x_seq: Tensor,
    v: Tensor,
    thresholds: Tensor,
    scale: Tensor | None,
    decay: Tensor | None,
    norm_gain: Tensor | None,
    norm_shift: Tensor | None,
    norm_center: Tensor | None,
    reset: Any,
    fire_at_threshold: bool,
    detach_reset: bool,
    surrogate: int,
    alpha: float,
    gain: float,
    charge: Any,
    keep_checkpoints: bool,
) -> tuple[Tensor, Tensor]:
    if norm_gain is not None and norm_shift is not None and norm_center is not None:
        # In two roundings: ONNX has no FMA.
        shape = -1, *[1] * (x_seq.ndim - 3)
        offset = norm_shift - norm_center * norm_gain
        x_seq = x_seq * norm_gain.view(shape) + offset.view(shape)

    def step(v: Tensor, x: Tensor, threshold: Tensor, *rest: Tensor) -> list[Tensor]:
        spike_seq, v = integrate_and_fire(
            x.unsqueeze(0),
            v,
            threshold.unsqueeze(0),
            detach_reset=detach_reset,
            reset=reset,
            fire_at_threshold=fire_at_threshold,
            scale=None if scale is None else rest[-1],
            decay=None if decay is None else rest[0],
            charge=charge,
        )
        return [v, spike_seq[0]]

    constants = [part for part in (decay, scale) if part is not None]
    v_end, spike_seq = _over_steps(step, [v], [x_seq, thresholds.expand(x_seq.shape[0])], constants)
    return spike_seq, v_end


def _adaptive_spiking(
    current_seq: Tensor,
    bias: Tensor,
    psc: Tensor,
    s: Tensor,
    s_hat: Tensor,
    adaptation: Tensor,
    constants: Tensor,
    output: str,
    analog_input: bool,
    detach_adaptation: bool,
    surrogate: int,
    alpha: float,
    gain: float,
    keep_checkpoints: bool,
) -> tuple[Tensor, ...]:
    height = "adaptive" if output == "heights" else "fixed"

    def filtered(psc: Tensor, s: Tensor, x: Tensor, bias: Tensor, constants: Tensor) -> list[Tensor]:
        c = Constants(*constants.unbind())
        psc, s = filter_step(psc, s, x.to(bias.dtype), analog_input, c)
        # A current that is passed on is the input itself, which a loop may not return.
        return [psc.clone(), s, (bias + s).to(x.dtype)]

    def step(*arguments: Tensor) -> list[Tensor]:
        *state, x, bias, constants = arguments
        c, current = Constants(*constants.unbind()), x.to(bias.dtype)
        out, after = adaptive_step(
            current, ASNState(*state), bias, c, analog_input, height, Sigmoid(4.0), detach_adaptation
        )
        return [after.psc.clone(), *after[1:], out.to(x.dtype)]

    states = [psc, s, s_hat, adaptation]
    if output == "potential":
        *after, out_seq = _over_steps(filtered, states[:2], [current_seq], [bias, constants])
        return out_seq, *after, *states[2:]
    *after, out_seq = _over_steps(step, states, [current_seq], [bias, constants])
    return out_seq, *after


def _over_steps(
    step: Callable[..., list[Tensor]], states: list[Tensor], sequences: list[Tensor], constants: list[Tensor]
) -> list[Tensor]:
    """Run a step on ``[T, ...]``: as a loop, or by itself where there is only one; returns states and outputs."""
    sequences = [sequence.contiguous() for sequence in sequences]  # a loop has states of one layout
    like = sequences[0][0]
    states = [state.to(state_dtype(like.dtype)).expand(like.shape).contiguous() for state in states]
    if sequences[0].shape[0] > 1:
        return list(scan_op(step, states, sequences, tuple(constants)))
    *after, out = step(*states, *(sequence[0] for sequence in sequences), *constants)
    return [*after, out.unsqueeze(0)]


_LOOPS: dict[Any, Callable[..., Any]] = {
    torch.ops.snn_ext.integrate_and_fire.default: _integrate_and_fire,
    torch.ops.snn_ext.adaptive_spiking.default: _adaptive_spiking,
}
"""By operator, the same function for ONNX; that of gradients is not needed there."""
