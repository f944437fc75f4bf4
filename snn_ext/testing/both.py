"""Checks for neurons of either host."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from torch import nn

from .suite import SpikingJellySuite, Suite, assert_equal, check, spikes_of


@check("both")
def single_steps_equal_the_sequence(suite: Suite) -> None:
    if not suite.has_modes("s", "m"):
        return
    for x_seq in suite.inputs():
        one, all_at_once = suite.new(), suite.new()
        assert_equal("spikes", suite.steps(one, x_seq), suite.sequence(all_at_once, x_seq))
        assert_equal("state", suite.state(one), suite.state(all_at_once))


@check("both")
def chunks_of_time_equal_the_whole(suite: Suite) -> None:
    for x_seq in suite.inputs():
        whole, chunked = suite.new(), suite.new()
        want = suite.sequence(whole, x_seq)
        got = torch.cat([suite.sequence(chunked, part) for part in (x_seq[:1], x_seq[1:3], x_seq[3:])])
        assert_equal("spikes", got, want)
        assert_equal("state", suite.state(chunked), suite.state(whole))


@check("both")
def some_fire_and_some_do_not(suite: Suite) -> None:
    for x_seq in suite.inputs():
        fired = suite.sequence(suite.new(), x_seq) != 0
        assert fired.any(), "no neuron fires"
        assert not fired.all(), "every neuron fires at every step"
    silent = suite.sequence(suite.new(), torch.full_like(suite.inputs()[0], -3.0))
    assert not silent.any(), "neurons fire on negative input"


@check("both")
def spikes_have_one_value(suite: Suite) -> None:
    for x_seq in suite.inputs():
        values = suite.sequence(suite.new(), x_seq).unique()
        assert len(values) <= 2, f"got {len(values)} values, want 0 and one other"


@check("both")
def samples_are_independent(suite: Suite) -> None:
    for x_seq in suite.inputs():
        together = suite.sequence(suite.new(), x_seq)
        assert_equal("spikes of a part of the batch", suite.sequence(suite.new(), x_seq[:, 1:]), together[:, 1:])
        spoiled = x_seq.clone()
        spoiled[:, 0] = torch.nan
        out = suite.sequence(suite.new(), spoiled)
        assert_equal("spikes beside a sample of NaN", out[:, 1:], together[:, 1:])


@check("both")
def gradients_of_steps_equal_those_of_the_sequence(suite: Suite) -> None:
    if not suite.has_modes("s", "m"):
        return
    weight = torch.randn(suite.inputs()[0].shape, generator=torch.Generator().manual_seed(2))
    for x_seq in suite.inputs():
        found = []
        for run in (suite.steps, suite.sequence):
            neuron, x = suite.new(), x_seq.clone().requires_grad_()
            (run(neuron, x) * weight).sum().backward()
            found.append([x.grad] + [p.grad for p in neuron.parameters()])
        for i, (a, b) in enumerate(zip(*found, strict=True)):
            assert (a is None) == (b is None), f"gradient {i}: there in one step mode only"
            if a is not None:
                assert a.isfinite().all(), f"gradient {i}: not finite"
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@check("both")
def every_parameter_gets_a_gradient(suite: Suite) -> None:
    neuron = suite.new()
    if not list(neuron.parameters()):
        return
    weight = torch.randn(suite.inputs()[0].shape, generator=torch.Generator().manual_seed(2))
    (suite.sequence(neuron, suite.inputs()[0]) * weight).sum().backward()
    for name, parameter in neuron.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name}: no finite gradient"
        assert (parameter.grad != 0).any(), f"{name}: the gradient is zero"


@check("both")
def input_is_not_modified(suite: Suite) -> None:
    x_seq = suite.inputs()[0]
    before = x_seq.clone()
    suite.sequence(suite.new(), x_seq)
    assert_equal("input", x_seq, before)


@check("both")
def reset_starts_afresh(suite: Suite) -> None:
    x_seq = suite.inputs()[1]
    neuron = suite.new()
    first = suite.sequence(neuron, x_seq)
    suite.reset(neuron)
    assert_equal("spikes after reset", suite.sequence(neuron, x_seq), first)


@check("both")
def reset_works_in_nested_copies(suite: Suite) -> None:
    x_seq = suite.inputs()[1]
    net = copy.deepcopy(nn.Sequential(nn.Sequential(suite.new())))
    inner = next(m for m in net.modules() if not isinstance(m, nn.Sequential))
    first = suite.sequence(inner, x_seq)
    if isinstance(suite, SpikingJellySuite):
        suite.reset(net)
    else:
        from ..snntorch import reset

        reset(net)
    assert_equal("spikes after reset", suite.sequence(inner, x_seq), first)


@check("both")
def changed_batch_starts_afresh(suite: Suite) -> None:
    x_seq = suite.inputs()[1]
    neuron = suite.new()
    suite.sequence(neuron, x_seq[:2])
    smaller = x_seq[:, 1:]
    assert_equal("spikes", suite.sequence(neuron, smaller), suite.sequence(suite.new(), smaller))


@check("both")
def detach_cuts_the_graph(suite: Suite) -> None:
    neuron = suite.new()
    x = suite.inputs()[0].clone().requires_grad_()
    for part in (x[:2], x[2:]):
        suite.sequence(neuron, part).sum().backward()  # raises on a second backward through the first part
        suite.detach(neuron)


@check("both")
def memory_layout_does_not_matter(suite: Suite) -> None:
    for x_seq in suite.inputs():
        want = suite.sequence(suite.new(), x_seq)
        strided = x_seq.transpose(0, -1).contiguous().transpose(0, -1)
        assert_equal("spikes", suite.sequence(suite.new(), strided), want)


@check("both")
def double_is_kept(suite: Suite) -> None:
    out = suite.sequence(suite.new().double(), suite.inputs()[0].double())
    assert out.dtype == torch.float64, f"spikes: got {out.dtype} for float64 input"


@check("both")
def state_follows_to(suite: Suite) -> None:
    x_seq = suite.inputs()[1]
    want = suite.sequence(suite.new(), x_seq)
    neuron = suite.new()
    head = suite.sequence(neuron, x_seq[:2])
    neuron.double()  # values of the grid are exact in both
    tail = suite.sequence(neuron, x_seq[2:].double())
    assert_equal("spikes", torch.cat((head, tail.to(head.dtype))), want)


@check("both")
def half_precision_is_kept(suite: Suite) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x_seq = suite.inputs()[0].to(dtype)
        out = suite.sequence(suite.new().to(dtype), x_seq)
        assert out.dtype == dtype, f"spikes: got {out.dtype} for {dtype} input"
        assert out.isfinite().all(), f"spikes: not finite for {dtype} input"


@check("both")
def state_is_wider_than_half(suite: Suite) -> None:
    # A 16-bit potential changes up to a fifth of the spike trains; one of 32 bits none.
    for dtype in (torch.float16, torch.bfloat16):
        x_seq = suite.inputs()[0].to(dtype)
        for run in (suite.steps, suite.sequence) if suite.has_modes("s") else (suite.sequence,):
            want = run(suite.new(), x_seq.float()) != 0  # the value of a scaled spike is rounded
            assert_equal(f"spikes for {dtype} input", run(suite.new(), x_seq) != 0, want)


@check("both")
def autocast_trains(suite: Suite) -> None:
    size = suite.shape[-1]
    layer = nn.Linear(size, size)
    neuron = suite.new()
    with torch.autocast("cpu", torch.bfloat16):
        out = suite.sequence(neuron, layer(suite.inputs()[0]))
        loss = out.float().square().mean()
    loss.backward()
    for name, parameter in [*layer.named_parameters(), *neuron.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), (
            f"{name}: no finite gradient under autocast"
        )


@check("both")
def inference_mode_leaves_no_trace(suite: Suite) -> None:
    x_seq = suite.inputs()[0]
    neuron = suite.new()
    with torch.inference_mode():
        want = suite.sequence(neuron, x_seq).clone()
    suite.reset(neuron)
    x = x_seq.clone().requires_grad_()
    got = suite.sequence(neuron, x)
    got.sum().backward()
    assert_equal("spikes", got.detach(), want)


@check("both")
def deepcopy_and_pickle_keep_everything(suite: Suite) -> None:
    x_seq = suite.inputs()[0]
    neuron = suite.new()
    want = suite.sequence(neuron, x_seq).detach()
    suite.reset(neuron)
    buffer = io.BytesIO()
    torch.save(neuron, buffer)
    buffer.seek(0)
    twins = copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron)), torch.load(buffer, weights_only=False)
    for how, twin in zip(("deepcopy", "pickle", "torch.save"), twins, strict=True):
        assert_equal(f"spikes after {how}", suite.sequence(twin, x_seq).detach(), want)


@check("both")
def state_dict_round_trip(suite: Suite) -> None:
    neuron = suite.new()
    with torch.no_grad():
        for parameter in neuron.parameters():
            parameter.mul_(0.875)
    want = suite.sequence(neuron, suite.inputs()[1])
    twin = suite.new()
    twin.load_state_dict(neuron.state_dict(), strict=True)
    assert_equal("spikes", suite.sequence(twin, suite.inputs()[1]), want)


@check("both")
def compiles_without_graph_breaks(suite: Suite) -> None:
    from torch._dynamo.testing import CompileCounter

    x_seq = suite.inputs()[1]
    for mode in ("m", "s"):
        if not suite.has_modes(mode):
            continue
        torch._dynamo.reset()
        counter = CompileCounter()
        try:
            neuron, plain = suite.new(), suite.new()
            compiled = torch.compile(neuron, fullgraph=True, backend=counter)
            if suite.has_modes("m"):
                neuron.step_mode = plain.step_mode = mode
            run = [x_seq] if mode == "m" else list(x_seq[:4])
            got = torch.stack([spikes_of(compiled(x)) for x in run])
            assert_equal("spikes", got, torch.stack([spikes_of(plain(x)) for x in run]))
        finally:
            torch._dynamo.reset()
        graphs = counter.frame_count
        assert graphs <= 2, f"{graphs} graphs for {len(run)} steps, want one for the first and one for all others"
