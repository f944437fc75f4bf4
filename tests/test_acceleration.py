"""The hosts' own neurons by the fused operator: the same to the last bit, and undone without a trace."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import backprop, surrogate
from snntorch import functional as SF
from spikingjelly.activation_based import functional, layer, memopt, neuron, op_counter
from spikingjelly.activation_based import surrogate as sj_surrogate
from spikingjelly.activation_based.model import spiking_resnet
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import snn_ext
from snn_ext import accelerate, ops
from snn_ext import functional as definition
from snn_ext.functional import ATan, Sigmoid
from snn_ext.snntorch import ATIFu, bptt, reset, run_steps
from snn_ext.spikingjelly import ATIFuNode

DTYPES = (torch.float32, torch.float64)
TAUS = (1.1, 2.0, 3.0, 7.3, 100.0)
MECHANISMS = ("subtract", "zero", "none")
ACCURACY = 2e-6  # of gradients in float32, as of the operators (tests/ops/harness.py)


def inputs(dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """Random input, and input from a grid on which potentials meet the threshold again and again."""
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(33, 5, 40, generator=generator, dtype=dtype) + 0.5
    yield torch.randint(-8, 33, (33, 5, 40), generator=generator).to(dtype) / 8


NODES: dict[str, Any] = {
    "IFNode": lambda **o: neuron.IFNode(0.75, **o),
    "HalfThresholdIFNode": lambda v_reset=None, **o: neuron.HalfThresholdIFNode(0.75, **o),
    "LIFNode": lambda tau=3.0, decay_input=True, **o: neuron.LIFNode(tau, decay_input, 0.25, **o),
    "ParametricLIFNode": lambda tau=3.0, decay_input=True, **o: neuron.ParametricLIFNode(tau, decay_input, 0.25, **o),
    "SimpleIFNode": lambda **o: neuron.SimpleIFNode(0.75, **o),
    "SimpleLIFNode": lambda tau=3.0, decay_input=True, **o: neuron.SimpleLIFNode(tau, decay_input, 0.25, **o),
}
each_node = pytest.mark.parametrize("name", NODES)


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """Return a node of the host in step mode "m", and an accelerated copy."""
    host = NODES[name](step_mode="m", **options)
    twin = copy.deepcopy(host)
    assert accelerate(nn.Sequential(twin)).swapped == {"0": name}
    return host, twin


def refuse_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hosts' own sequences fail, to see that a twin does not run them."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the host's own code ran")

    for name in ("if_multi_step", "lif_multi_step", "plif_multi_step"):
        monkeypatch.setattr(functional, name, fail)
    monkeypatch.setattr(snn.Leaky, "forward", fail)


# -- SpikingJelly ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@each_node
def test_spikes_and_potential_are_those_of_the_node(name: str, dtype: torch.dtype) -> None:
    leaks = itertools.product(TAUS, (True, False)) if "LIF" in name else [()]
    resets = (0.0,) if name == "SimpleLIFNode" else (None, 0.0)  # the host's own fails without one
    for leak, v_reset, x_seq in itertools.product(leaks, resets, inputs(dtype)):
        options: dict[str, Any] = dict(zip(("tau", "decay_input"), leak, strict=False))
        x_seq = x_seq * options.get("tau", 1.0) if options.get("decay_input") else x_seq
        host, twin = pair(name, v_reset=v_reset, **options)
        want, got = host(x_seq), twin(x_seq)
        assert torch.equal(got, want) and got.dtype == want.dtype and torch.equal(twin.v, host.v)
        assert 0.01 < want.mean() < 0.99
        assert torch.equal(twin(x_seq), host(x_seq))  # from the potential that was left
        host.step_mode = twin.step_mode = "s"
        assert torch.equal(twin(x_seq[0]), host(x_seq[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_place_from_a_threshold_that_is_not_dyadic(dtype: torch.dtype) -> None:
    theta = torch.full((20, 300), 0.7, dtype=dtype)
    x_seq = torch.nextafter(theta, theta + torch.randint(-1, 2, theta.shape))
    for v_reset in (None, 0.0):
        host, twin = neuron.IFNode(0.7, v_reset, step_mode="m"), neuron.IFNode(0.7, v_reset, step_mode="m")
        accelerate(twin)
        assert torch.equal(twin(x_seq), host(x_seq)) and torch.equal(twin.v, host.v)
    host, twin = leaky(0.5, 0.7), leaky(0.5, 0.7)
    accelerate(twin)
    assert torch.equal(run_steps(twin, x_seq), looped(host, x_seq)) and torch.equal(twin.mem, host.mem)


@each_node
def test_a_twin_runs_the_operator_and_not_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, twin = pair(name)
    refuse_steps(monkeypatch)
    monkeypatch.setattr(type(twin), "single_step_forward", None)
    for x_seq in (next(inputs()), next(inputs()).double()):
        functional.reset_net(twin)
        twin(x_seq)


def gradients(node: Any, x_seq: Tensor, incoming: list[Tensor]) -> dict[str, Tensor]:
    x_seq = x_seq.clone().requires_grad_()
    functional.reset_net(node)
    leaves = {"x_seq": x_seq, **dict(node.named_parameters())}
    spike_seq = node(x_seq)
    return dict(zip(leaves, torch.autograd.grad((spike_seq, node.v), [*leaves.values()], incoming), strict=True))


@pytest.mark.parametrize("detach_reset", [False, True])
@each_node
def test_gradients_are_those_of_the_node_in_float64(name: str, detach_reset: bool) -> None:
    curves = (sj_surrogate.Sigmoid(4.0), sj_surrogate.ATan(), sj_surrogate.PiecewiseQuadratic(), sj_surrogate.Erf())
    resets = (0.0,) if name == "SimpleLIFNode" else (None, 0.0)
    for curve, v_reset, of_input in itertools.product(curves, resets, (True, False)):
        leak = {"decay_input": of_input} if "LIF" in name else {}
        host, twin = pair(name, v_reset=v_reset, surrogate_function=curve, detach_reset=detach_reset, **leak)
        wide, x_seq = copy.deepcopy(host).double(), next(inputs())
        with torch.no_grad():
            agree = (twin(x_seq) == wide(x_seq.double())).all(0)
        assert agree.float().mean() > 0.9
        incoming = [torch.randn_like(x_seq) * agree, torch.randn_like(x_seq[0]) * agree]
        got, narrow = gradients(twin, x_seq, incoming), gradients(host, x_seq, incoming)
        want = gradients(wide, x_seq.double(), [g.double() for g in incoming])
        limit = (narrow["x_seq"] - want["x_seq"]).abs().max()  # the host's own is as far off, at a steep surrogate
        assert (got["x_seq"] - want["x_seq"]).abs().max() <= max(ACCURACY * want["x_seq"].abs().max(), 2 * limit)
        if "w" in got:  # a sum over all neurons
            each = gradients(of_each(wide, x_seq), x_seq.double(), [g.double() for g in incoming])["w"].abs().sum()
            assert (got["w"] - want["w"]).abs() <= ACCURACY * each


def of_each(node: Any, x_seq: Tensor) -> Any:
    """Return a node with a parameter for each neuron, whose gradients are the terms of that of the one."""
    functional.reset_net(node)
    node = copy.deepcopy(node)
    node.w = nn.Parameter(node.w.detach().expand(x_seq.shape[1:]).clone())
    return node


def assert_close(got: Tensor, want: Tensor) -> None:
    assert (got - want).abs().max() <= ACCURACY * want.abs().max()


@each_node
def test_everything_else_of_a_node_is_what_it_was(name: str) -> None:
    host = NODES[name](step_mode="m")
    net, seen = nn.Sequential(host), []
    host.register_forward_hook(lambda *_: seen.append(1))
    before, values = {**host.__dict__}, {k: v.clone() for k, v in net.state_dict().items()}
    done = accelerate(net)
    assert net[0] is host and isinstance(host, getattr(neuron, name)) and host.__dict__ == before
    assert {k: v.tolist() for k, v in net.state_dict().items()} == {k: v.tolist() for k, v in values.items()}
    net(next(inputs()))
    assert seen == [1]
    functional.reset_net(net)
    assert host.v == NODES[name]().v and repr(host).endswith(repr(NODES[name](step_mode="m")).partition("(")[2])
    done.undo()
    assert type(host) is getattr(neuron, name) and host.__dict__.keys() == before.keys()


@each_node
def test_copies_and_pickles_are_twins_and_can_be_undone(name: str) -> None:
    host, twin = pair(name)
    x_seq = next(inputs())
    with torch.no_grad():
        want = host(x_seq), host(x_seq)
        assert torch.equal(twin(x_seq), want[0])
        buffer = io.BytesIO()
        torch.save(nn.Sequential(twin), buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin)), torch.load(buffer, weights_only=False)[0]):
            done = accelerate(nn.Sequential(other))
            assert done.swapped == {"0": name} and not done.left
            assert torch.equal(other(x_seq), want[1])
            done.undo()
            assert type(other) is type(host)


def test_what_changes_after_the_swap_is_honoured() -> None:
    changes: list[dict[str, Any]] = [
        {"v_reset": 0.125}, {"v_reset": None}, {"store_v_seq": True}, {"v_threshold": 0.5}, {"detach_reset": True},
        {"tau": 5.0}, {"decay_input": False}, {"surrogate_function": sj_surrogate.LeakyKReLU()},
    ]  # fmt: skip
    for change in changes:
        host, twin = pair("LIFNode")
        for node, (attribute, value) in itertools.product((host, twin), change.items()):
            setattr(node, attribute, value)
        found = []
        for node in (host, twin):
            x_seq = next(inputs()).requires_grad_()
            spikes = node(x_seq)
            found.append((spikes, node.v, node.v_seq, torch.autograd.grad(spikes.sum(), x_seq)[0]))
        for a, b in zip(found[0][:3], found[1][:3], strict=True):
            assert a is b or torch.equal(a, b), change
        torch.testing.assert_close(found[1][3], found[0][3], msg=str(change))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_left_to_the_host(dtype: torch.dtype) -> None:
    host, twin = pair("LIFNode")
    x_seq = next(inputs()).to(dtype)
    assert torch.equal(twin(x_seq), host(x_seq)) and twin.v.dtype == host.v.dtype == dtype


@pytest.mark.parametrize("name", ["IFNode", "LIFNode", "ParametricLIFNode", "HalfThresholdIFNode"])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_with_sixteen_bits_the_input_alone_is_kept_and_gradients_are_the_host_s(name: str, detach_reset: bool) -> None:
    x_seq, found = next(inputs()).bfloat16(), []
    for node in pair(name, detach_reset=detach_reset):
        x, kept = x_seq.clone().requires_grad_(), []
        with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # noqa: B023
            first = node(x)
            last = node(x.flip(0))  # its states go on
        size = len({t.untyped_storage().data_ptr(): t for t in kept if t.ndim == x.ndim})
        wanted = [x, *node.parameters()]
        found.append([first, last, node.v, *torch.autograd.grad((first * x_seq).sum() + last.sum(), wanted)])
    assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4], strict=True))
    torch.testing.assert_close(found[1][4:], found[0][4:], rtol=1e-5, atol=0)  # of tau, in another order of sums
    assert size == 2  # two inputs, of the fused one


def test_reset_values_and_other_shapes_are_those_of_the_node() -> None:
    for name, start in itertools.product(("IFNode", "LIFNode"), (0.5, torch.rand(5, 40))):
        host, twin = pair(name, v_reset=None)
        for x_seq in (next(inputs()), next(inputs())[:, :2]):
            for node in (host, twin):
                node.set_reset_value("v", start)
                functional.reset_net(node)
            assert torch.equal(twin(x_seq), host(x_seq)) and torch.equal(twin(x_seq), host(x_seq))


def test_functional_forward_and_chunks_are_those_of_the_sequence() -> None:
    from spikingjelly.activation_based.base import to_functional_forward

    host, twin = pair("ParametricLIFNode")
    x_seq = next(inputs())
    want = host(x_seq)
    v = torch.zeros_like(x_seq[0])
    assert torch.equal(to_functional_forward(twin)((x_seq,), (v,))[0][0], want) and twin.v == 0.0
    assert torch.equal(torch.cat([twin(x_seq[:7]), twin(x_seq[7:])]), want)
    for start in (v.double() / 3, v[0] + 0.125):  # as another precision, and as one for each of a row
        a, b = (node.multi_step_functional_forward((x_seq,), (start,)) for node in (host, twin))
        assert torch.equal(a[0][0], b[0][0]) and torch.equal(a[1][0], b[1][0])


@each_node
def test_operation_counters_count_the_hosts_operations(name: str) -> None:
    counts = []
    for node in pair(name):
        kinds = op_counter.ACCounter, op_counter.MACCounter, op_counter.MemoryAccessCounter, op_counter.FlopCounter
        counters = [kind() for kind in kinds]
        with torch.no_grad(), op_counter.DispatchCounterMode(counters):
            node(next(inputs()))
        counts.append([counter.get_total() for counter in counters])
    assert counts[0] == counts[1] and counts[0][0] > 0


def test_a_trained_resnet_predicts_the_same_and_goes_on_training() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        net = spiking_resnet.spiking_resnet18(spiking_neuron=neuron.LIFNode, num_classes=4, tau=1.5)
        functional.set_step_mode(net, "m")
        return net

    def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        functional.reset_net(net)
        loss = nn.functional.cross_entropy(net(x_seq).mean(0), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    x_seq = torch.randn(4, 2, 3, 32, 32)
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    train(net, optimizer)
    state = copy.deepcopy(net.state_dict())

    def predictions(net: nn.Module) -> Tensor:
        functional.reset_net(net.eval())
        with torch.no_grad():
            return net(x_seq)

    want = predictions(net)
    fresh = build()
    done = accelerate(fresh)
    assert len(done.swapped) == 17 and not done.left and "neurons swapped: 17, left: 0" in str(done)
    assert fresh.state_dict().keys() == state.keys()
    fresh.load_state_dict(state)
    assert torch.equal(predictions(fresh), want)
    back = build()
    back.load_state_dict(fresh.state_dict())
    assert torch.equal(predictions(back), want)
    accelerate(net)  # the optimizer holds its parameters
    other = build()
    other.load_state_dict(state)
    other_optimizer = torch.optim.SGD(other.parameters(), 0.01, momentum=0.9)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    losses = [[float(train(n.train(), o)) for _ in range(2)] for n, o in ((net, optimizer), (other, other_optimizer))]
    assert losses[0][0] == losses[1][0] and losses[0][1] == pytest.approx(losses[1][1], rel=1e-3)


# -- snnTorch ----------------------------------------------------------------------------------------------------------


def leaky(beta: Any = 0.9, threshold: Any = 0.75, **options: Any) -> Any:
    return snn.Leaky(beta, threshold, init_hidden=True, **options)


def looped(net: nn.Module, x_seq: Tensor) -> Tensor:
    return torch.stack([net(x) for x in x_seq])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_spikes_and_mem_are_those_of_leaky(mechanism: str, dtype: torch.dtype) -> None:
    betas = (0.0, 0.3, 0.9, 1.0, 1.5, torch.linspace(0, 1, 40))
    threshold = 1.7 if mechanism == "none" else 0.75
    for beta, learned, x_seq in itertools.product(betas, (False, True), inputs(dtype)):
        host = leaky(beta, threshold, reset_mechanism=mechanism, learn_beta=learned, learn_threshold=learned).to(dtype)
        twin = copy.deepcopy(host)
        assert accelerate(nn.Sequential(twin)).swapped == {"0": "Leaky"}
        want = looped(host, x_seq)
        got = torch.cat([run_steps(twin, x_seq[:1]), run_steps(twin, x_seq[1:20]), run_steps(twin, x_seq[20:])])
        assert torch.equal(got, want) and got.dtype == want.dtype and torch.equal(twin.mem, host.mem)
        assert 0.01 < want.mean() <= 1.0
        assert torch.equal(twin(x_seq[0]), host(x_seq[0]))  # a single step goes on from there


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_where_leaky_mixes_precisions_its_twin_does(mechanism: str) -> None:
    wide = next(inputs(torch.float64))
    trained = leaky(0.9, 0.7, learn_threshold=True, reset_mechanism=mechanism).double()
    trained.threshold.data.fill_(0.7)  # not the float32 of it
    mixed = leaky(torch.tensor([0.9]).double(), reset_mechanism=mechanism)
    also = leaky(0.9, torch.tensor([0.7]).double(), reset_mechanism=mechanism)
    narrow = wide.float()
    for host, sequences in ((trained, [wide]), (mixed, [narrow]), (also, [narrow]), (leaky(), [narrow, wide, narrow])):
        twin = copy.deepcopy(host)
        accelerate(twin)
        for x_seq in sequences:
            assert torch.equal(run_steps(twin, x_seq), looped(host, x_seq))
            assert torch.equal(twin.mem, host.mem) and twin.mem.dtype == host.mem.dtype


def test_a_twin_of_leaky_runs_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [leaky(reset_mechanism=mechanism) for mechanism in MECHANISMS]
    accelerate(nn.Sequential(*twins))
    refuse_steps(monkeypatch)
    for twin in twins:
        run_steps(twin, next(inputs()))


@pytest.mark.parametrize("graded", [1.0, 0.7])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_gradients_are_those_of_leaky(mechanism: str, graded: float) -> None:
    x_seq = next(inputs())
    options = {"reset_mechanism": mechanism, "learn_beta": True, "learn_threshold": True}
    for curve in (None, surrogate.fast_sigmoid(5), surrogate.sigmoid(5)):
        host = leaky(0.8, spike_grad=curve, graded_spikes_factor=graded, learn_graded_spikes_factor=True, **options)
        twin = copy.deepcopy(host)
        accelerate(nn.Sequential(twin))
        weights, found = torch.randn_like(x_seq), []
        for run, net in ((looped, host), (run_steps, twin)):
            x = x_seq.clone().requires_grad_()
            spikes = torch.cat([run(net, x[:9]), run(net, x[9:])])  # through mem, too
            loss = (spikes * weights).sum() + net.mem.sum()
            leaves = [x, *net.parameters()]
            found.append([spikes, *torch.autograd.grad(loss, leaves)])
        assert torch.equal(found[0][0], found[1][0])
        assert len(found[0]) == 5
        for a, b in zip(found[0][1:], found[1][1:], strict=True):  # the host's own are sums in float32
            torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_gradients_of_leaky_are_those_of_the_definition_in_float64(mechanism: str) -> None:
    x_seq = next(inputs())
    twin = leaky(0.8, learn_beta=True, learn_threshold=True, reset_mechanism=mechanism)
    accelerate(nn.Sequential(twin))
    size = x_seq[0].shape
    wide = [x_seq.double(), torch.full(size, twin.beta.item()).double(), torch.full((1,), 0.75).double()]
    wide = [leaf.requires_grad_() for leaf in wide]
    options: Any = {"surrogate": ATan(2.0), "detach_reset": True, "fire_at_threshold": False, "charge": "beta"}
    kind: Any = "delayed" if mechanism == "subtract" else mechanism
    spikes, _ = definition.integrate_and_fire(wide[0], 0.0, wide[2], decay=wide[1], reset=kind, **options)
    x_seq = x_seq.requires_grad_()
    found = run_steps(twin, x_seq)
    agree = (found == spikes).all(0)
    assert agree.float().mean() > 0.9
    incoming = torch.randn_like(x_seq) * agree
    want = torch.autograd.grad(spikes, wide, incoming.double())
    got = torch.autograd.grad(found, [x_seq, twin.beta, twin.threshold], incoming)
    assert_close(got[0], want[0])
    assert (got[1] - want[1].sum()).abs() <= ACCURACY * want[1].abs().sum()
    torch.testing.assert_close(got[2].double(), want[2].reshape(()), rtol=1e-5, atol=1e-5)


def test_checkpoints_of_leaky_fit_both_ways_and_bring_what_they_say() -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(40, 30), leaky(learn_beta=True), nn.Linear(30, 4), leaky(learn_threshold=True))

    host, twin = build(), build()
    host[1].graded_spikes_factor.fill_(0.5)
    host[3].threshold.data.fill_(0.3)
    accelerate(twin)
    assert twin.state_dict().keys() == host.state_dict().keys()
    twin.load_state_dict(host.state_dict())
    x_seq = next(inputs())
    want = looped(host, x_seq)
    assert torch.equal(run_steps(twin, x_seq), want) and 0 < want.mean() < 1
    back = build()
    back.load_state_dict(twin.state_dict())
    assert torch.equal(looped(back, x_seq), want)


def test_copies_and_pickles_of_leaky() -> None:
    net = nn.Sequential(nn.Linear(40, 30), leaky(spike_grad=ATan(2.0)))
    before = {**net[1].__dict__}
    done = accelerate(net)
    x_seq = next(inputs())
    with torch.no_grad():
        want = run_steps(net, x_seq), run_steps(net, x_seq)
        reset(net)
        run_steps(net, x_seq)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(run_steps(other, x_seq), want[1])
            accelerate(other).undo()
            assert type(other[1]) is snn.Leaky
    done.undo()
    assert type(net[1]) is snn.Leaky and net[1].__dict__.keys() - {"reset"} == before.keys() - {"reset"}


def conv_net(hidden: Any = leaky, **options: Any) -> nn.Sequential:
    """The net of the host's tutorial on convolutions, small."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), hidden(0.5), nn.Conv2d(4, 6, 3), nn.MaxPool2d(2), hidden(0.5),
        nn.Flatten(), nn.Linear(24, 3), leaky(0.5, output=True),
    )  # fmt: skip


def test_the_tutorials_net_trains_as_with_the_hosts_trainer() -> None:
    torch.manual_seed(0)
    ours = conv_net()
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(3)
    theirs = copy.deepcopy(ours)
    snn.SpikingNeuron.instances.extend(m for m in theirs.modules() if isinstance(m, snn.SpikingNeuron))
    done = accelerate(ours)
    assert done.swapped == {"2": "Leaky", "5": "Leaky"} and done.left == {
        "8": "Leaky: output=True: the operator does not hand out mem of every step"
    }
    data = [(torch.rand(4, 1, 14, 14), torch.randint(3, (4,))) for _ in range(2)]
    for criterion in (SF.ce_count_loss(), SF.ce_max_membrane_loss()):
        losses = []
        for trainer, net in ((bptt, ours), (backprop.BPTT, theirs)):
            optimizer = torch.optim.SGD(net.parameters(), 0.01)
            losses += [[float(trainer(net, data, optimizer, criterion, num_steps=10, time_var=False).detach())] * 2]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    reset(ours), reset(theirs)
    x = data[0][0]
    spk, mem = run_steps(ours, x, 10)
    theirs.load_state_dict(ours.state_dict())
    want = [theirs(x) for _ in range(10)]
    assert torch.equal(spk, torch.stack([s for s, _ in want])) and spk.shape == (10, 4, 3) and spk.any()
    torch.testing.assert_close(mem, torch.stack([m for _, m in want]))


def test_static_input_passes_the_layers_before_the_first_neuron_once_and_gives_what_the_loop_gives() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4).eval()), *conv_net()[1:]).eval()
    calls = list[int]()
    twin = copy.deepcopy(net)
    accelerate(twin)
    x = torch.rand(4, 1, 14, 14)
    want = [net(x) for _ in range(6)]
    count = twin[0][0].register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    for hooked in (True, False):  # who watches a layer sees every step
        reset(twin)
        spk, mem = run_steps(twin, x, 6)
        assert torch.equal(spk, torch.stack([s for s, _ in want])) and torch.equal(
            mem, torch.stack([m for _, m in want])
        )
        if hooked:
            count.remove()
    assert calls == [24]


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(40)])
def test_layer_that_draws_or_learns_in_training_sees_every_step(layer: nn.Module) -> None:
    seen = list[int]()

    class Watched(type(layer)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return super().forward(x)

    layer.__class__ = Watched
    Watched.__module__ = type(layer).__mro__[1].__module__  # as if it were torch's own
    run_steps(nn.Sequential(layer, nn.Linear(40, 3), leaky(0.5)).train(), torch.rand(2, 40), 5)
    run_steps(nn.Sequential(layer, nn.Linear(40, 3), leaky(0.5)).eval(), torch.rand(2, 40), 5)
    assert seen == [10, 2]


def test_run_steps_names_what_it_cannot_run() -> None:
    x_seq = torch.rand(4, 2, 3)
    with pytest.raises(TypeError, match="net: got 3"):
        run_steps(3, x_seq)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"net \(1\): got 'init_hidden=False'"):
        run_steps(nn.Sequential(nn.Linear(3, 3), snn.Leaky(0.5)), x_seq)
    for takes_sequences in (snn.LeakyParallel(3, 3), snn.StateLeaky(0.5, channels=3)):
        with pytest.raises(ValueError, match=r"net \(1\): got '.*Leaky.*', want neurons of one step"):
            run_steps(nn.Sequential(leaky(), takes_sequences), x_seq)
    net = nn.Sequential(nn.Linear(3, 3), leaky())
    with pytest.raises(ValueError, match="x: got .*want"):
        run_steps(net, torch.zeros(0, 2, 3))
    with pytest.raises(TypeError, match="x: got"):
        run_steps(net, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_steps: got 0"):
        run_steps(net, x_seq[0], 0)


# -- what is left ------------------------------------------------------------------------------------------------------


class MyLIF(neuron.LIFNode):
    pass


class MyLeaky(snn.Leaky):
    pass


LEFT: dict[str, Any] = {
    "v_reset=0.5": lambda: neuron.LIFNode(v_reset=0.5),
    "store_v_seq=True": lambda: neuron.IFNode(store_v_seq=True),
    "surrogate LeakyKReLU": lambda: neuron.IFNode(surrogate_function=sj_surrogate.LeakyKReLU()),
    "spiking=False": lambda: neuron.IFNode(surrogate_function=sj_surrogate.Sigmoid(spiking=False)),
    "dynamics": lambda: neuron.KLIFNode(),
    "a class of its own": MyLIF,
    "a class of its own, whose": lambda: MyLeaky(0.5, init_hidden=True),
    "a neuron of snn_ext": ATIFuNode,
    "which runs by the operator": lambda: ATIFu(init_hidden=True),
    "init_hidden=False": lambda: snn.Leaky(0.5),
    "reset_delay=False": lambda: leaky(reset_delay=False),
    "inhibition=True": lambda: leaky(inhibition=True),
    "state_quant=": lambda: leaky(state_quant=lambda x: x),
    "threshold is a torch.float32 tensor of shape": lambda: leaky(threshold=torch.ones(40)),
    "graded_spikes_factor is": lambda: leaky(graded_spikes_factor=torch.ones(40)),
    "spike_grad": lambda: leaky(spike_grad=surrogate.straight_through_estimator()),
    "spike_grad LIF._surrogate": lambda: leaky(surrogate_disable=True),
    "dynamics that": lambda: snn.Synaptic(0.9, 0.8, init_hidden=True),
    "dynamics that the operator": lambda: snn.RLeaky(0.9, linear_features=40, init_hidden=True),
}


@pytest.mark.filterwarnings("ignore:Inhibition")
@pytest.mark.parametrize("reason", LEFT)
def test_what_cannot_be_the_same_is_left_with_the_reason(reason: str) -> None:
    made = LEFT[reason]()
    kind = type(made)
    net = nn.Sequential(nn.Linear(40, 40), nn.Sequential(made))
    done = accelerate(net)
    assert type(made) is kind and not done.swapped and list(done.left) == ["1.0"]
    assert reason.replace("LIF._", "SpikingNeuron._") in done.left["1.0"] and done.left["1.0"].startswith(kind.__name__)


def test_a_net_without_neurons_is_refused() -> None:
    with pytest.raises(ValueError, match="net: got 'Linear', want a net with at least one neuron"):
        accelerate(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="net: got 'x'"):
        accelerate("x")  # type: ignore[arg-type]


def test_an_interrupted_swap_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(neuron.IFNode):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "__class__" and value is not Stubborn:
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    from snn_ext.spikingjelly import fused

    class Twin(Stubborn):
        pass

    monkeypatch.setitem(fused.TWINS, Stubborn, Twin)
    net = nn.Sequential(neuron.LIFNode(), Stubborn())
    with pytest.raises(KeyboardInterrupt):
        accelerate(net)
    assert [type(m) for m in net] == [neuron.LIFNode, Stubborn]


def test_a_neuron_whose_class_changes_later_is_not_given_another() -> None:
    node = neuron.ParametricLIFNode()
    done = accelerate(nn.Sequential(node))
    nn.utils.parametrize.register_parametrization(node, "w", nn.Identity())
    kind = type(node)
    with pytest.raises(ValueError, match="net: got 'ParametrizedFusedParametricLIFNode', want the fused"):
        done.undo()
    assert type(node) is kind and list(accelerate(nn.Sequential(node)).left) == ["0"] and type(node) is kind
    nn.utils.parametrize.remove_parametrizations(node, "w")
    done.undo()
    done.undo()
    assert type(node) is neuron.ParametricLIFNode


@pytest.mark.parametrize("chunks", [1, 3])
def test_checkpointing_of_the_host_gives_the_same(chunks: int) -> None:
    found = []
    for change in (lambda net: None, accelerate):
        torch.manual_seed(0)
        nodes = neuron.LIFNode(v_threshold=0.2), neuron.ParametricLIFNode(v_threshold=0.1)
        net = nn.Sequential(layer.Linear(8, 8), nodes[0], layer.Linear(8, 3), nodes[1])
        functional.set_step_mode(net, "m")
        change(net)
        x_seq = 3 * torch.randn(6, 2, 8, requires_grad=True)
        out = memopt.checkpoint_module(net, chunks=chunks)(x_seq)
        found.append([out, *torch.autograd.grad((out * torch.arange(3.0)).sum(), [*net.parameters()])])
    assert torch.equal(found[0][0], found[1][0]) and 0 < found[0][0].mean() < 1
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_a_shared_neuron_counts_once_and_a_single_one_is_a_net() -> None:
    node = neuron.IFNode()
    assert accelerate(nn.ModuleList([node, node])).swapped == {"0": "IFNode"}
    assert accelerate(neuron.LIFNode()).swapped == {"": "LIFNode"}


def test_steps_in_mode_s_are_named() -> None:
    assert "1 of the swapped are in step mode 's'" in str(accelerate(nn.Sequential(neuron.IFNode())))
    assert "step mode" not in str(accelerate(nn.Sequential(neuron.IFNode(step_mode="m"))))


# -- beside the rest of the package ------------------------------------------------------------------------------------


def test_replace_neurons_takes_over_from_a_twin_what_it_takes_from_the_host() -> None:
    for build in (lambda: neuron.LIFNode(3.0, v_reset=None), lambda: neuron.ParametricLIFNode(3.0, v_reset=None)):
        net = nn.Sequential(layer.Linear(4, 4), build())
        accelerate(net)
        assert snn_ext.replace_neurons(net, lambda old: ATIFuNode()) == 1 and net[1].leaks
    net = nn.Sequential(nn.Linear(4, 4), leaky())
    accelerate(net)
    assert snn_ext.replace_neurons(net, lambda old: ATIFu()) == 1 and net[1].leaks


def test_evaluate_takes_a_twin_for_its_host() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), neuron.IFNode(v_reset=None), nn.Linear(8, 3))
    data = [(torch.rand(6, 4), torch.randint(3, (6,)))]
    want = snn_ext.evaluate(net, data, time_steps=4).accuracy
    accelerate(net)
    assert snn_ext.evaluate(net, data, time_steps=4).accuracy.equal(want)


def test_a_file_of_an_accelerated_net_is_one_of_the_hosts(tmp_path: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 8), neuron.LIFNode(3.0, v_reset=None), nn.Linear(8, 3), neuron.IFNode())
    accelerate(net)
    snn_ext.save(net, tmp_path / "net.pt")
    loaded = snn_ext.load(tmp_path / "net.pt")
    assert [type(m) for m in loaded.modules() if isinstance(m, neuron.BaseNode)] == [neuron.LIFNode, neuron.IFNode]
    x = torch.rand(2, 4)
    assert torch.equal(looped(loaded, x.expand(5, 2, 4)), looped(net, x.expand(5, 2, 4)))


def test_compiled_twins_give_the_same_spikes() -> None:
    host, twin = pair("LIFNode")
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    x_seq = next(inputs())
    with torch.no_grad():
        assert torch.equal(compiled(x_seq), host(x_seq))


def test_forced_implementations_run_the_twins() -> None:
    host, twin = pair("LIFNode", surrogate_function=Sigmoid(4.0))
    x_seq = next(inputs())
    with ops.use_implementation("torch"):
        assert torch.equal(twin(x_seq), host(x_seq))
