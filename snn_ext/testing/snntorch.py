"""Checks for neurons of snnTorch: ``mem``, trainers, losses."""

from __future__ import annotations

import torch
from torch import nn

from .suite import Suite, assert_equal, check


@check("snntorch")
def hidden_state_equals_explicit_mem(suite: Suite) -> None:
    if not suite.has_explicit_mem():
        return _explicit_mem_is_refused(suite)
    for x_seq in suite.inputs():
        hidden, explicit = suite.new(init_hidden=True, output=True), suite.new(init_hidden=False, output=False)
        mem = explicit.init_leaky() if hasattr(explicit, "init_leaky") else None
        for x in x_seq:
            want = hidden(x)
            spk, mem = explicit(x, mem)
            assert_equal("spikes", spk, want[0])
            assert_equal("mem", mem, want[1])


@check("snntorch")
def detached_mem_goes_on(suite: Suite) -> None:
    if not suite.has_explicit_mem():
        return _explicit_mem_is_refused(suite)
    x_seq = suite.inputs()[1]
    want = suite.steps(suite.new(), x_seq)
    neuron = suite.new(init_hidden=False, output=False)
    mem, spikes = None, []
    for x in x_seq.clone().requires_grad_():
        spk, mem = neuron(x, mem)
        mem = mem.detach()
        spikes.append(spk.detach())
    assert_equal("spikes", torch.stack(spikes), want.detach())


def _explicit_mem_is_refused(suite: Suite) -> None:
    try:
        suite.new(init_hidden=False)(suite.inputs()[0][0], None)
    except ValueError:
        return
    raise AssertionError("init_hidden=False was accepted by a neuron with explicit_mem = False")


@check("snntorch")
def trainers_run(suite: Suite) -> None:
    import warnings

    from snntorch import functional as SF

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from snntorch import backprop
    steps = suite.time_steps
    for trainer, settings in ((backprop.BPTT, {}), (backprop.TBPTT, {"K": 2}), (backprop.RTRL, {})):
        hidden, last = suite.new(init_hidden=True, output=False), suite.new(init_hidden=True, output=True)
        net = nn.Sequential(nn.Linear(6, 5), hidden, nn.Linear(5, 3), last)
        data = [(torch.rand(4, 6), torch.randint(3, (4,))) for _ in range(2)]
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loss = trainer(net, data, optimizer, SF.ce_count_loss(), num_steps=steps, time_var=False, **settings)
        assert torch.as_tensor(loss).isfinite(), f"{trainer.__name__}: the loss is {loss}"


@check("snntorch")
def spikes_suit_losses_and_accuracies(suite: Suite) -> None:
    from snntorch import functional as SF

    x_seq = suite.inputs()[0]
    x_seq = x_seq.reshape(x_seq.shape[0], -1, suite.shape[-1])
    spk = suite.steps(suite.new(), x_seq)
    targets = torch.zeros(x_seq.shape[1], dtype=torch.long)
    for criterion in (SF.ce_rate_loss(), SF.ce_count_loss(), SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)):
        assert criterion(spk, targets).isfinite(), f"{criterion.__name__}: not finite"
    accuracy = float(SF.accuracy_rate(spk, targets))
    assert 0.0 <= accuracy <= 1.0, f"accuracy_rate: {accuracy}"
