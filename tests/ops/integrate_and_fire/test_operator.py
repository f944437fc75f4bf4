from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snn_ext import functional, ops
from snn_ext.functional import Sigmoid
from snn_ext.ops import implementation, use_implementation
from snn_ext.ops.integrate_and_fire.operator import Settings
from snn_ext.ops.layout import as_step_of, dense, in_order_of
from snn_ext.ops.machine import torch_parts
from tests.ops.emulation import available, fixtures
from tests.ops.harness import LAYOUTS, saved_tensors
from tests.ops.integrate_and_fire.cases import KINDS, Case, make_case, make_input

RUNNING = available("integrate_and_fire")
running, running_on_cpu = fixtures("integrate_and_fire", "emulator")
SETTINGS = Settings("subtract", True, False, 0, 4.0, 1.0)
THETA = torch.tensor([1.0])


@pytest.mark.slow
def test_every_implementation_is_the_definition(running: str) -> None:
    Case.check_all()


def test_float64_is_the_definition_too() -> None:
    for kind in KINDS:
        make_case(kind, 17, 63, torch.float64).check_exact()
    make_case("random", 17, 63, torch.float64).check_gradients()


def test_large_chunks_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_parts, "_CHUNK", 300)
    monkeypatch.setattr(torch_parts, "_LARGE_CHUNK", 500)
    with use_implementation("torch"):
        for time_steps, size in ((4, 1999), (4, 2207), (33, 2207)):
            make_case("sixteenths", time_steps, size).check_exact()
            make_case("random", time_steps, size).check_gradients()


def test_output_in_fresh_memory(running_on_cpu: str) -> None:
    torch.use_deterministic_algorithms(False)  # poisoned memory is there already
    make_case("sixteenths", 4, 2_200_007).check_exact()


def test_thousands_of_steps(running: str) -> None:
    make_case("sixteenths", 3000, 7).check_exact()


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("time_steps", [1, 4, 16])
def test_the_input_alone_is_kept_up_to_sixteen_steps(running: str, time_steps: int, dtype: torch.dtype) -> None:
    x_seq = torch.rand(time_steps, 1000).to(dtype).requires_grad_()
    with saved_tensors() as saved:
        ops.integrate_and_fire(x_seq, 0.0, THETA)
    other = sum(tensor.untyped_storage().nbytes() for tensor in saved if tensor.data_ptr() != x_seq.data_ptr())
    assert any(tensor.data_ptr() == x_seq.data_ptr() for tensor in saved)
    assert other <= 16, f"kept beside the input: {other} bytes"


def test_checkpoints_are_a_sixteenth(running: str) -> None:
    x_seq = torch.rand(64, 1000, requires_grad=True)
    with saved_tensors() as saved:
        ops.integrate_and_fire(x_seq, 0.0, THETA)
    other = sum(tensor.untyped_storage().nbytes() for tensor in saved if tensor.data_ptr() != x_seq.data_ptr())
    assert other <= 3 * 1000 * 4 + 16


@pytest.mark.parametrize("time_steps", [4, 20])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_kept_are_tensors(time_steps: int, scaled: bool) -> None:
    # torchviz and other walkers of the graph ask each of them for its size.
    leaves = [torch.rand(time_steps, 5, requires_grad=True), *(torch.full((1,), 0.7).requires_grad_() for _ in "ab")]
    spike_seq, _ = ops.integrate_and_fire(leaves[0], 0.0, leaves[1], scale=leaves[2] if scaled else None)
    kept = spike_seq.grad_fn.saved_tensors
    assert len(kept) == 4 + scaled and all(isinstance(tensor, Tensor) for tensor in kept)
    want = functional.integrate_and_fire(leaves[0], 0.0, leaves[1], scale=leaves[2] if scaled else None)[0]
    used = leaves[: 2 + scaled]
    for a, b in zip(*(torch.autograd.grad(out.sum(), used) for out in (spike_seq, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_state_from_inference_mode_is_gone_on_from(running: str) -> None:
    x_seq, thresholds = torch.rand(4, 9), torch.ones(1, requires_grad=True)
    with torch.inference_mode():
        _, v = ops.integrate_and_fire(x_seq, 0.0, THETA)
        frozen = thresholds.detach().clone()
    for start, theta in ((v, thresholds), (v, frozen)):
        leaf = x_seq.clone().requires_grad_()
        spike_seq, end = ops.integrate_and_fire(leaf, start, theta)
        (gradient,) = torch.autograd.grad(spike_seq.sum() + end.sum(), leaf)
        want = ops.integrate_and_fire(leaf, start.clone(), theta.clone())
        assert torch.equal(gradient, *torch.autograd.grad(want[0].sum() + want[1].sum(), leaf))


def test_nothing_is_kept_without_gradients(running: str) -> None:
    x_seq = torch.rand(64, 10, requires_grad=True)
    with torch.no_grad(), saved_tensors() as saved:
        spike_seq, v = ops.integrate_and_fire(x_seq, 0.0, nn.Parameter(THETA))
    assert not saved and not spike_seq.requires_grad and not v.requires_grad
    assert len(torch.ops.snn_ext.integrate_and_fire(x_seq, v, THETA, *[None] * 5, *SETTINGS, False)[2]) == 0


# -- shapes, layouts, values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(running: str, layout: str) -> None:
    x_seq = LAYOUTS[layout](make_input("sixteenths", 5, 3 * 4 * 5 * 6, THETA).reshape(5, 3, 4, 5, 6))
    v = torch.randint(-4, 5, (4, 1, 1)) / 8
    weight = torch.randn(x_seq.shape)
    results = []
    for function in (ops.integrate_and_fire, functional.integrate_and_fire):
        leaves = [x_seq.detach().requires_grad_(), v.clone().requires_grad_(), THETA.clone().requires_grad_()]
        spike_seq, v_end = function(*leaves)
        grads = torch.autograd.grad((spike_seq * weight).sum() + v_end.sum(), leaves)
        results.append((spike_seq, v_end, *grads))
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    dense = layout not in ("time inside", "every other", "expanded")
    assert (results[0][0].stride() == x_seq.stride()) == dense
    assert results[0][0].is_contiguous() or dense


def test_channels_last_is_not_copied() -> None:
    x_seq = LAYOUTS["channels_last"](torch.rand(4, 2, 3, 5, 5))
    spike_seq, v = ops.integrate_and_fire(x_seq, 0.0, THETA)
    assert dense(x_seq) is x_seq
    assert in_order_of(x_seq, spike_seq) is spike_seq
    assert as_step_of(x_seq, v) is v


@pytest.mark.parametrize("shape", [(3,), (3, 0), (1, 1), (2, 5), (2, 3, 1, 4)])
def test_small_and_empty_shapes(running: str, shape: tuple[int, ...]) -> None:
    leaves = [torch.rand(shape, requires_grad=True), torch.tensor(0.5, requires_grad=True), nn.Parameter(THETA)]
    results = []
    for function in (ops.integrate_and_fire, functional.integrate_and_fire):
        outputs = function(*leaves)
        grads = torch.autograd.grad(sum(o.sum() for o in outputs), leaves)
        results.append((*outputs, *grads))
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 0.0, -1.0])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_strange_thresholds_and_scales(running: str, value: float, reset: str) -> None:
    case = make_case("special", 4, 100, reset=reset)
    case.thresholds = torch.tensor([value])
    case.check_exact()
    case = make_case("special", 4, 100, reset=reset)
    case.scale = value
    case.check_exact()


def test_states_and_thresholds_of_other_dtypes(running: str) -> None:
    case = make_case("random", 4, 64, torch.bfloat16)
    case.v, case.thresholds = torch.rand(64, dtype=torch.float64), torch.rand(4, dtype=torch.float16) + 0.5
    case.check_exact()


def test_the_input_is_not_modified(running: str) -> None:
    tensors = [torch.rand(17, 9), torch.rand(9), THETA.clone()]
    before = [tensor.clone() for tensor in tensors]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    spike_seq, v = ops.integrate_and_fire(*leaves)
    (spike_seq.sum() + v.sum()).backward()
    assert all(map(torch.equal, tensors, before))


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", range(4))
def test_gradients_on_their_own(running: str, trained: int) -> None:
    tensors = [torch.rand(18, 30), torch.rand(30), torch.rand(18) + 0.5, torch.tensor(0.7)]
    everything = [tensor.clone().requires_grad_() for tensor in tensors]
    tensors[trained].requires_grad_()
    for leaves in (tensors, everything):
        x_seq, v, thresholds, scale = leaves
        spike_seq, v_end = ops.integrate_and_fire(x_seq, v, thresholds, scale=scale)
        (spike_seq.sum() + v_end.sum()).backward()
    assert torch.equal(tensors[trained].grad, everything[trained].grad)
    assert [tensor.grad is None for tensor in tensors].count(False) == 1


def test_one_incoming_gradient_is_enough(running: str) -> None:
    x_seq = torch.rand(4, 10, requires_grad=True)
    for output in (0, 1):
        (found,) = torch.autograd.grad(ops.integrate_and_fire(x_seq, 0.0, THETA)[output].sum(), x_seq)
        (want,) = torch.autograd.grad(functional.integrate_and_fire(x_seq, 0.0, THETA)[output].sum(), x_seq)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_the_same_bits_for_any_number_of_threads(running: str) -> None:
    x_seq, weight = torch.randn(4, 50_001), torch.randn(4, 50_001)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaves = [t.clone().requires_grad_() for t in (x_seq, torch.tensor(0.5), THETA, THETA)]
            spike_seq, _ = ops.integrate_and_fire(*leaves[:3], scale=leaves[3])
            found.append(torch.autograd.grad(spike_seq, leaves, weight))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_a_second_backward_says_so(running: str) -> None:
    x_seq = torch.rand(4, 10, requires_grad=True)
    spike_seq, _ = ops.integrate_and_fire(x_seq, 0.0, THETA)
    (gradient,) = torch.autograd.grad(spike_seq.square().sum(), x_seq, create_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        gradient.sum().backward()
    spike_seq, _ = ops.integrate_and_fire(x_seq, 0.0, THETA)
    spike_seq.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        spike_seq.sum().backward()


def test_an_unknown_surrogate_runs_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    def triangle(u: Tensor) -> Tensor:
        return u.clamp(-1, 1)

    x_seq = torch.rand(4, 10, requires_grad=True)
    found = ops.integrate_and_fire(x_seq, 0.0, THETA, surrogate=triangle)[0]
    want = functional.integrate_and_fire(x_seq, 0.0, THETA, surrogate=triangle)[0]
    grads = [torch.autograd.grad(out.sum(), x_seq)[0] for out in (found, want)]
    assert torch.equal(found, want) and torch.equal(*grads)
    chosen = implementation("integrate_and_fire", "cpu", surrogate=triangle)
    assert chosen.name == "torch" and "triangle" in chosen.unavailable["cpu"]
    with use_implementation("cpu"), pytest.raises(RuntimeError, match="not one of the known curves"):
        ops.integrate_and_fire(x_seq, 0.0, THETA, surrogate=triangle)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(4, 2, dtype=torch.long), 0.0, THETA),
        (torch.zeros(0, 2), 0.0, THETA),
        (torch.zeros(4, 2), torch.zeros(3), THETA),
        (torch.zeros(4, 2), "0", THETA),
        (torch.zeros(4, 2), 0.0, torch.ones(3)),
        (torch.zeros(4, 2), 0.0, 1.0),
    ],
)
def test_wrong_arguments_raise_what_the_definition_raises(arguments: tuple) -> None:
    with pytest.raises((TypeError, ValueError)) as want:
        functional.integrate_and_fire(*arguments)
    with pytest.raises(want.type) as found:
        ops.integrate_and_fire(*arguments)
    assert str(found.value) == str(want.value)


# -- torch.library and torch.compile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("time_steps", [4, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(running_on_cpu: str, time_steps: int, dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(False)  # a poisoned empty checkpoint would be compared
    x_seq = torch.rand(time_steps, 3, 2, 2).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    v, thresholds = torch.rand(3, 2, 2, requires_grad=True), torch.rand(time_steps, requires_grad=True)
    for scale in (None, torch.tensor(0.5, requires_grad=True)):
        arguments = (x_seq, v, thresholds, scale, *[None] * 4, *SETTINGS, True)
        torch.library.opcheck(torch.ops.snn_ext.integrate_and_fire.default, arguments)
    spike_seq, v_end, checkpoints = (out.detach() for out in torch.ops.snn_ext.integrate_and_fire(*arguments))
    tensors = (x_seq, v, thresholds, scale)
    arguments = (spike_seq, v_end, *(tensor.detach() for tensor in tensors), *[None] * 4, checkpoints, *SETTINGS)
    for wanted in ([True] * 4 + [False] * 3, [True, False, False, True, *[False] * 3]):
        torch.library.opcheck(torch.ops.snn_ext.integrate_and_fire_backward.default, (*arguments, wanted))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(running: str, dynamic: bool) -> None:
    def step(x_seq: Tensor, v: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        spike_seq, v = ops.integrate_and_fire(2 * x_seq, v, thresholds, surrogate=Sigmoid(2.0), scale=thresholds[:1])
        return spike_seq.square(), v

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (5, 6):
        results = []
        for function in (compiled, step):
            torch.manual_seed(size)
            leaves = [torch.rand(17, size, 3, requires_grad=True), torch.rand(size, 3), nn.Parameter(torch.ones(17))]
            outputs = function(*leaves)
            outputs[0].sum().backward()
            with torch.no_grad():
                results.append((*outputs, leaves[0].grad, leaves[2].grad, *function(*leaves)))
        assert all(map(torch.equal, *results))
    torch._dynamo.reset()


def test_meta_tensors() -> None:
    spike_seq, v = ops.integrate_and_fire(torch.empty(4, 3, 2, device="meta"), 0.0, torch.ones(1, device="meta"))
    assert spike_seq.shape == (4, 3, 2) and v.shape == (3, 2) and spike_seq.is_meta
