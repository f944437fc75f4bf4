"""What SpikingJelly itself does to a node: its attributes are set, its builders call it, its counters watch it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, functional, neuron, op_counter, surrogate
from spikingjelly.activation_based.distributed.vision import NeuronConfig
from spikingjelly.activation_based.model import (
    masnn,
    maxformer,
    ms_resnet,
    qkformer,
    sew_resnet,
    spike_driven_transformer,
    spikformer,
    spiking_vgg,
)
from torch import Tensor, fx, nn
from torch._higher_order_ops.scan import scan

import snn_ext
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode

from ..hosts import NODES, grid, steps

# -- attributes -------------------------------------------------------------------------------------------------------

CHANGED: dict[str, Any] = {
    "v_threshold": 0.25,
    "v_reset": 0.0,
    "surrogate_function": surrogate.ATan(9.0),
    "detach_reset": True,
    "step_mode": "m",
    "store_v_seq": True,
    "v": 0.5,
}
NOT_FOR_THE_DYNAMICS = {
    "training": "of every nn.Module",
    "v_seq": "a result",
    "lava_s_cale": "read by the host's conversion to Lava, which refuses nodes that are not its own",
}


def settable(host: nn.Module) -> set[str]:
    """Return all public attributes of an instance, and its properties with a setter."""
    names = {*vars(host), *host._parameters, *host._buffers, *host._modules, *getattr(host, "_memories", {})}
    for cls in type(host).__mro__:
        names |= {name for name, value in vars(cls).items() if isinstance(value, property) and value.fset}
    return {name for name in names if not name.startswith("_")}


def fingerprint(node: Any) -> list[Any]:
    x_seq = grid(2).requires_grad_()  # [2, 2, 3]: as sequences, two of two steps
    spikes = steps(node, x_seq)
    (spikes * grid(2, seed=1)).sum().backward()
    return [spikes.tolist(), x_seq.grad.tolist(), getattr(node, "v_seq", None) is None]


def test_every_attribute_of_the_host_is_known_here() -> None:
    assert settable(neuron.IFNode()) == {*CHANGED, *NOT_FOR_THE_DYNAMICS}


@pytest.mark.parametrize("attribute", CHANGED)
@pytest.mark.parametrize("name", NODES)
def test_an_attribute_of_the_host_acts_or_is_refused(name: str, attribute: str) -> None:
    node = NODES[name]()
    before = fingerprint(NODES[name]())
    try:
        setattr(node, attribute, CHANGED[attribute])
        after = fingerprint(node)
    except (TypeError, ValueError) as error:
        assert attribute in str(error) and "want" in str(error)
        assert name not in ("ATIFuNode", "PCMPIFNode"), "their dynamics is IFNode's, which knows this"
    else:
        assert after != before, f"{attribute} does nothing"


@pytest.mark.parametrize("attribute", CHANGED)
@pytest.mark.parametrize("make", [ATIFuNode, lambda: PCMPIFNode(precharge=0.0)])
def test_an_attribute_acts_as_on_ifnode(make: Callable[[], Any], attribute: str) -> None:
    found = []
    for node in (make(), neuron.IFNode(v_reset=None)):
        setattr(node, attribute, CHANGED[attribute])
        found.append(fingerprint(node))
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2]
    torch.testing.assert_close(*(torch.tensor(gradient[1]) for gradient in found), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("v_reset", 0.5), ("v_reset", -1), ("detach_reset", 1), ("store_v_seq", "yes"), ("surrogate_function", 3),
     ("v_threshold", 0.0), ("v_threshold", torch.zeros(3)), ("v_threshold", nn.Parameter(torch.tensor(1.0)))],
)  # fmt: skip
@pytest.mark.parametrize("make", [ATIFuNode, PCMPIFNode])
def test_a_wrong_value_is_refused_when_it_is_set(make: Any, attribute: str, value: Any) -> None:
    node = make()
    before = str(node)
    with pytest.raises((TypeError, ValueError), match=rf"{attribute}: got|surrogate: got"):
        setattr(node, attribute, value)
    assert str(node) == before


def test_a_threshold_that_is_set_stays_the_parameter_that_the_optimizer_has() -> None:
    node = ATIFuNode()
    parameter = node.v_threshold
    node.v_threshold = 0.5
    assert node.v_threshold is parameter and parameter.item() == 0.5
    functional.set_threshold_margin(node.eval(), torch.eye(3)[:2], eval_threshold=0.75)
    assert parameter.item() == 0.75


def test_the_number_of_steps_follows_from_the_points() -> None:
    node = ATIFnuNode([1.0, 0.5, 0.25])
    with pytest.raises(ValueError, match=r"T: got 4, want 3: use .at\(T\)"):
        node.T = 4
    assert node.T == 3


# -- builders ---------------------------------------------------------------------------------------------------------


def builders(*, take_t: bool) -> list[Any]:
    """Return one builder of each family of the host's models, with a ``T`` of its own or without."""
    found: dict[tuple[str, bool], Any] = {}
    families = spikformer, maxformer, qkformer, spike_driven_transformer, masnn, ms_resnet, sew_resnet, spiking_vgg
    for module in families:
        for name in module.__all__:
            build = getattr(module, name)
            arguments = inspect.signature(build).parameters if inspect.isfunction(build) else {}
            if "spiking_neuron" in arguments and ("T" in arguments) == take_t:
                found[module.__name__, take_t] = build
    return [pytest.param(build, id=build.__name__) for build in found.values()]


def test_builders_that_take_t_pass_levels_on() -> None:
    snn_ext.register()
    try:
        config = NeuronConfig("snn_ext.spikingjelly.neurons.ATIFnuNode", kwargs={"levels": 4})
        net = spikformer.SpikformerBuilder(
            spikformer.SpikformerCIFAR10Config(time_steps=4, num_classes=3, neuron_config=config)
        )._build_canonical_model()
    finally:
        snn_ext.unregister()
    nodes = [module for module in net.modules() if isinstance(module, ATIFnuNode)]
    assert nodes and all(node.T == 4 for node in nodes)


@pytest.mark.parametrize("build", builders(take_t=True))
def test_families_of_models_with_a_t_of_their_own_take_levels(build: Any) -> None:
    with torch.device("meta"):
        net = build(T=4, spiking_neuron=ATIFnuNode, levels=4)
    nodes = [module for module in net.modules() if isinstance(module, ATIFnuNode)]
    assert nodes and all(node.T == 4 and node.step_mode == "m" for node in nodes)


@pytest.mark.parametrize("name", ["T", "levels"])
@pytest.mark.parametrize("build", builders(take_t=False))
def test_families_of_models_without_one_take_either(build: Any, name: str) -> None:
    with torch.device("meta"):
        net = build(spiking_neuron=ATIFnuNode, **{name: 4})
    assert any(isinstance(module, ATIFnuNode) and module.T == 4 for module in net.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "T: got None"), ({"T": 4, "levels": 5}, "levels: got 5, want T=4"), ({"levels": 0}, "levels: got 0"),
        ({"T": 2.0}, "T: got 2.0"),
        ({"levels": 2, "v_threshold": [1.0, 0.5, 0.1]}, r"quantisation points \[T\] = \[2\]"),
    ],
)  # fmt: skip
def test_a_wrong_number_of_levels_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ATIFnuNode(**options)


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("bias", [None, torch.tensor([0.5, 0.0, -0.5])])
@pytest.mark.parametrize("name", NODES)
def test_materialised_states_have_the_shape_of_a_step_and_memory_of_their_own(name: str, bias: Any, mode: str) -> None:
    node = NODES[name](step_mode=mode, **({"bias": bias} if name == "ASNNode" else {}))
    inputs = (grid() if mode == "m" else grid()[0],)
    memories = tuple(node.memories())
    states = node.materialize_states(inputs, memories, mode)
    assert tuple(node.memories()) == memories, "it is pure"
    assert all(isinstance(state, Tensor) for state in states)
    for state in states:
        if state.is_floating_point():
            assert state.shape == (2, 3)
            state.detach().add_(1.0)  # raises where elements share their memory
    if name == "ASNNode" and bias is not None:
        assert torch.equal(states[0] - 1.0, bias.expand(2, 3))


@pytest.mark.parametrize("name", NODES)
def test_materialised_states_change_nothing(name: str) -> None:
    whole, x_seq = NODES[name](step_mode="m"), grid()
    forward = base.to_functional_forward(whole)
    (spikes,), _ = forward((x_seq,), whole.materialize_states((x_seq,), tuple(whole.memories()), "m"))
    assert torch.equal(spikes, whole(x_seq))


@pytest.mark.parametrize("name", NODES)
def test_torch_scans_over_the_functional_step(name: str) -> None:
    node, x_seq = NODES[name](), grid()
    forward = base.to_functional_forward(node)

    def step(carry: Any, x: Tensor) -> Any:
        (spike,), carry = forward((x,), carry)
        return carry, spike

    with torch.no_grad():  # torch differentiates no scan that carries an int, the step index of ATIF-nu
        _, spikes = scan(step, node.materialize_states((x_seq[0],), tuple(node.memories()), "s"), x_seq)
    assert torch.equal(spikes, steps(NODES[name](), x_seq))


def test_a_state_of_an_adaptive_node_that_is_no_state_is_refused() -> None:
    node = ASNNode()
    node.s_hat = 0.5
    with pytest.raises(ValueError, match=r"s_hat: got 0.5, want a tensor"):
        node(grid()[0])


# -- counters ---------------------------------------------------------------------------------------------------------


def counts(node: Any, x: Tensor, calls: int = 2) -> dict[str, Any]:
    """Return everything that the host's counters say of some calls."""
    counters = [
        op_counter.NeuronStateCounter(strict=True), op_counter.ACCounter(), op_counter.MACCounter(),
        op_counter.MemoryAccessCounter(), op_counter.FlopCounter(), op_counter.SynOpCounter(),
    ]  # fmt: skip
    memory = op_counter.NeuromorphicMemoryAccessCounter()
    with (
        torch.no_grad(),
        op_counter.DispatchCounterMode(counters),
        op_counter.ModuleCounterMode([memory], model=node),
    ):
        outputs = [node(x) for _ in range(calls)]
    found = {type(counter).__name__: counter.get_total() for counter in (*counters, memory)}
    return found | {"state": counters[0].get_metric_counts()["Global"], "outputs": [out.tolist() for out in outputs]}


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_counters_see_what_ifnode_costs(v_reset: float | None, mode: str) -> None:
    x = grid() if mode == "m" else grid()[0]
    want = counts(neuron.IFNode(0.75, v_reset, step_mode=mode), x)
    assert want["NeuronStateCounter"] > 0 and want["ACCounter"] > 0
    assert counts(ATIFuNode(0.75, v_reset, step_mode=mode), x) == want
    assert counts(PCMPIFNode(0.75, v_reset, precharge=0.0, step_mode=mode), x) == want


@pytest.mark.parametrize("mode", ["s", "m"])
def test_counters_see_what_the_precharged_node_of_the_host_costs(mode: str) -> None:
    x = grid() if mode == "m" else grid()[0]
    want = counts(neuron.HalfThresholdIFNode(0.75, step_mode=mode), x)
    found = counts(PCMPIFNode(0.75, precharge=0.5, step_mode=mode), x)
    for what in ("outputs", "state", "ACCounter", "MACCounter", "SynOpCounter", "NeuromorphicMemoryAccessCounter"):
        assert found[what] == want[what], what


@pytest.mark.parametrize("mode", ["s", "m"])
def test_atif_nu_costs_charge_comparison_and_reset_of_every_neuron_and_step(mode: str) -> None:
    x_seq, node = grid(), ATIFnuNode(torch.tensor([1.0, 0.6, 0.3, 0.1]), step_mode=mode)
    found = counts(node, x_seq, calls=1) if mode == "m" else counts(node, x_seq[0], calls=4)
    assert found["ACCounter"] == 3 * x_seq.numel() and found["MACCounter"] == 0
    assert found["state"]["state_adds"] >= 2 * x_seq.numel()
    # potential (4 bytes) of 6 neurons and the step index (8 bytes), read and written at every step
    assert found["NeuromorphicMemoryAccessCounter"] == 4 * 2 * (6 * 4 + 8)


@pytest.mark.parametrize("analog", [False, True])
def test_asn_costs_its_filters_and_its_adaptation(analog: bool) -> None:
    x_seq = grid()
    found = counts(ASNNode(step_mode="m", analog_input=analog), x_seq, calls=1)
    # Sums of a neuron and step: I, S, theta, S - S_hat, S_hat, a; without a synapse none for I. Of a step: 1 - d_phi.
    # At the end of the call S - S_hat once more, to look at.
    assert found["ACCounter"] == (5 if analog else 6) * x_seq.numel() + len(x_seq) + x_seq[0].numel()
    assert found["state"]["state_muls"] > 0


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("options", [{}, {"surrogate_function": surrogate.S2NN()}, {"scale_output": True}])
def test_counted_spikes_and_gradients_are_those_not_counted(name: str, options: dict[str, Any]) -> None:
    found = []
    for counters in ([], [op_counter.ACCounter()]):
        node, x_seq = NODES[name](step_mode="m", **options), grid().requires_grad_()
        if counters:
            with op_counter.DispatchCounterMode(counters):
                spikes = node(x_seq)
                (spikes * grid(seed=1)).sum().backward()
        else:
            spikes = node(x_seq)
            (spikes * grid(seed=1)).sum().backward()
        found.append([spikes, x_seq.grad, *(parameter.grad for parameter in node.parameters())])
    assert torch.equal(found[0][0], found[1][0])
    for plain, counted in zip(*found, strict=True):
        torch.testing.assert_close(plain, counted, rtol=1e-5, atol=1e-6)


def test_infinite_potentials_are_reset_to_zero_under_counters_too() -> None:
    x_seq = torch.tensor([[torch.inf], [0.5], [0.5]])
    with op_counter.DispatchCounterMode([op_counter.ACCounter()]), torch.no_grad():
        assert ATIFuNode(1.0, 0.0, step_mode="m")(x_seq).flatten().tolist() == [1.0, 0.0, 1.0]


def test_the_energy_of_a_net_is_that_of_the_host_for_equal_spikes() -> None:
    torch.manual_seed(0)
    layer, energies = nn.Linear(3, 5), []
    for node in (neuron.IFNode(0.75, None), ATIFuNode(0.75)):
        report = op_counter.estimate_simple_energy(nn.Sequential(layer, node), grid()[0])
        energies.append(report.energy_total_pj)
    assert energies[0] == energies[1] > 0


# -- the host's estimate of a delay --------------------------------------------------------------------------------


def delay_start(node: Any) -> int:
    from spikingjelly.activation_based.ann2snn.delay import estimate_delay_start
    from spikingjelly.activation_based.ann2snn.modules import VoltageScaler

    graph = fx.Graph()
    value = graph.placeholder("x")
    for name in "012":
        value = graph.call_module(name, (value,))
    graph.output(value)
    net = fx.GraphModule(nn.Sequential(VoltageScaler(1.0), node, VoltageScaler(1.0)), graph)
    return estimate_delay_start(net, [torch.full((2, 3), 0.03125)], "cpu", 64)


@pytest.mark.parametrize(("threshold", "start"), [(1.0, 0.0), (0.5, 0.25), (0.75, 0.375)])
def test_the_hosts_estimate_of_a_delay_knows_the_pre_charge(threshold: float, start: float) -> None:
    host = neuron.IFNode(threshold, None)
    host.set_reset_value("v", start)
    host.reset()
    expected = delay_start(host)
    assert 4 < expected < 60
    for node in (PCMPIFNode(threshold, precharge=start / threshold), ATIFuNode(threshold, v_init=start / threshold)):
        assert delay_start(node) == expected
    node.set_reset_value("v", 0.125)
    assert node.get_reset_value("v") == 0.125


def test_a_pre_charge_per_channel_is_no_reset_value() -> None:
    with pytest.raises(ValueError, match="v_init: got .*, want one value"):
        delay_start(PCMPIFNode(precharge=torch.tensor([0.5, 0.25, 0.0])))


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_a_dynamics_of_the_user_is_given_tensors_from_the_first_step_on(node: Any, step_mode: str) -> None:
    seen: list[Any] = []

    class Recorded(type(node())):  # type: ignore[misc]
        def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
            seen.append(states)
            return super().multi_step_functional_forward(inputs, states, **kwargs)

    own = Recorded(step_mode=step_mode, **({"T": 3} if issubclass(Recorded, ATIFnuNode) else {}))
    own(torch.rand(*([3] if step_mode == "m" else []), 2, 4))
    assert all(isinstance(state, Tensor) for state in seen[0]) and seen[0][0].shape == (2, 4)
