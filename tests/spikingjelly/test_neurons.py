"""The nodes for SpikingJelly: against the host's own neurons, and one test for each trap that the host sets."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, memopt, monitor, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet, spiking_vgg
from torch import Tensor, nn

from snn_ext.functional import ATan, Sigmoid, uniform_points
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode
from tests.reference import assert_unchanged, awkward_inputs, each_input, snapshot

NODES: dict[str, Callable[..., Any]] = {
    "u": ATIFuNode,
    "nu": lambda *a, **k: ATIFnuNode(*a, T=4, **k),
    "cumulative": lambda *a, **k: ATIFnuNode(*a, T=4, recursion="cumulative", **k),
    "pcmp": PCMPIFNode,
}
each_node = pytest.mark.parametrize("make", NODES.values(), ids=NODES)
each_mode = pytest.mark.parametrize("mode", ["s", "m"])


def run(node: Any, x_seq: Tensor) -> Tensor:
    """Run a node on a sequence in whatever step mode it has."""
    return node(x_seq) if node.step_mode == "m" else torch.stack([node(x) for x in x_seq])


# -- the host's own neurons -------------------------------------------------------------------------------------------


@each_input
@each_mode
@pytest.mark.parametrize("v_reset", [None, 0.0], ids=["soft", "hard"])
@pytest.mark.parametrize("threshold", [0.3, 0.75, 1.0])
def test_no_mismatch_against_ifnode(kind: str, mode: str, v_reset: float | None, threshold: float) -> None:
    x_seq = awkward_inputs(8, (4000,), threshold)[kind]
    ours, theirs = ATIFuNode(threshold, v_reset, step_mode=mode), neuron.IFNode(threshold, v_reset, step_mode=mode)
    assert torch.equal(run(ours, x_seq), run(theirs, x_seq))
    assert torch.equal(ours.v, theirs.v)


@each_mode
def test_no_mismatch_against_ifnode_in_a_million_neuron_steps(mode: str) -> None:
    for kind, x_seq in awkward_inputs(16, (21_000,), 0.75).items():
        ours, theirs = ATIFuNode(0.75, step_mode=mode), neuron.IFNode(0.75, None, step_mode=mode)
        assert int((run(ours, x_seq) != run(theirs, x_seq)).sum()) == 0, kind
        assert torch.equal(ours.v, theirs.v), kind


@each_input
@each_mode
@pytest.mark.parametrize("threshold", [0.5, 0.75, 1.0])
def test_precharge_of_a_half_is_the_hosts_half_threshold_node(kind: str, mode: str, threshold: float) -> None:
    x_seq = awkward_inputs(8, (4000,), threshold)[kind]
    ours = PCMPIFNode(threshold, precharge=0.5, step_mode=mode)
    theirs = neuron.HalfThresholdIFNode(threshold, step_mode=mode)
    assert torch.equal(run(ours, x_seq), run(theirs, x_seq))
    assert torch.equal(ours.v, theirs.v)


@pytest.mark.parametrize("host", [surrogate.Sigmoid(4.0), surrogate.ATan(2.0), surrogate.PiecewiseExp(1.0)])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_input_gradient_is_that_of_ifnode(host: Any, detach: bool, v_reset: float | None) -> None:
    x_seq = awkward_inputs(6, (50,))["random"]
    found = []
    for cls in (ATIFuNode, neuron.IFNode):
        node = cls(1.0, v_reset, copy.deepcopy(host), detach, "m")
        x = x_seq.clone().requires_grad_()
        (node(x) * x_seq).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


# -- constructors, as the host's builders call them -------------------------------------------------------------------


@each_node
def test_takes_the_hosts_positional_order_and_every_keyword_of_its_builders(make: Any) -> None:
    node = make(0.5, None, surrogate.ATan(), True, "m", True)
    assert node.detach_reset and node.store_v_seq and node.step_mode == "m"
    assert isinstance(node.surrogate_function, surrogate.ATan)
    keywords = dict(v_threshold=0.5, v_reset=None, surrogate_function=surrogate.ATan(), detach_reset=True)
    assert make(**keywords, step_mode="m", store_v_seq=True).extra_repr() == node.extra_repr()
    assert "ATan" in str(node)


@each_node
def test_default_surrogate_is_not_shared_between_nodes(make: Any) -> None:
    # The host's default instances are, and one node's surrogate changed is all nodes' changed.
    assert make().surrogate_function is not make().surrogate_function
    assert neuron.IFNode().surrogate_function is neuron.IFNode().surrogate_function, "the host is mended"


@each_node
def test_v_is_the_first_memory(make: Any) -> None:
    # store_v_seq and the host's tools read the first one.
    assert next(iter(make()._memories)) == "v"


@pytest.mark.parametrize("given", [0.75, torch.tensor(0.75), torch.tensor([0.75]), torch.tensor([0.75]).double()])
def test_threshold_has_shape_one_and_is_the_number_given(given: Any) -> None:
    # FSDP2 refuses 0-dim parameters; a softplus or log behind it would make 0.75 into 0.74999994.
    for node in (ATIFuNode(given), PCMPIFNode(given)):
        assert node.v_threshold.shape == (1,) and node.v_threshold.dtype == torch.float32
        assert node.v_threshold.item() == 0.75
    assert isinstance(ATIFuNode(given).v_threshold, nn.Parameter)
    assert not list(PCMPIFNode(given).parameters()) and "v_threshold" in PCMPIFNode(given).state_dict()
    assert torch.equal(ATIFnuNode(given, T=4).p, uniform_points(0.75, 4))


def test_points_may_be_given_and_do_not_alias_the_argument() -> None:
    points = torch.tensor([1.0, 0.5, 0.25])
    node = ATIFnuNode(points, T=3)
    assert torch.equal(node.p, points)
    points.zero_()
    assert node.p.detach().min() > 0


@each_node
def test_no_parameter_is_zero_dimensional(make: Any) -> None:
    assert all(tensor.ndim == 1 for tensor in make().state_dict().values())


# -- learning ---------------------------------------------------------------------------------------------------------


def test_threshold_parameter_of_ifnode_trains_nothing_but_ours_does() -> None:
    node = ATIFuNode(0.75, step_mode="m")
    node(torch.rand(4, 20)).sum().backward()
    assert node.v_threshold.grad is not None and node.v_threshold.grad.abs() > 0


def test_threshold_can_not_fall_to_zero_and_still_gets_its_gradient() -> None:
    for value in (-0.5, 0.0, 1e-9):
        node = ATIFuNode(1.0, step_mode="m", scale_output=True)
        with torch.no_grad():
            node.v_threshold.fill_(value)
        out = node(torch.rand(4, 20))
        assert (out >= 0).all() and out.isfinite().all()
        out.sum().backward()
        assert node.v_threshold.grad.isfinite().all() and node.v_threshold.grad != 0


def test_points_stay_non_increasing_whatever_training_does_to_them() -> None:
    node = ATIFnuNode(1.0, T=4, step_mode="m")
    with torch.no_grad():
        node.p.copy_(torch.tensor([0.2, 0.9, -1.0, 0.5]))
    assert node.quantization_points().tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5])
    x = torch.linspace(-0.5, 1.5, 200)
    counts = node(x.expand(4, -1)).sum(0).detach()
    assert counts.max() <= 4 and counts[-1] == 4
    node.reset()
    node(torch.rand(4, 50)).square().sum().backward()
    assert node.p.grad.isfinite().all()


@pytest.mark.parametrize("make", [NODES["u"], NODES["nu"]], ids=["u", "nu"])
def test_gradient_scale_touches_the_gradient_alone(make: Any) -> None:
    x_seq = awkward_inputs(4, (5, 8, 3))["random"]
    found = {}
    for scale in (None, 0.25, "lsq"):
        node = make(0.75, step_mode="m", grad_scale=scale)
        out = node(x_seq)
        out.square().sum().backward()
        found[scale] = out.detach(), next(node.parameters()).grad
    assert torch.equal(found[None][0], found[0.25][0]) and torch.equal(found[None][0], found["lsq"][0])
    torch.testing.assert_close(found[0.25][1], 0.25 * found[None][1])
    torch.testing.assert_close(found["lsq"][1], (8 * 3 * 4) ** -0.5 * found[None][1])


def test_lsq_scale_does_not_depend_on_the_batch() -> None:
    node = ATIFuNode(grad_scale="lsq", step_mode="m")
    grads = []
    for samples in (1, 6):
        x_seq = awkward_inputs(4, (1, 10))["random"].expand(-1, samples, -1)
        (grad,) = torch.autograd.grad(node(x_seq).sum() / samples, node.v_threshold)
        grads.append(grad)
        node.reset()
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("build", "count", "head"),
    [
        (spiking_vgg.spiking_vgg11_bn, 10, True),
        (spiking_resnet.spiking_resnet18, 17, False),
        (lambda **k: sew_resnet.sew_resnet18(cnf="ADD", **k), 17, False),
    ],
    ids=["spiking_vgg11_bn", "spiking_resnet18", "sew_resnet18"],
)
@pytest.mark.parametrize("cls", [ATIFuNode, ATIFnuNode], ids=["u", "nu"])
def test_every_threshold_of_the_hosts_models_learns_also_under_autocast(
    build: Any, count: int, head: bool, cls: Any
) -> None:
    kwargs = {"T": 2} if cls is ATIFnuNode else {}
    net = build(spiking_neuron=cls, num_classes=10, **kwargs)
    functional.set_step_mode(net, "m")
    nodes = [m for m in net.modules() if isinstance(m, cls)]
    assert len(nodes) >= count
    for autocast in (False, True):
        if autocast and head:
            # VGG keeps ImageNet's head of 120 million weights, slow in bfloat16 on a CPU: two of its ten nodes less.
            net.classifier = nn.Sequential(layer.Linear(512 * 7 * 7, 10, step_mode="m"))
            nodes = [m for m in net.modules() if isinstance(m, cls)]
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = net(torch.rand(2, 2, 3, 32, 32))
        nn.functional.cross_entropy(out.float().mean(0), torch.tensor([1, 7])).backward()
        for i, node in enumerate(nodes):
            (parameter,) = node.parameters()
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (autocast, i)
            assert (parameter.grad != 0).any(), (autocast, i)
        assert all(node.v.dtype == torch.float32 for node in nodes)
        functional.reset_net(net)


def test_threshold_gradient_survives_autocast() -> None:
    # fp16/bf16 input with a float32 state: the gradient is that of the same values in float32, not a rounded sum.
    x_seq = awkward_inputs(4, (8, 500))["random"].bfloat16()
    grads = []
    for x, enabled in ((x_seq, True), (x_seq.float(), False)):
        node = ATIFuNode(0.75, step_mode="m")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = node(x)
        out.float().sum().backward()
        grads.append(node.v_threshold.grad)
    assert grads[0].dtype == torch.float32
    torch.testing.assert_close(grads[0], grads[1])


def test_builders_deep_copy_their_arguments_so_thresholds_are_not_shared() -> None:
    net = spiking_resnet.spiking_resnet18(
        spiking_neuron=ATIFuNode, num_classes=2, v_threshold=0.5, surrogate_function=surrogate.ATan(),
        v_init=torch.tensor(0.5), detach_reset=True,
    )  # fmt: skip
    nodes = [m for m in net.modules() if isinstance(m, ATIFuNode)]
    assert len({id(node.v_threshold) for node in nodes}) == len(nodes) == 17
    assert all(n.v_threshold.item() == 0.5 and float(n.v_init) == 0.5 and n.detach_reset for n in nodes)


# -- initial potential ------------------------------------------------------------------------------------------------


@each_node
def test_v_init_is_in_units_of_the_first_threshold(make: Any) -> None:
    name = "precharge" if make is PCMPIFNode else "v_init"
    node = make(0.5, step_mode="m", **{name: 0.5})
    first = node.thresholds().of_steps[0].detach()
    node(torch.zeros(1, 3, 2))
    assert torch.equal(node.v, (0.5 * first).expand(3, 2))


@each_mode
def test_v_init_per_channel_lies_on_dim_one(mode: str) -> None:
    node = ATIFuNode(2.0, v_init=torch.tensor([0.0, 0.25, 0.5]), step_mode=mode)
    run(node, torch.zeros(2, 4, 3, 5, 6))
    assert node.v.shape == (4, 3, 5, 6)
    assert torch.equal(node.v[1, :, 2, 3], torch.tensor([0.0, 0.5, 1.0]))
    node.reset()
    with pytest.raises(ValueError, match=r"v_init: .*per channel"):
        run(node, torch.zeros(2, 4, 5))


def test_v_init_as_parameter_is_trained_and_reaches_the_threshold() -> None:
    start = nn.Parameter(torch.tensor([0.25, 0.5]))
    node = ATIFuNode(0.75, v_init=start, step_mode="m")
    assert node.v_init is start
    node(awkward_inputs(4, (6, 2, 5))["random"]).square().sum().backward()
    assert start.grad is not None and (start.grad != 0).all() and node.v_threshold.grad != 0


def test_scalar_parameter_as_v_init_is_refused_and_a_vector_of_one_is_the_one_that_trains() -> None:
    with pytest.raises(ValueError, match=r"v_init: got .* want a parameter of shape \[1\] or \[C\]"):
        ATIFuNode(v_init=nn.Parameter(torch.tensor(0.5)))
    start = nn.Parameter(torch.tensor([0.5]))
    node = ATIFuNode(v_init=start, step_mode="m")
    assert node.v_init is start
    node(torch.rand(4, 20)).sum().backward()
    assert start.grad != 0


def test_gradient_of_a_precharge_reaches_the_threshold() -> None:
    # V(0) = v_init * theta: without that term the threshold of a charged neuron would be pulled the wrong way.
    node = ATIFuNode(1.0, v_init=0.5, step_mode="m", detach_reset=True)
    node(torch.zeros(1, 7))
    (grad,) = torch.autograd.grad(node.v.sum(), node.v_threshold)
    assert grad.item() == pytest.approx(7 * 0.5)


@each_node
def test_reset_and_changed_batch_start_at_v_init_again(make: Any) -> None:
    # The host starts a changed batch at v_reset or 0.
    name = "precharge" if make is PCMPIFNode else "v_init"
    node = make(0.75, step_mode="m", **{name: 0.5})
    x_seq = awkward_inputs(4, (6, 5))["grid"]
    want = node(x_seq)
    assert torch.equal(make(0.75, step_mode="m", **{name: 0.5})(x_seq), want)
    node.reset()
    assert torch.equal(node(x_seq), want)
    node.reset()
    node(x_seq[:3])
    assert torch.equal(node(x_seq[:, :4]), want[:, :4]), "a smaller batch"


@pytest.mark.parametrize(
    "value",
    [0.25, 1, torch.tensor(0.25), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), torch.full((6, 5), 0.25)],
    ids=["float", "int", "0-dim", "broadcast", "full"],
)
@each_mode
@each_node
def test_reset_value_is_honoured_in_absolute_units(value: Any, mode: str, make: Any) -> None:
    # In the host a tensor is replaced by zeros unless of full shape, and an int crashes.
    node = make(0.75, step_mode=mode)
    node.set_reset_value("v", value)
    for _ in range(2):
        functional.reset_net(node)
        run(node, torch.zeros(1, 6, 5))
        want = torch.as_tensor(value).float().expand(6, 5)
        fired = want >= node.thresholds().of_steps[0]
        assert torch.equal(node.v[~fired], want[~fired])


def test_reset_value_zero_of_either_type_means_v_init() -> None:
    for zero in (0, 0.0):
        node = ATIFuNode(0.5, v_init=0.5)
        node.set_reset_value("v", zero)
        node.reset()
        node(torch.zeros(3))
        assert node.v.tolist() == [0.25, 0.25, 0.25]


def test_reset_value_of_a_shape_that_does_not_fit_says_so_and_changes_nothing() -> None:
    node = ATIFuNode()
    node.set_reset_value("v", torch.zeros(2))
    node.reset()
    with pytest.raises(ValueError, match=r"reset value of v: got .*\[2\], want a shape that broadcasts to .*\[4, 3\]"):
        node(torch.zeros(4, 3))
    assert torch.equal(node.v, torch.zeros(2))


# -- step index of ATIF-nu --------------------------------------------------------------------------------------------


@each_mode
@pytest.mark.parametrize("name", ["nu", "cumulative"])
def test_more_steps_than_thresholds_raise_and_change_nothing(mode: str, name: str) -> None:
    node = NODES[name](0.75, step_mode=mode)
    x_seq = awkward_inputs(4, (3, 5))["grid"]
    run(node, x_seq)
    before = node.v, node.t, node.v.clone()
    with pytest.raises(ValueError, match=r"step 5 since the last reset, want at most T=4.*reset.*\.at\(T\)"):
        run(node, x_seq[:1])
    assert node.v is before[0] and node.t == before[1] == 4 and torch.equal(node.v, before[2])
    node.reset()
    assert node.t == 0
    run(node, x_seq)


@pytest.mark.parametrize("stored", [False, True])
def test_too_long_a_sequence_raises_before_the_first_step(stored: bool) -> None:
    node = ATIFnuNode(T=4, step_mode="m", store_v_seq=stored)
    with pytest.raises(ValueError, match="T=4"):
        node(torch.rand(5, 3))
    assert node.v == 0.0 and node.t == 0 and node.v_seq is None


def test_changed_batch_restarts_the_step_index() -> None:
    node = ATIFnuNode(T=2)
    for size in (3, 3, 5, 5):
        node(torch.rand(size))
    assert node.t == 2


@pytest.mark.parametrize("chunks", [1, 2, 4])
@each_node
def test_temporal_checkpointing_does_not_apply_the_first_thresholds_twice(make: Any, chunks: int) -> None:
    x_seq = awkward_inputs(4, (6, 5))["grid"]
    want = make(0.75, step_mode="m")
    got = make(0.75, step_mode="m")
    out = memopt.checkpoint_module(got, chunks=chunks)(x_seq.clone().requires_grad_())
    assert torch.equal(out, want(x_seq))
    out.square().sum().backward()
    assert torch.equal(got.v, want.v)


@pytest.mark.parametrize("T", [1, 2, 3, 4, 6, 8])
def test_at_gives_the_same_quantiser_for_another_number_of_steps(T: int) -> None:
    uniform = ATIFnuNode(0.75, T=4).at(T)
    torch.testing.assert_close(uniform.p.detach(), uniform_points(0.75, T))
    points = torch.tensor([1.0, 0.6, 0.35, 0.1])
    twin = ATIFnuNode(points, T=4, v_init=0.25, scale_output=True).at(T)
    assert twin.T == T == len(twin.p) and twin.p[0] == 1.0 and (twin.p.diff() <= 0).all()
    assert twin.scale_output and float(twin.v_init) == 0.25 and isinstance(twin.p, nn.Parameter)
    if T == 4:
        assert torch.equal(twin.p, points)
    if T == 2:
        assert twin.p.tolist() == pytest.approx([1.0, 0.35])
    twin.step_mode = "m"
    assert twin(torch.full((T, 1), 1.0)).shape == (T, 1)


def test_at_leaves_the_original_alone_also_in_the_middle_of_a_sequence() -> None:
    node = ATIFnuNode(T=4, step_mode="m", store_v_seq=True)
    node(torch.rand(2, 3))
    v = node.v
    twin = node.at(8)
    assert node.v is v and node.t == 2 and len(node.p) == 4
    assert twin.t == 0 and twin.v == 0.0 and twin.v_seq is None


# -- state dict -------------------------------------------------------------------------------------------------------


def net_of(make: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(layer.Linear(6, 5), make(), nn.Sequential(layer.Linear(5, 3), make()))


@each_node
def test_checkpoint_of_an_ifnode_net_loads_strictly(make: Any) -> None:
    theirs, ours = net_of(lambda: neuron.IFNode(v_reset=None)), net_of(lambda: make(0.6))
    assert not ours.load_state_dict(theirs.state_dict(), strict=True).missing_keys
    assert torch.equal(ours[0].weight, theirs[0].weight)
    assert torch.equal(ours[1].thresholds().clip_level.detach(), torch.tensor([0.6]))


@each_node
@pytest.mark.parametrize("how", ["state_dict", "without metadata"])
def test_own_checkpoint_without_its_threshold_does_not_load(make: Any, how: str) -> None:
    net = net_of(make)
    state = net.state_dict() if how == "state_dict" else dict(net.state_dict())
    name = "1." + ("p" if hasattr(net[1], "p") else "v_threshold")
    del state[name]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        net_of(make).load_state_dict(state)


@each_node
def test_checkpoint_brings_thresholds_and_start_back(make: Any) -> None:
    net = net_of(make)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.mul_(0.75)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    twin = net_of(make)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


def test_start_of_one_value_and_one_per_channel_load_into_each_other() -> None:
    one, many = PCMPIFNode(precharge=0.25), PCMPIFNode(precharge=torch.tensor([0.1, 0.2]))
    one.load_state_dict(many.state_dict())
    assert torch.equal(one.precharge, torch.tensor([0.1, 0.2]))


def test_memories_are_not_in_the_state_dict() -> None:
    node = ATIFnuNode(T=4)
    node(torch.rand(3))
    assert sorted(node.state_dict()) == ["p", "v_init"]


def test_zero_dimensional_threshold_in_a_checkpoint_loads() -> None:
    node = ATIFuNode()
    node.load_state_dict({"v_threshold": torch.tensor(0.4), "v_init": torch.tensor([0.0])})
    assert node.v_threshold.shape == (1,) and node.v_threshold.item() == pytest.approx(0.4)


# -- the host's tools -------------------------------------------------------------------------------------------------


@each_node
def test_functional_form_writes_neither_memories_nor_given_states(make: Any) -> None:
    node = make(0.75, step_mode="m")
    forward = base.to_functional_forward(node)
    states = tuple(base.extract_memories(node))
    x = torch.rand(2, 3)
    _, after = forward((x,), states)
    kept = [s.clone() if isinstance(s, Tensor) else s for s in after]
    first = forward((x,), after)[0]
    assert torch.equal(forward((x,), after)[0][0], first[0])
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(kept, after, strict=True))
    assert node.v == 0.0 and len(after) == len(node._memories)


@each_mode
@each_node
def test_stored_voltage_is_the_potential_after_every_step(make: Any, mode: str) -> None:
    x_seq = awkward_inputs(4, (3, 5))["grid"]
    node = make(0.75, step_mode=mode, store_v_seq=True)
    plain = make(0.75, step_mode="s")
    run(node, x_seq)
    potentials = []
    for x in x_seq:
        plain(x)
        potentials.append(plain.v)
    assert torch.equal(node.v_seq, torch.stack(potentials)) and node.v_seq.dtype == torch.float32
    node.reset()
    assert node.v_seq is None


def test_monitors_see_spikes_potentials_and_attributes() -> None:
    net = nn.Sequential(layer.Linear(6, 5), ATIFuNode(store_v_seq=True), layer.Linear(5, 3), PCMPIFNode())
    functional.set_step_mode(net, "m")
    spikes = monitor.OutputMonitor(net, (ATIFuNode, PCMPIFNode))
    voltages = monitor.AttributeMonitor("v_seq", pre_forward=False, net=net, instance=ATIFuNode)
    net(torch.rand(4, 2, 6))
    assert [list(record.shape) for record in spikes.records] == [[4, 2, 5], [4, 2, 3]]
    assert voltages.records[0].shape == (4, 2, 5)


@each_node
def test_detach_net_cuts_the_graph_of_truncated_backpropagation(make: Any) -> None:
    node = make(0.75, step_mode="m")
    for part in torch.rand(2, 2, 3, requires_grad=True):
        node(part).sum().backward()
        functional.detach_net(node)


@each_node
def test_deepcopy_after_reset_and_pickle_keep_settings(make: Any) -> None:
    node = make(0.6, step_mode="m", surrogate_function=ATan(3.0), detach_reset=True, scale_output=True)
    node(torch.rand(4, 3, requires_grad=True)).sum().backward()
    node.reset()
    for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert twin.extra_repr() == node.extra_repr() and twin.surrogate_function == ATan(3.0)
        assert torch.equal(twin(torch.ones(4, 3)), make(0.6, step_mode="m", scale_output=True)(torch.ones(4, 3)))


def test_no_double_counting_of_shared_surrogates_across_nodes() -> None:
    shared = Sigmoid(4.0)
    nodes = [ATIFuNode(surrogate_function=shared) for _ in range(2)]
    assert nodes[0].surrogate_function is nodes[1].surrogate_function is shared
    assert not any(isinstance(m, Sigmoid) for m in nodes[0].modules())


@each_node
def test_empty_batch_and_scalar_steps_run(make: Any) -> None:
    node = make(step_mode="m")
    assert node(torch.zeros(4, 0, 3)).shape == (4, 0, 3)
    assert node(torch.full((4,), 0.5)).shape == (4,)
    node.reset()
    node.step_mode = "s"
    assert node(torch.tensor(0.5)).shape == ()


def test_a_thousand_steps_in_either_mode() -> None:
    x_seq = awkward_inputs(1000, (4,))["grid"]
    single, multi = ATIFuNode(), ATIFuNode(step_mode="m")
    with torch.no_grad():
        assert torch.equal(run(single, x_seq), multi(x_seq)) and torch.equal(single.v, multi.v)


@each_mode
def test_channels_last_state_and_spikes(mode: str) -> None:
    x_seq = torch.rand(3, 2, 8, 8, 4).permute(0, 1, 4, 2, 3)
    node = ATIFuNode(step_mode=mode)
    out = run(node, x_seq)
    assert node.v.is_contiguous(memory_format=torch.channels_last)
    assert mode == "s" or out[0].is_contiguous(memory_format=torch.channels_last)


def test_hard_reset_keeps_the_hosts_reset_value() -> None:
    node = ATIFuNode(v_reset=0.0)
    assert node.v_reset == 0.0 and isinstance(node.v_reset, float) and ATIFuNode().v_reset is None


def test_failed_forward_leaves_the_node_as_it_was() -> None:
    node = ATIFuNode(v_init=torch.tensor([0.1, 0.2]))
    before = snapshot(node)
    for wrong in (torch.rand(4, 3), torch.zeros(4, 2, dtype=torch.long), [1.0]):
        with pytest.raises((ValueError, TypeError)):
            node(wrong)
        assert node.v == 0.0
    assert_unchanged(node, before)
