"""PyTorch's own tools with the neurons of both hosts: compiler, meta device, inference mode, function transforms."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from snntorch import utils as snntorch_utils
from spikingjelly.activation_based import memopt
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from snn_ext.snntorch import ATIFnu
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode

from .hosts import NEURONS, NODES, grid, reset, steps

BOTH = NODES | NEURONS


@pytest.fixture
def dynamo() -> Iterator[torch._dynamo.testing.CompileCounter]:
    torch._dynamo.reset()
    yield torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()


# -- the compiler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [*((name, None) for name in BOTH), ("ATIFnuNode", True), ("ATIFnu", True), ("ASNNode", True)],  # T, most state
)
def test_steps_share_their_graphs(name: str, dynamic: bool | None, dynamo: Any) -> None:
    # One graph for the first step, one for all others, one for the first after a reset; not one for each step.
    neuron, plain = BOTH[name](), BOTH[name]()
    compiled = torch.compile(neuron, backend=dynamo, fullgraph=True, dynamic=dynamic)
    for seed in range(2):
        x_seq = grid(seed=seed)
        reset(neuron), reset(plain)
        assert torch.equal(steps(compiled, x_seq), steps(plain, x_seq))
    assert dynamo.frame_count <= 3


@pytest.mark.parametrize("name", ["ATIFnuNode", "ATIFnu"])
def test_compiled_steps_beyond_the_last_threshold_raise(name: str, dynamo: Any) -> None:
    compiled = torch.compile(BOTH[name](), backend=dynamo, fullgraph=True)
    steps(compiled, grid())
    with pytest.raises(RuntimeError, match=r"more than T=4 steps.*reset the net"):
        compiled(grid()[0])


def test_the_default_backend_gives_equal_spikes(dynamo: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), ATIFuNode(0.5), nn.Linear(8, 5), ATIFnuNode(T=4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 16).round() / 16)  # sums are exact: no other order of them can differ
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(steps(compiled, grid(shape=(6, 3))), steps(twin, grid(shape=(6, 3))))


# -- the meta device --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_start_values_come_back_after_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(3, 3), BOTH[name]() if "nu" not in name else _uniform(name))
    assert all(value.is_meta for value in net.state_dict().values())
    net.to_empty(device="cpu")
    neuron: Any = net[1]
    for tensor in (*neuron.parameters(), *neuron.buffers()):
        tensor.data.fill_(torch.nan if tensor.is_floating_point() else 7)
    neuron.reset_parameters()
    want = BOTH[name]() if "nu" not in name else _uniform(name)
    assert all(torch.equal(value, neuron.state_dict()[key]) for key, value in want.state_dict().items())
    assert torch.equal(steps(neuron, grid()), steps(want, grid()))


def _uniform(name: str) -> Any:
    return {"ATIFnuNode": ATIFnuNode, "ATIFnu": ATIFnu}[name](0.75, T=4, v_init=0.25, **_hidden(name))


def _hidden(name: str) -> dict[str, bool]:
    return {"init_hidden": True} if name == "ATIFnu" else {}


@pytest.mark.parametrize("name", BOTH)
def test_reset_parameters_undoes_training_and_changed_shapes(name: str) -> None:
    neuron = BOTH[name]()
    want = {key: value.clone() for key, value in neuron.state_dict().items()}
    for parameter in neuron.parameters():
        parameter.data.mul_(3.0)
    if hasattr(neuron, "set_precision"):
        neuron.set_precision(torch.tensor([0.1, 0.2, 0.3]))
    else:
        neuron.v_init = torch.tensor([0.1, 0.2, 0.3])
    neuron(grid()[0])
    neuron.reset_parameters()
    assert all(torch.equal(value, want[key]) for key, value in neuron.state_dict().items())
    assert torch.equal(steps(neuron, grid()), steps(BOTH[name](), grid()))  # from a fresh state


def test_a_node_alone_can_be_emptied() -> None:
    with torch.device("meta"):
        node = ASNNode(0.5, bias=nn.Parameter(torch.ones(3, device="cpu")))
    node.to_empty(device="cpu").reset_parameters()
    assert node.v_threshold.item() == 0.5 and node.bias.tolist() == [1.0, 1.0, 1.0]


def test_the_copy_for_other_steps_starts_from_its_own_points() -> None:
    twin = ATIFnuNode(torch.tensor([1.0, 0.6, 0.3, 0.1]), T=4).at(2)
    points = twin.p.tolist()
    twin.p.data.zero_()
    twin.reset_parameters()
    assert twin.p.tolist() == points and twin.T == 2


def test_values_that_the_meta_device_does_not_have_are_asked_for() -> None:
    nothing = torch.empty(4, device="meta")
    for make in (
        lambda: ATIFuNode(nothing[:1]),
        lambda: ATIFuNode(v_init=nothing),
        lambda: ATIFnuNode(nothing, T=4),
        lambda: ASNNode(m_f=nothing),
    ):
        with pytest.raises(ValueError, match="meta device"):
            make()


@pytest.mark.parametrize("name", BOTH)
def test_runs_on_the_meta_device_and_beside_a_default_device(name: str) -> None:
    x_seq, neuron, want = grid(), BOTH[name](), steps(BOTH[name](), grid())
    torch.set_default_device("meta")
    try:
        found = [neuron(x) for x in x_seq]
        abstract = _uniform(name) if "nu" in name else BOTH[name]()
        assert [abstract(torch.empty(2, 3)).is_meta for _ in range(2)] == [True, True]
    finally:
        torch.set_default_device(None)
    assert torch.equal(torch.stack(found), want)


# -- inference mode, dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_training_goes_on_from_a_state_of_inference_mode(name: str) -> None:
    x_seq = grid()
    neuron, plain = BOTH[name](), BOTH[name]()
    with torch.inference_mode():
        neuron(x_seq[0])
    plain(x_seq[0])
    x = x_seq[1:].clone().requires_grad_()
    spikes = steps(neuron, x)
    spikes.sum().backward()
    assert x.grad is not None and x.grad.any()
    assert torch.equal(spikes, steps(plain, x_seq[1:]))


@pytest.mark.parametrize("name", BOTH)
def test_dtype_may_change_between_steps(name: str) -> None:
    x_seq = grid()
    neuron, want = BOTH[name](), steps(BOTH[name](), x_seq)
    found = [neuron(x_seq[0]), neuron.double()(x_seq[1].double()), neuron.half()(x_seq[2].half())]
    assert [out.dtype for out in found] == [torch.float32, torch.float64, torch.float16]
    if "ASN" not in name:  # constants of 16 bits are others
        assert torch.equal(torch.stack([out.float() for out in found]), want[:3])


@pytest.mark.parametrize("name", BOTH)
def test_default_dtype_of_64_bits_changes_nothing(name: str) -> None:
    want = steps(BOTH[name](), grid())
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(steps(BOTH[name](), grid().float()), want)
    finally:
        torch.set_default_dtype(torch.float32)


# -- transforms, sharing, copies --------------------------------------------------------------------------------------


def derivative(function: Any, x: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", BOTH)
def test_forward_mode_never_gives_a_derivative_of_nothing(name: str, mode: str) -> None:
    # The definition's derivative is that of the surrogate, which is zero nowhere; an error is right as well.
    x = grid() if mode == "m" else grid()[0]
    for by in (derivative, lambda function, x: torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]):
        neuron = BOTH[name](step_mode=mode)
        try:
            tangent = by(neuron, x)
        except (RuntimeError, NotImplementedError):
            continue
        assert tangent is not None and (tangent != 0).all()


@pytest.mark.parametrize("name", BOTH)
def test_functional_call_uses_the_parameters_given(name: str) -> None:
    neuron = BOTH[name]()
    tensors = {key: value for key, value in neuron.state_dict().items() if key == neuron.threshold_name}
    silent = torch.func.functional_call(neuron, {key: value * 1e3 for key, value in tensors.items()}, grid()[0] + 0.1)
    reset(neuron)
    assert not silent.any() and neuron(grid()[0] + 0.1).any()


@pytest.mark.parametrize("name", ["ATIFuNode", "ATIFnuNode", "ATIFu", "ATIFnu", "PCMPIF"])
def test_thresholds_may_be_parametrised_and_shared(name: str) -> None:
    class Larger(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e3 * x

    neuron, other = BOTH[name](), BOTH[name]()
    setattr(other, other.threshold_name, getattr(neuron, neuron.threshold_name))
    assert neuron._raw_threshold() is other._raw_threshold()
    torch.nn.utils.parametrize.register_parametrization(neuron, neuron.threshold_name, Larger())
    assert not neuron(grid()[0] + 0.1).any()
    torch.nn.utils.parametrize.remove_parametrizations(neuron, neuron.threshold_name, leave_parametrized=False)
    reset(neuron)
    assert neuron(grid()[0] + 0.1).any()


@pytest.mark.parametrize("name", BOTH)
def test_a_replica_of_data_parallel_leaves_the_state_of_the_neuron_alone(name: str) -> None:
    neuron, x_seq = BOTH[name](), grid()
    first = neuron(x_seq[0])
    replica = neuron._replicate_for_data_parallel()
    for key, value in (*neuron.named_parameters(), *neuron.named_buffers()):
        setattr(replica, key, value.detach())  # as torch.nn.parallel.replicate does, with tensors of another device
    assert replica(x_seq[1]).shape == x_seq[1].shape
    assert torch.equal(torch.stack((first, neuron(x_seq[1]))), steps(BOTH[name](), x_seq[:2]))


@pytest.mark.parametrize("name", BOTH)
def test_share_memory_and_apply_keep_the_state(name: str) -> None:
    neuron, x_seq = BOTH[name](), grid()
    first = neuron(x_seq[0])
    neuron.share_memory()
    neuron.apply(lambda module: None)
    assert torch.equal(torch.stack((first, neuron(x_seq[1]))), steps(BOTH[name](), x_seq[:2]))


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", BOTH)
def test_a_copy_in_the_middle_of_a_graph_carries_the_values_of_the_state(name: str, mode: str) -> None:
    neuron, x_seq = BOTH[name](step_mode=mode), grid()
    if name in NODES:
        neuron.store_v_seq = True
    first, rest = (x_seq[0], x_seq[1]) if mode == "s" else (x_seq[:2], x_seq[2:])
    x = first.clone().requires_grad_()
    spikes = neuron(x)
    twins = copy.deepcopy(nn.Sequential(neuron))[0], pickle.loads(pickle.dumps(neuron)), copy.copy(neuron)
    want = neuron(rest)
    (want.sum() + spikes.sum()).backward()  # a copy leaves the graph of the original alone
    assert x.grad is not None and x.grad.any()
    for twin in twins:
        assert torch.equal(twin(rest), want)


@pytest.mark.parametrize("name", NEURONS)
def test_a_copy_is_reset_by_the_host(name: str) -> None:
    net = nn.Sequential(BOTH[name]())
    twin, x_seq = copy.deepcopy(net), grid()
    want = steps(twin, x_seq)
    snntorch_utils.reset(net)
    assert torch.equal(steps(twin, x_seq), want)


# -- activation checkpointing -----------------------------------------------------------------------------------------


def gradients(neuron: Any, reentrant: bool | None, resets: bool) -> tuple[Tensor, Tensor]:
    weight = torch.full((3,), 0.75, requires_grad=True)

    def run(x_seq: Tensor) -> Tensor:
        if resets:
            reset(neuron)
        return steps(neuron, x_seq * weight)

    reset(neuron)
    x = grid().requires_grad_()
    out = run(x) if reentrant is None else checkpoint(run, x, use_reentrant=reentrant)
    (out * grid(seed=1)).sum().backward()
    assert x.grad is not None and weight.grad is not None
    return x.grad, weight.grad


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", BOTH)
def test_recomputation_gives_the_same_gradients_or_an_error(name: str, reentrant: bool) -> None:
    neuron = BOTH[name]()
    with pytest.raises(RuntimeError, match=r"inside a backward pass .*checkpoint.*reset the net at the beginning"):
        gradients(neuron, reentrant, resets=False)
    for got, want in zip(gradients(neuron, reentrant, True), gradients(neuron, None, True), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("name", NODES)
def test_checkpoints_that_keep_the_states_give_the_gradients_without_them(name: str, chunks: int) -> None:
    net = nn.Sequential(nn.Linear(3, 3), NODES[name](step_mode="m"), nn.Linear(3, 3))
    found = []
    for run in (net, memopt.checkpoint_module(net, chunks=chunks)):
        reset_net(net)
        x = grid().requires_grad_()
        torch.cat([run(x[:2]), run(x[2:])]).square().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", BOTH)
def test_a_sequence_inside_a_backward_pass_may_run(name: str) -> None:
    neuron, other, x_seq, found = BOTH[name](), BOTH[name](), grid(), list[Tensor]()
    want = steps(BOTH[name](), x_seq)

    def hook(grad: Tensor) -> None:
        reset(neuron)
        found.append(steps(neuron, x_seq))

    steps(neuron, x_seq)
    x = x_seq.clone().requires_grad_()
    x.register_hook(hook)
    steps(other, x).sum().backward()
    assert torch.equal(found[0], want)


def test_a_step_that_was_not_compiled_breaks_no_graph(dynamo: Any) -> None:
    for name in BOTH:
        neuron = BOTH[name]()
        neuron(grid()[0])
        torch.compile(neuron, backend=dynamo, fullgraph=True)(grid()[1])


# -- thresholds below their floor -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ATIFuNode", "ATIFnuNode", "ATIFu", "ATIFnu", "PCMPIF", "ASN"])
def test_training_below_the_floor_is_told_once_by_the_step_that_uses_it(name: str) -> None:
    neuron = BOTH[name](learn_threshold=True) if name in ("PCMPIF", "ASN") else BOTH[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(neuron, grid())
    neuron._raw_threshold().data.fill_(-5.0)
    assert "-5 (1e-06 in use)" in repr(neuron)
    reset(neuron)
    message = f"{neuron.threshold_name}: got -5 by training, want at least 1e-06"
    with pytest.warns(UserWarning, match=message) as caught:
        steps(neuron, grid() + 1.0)
        neuron.train()
    assert len(caught) == 1 and caught[0].filename == steps.__code__.co_filename
