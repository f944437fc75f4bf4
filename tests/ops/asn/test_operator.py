from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from snn_ext import functional, ops
from snn_ext.functional import Sigmoid
from snn_ext.ops import use_implementation
from snn_ext.ops.asn.operator import Settings
from snn_ext.ops.layout import as_steps_of, flat
from tests.ops.asn.cases import KINDS, Case, make_case, make_input
from tests.ops.emulation import available, fixtures
from tests.ops.harness import LAYOUTS, saved_tensors

RUNNING = available("adaptive_spiking")
running, running_on_cpu = fixtures("adaptive_spiking", "asn_emulator")


def settings_for(output: str) -> Settings:
    return Settings(output, False, False, 0, 4.0, 1.0)


def test_every_implementation_is_the_definition(running: str) -> None:
    Case.check_all()


def test_float64_is_the_definition_too() -> None:
    for kind in KINDS:
        for constants in ("one", "by neuron"):
            make_case(kind, 17, 63, constants=constants, height="adaptive").to(torch.float64).check_exact()
    make_case("random", 17, 63, detach_adaptation=False).to(torch.float64).check_gradients()
    make_case("random", 17, 63, height="none").to(torch.float64).check_gradients()


def test_ties_are_frequent_where_they_are_looked_for() -> None:
    case = make_case("ulp", 4, 400, constants="dyadic", analog_input=True)
    case.state, case.bias = None, None
    first = case.current_seq[0] * 0.5  # what the filter lets through
    theta = torch.tensor(0.125)
    assert (first == theta).any() and (first == torch.nextafter(theta, theta + 1)).any()
    spikes = case.run(ops)[0][0]
    assert torch.equal(spikes != 0, first > theta) and 0.1 < spikes.mean() < 0.9


def test_chunks_of_time_carry_the_state(running: str) -> None:
    x_seq = make_input("random", 40, 30)
    want, want_state = ops.adaptive_spiking(x_seq)
    state, parts = None, []
    for part in x_seq.split((1, 16, 20, 3)):
        spike_seq, state = ops.adaptive_spiking(part, state)
        parts.append(spike_seq)
    assert torch.equal(torch.cat(parts), want) and all(map(torch.equal, state, want_state))


def test_filter_then_spike_is_the_whole_neuron(running: str) -> None:
    x_seq, bias = make_input("sixteenths", 40, 30), torch.rand(30)
    want, _ = ops.adaptive_spiking(x_seq, bias=bias)
    s_seq, _ = ops.postsynaptic_potential(x_seq)
    assert torch.equal(ops.adaptive_spiking(s_seq, bias=bias, analog_input=True, tau_phi=0.0)[0], want)


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_the_input_and_a_sixteenth_of_the_states_are_kept(running: str) -> None:
    x_seq = torch.rand(64, 1000, requires_grad=True)
    with saved_tensors() as saved:
        ops.adaptive_spiking(x_seq)
    other = sum(tensor.untyped_storage().nbytes() for tensor in saved if tensor.data_ptr() != x_seq.data_ptr())
    assert any(tensor.data_ptr() == x_seq.data_ptr() for tensor in saved)
    assert other <= 3 * 4 * 1000 * 4 + 100


def test_a_state_from_inference_mode_is_gone_on_from(running: str) -> None:
    x_seq = torch.rand(20, 9)
    with torch.inference_mode():
        _, state = ops.adaptive_spiking(x_seq)
    leaf = x_seq.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(ops.adaptive_spiking(leaf, start)[0].sum(), leaf)[0]
        for start in (state, tuple(part.clone() for part in state))
    ]
    assert torch.equal(*gradients)


def test_nothing_is_kept_without_gradients(running: str) -> None:
    x_seq = torch.rand(64, 10, requires_grad=True)
    with torch.no_grad(), saved_tensors() as saved:
        spike_seq, state = ops.adaptive_spiking(x_seq)
    assert not saved and not spike_seq.requires_grad and not any(part.requires_grad for part in state)
    start = [torch.zeros(())] * 5
    for output, keep in (("spikes", False), ("potential", True)):
        out = torch.ops.snn_ext.adaptive_spiking(x_seq, *start, torch.rand(6), *settings_for(output), keep)
        assert len(out[-1]) == 0


# -- shapes, layouts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(running: str, layout: str) -> None:
    x_seq = LAYOUTS[layout](make_input("random", 5, 3 * 4 * 5 * 6).reshape(5, 3, 4, 5, 6)).detach().requires_grad_()
    bias = (torch.rand(4, 1, 1) * 0.1).requires_grad_()
    state = tuple(torch.rand(shape) * 0.1 for shape in ((3, 4, 5, 6), (1, 4, 1, 6), (6,), ()))
    m_f, weight = torch.rand(3, 1, 1, 1) + 0.05, torch.randn(x_seq.shape)
    results = []
    for module in (ops, functional):
        spike_seq, end = module.adaptive_spiking(x_seq, state, bias=bias, m_f=m_f, detach_adaptation=False)
        results.append(
            (spike_seq, *end, *torch.autograd.grad((spike_seq * weight).sum() + end.s_hat.sum(), [x_seq, bias]))
        )
    assert all(map(torch.equal, results[0][:5], results[1][:5]))
    for found, want in zip(results[0][5:], results[1][5:], strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_constants_follow_the_order_of_the_input() -> None:
    x_seq = LAYOUTS["channels_last"](torch.rand(4, 2, 3, 5, 5))
    constants = torch.rand(6, 2, 3, 5, 5)
    assert torch.equal(flat(as_steps_of(x_seq, constants)[3], 150), flat(x_seq.copy_(constants[3]), 4, 150)[0])


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (1, 1), (2, 3, 1, 4)])
def test_small_and_empty_shapes(running: str, shape: tuple[int, ...]) -> None:
    x_seq = torch.rand(3, *shape, requires_grad=True)
    for m_f in (0.1, torch.full(shape, 0.1)):
        results = []
        for module in (ops, functional):
            spike_seq, end = module.adaptive_spiking(x_seq, m_f=m_f)
            results.append((spike_seq, *end, *torch.autograd.grad(spike_seq.sum() + end.s.sum(), x_seq)))
        for found, want in zip(*results, strict=True):
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_the_input_is_not_modified(running: str) -> None:
    leaves = [torch.rand(17, 9), *(torch.rand(9) for _ in range(5))]
    before = [leaf.clone() for leaf in leaves]
    x_seq, bias, *state = (leaf.requires_grad_() for leaf in leaves)
    spike_seq, end = ops.adaptive_spiking(x_seq, tuple(state), bias=bias)
    (spike_seq.sum() + end.s_hat.sum()).backward()
    assert all(map(torch.equal, leaves, before))


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_one_incoming_gradient_is_enough(running: str) -> None:
    case = make_case("random", 18, 12, detach_adaptation=False)
    for which in range(5):
        incoming = [torch.zeros(case.current_seq.shape), *(torch.zeros(12) for _ in range(4))]
        incoming[which] = torch.ones_like(incoming[which])
        found, want = case.gradients(ops, incoming), case.gradients(functional, incoming)
        for name in want:
            torch.testing.assert_close(found[name], want[name], rtol=1e-5, atol=1e-5)


def test_the_same_bits_for_any_number_of_threads(running_on_cpu: str) -> None:
    x_seq, weight = torch.randn(4, 50_001), torch.randn(4, 50_001)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = x_seq.clone().requires_grad_()
            spike_seq, state = ops.adaptive_spiking(leaf)
            found.append(
                (spike_seq.detach(), *(part.detach() for part in state), *torch.autograd.grad(spike_seq, leaf, weight))
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_a_second_backward_says_so(running: str) -> None:
    x_seq = torch.rand(4, 10, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.adaptive_spiking(x_seq)[0].square().sum(), x_seq, create_graph=True)
    with pytest.raises(RuntimeError, match="adaptive_spiking: a second backward"):
        gradient.sum().backward()


def test_what_only_the_definition_can_do_says_so_when_forced() -> None:
    def triangle(u: Tensor) -> Tensor:
        return u.clamp(-1, 1)

    x_seq, m_f = torch.rand(30, 10), torch.tensor(0.1, requires_grad=True)
    for settings in ({"surrogate": triangle}, {"m_f": m_f}):
        found, want = (
            module.adaptive_spiking(x_seq, detach_adaptation=False, **settings) for module in (ops, functional)
        )
        assert torch.equal(found[0], want[0])
        with use_implementation("cpu"), pytest.raises(RuntimeError, match="cannot run: (the surro|a constant)"):
            ops.adaptive_spiking(x_seq, **settings)
    (gradient,) = torch.autograd.grad(found[1].adaptation.sum(), m_f)
    assert gradient.isfinite() and gradient != 0
    tau_phi = torch.tensor(5.0, requires_grad=True)
    assert torch.autograd.grad(ops.postsynaptic_potential(x_seq, tau_phi=tau_phi)[0].sum(), tau_phi)[0] != 0
    with torch.no_grad(), use_implementation("cpu"):
        ops.adaptive_spiking(x_seq, m_f=m_f)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((torch.zeros(4, 2, dtype=torch.long),), {}),
        ((torch.zeros(0, 2),), {}),
        ((torch.zeros(4, 2), torch.zeros(2)), {}),
        ((torch.zeros(4, 2), (torch.zeros(3),) * 4), {}),
        ((torch.zeros(4, 2),), {"bias": torch.zeros(3)}),
        ((torch.zeros(4, 2),), {"m_f": 0.0}),
        ((torch.zeros(4, 2),), {"spike_height": "tall"}),
    ],
)
def test_wrong_arguments_raise_what_the_definition_raises(arguments: tuple, settings: dict) -> None:
    with pytest.raises((TypeError, ValueError)) as want:
        functional.adaptive_spiking(*arguments, **settings)
    with pytest.raises(want.type) as found:
        ops.adaptive_spiking(*arguments, **settings)
    assert str(found.value) == str(want.value)


# -- torch.library and torch.compile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["heights", "potential"])
def test_opcheck(running_on_cpu: str, output: str) -> None:
    torch.use_deterministic_algorithms(False)  # a poisoned empty checkpoint would be compared
    x_seq = torch.rand(17, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    steps = [torch.rand(3, 2, 2, requires_grad=True) for _ in range(5)]
    for constants in (torch.rand(6), torch.rand(6, 3, 2, 2)):
        arguments = (x_seq, *steps, constants, *settings_for(output), True)
        torch.library.opcheck(torch.ops.snn_ext.adaptive_spiking.default, arguments)
    outputs = [out.detach() for out in torch.ops.snn_ext.adaptive_spiking(*arguments)]
    incoming = [out if out.numel() else None for out in outputs[:5]]
    tensors = [tensor.detach() for tensor in (x_seq, *steps, constants)]
    arguments = (*incoming, *tensors, outputs[5], *settings_for(output))
    torch.library.opcheck(torch.ops.snn_ext.adaptive_spiking_backward.default, (*arguments, [True] * 4 + [False] * 2))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(running_on_cpu: str, dynamic: bool) -> None:
    def step(x_seq: Tensor, state: tuple[Tensor, ...] | None, m_f: Tensor) -> tuple[Tensor, ...]:
        spike_seq, state = ops.adaptive_spiking(2 * x_seq, state, m_f=m_f, surrogate=Sigmoid(2.0))
        spike_seq, state = ops.adaptive_spiking(spike_seq, state, bias=0.1, spike_height="adaptive")
        return spike_seq.square(), *state, ops.postsynaptic_potential(spike_seq)[0]

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for time_steps, size in ((17, 5), (4, 7))[: 1 + dynamic]:  # one graph for both shapes, if for any
        results = []
        for function in (compiled, step):
            torch.manual_seed(0)
            x_seq, m_f = torch.rand(time_steps, size, 3, requires_grad=True), torch.rand(size, 1)
            outputs = function(x_seq, None, m_f)
            outputs[0].sum().backward()
            results.append((*outputs, x_seq.grad))
        assert all(map(torch.equal, *results))
    torch._dynamo.reset()


def test_meta_tensors() -> None:
    spike_seq, state = ops.adaptive_spiking(torch.empty(4, 3, 2, device="meta"))
    assert spike_seq.shape == (4, 3, 2) and state.s_hat.shape == (3, 2) and spike_seq.is_meta


def test_trained_in_a_net(running_on_cpu: str) -> None:
    layer = nn.Linear(4, 8)
    spike_seq, _ = ops.adaptive_spiking(layer(torch.rand(20, 3, 4)), analog_input=True)
    spike_seq.mean().backward()
    assert layer.weight.grad is not None and (layer.weight.grad != 0).any()
