"""Neurons with a leak: the spikes of the hosts' own, in every way to run them, and what a user may set."""

from __future__ import annotations

import copy
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from snn_ext import load, replace_neurons, save
from snn_ext.snntorch import PCMPIF, ATIFnu, ATIFu
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode
from snn_ext.testing import check_neuron
from tests.hosts import reset, steps

TAUS = (1.1, 2.0, 7.3, 100.0)


def inputs(scale: float = 1.0) -> list[Tensor]:
    """Random input, and input from a grid, which meets the threshold exactly."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(20, 4, 3, generator=generator) + 0.5
    return [scale * random, scale * torch.randint(-4, 20, (20, 4, 3), generator=generator) / 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_spikes_and_potential_are_those_of_lif_and_plif(v_reset: Any, learn_tau: bool, dtype: torch.dtype) -> None:
    kind = neuron.ParametricLIFNode if learn_tau else neuron.LIFNode
    for tau, decay_input in itertools.product(TAUS, (True, False)):
        host = kind(tau, decay_input, 0.5, v_reset, step_mode="m").to(dtype)
        leak = {"tau": tau, "decay_input": decay_input, "learn_tau": learn_tau}
        ours = ATIFuNode(0.5, v_reset, step_mode="m", **leak).to(dtype)
        for x_seq in inputs(tau if decay_input else 1.0):
            host.reset()
            ours.reset()
            with torch.no_grad():
                spikes = ours(x_seq.to(dtype))
                assert torch.equal(spikes, host(x_seq.to(dtype))) and torch.equal(ours.v, host.v)
            assert spikes.any() and not spikes.all()


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_spikes_and_mem_are_those_of_leaky(step_mode: str, mechanism: str, learn: bool) -> None:
    for beta in (0.0, 0.3, 0.9, *((1.0,) if learn else ())):
        host = snn.Leaky(beta, 0.7, reset_mechanism=mechanism)
        ours = ATIFu(0.7, reset_mechanism=mechanism, beta=beta, learn_beta=learn, step_mode=step_mode)
        for x_seq in inputs():
            mem, found, mems = torch.zeros_like(x_seq[0]), [], []
            for x in x_seq:
                spk, mem = host(x, mem)
                found.append(spk)
                mems.append(mem)
            reset(ours)
            if step_mode == "m":
                spk, mem_seq = ours(x_seq)
            else:
                pairs = []
                for x in x_seq:
                    pairs.append(ours(x, *(pairs[-1][1:] if pairs else ())))
                spk, mem_seq = (torch.stack(part) for part in zip(*pairs, strict=True))
            assert torch.equal(spk, torch.stack(found)) and torch.equal(mem_seq, torch.stack(mems))


@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("decay_input", [False, True])
def test_each_channel_leaks_with_its_time_constant(decay_input: bool, learn_tau: bool) -> None:
    options = {"decay_input": decay_input, "learn_tau": learn_tau, "step_mode": "m"}
    kind = neuron.ParametricLIFNode if learn_tau else neuron.LIFNode
    for x_seq in inputs(2.0 if decay_input else 1.0):
        ours = ATIFuNode(0.5, tau=channel_taus(), **options)
        spikes = ours(x_seq)
        (spikes * x_seq).sum().backward()
        for channel, tau in enumerate(channel_taus().tolist()):
            host = kind(tau, decay_input, 0.5, None, step_mode="m")
            want = host(x_seq[:, :, [channel]])
            assert torch.equal(spikes[:, :, [channel]], want)
            if learn_tau:
                (want * x_seq[:, :, [channel]]).sum().backward()
                torch.testing.assert_close(ours.w.grad[channel], host.w.grad, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_plif() -> None:
    x_seq, grads = inputs(2.0)[0].double(), []
    host = neuron.ParametricLIFNode(2.5, v_threshold=0.5, v_reset=None, step_mode="m").double()
    ours = ATIFuNode(0.5, tau=2.5, learn_tau=True, step_mode="m").double()
    for node in (host, ours):
        leaf = x_seq.clone().requires_grad_()
        grads.append(torch.autograd.grad((node(leaf) * x_seq).sum(), [leaf, node.w]))
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grads[0][1], grads[1][1].reshape(()), rtol=1e-9, atol=1e-9)


def channel_taus() -> Tensor:
    return torch.tensor([1.5, 2.5, 7.3], device="cpu")


LEAKY: dict[str, Any] = {
    "tau": lambda **k: ATIFuNode(0.75, tau=2.0, **k),
    "tau without the input": lambda **k: ATIFuNode(0.75, tau=3.0, decay_input=False, **k),
    "learned tau": lambda **k: ATIFuNode(0.75, tau=2.0, learn_tau=True, **k),
    "tau of channels": lambda **k: ATIFuNode(0.75, tau=channel_taus(), **k),
    "learned tau of channels": lambda **k: ATIFuNode(0.75, tau=channel_taus(), learn_tau=True, **k),
    "pre-charged tau": lambda **k: PCMPIFNode(0.75, tau=2.0, **k),
    "beta": lambda **k: ATIFu(0.75, beta=0.9, **{"init_hidden": True} | k),
    "beta reset to zero": lambda **k: ATIFu(0.75, beta=0.9, reset_mechanism="zero", **{"init_hidden": True} | k),
    "learned beta": lambda **k: ATIFu(0.75, beta=0.9, learn_beta=True, **{"init_hidden": True} | k),
    "beta of channels": lambda **k: PCMPIF(
        0.75, beta=torch.tensor([0.5, 0.7, 0.9], device="cpu"), **{"init_hidden": True} | k
    ),
}


@pytest.mark.parametrize("name", LEAKY)
def test_steps_chunks_and_sequence_agree(name: str) -> None:
    x_seq = inputs(2.0)[1]
    whole = LEAKY[name](step_mode="m")
    want = whole(x_seq)
    assert torch.equal(steps(LEAKY[name](), x_seq), want)
    reset(whole)
    assert torch.equal(torch.cat([whole(x_seq[:3]), whole(x_seq[3:])]), want)


@pytest.mark.parametrize("name", LEAKY)
def test_copies_checkpoints_and_meta_keep_the_leak(name: str) -> None:
    x_seq = inputs(2.0)[0]
    node = LEAKY[name](step_mode="m")
    parameter = next((p for p in ("w", "beta") if isinstance(getattr(node, p, None), Tensor)), None)
    if parameter is not None:
        with torch.no_grad():
            getattr(node, parameter).mul_(0.5)
    twin = LEAKY[name](step_mode="m")
    twin.load_state_dict(node.state_dict())
    want = node(x_seq)
    reset(node)
    assert torch.equal(twin(x_seq), want) and torch.equal(copy.deepcopy(node)(x_seq), want)
    with torch.device("meta"):
        hollow = LEAKY[name](step_mode="m")
    hollow.to_empty(device="cpu").reset_parameters()
    assert torch.equal(hollow(x_seq), LEAKY[name](step_mode="m")(x_seq))


@pytest.mark.parametrize("name", LEAKY)
def test_compiles_without_graph_breaks(name: str) -> None:
    node, x_seq = LEAKY[name](step_mode="m"), inputs(2.0)[0]
    want = node(x_seq)
    reset(node)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(node, fullgraph=True, backend="eager")(x_seq), want)
    torch._dynamo.reset()


def test_checkpoints_of_the_hosts_bring_their_leak() -> None:
    plif = neuron.ParametricLIFNode(5.0, v_reset=None, step_mode="m")
    ours = ATIFuNode(1.0, tau=2.0, learn_tau=True, step_mode="m")
    ours.load_state_dict(plif.state_dict())
    leaky, mine = snn.Leaky(0.4), ATIFu(beta=0.9)
    mine.load_state_dict(leaky.state_dict(), strict=False)  # the host has no v_init
    assert ours.w.item() == plif.w.item() and mine.beta.item() == leaky.beta.item()
    with pytest.raises(RuntimeError, match="no leak"):
        ATIFu().load_state_dict(leaky.state_dict(), strict=False)


def test_an_attribute_acts_or_raises() -> None:
    node = ATIFuNode(0.75, step_mode="m")
    node.tau = 3
    assert torch.equal(node(inputs(3.0)[0]), ATIFuNode(0.75, tau=3.0, step_mode="m")(inputs(3.0)[0]))
    with pytest.raises(ValueError, match=r"^tau: got 1, want"):
        node.tau = 1
    node.tau = channel_taus()
    assert "tau" in node.state_dict() and node.tau.tolist() == channel_taus().tolist()
    node.tau = None
    assert "tau" not in node.state_dict() and not node.leaks
    with pytest.raises(ValueError, match=r"^tau: .* w holds it"):
        ATIFuNode(tau=2.0, learn_tau=True).tau = 3.0
    for learn in (False, True):
        neuron_ = ATIFu(beta=0.5, learn_beta=learn)
        neuron_.beta = 0.25
        assert neuron_.beta.tolist() == [0.25] and isinstance(neuron_.beta, nn.Parameter) == learn
    with pytest.raises(ValueError, match=r"^beta: got 2.0, want"):
        neuron_.beta = 2.0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ATIFuNode(tau=0.5), "tau"),
        (lambda: ATIFuNode(tau=torch.inf), "tau"),
        (lambda: ATIFuNode(tau=torch.tensor([2.0, 1.0])), "tau"),
        (lambda: ATIFuNode(tau=torch.full((2, 2), 2.0)), "tau"),
        (lambda: ATIFuNode(tau=torch.full((3,), 2.0), step_mode="m")(torch.zeros(4, 2, 2)), "tau"),
        (lambda: ATIFuNode(tau=torch.full((3,), 2.0), learn_tau=True, step_mode="m")(torch.zeros(4, 2, 2)), "w"),
        (lambda: ATIFuNode(learn_tau=True), "learn_tau"),
        (lambda: PCMPIFNode(tau=2.0, decay_input=1), "decay_input"),
        (lambda: ATIFu(beta=1.5), "beta"),
        (lambda: ATIFu(beta=torch.tensor([0.5, -0.1])), "beta"),
        (lambda: ATIFu(beta="0.5"), "beta"),
        (lambda: ATIFu(beta=torch.full((2, 3), 0.5)), "beta"),  # one for each neuron, as snn.Leaky takes them
        (lambda: ATIFu(learn_beta=1), "learn_beta"),
    ],
)
def test_wrong_arguments_are_named(make: Any, named: str) -> None:
    before = len(snn.SpikingNeuron.instances)
    with pytest.raises((TypeError, ValueError), match=f"^{named}: got .*want"):
        make()
    assert len(snn.SpikingNeuron.instances) == before


def test_a_replacement_keeps_the_leak_of_channels_or_says_what_it_is() -> None:
    x_seq = inputs(2.0)[0]
    for old, factory in (
        (ATIFuNode(0.5, tau=channel_taus(), step_mode="m"), lambda old: PCMPIFNode(precharge=0.0)),
        (ATIFuNode(0.5, tau=channel_taus(), learn_tau=True, step_mode="m"), lambda old: ATIFuNode()),
    ):
        net = nn.Sequential(old)
        want = net(x_seq)
        replace_neurons(net, factory)
        assert net[0] is not old and torch.equal(net(x_seq), want)
    betas = torch.tensor([0.5, 0.7, 0.9])
    for beta, image in ((betas, x_seq), (betas.reshape(3, 1, 1), x_seq.reshape(20, 4, 3, 1, 1))):
        net = nn.Sequential(snn.Leaky(beta, 0.5, init_hidden=True))
        want = torch.stack([net(x) for x in image])
        replace_neurons(net, lambda old: ATIFu(step_mode="m"))
        assert net[0].beta.tolist() == betas.tolist() and torch.equal(net(image), want)
    with pytest.raises(ValueError, match=r"^beta: got .*one per neuron is for snn.Leaky alone"):
        replace_neurons(nn.Sequential(snn.Leaky(torch.rand(4, 3), init_hidden=True)), lambda old: ATIFu())


def test_atif_nu_says_why_it_has_no_leak() -> None:
    for make in (lambda: ATIFnuNode(T=4, tau=2.0), lambda: ATIFnu(T=4, beta=0.5)):
        with pytest.raises(ValueError, match=r"^(tau|beta): .*derived for a potential that keeps its charge"):
            make()


@pytest.mark.parametrize("make", [lambda: ATIFuNode(0.5, step_mode="m"), lambda: ATIFu(0.5, init_hidden=True)])
def test_a_threshold_below_its_floor_warns_once_and_recovers(make: Any) -> None:
    node = make()
    threshold = next(iter(node.parameters()))
    with torch.no_grad():
        threshold.fill_(-0.05)
    with pytest.warns(UserWarning, match=r"-0.05 by training, want at least 1e-06, which is used"):
        node.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        node.eval()
    optimizer = torch.optim.SGD([threshold], lr=0.1)
    for _ in range(20):  # too many spikes: the gradient asks for a higher threshold
        optimizer.zero_grad()
        reset(node)
        node(torch.full((4, 8), 0.1)).mean().backward()
        optimizer.step()
    assert threshold.item() > 0.0


@pytest.mark.parametrize("start", [1.0, torch.ones(8)], ids=["one", "per channel"])
@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_training_recovers_a_net_from_dead_thresholds(host: str, start: Any) -> None:
    """The loss of a net whose thresholds alone are trained, towards what it computes with a threshold of 0.5."""
    torch.manual_seed(0)
    make = {
        "spikingjelly": lambda: ATIFuNode(start, step_mode="m", tau=2.0, decay_input=False),
        "snntorch": lambda: ATIFu(start, step_mode="m", init_hidden=True, beta=0.5),
    }[host]
    net = nn.Sequential(nn.Linear(4, 8), make(), nn.Linear(8, 8), make(), nn.Linear(8, 2)).requires_grad_(False)
    thresholds = [node._raw_threshold().requires_grad_() for node in (net[1], net[3])]
    x_seq = torch.randn(8, 64, 4)

    def outputs() -> Tensor:
        for node in (net[1], net[3]):
            reset(node)
        return net(x_seq)

    def fill(value: float) -> None:
        with torch.no_grad():
            for threshold in thresholds:
                threshold.fill_(value)

    fill(0.5)
    want = outputs().detach()
    fill(-0.3)
    optimizer, losses = torch.optim.Adam(thresholds, lr=0.03), []
    with pytest.warns(UserWarning, match=r"-0.3 by training") as found:
        for _ in range(80):
            optimizer.zero_grad()
            loss = (outputs() - want).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert len(found) == 2  # once for each of the two layers
    assert losses[-1] < 0.2 * losses[0]
    for threshold in thresholds:  # a channel of which the loss wants more spikes still may stay where it is
        assert (threshold > 0.05).double().mean() >= 0.7


def test_a_net_with_a_dead_threshold_is_saved_as_it_is(tmp_path: Path) -> None:
    node = ATIFuNode(0.5, step_mode="m")
    with torch.no_grad():
        node.v_threshold.fill_(-0.05)
    save(node, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt")
    assert torch.equal(loaded.get_submodule("0").v_threshold, node.v_threshold)
    assert "(1e-06 in use)" in repr(loaded)


@pytest.mark.parametrize("name", LEAKY)
def test_the_conformance_suite_passes(name: str) -> None:
    host, habit = ("snntorch", {"init_hidden": False}) if "beta" in name else ("spikingjelly", {})
    of_channels = "channels" in name and host == "snntorch"
    other_shapes = ("trainers_run", "spikes_suit_losses_and_accuracies") if of_channels else ()
    check_neuron(lambda **options: LEAKY[name](**habit | options), host, shape=(3, 3, 5, 5), skip=other_shapes)
