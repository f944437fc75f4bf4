"""The adaptive spiking neuron in both hosts: same bits as the operator, precision, bias, read-out, checkpoints."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from snn_ext import replace_neurons
from snn_ext.functional import adaptive_spiking, asn_spike_height, asn_transfer, postsynaptic_potential
from snn_ext.snntorch import ASN, bptt, detach, reset
from snn_ext.spikingjelly import ASNNode, ATIFuNode
from tests.reference import each_input

BIAS = torch.tensor([0.0, 0.1, -0.1, 0.5])
PRECISION = torch.tensor([0.05, 0.1, 0.2, 0.4])

# Arguments of the neuron and of the operator.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "unit": ({"unit": 2.0, "tau_phi": 2.5}, {"theta_0": 0.2, "tau_phi": 2.5}),
    "analog": ({"analog_input": True, "dt": 0.5}, {"analog_input": True, "dt": 0.5}),
    "adaptive": ({"spike_height": "adaptive"}, {"spike_height": "adaptive"}),
    "by channel": ({"m_f": PRECISION, "bias": BIAS}, {"m_f": PRECISION[:, None], "bias": BIAS[:, None]}),
    "by sample": (
        {"m_f": PRECISION.reshape(4, 1, 1)[:3], "theta_0": 0.3},
        {"m_f": PRECISION.reshape(4, 1, 1)[:3], "theta_0": 0.3},
    ),
}


def inputs(kind: str, time_steps: int = 12) -> Tensor:
    """Return ``[T, 3, 4, 5]``."""
    generator = torch.Generator().manual_seed(1)
    shape = (time_steps, 3, 4, 5)
    if kind == "random":
        return torch.randn(shape, generator=generator) * 0.3 + 0.1
    if kind == "grid":
        return torch.randint(-6, 9, shape, generator=generator) / 16
    theta = torch.tensor(0.05)
    ends = torch.stack([theta, torch.nextafter(theta, theta + 1), torch.nextafter(theta, theta - 1), -theta])
    return ends[torch.randint(4, shape, generator=generator)]


def node(unit: float = 1.0, **settings: Any) -> ASNNode:
    return ASNNode(unit, **settings)


def leaky(unit: float = 1.0, **settings: Any) -> ASN:
    return ASN(unit, **settings)


def in_chunks(module: nn.Module, x_seq: Tensor) -> Tensor:
    return torch.cat([module(part) for part in x_seq.split((1, 4, 7))])


def steps(module: nn.Module, x_seq: Tensor) -> Tensor:
    return torch.stack([module(x) for x in x_seq])


RUNS = {
    "spikingjelly single": lambda x, s: steps(node(**s), x),
    "spikingjelly multi": lambda x, s: node(step_mode="m", **s)(x),
    "spikingjelly chunks": lambda x, s: in_chunks(node(step_mode="m", **s), x),
    "spikingjelly stored": lambda x, s: node(step_mode="m", store_v_seq=True, **s)(x),
    "snntorch single": lambda x, s: steps(leaky(**s), x),
    "snntorch multi": lambda x, s: leaky(step_mode="m", **s)(x),
    "snntorch chunks": lambda x, s: in_chunks(leaky(step_mode="m", **s), x),
    "snntorch with mem": lambda x, s: leaky(step_mode="m", output=True, **s)(x)[0],
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", CASES)
@each_input
def test_every_way_to_run_gives_the_bits_of_the_operator(run: str, name: str, kind: str) -> None:
    settings, arguments = CASES[name]
    want, _ = adaptive_spiking(inputs(kind), **arguments)
    assert torch.equal(RUNS[run](inputs(kind), settings), want)


@pytest.mark.parametrize("run", RUNS)
def test_every_way_to_run_a_read_out_gives_the_bits_of_the_filters(run: str) -> None:
    want, _ = postsynaptic_potential(inputs("random"), tau_phi=50.0)
    assert torch.equal(RUNS[run](inputs("random"), {"readout": True}), want)


def test_v_is_what_is_not_encoded_yet() -> None:
    x_seq = inputs("random")
    stored = ASNNode(step_mode="m", store_v_seq=True, bias=BIAS)
    stored(x_seq)
    state = None
    for x, v in zip(x_seq.split(1), stored.v_seq, strict=True):
        _, state = adaptive_spiking(x, state, bias=BIAS[:, None])
        assert torch.equal(v, BIAS[:, None] + state.s - state.s_hat)
    assert list(stored._memories) == ["v", "psc", "s", "s_hat", "adaptation"]
    assert torch.equal(stored.v, v) and torch.equal(stored.s_hat, state.s_hat)
    functional.reset_net(stored)
    assert list(stored._memories.values()) == [0.0] * 5


def test_mem_is_from_before_the_spike() -> None:
    spk, mem = ASN(output=True, step_mode="m", tau_phi=0.0, analog_input=True)(torch.full((1, 2), 0.75))
    assert spk.tolist() == [[1.0, 1.0]] and mem.tolist() == [[0.75, 0.75]]
    hidden = ASN(step_mode="m")
    _, mem = ASN(step_mode="m", output=True)(inputs("random"))
    hidden(inputs("random"))
    assert torch.equal(hidden.mem, mem[-1])


def test_a_read_out_is_the_filtered_input() -> None:
    x_seq = inputs("random")
    want, _ = postsynaptic_potential(x_seq, bias=BIAS[:, None], tau_phi=50.0)
    assert torch.equal(ASNNode(step_mode="m", readout=True, bias=BIAS)(x_seq), want)
    assert torch.equal(steps(ASNNode(readout=True, bias=BIAS), x_seq), want)
    assert torch.equal(in_chunks(ASN(step_mode="m", readout=True, bias=BIAS), x_seq), want)
    last = ASNNode(step_mode="m", readout=True, bias=BIAS)
    last(x_seq)
    assert torch.equal(last.v, want[-1])
    assert ASNNode(readout=True, tau_phi=20.0).tau_phi == 20.0 and ASNNode().tau_phi == 5.0


def test_pooling_is_merged_by_a_filter_before_it() -> None:
    x_seq = inputs("random", 30)
    parts = ASNNode(readout=True, tau_phi=5.0), nn.MaxPool1d(5), ASNNode(analog_input=True, tau_phi=0.0, bias=BIAS)
    found = steps(nn.Sequential(*parts), x_seq)
    s_seq = postsynaptic_potential(x_seq)[0].amax(-1, keepdim=True)
    want, _ = adaptive_spiking(s_seq, bias=BIAS[:, None], analog_input=True, tau_phi=0.0)
    assert torch.equal(found, want) and found.any()


@pytest.mark.parametrize("make", [ASNNode, ASN])
def test_precision_changes_and_the_state_carries_on(make: Any) -> None:
    neuron_ = make(step_mode="m", analog_input=True)
    x_seq = torch.full((400, 2, 3), 0.5)
    first = neuron_(x_seq)
    low = neuron_(x_seq)
    neuron_.set_precision(torch.tensor([[0.1], [0.4]]))
    assert neuron_.theta_0.shape == (2, 1)
    mixed = neuron_(x_seq)
    assert torch.equal(mixed[:, 0].sum(0), low[:, 0].sum(0)) or (mixed[:, 0].sum() - low[:, 0].sum()).abs() <= 3
    assert mixed[:, 1].sum() < 0.5 * low[:, 1].sum() < first[:, 1].sum()
    with pytest.raises(ValueError, match=r"m_f: got .*want a finite number > 0"):
        neuron_.set_precision(-1.0)
    assert neuron_.m_f.shape == (2, 1)


def test_h_is_the_height_in_the_neurons_own_units() -> None:
    assert ASNNode().h.item() == pytest.approx(asn_spike_height(0.1))
    assert ASNNode(2.0, m_f=0.3).h.item() == pytest.approx(2 * asn_spike_height(0.3))
    assert ASNNode(spike_height="adaptive").h.tolist() == [1.0]
    x_seq = inputs("random")
    plain, scaled = ASNNode(step_mode="m", m_f=PRECISION), ASNNode(step_mode="m", m_f=PRECISION, scale_output=True)
    assert torch.equal(scaled(x_seq), plain(x_seq) * plain.h[:, None])


def test_the_unit_scales_the_signal() -> None:
    x_seq = inputs("random")
    assert torch.equal(ASNNode(4.0, step_mode="m")(4 * x_seq), ASNNode(step_mode="m")(x_seq))


def test_two_layers_carry_the_activation() -> None:
    torch.manual_seed(0)
    weight, x = torch.rand(6, 4), torch.rand(50, 4)
    first, second = ASNNode(step_mode="m", analog_input=True), ASNNode(step_mode="m", readout=True)
    s = second(torch.nn.functional.linear(first(x.expand(1000, 50, 4)), weight * first.h))
    want = asn_transfer(x) @ weight.T
    assert (s[500:].mean(0) - want).abs().max() <= 0.12 and (s[500:].mean(0) - want).abs().mean() <= 0.03


def test_state_dicts_carry_precision_and_tolerate_the_hosts() -> None:
    trained = ASNNode(0.7, m_f=PRECISION, bias=nn.Parameter(BIAS.clone()))
    fresh = ASNNode(bias=nn.Parameter(torch.zeros(4)))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.m_f, PRECISION) and torch.equal(fresh.theta_0, PRECISION) and fresh.v_threshold == 0.7
    plain = ASNNode()
    plain.load_state_dict(neuron.IFNode().state_dict())
    assert plain.m_f.item() == pytest.approx(0.1)
    state = plain.state_dict()
    del state["theta_0"]
    with pytest.raises(RuntimeError, match="theta_0"):
        ASNNode().load_state_dict(state)


def test_in_nets_of_snntorch() -> None:
    from snntorch import functional as SF

    net = nn.Sequential(nn.Linear(4, 5), ASN(), nn.Linear(5, 3), ASN(output=True))
    data = [(torch.rand(6, 4), torch.randint(3, (6,)))]
    loss = bptt(net, data, torch.optim.SGD(net.parameters(), 0.1), SF.ce_count_loss(), num_steps=8, time_var=False)
    assert loss.isfinite()
    out, _ = net(torch.rand(6, 4))
    out.sum().backward()
    detach(net)
    reset(net)
    assert net[1]._state is None
    copy.deepcopy(net)


def test_replacing_relus_and_refusing_to_change_the_dynamics_unasked() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert replace_neurons(net, lambda old: ASNNode()) == 1
    net = nn.Sequential(nn.Linear(3, 3), neuron.IFNode(0.5, None))
    with pytest.raises(ValueError, match="dynamics"):
        replace_neurons(net, lambda old: ASNNode())
    assert replace_neurons(net, lambda old: ASNNode(), drop=("dynamics",)) == 1
    assert net[1].v_threshold.tolist() == [0.5]
    with pytest.raises(ValueError, match="dynamics"):
        replace_neurons(net, lambda old: ATIFuNode())
    net = nn.Sequential(nn.Linear(3, 3), ASN(bias=BIAS[:3]))
    with pytest.raises(ValueError, match="its bias in the factory or drop"):
        replace_neurons(net, lambda old: ASN(m_f=0.3))
    assert replace_neurons(net, lambda old: ASN(m_f=0.3, bias=old.bias)) == 1
    assert torch.equal(net[1].bias, BIAS[:3]) and net[1].m_f.item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"m_f": 0.0}, "m_f: got 0.0, want a finite number > 0: each spike"),
        ({"m_f": torch.tensor([0.1, math.nan])}, "m_f: got"),
        ({"m_f": torch.tensor([1])}, "m_f: got"),
        ({"theta_0": -1.0}, "theta_0: got -1.0"),
        ({"tau_eta": 0.0}, "tau_eta: got 0.0"),
        ({"tau_phi": -1.0}, "tau_phi: got -1.0"),
        ({"dt": "1"}, "dt: got '1'"),
        ({"bias": 0.5}, "bias: got 0.5"),
        ({"analog_input": 1}, "analog_input: got 1"),
        ({"spike_height": "none"}, "spike_height: got 'none'"),
        ({"readout": True, "scale_output": True}, "scale_output: got True"),
        ({"backend": "cupy"}, "backend: got 'cupy'"),
    ],
)
@pytest.mark.parametrize("make", [ASNNode, ASN])
def test_wrong_arguments_are_named(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make(**settings)
    assert str(caught.value).startswith(message) and "want" in str(caught.value)


def test_what_the_hosts_offer_and_this_neuron_has_not() -> None:
    with pytest.raises(ValueError, match=r"v_reset: got 0\.0"):
        ASNNode(v_reset=0.0)
    for settings in ({"init_hidden": False}, {"reset_mechanism": "zero"}, {"beta": 0.9}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))}: got"):
            ASN(**settings)
    node_ = ASNNode(m_f=PRECISION)
    with pytest.raises(ValueError, match="m_f: got .*one per channel"):
        node_(torch.rand(2, 3))
    node_ = ASNNode()
    node_.set_reset_value("v", 0.5)
    node_.reset()
    with pytest.raises(ValueError, match="reset value of v"):
        node_(torch.rand(2, 3))
