"""Checks for nodes of SpikingJelly: its contract of pure transitions, and its tools."""

from __future__ import annotations

import torch
from torch import Tensor

from .suite import Suite, assert_equal, check, spikes_of


@check("spikingjelly")
def stored_voltage_changes_nothing(suite: Suite) -> None:
    if not hasattr(suite.factory(), "store_v_seq"):
        return
    for x_seq in suite.inputs():
        plain, stored, stepped = suite.new(), suite.new(store_v_seq=True), suite.new(store_v_seq=True)
        assert_equal("spikes", suite.sequence(stored, x_seq), suite.sequence(plain, x_seq))
        assert_equal("state", suite.state(stored), suite.state(plain))
        assert_equal("last v_seq", stored.v_seq[-1], plain.v)
        suite.steps(stepped, x_seq)
        assert_equal("v_seq", stored.v_seq, stepped.v_seq)


@check("spikingjelly")
def functional_forward_is_pure(suite: Suite) -> None:
    from spikingjelly.activation_based import base

    neuron = suite.new(step_mode="m" if suite.has_modes("m") else "s")
    x = suite.inputs()[1] if suite.has_modes("m") else suite.inputs()[1][0]
    memories = list(neuron._memories.values())
    forward = base.to_functional_forward(neuron)
    states = tuple(base.extract_memories(neuron))
    first, after = forward((x,), states)
    second, again = forward((x,), states)
    assert_equal("outputs of a second call", list(second), list(first))
    assert_equal("states of a second call", list(again), list(after))
    assert len(after) == len(states), f"states: got {len(after)}, want {len(states)}"
    assert_equal("memories", list(neuron._memories.values()), memories)
    # States as tensors, after one step: they must not be written to.
    step = x[:1] if suite.has_modes("m") else x
    _, states = forward((step,), states)
    before = [s.clone() if isinstance(s, Tensor) else s for s in states]
    forward((step,), states)
    assert_equal("states given", list(states), before)


@check("spikingjelly")
def memory_optimised_checkpointing(suite: Suite) -> None:
    from spikingjelly.activation_based import memopt

    if not suite.has_modes("m"):
        return
    x_seq = suite.inputs()[1]
    found = []
    for chunks in (None, 1, 2):
        neuron = suite.new(step_mode="m")
        module = neuron if chunks is None else memopt.checkpoint_module(neuron, chunks=chunks)
        x = x_seq.clone().requires_grad_()
        out = spikes_of(module(x))
        out.square().sum().backward()
        found.append((out.detach(), x.grad, [p.grad for p in neuron.parameters()]))
    for out, grad, grads in found[1:]:
        assert_equal("spikes", out, found[0][0])
        torch.testing.assert_close(grad, found[0][1], rtol=1e-5, atol=1e-6)
        for a, b in zip(grads, found[0][2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@check("spikingjelly")
def unknown_step_mode_is_refused(suite: Suite) -> None:
    neuron = suite.new()
    try:
        neuron.step_mode = "x"
    except ValueError:
        return
    raise AssertionError("step_mode = 'x' was accepted")
