"""torch.func and forward mode through the definitions and through the operators, against the plain backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from snn_ext import AAN, functional, ops
from snn_ext.functional import ATan, Erf, PiecewiseExp, Sigmoid, SoftSign, SuperSpike
from snn_ext.ops import use_implementation
from tests.hosts import COMPILER

SHAPE = (6, 3)
SURROGATES = (Sigmoid(4.0), ATan(2.0, gain=0.5), PiecewiseExp(2.0), SoftSign(2.0), SuperSpike(1.5), Erf(1.0))


def bump(u: Tensor) -> Tensor:
    """A surrogate that is none of the known curves: its gradient alone counts."""
    return torch.tanh(2 * u) / 2


def integrate_and_fire(module: Any, **settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def run(x: Tensor, theta: Tensor) -> Tensor:
        spike_seq, v = module.integrate_and_fire(x, 0.25 * theta[0], theta, scale=theta[:1], **settings)
        return torch.cat((spike_seq, v[None]))

    return run


def adaptive(module: Any, **settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def run(x: Tensor, theta: Tensor) -> Tensor:
        spike_seq, state = module.adaptive_spiking(
            x, bias=0.1 * theta[0], analog_input=True, **{"detach_adaptation": False, **settings}
        )
        return torch.cat((spike_seq, torch.stack(state)))

    return run


def potential(module: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, theta: module.postsynaptic_potential(x, bias=theta[0])[0]


def transfer(module: Any, **settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, theta: theta[0] * module.asn_transfer(x, **settings)


MAKES = {
    "subtract": lambda module: integrate_and_fire(module),
    "zero": lambda module: integrate_and_fire(module, reset="zero", fire_at_threshold=False),
    "detached": lambda module: integrate_and_fire(module, detach_reset=True),
    "unknown surrogate": lambda module: integrate_and_fire(module, surrogate=bump),
    "adaptive": lambda module: adaptive(module),
    "adaptive heights": lambda module: adaptive(module, spike_height="adaptive"),
    "potential": potential,
    "transfer": lambda module: transfer(module),
    "exact transfer": lambda module: transfer(module, exact=True),
}


@pytest.fixture(params=[functional, ops], ids=["definition", "operator"])
def module(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=MAKES)
def function(request: pytest.FixtureRequest, module: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return MAKES[request.param](module)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(SHAPE, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    return x, torch.rand(SHAPE[0], generator=generator, dtype=torch.float64) * 0.3 + 0.6


def backward(function: Callable[..., Tensor], *arguments: Tensor, seed: int = 1) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return a random weight of the output, and the gradients of the weighted sum by the plain backward pass."""
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    out = function(*leaves)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed))
    return weight, torch.autograd.grad((out * weight).sum(), leaves, materialize_grads=True)


def close(found: Any, want: Any) -> None:
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


def test_grad_is_the_backward_pass(function: Callable[..., Tensor]) -> None:
    weight, want = backward(function, *data())
    close(grad(lambda *a: (function(*a) * weight).sum(), (0, 1))(*data()), want)


def test_gradients_of_every_sample(function: Callable[..., Tensor]) -> None:
    x, theta = torch.stack([data(seed)[0] for seed in range(4)]), data()[1]
    want = [backward(function, part, theta)[1] for part in x]
    weight = backward(function, x[0], theta)[0]
    found = vmap(grad(lambda *a: (function(*a) * weight).sum(), (0, 1)), (0, None))(x, theta)
    close(found, tuple(map(torch.stack, zip(*want, strict=True))))


def test_forward_mode_agrees_with_backward(function: Callable[..., Tensor]) -> None:
    arguments = data()
    weight, gradients = backward(function, *arguments)
    directions = tuple(torch.randn_like(argument) for argument in arguments)
    want = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    assert want != 0
    _, tangent = jvp(function, arguments, directions)
    close((tangent * weight).sum(), want)
    with forward_ad.dual_level():
        out = function(*(forward_ad.make_dual(a, d) for a, d in zip(arguments, directions, strict=True)))
        close((forward_ad.unpack_dual(out).tangent * weight).sum(), want)


def test_jacobians_agree(function: Callable[..., Tensor]) -> None:
    found, want = jacfwd(function, (0, 1))(*data()), jacrev(function, (0, 1))(*data())
    close(found, want)
    assert any(part.any() for part in want)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_second_derivatives_are_differences_of_the_first(surrogate: Any) -> None:
    # With the spikes in the state detached, as those have a surrogate's derivative and no difference.
    functions = [
        integrate_and_fire(functional, surrogate=surrogate, detach_reset=True),
        adaptive(functional, surrogate=surrogate, detach_adaptation=True),
        transfer(functional, exact=True),
    ]
    for function in functions:
        x, theta = data()
        weight = backward(function, x, theta)[0]
        first = grad(lambda x, f=function, theta=theta, weight=weight: (f(x, theta) * weight).sum())
        direction, step = torch.randn_like(x), 1e-6
        want = (first(x + step * direction) - first(x - step * direction)) / (2 * step)
        for found in (jvp(first, (x,), (direction,))[1], torch.einsum("tnsm,sm->tn", jacrev(first)(x), direction)):
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_what_the_definition_runs_says_so_when_another_is_forced() -> None:
    x = torch.rand(4, 3)
    runs = [
        lambda x: ops.integrate_and_fire(x, 0.0, torch.ones(1))[0],
        lambda x: ops.adaptive_spiking(x)[0],
        lambda x: ops.postsynaptic_potential(x)[0],
        ops.asn_transfer,
    ]
    for run in runs:
        with use_implementation("cpu"):
            with pytest.raises(RuntimeError, match="cannot run: it is transformed by torch.func"):
                grad(lambda x, run=run: run(x).sum())(x)
            with forward_ad.dual_level(), pytest.raises(RuntimeError, match="cannot run: its forward-mode derivative"):
                run(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("name", ["zero", "unknown surrogate", "adaptive heights"])
def test_definitions_compile_whole_and_so_do_their_gradients(name: str) -> None:
    if name == "unknown surrogate" and COMPILER < (2, 14):
        pytest.skip("torch 2.11 cannot compile a question for the type of a function")
    function, (x, theta) = MAKES[name](functional), data()
    gradient = grad(lambda x: function(x, theta).sin().sum())
    torch._dynamo.reset()
    for each in (function, lambda x, theta: gradient(x)):
        close(torch.compile(each, fullgraph=True, backend="aot_eager")(x, theta), each(x, theta))
    torch._dynamo.reset()


def test_a_mapped_constant_is_not_looked_at() -> None:
    x, m_f = torch.rand(20, 3), torch.tensor([0.05, 0.1, 0.3])
    found = vmap(lambda m_f: ops.adaptive_spiking(x, m_f=m_f)[0])(m_f)
    assert torch.equal(found, torch.stack([ops.adaptive_spiking(x, m_f=float(m))[0] for m in m_f]))
    found = vmap(lambda m_f: functional.asn_transfer(x, m_f))(m_f)
    torch.testing.assert_close(found, torch.stack([functional.asn_transfer(x, float(m)) for m in m_f]))


def test_the_activation_that_warns_can_be_mapped() -> None:
    layer = AAN(m_f=0.03)
    assert layer._watched
    x = torch.rand(5, 4)
    close(vmap(grad(lambda x: layer(x).sum()))(x), grad(lambda x: layer(x).sum())(x))


def test_neurons_of_both_hosts_have_forward_derivatives() -> None:
    x, direction = torch.rand(6, 3), torch.randn(6, 3)
    want = jvp(lambda x: functional.integrate_and_fire(x, 0.0, torch.ones(1))[0], (x,), (direction,))[1]
    hosts = pytest.importorskip("snn_ext.spikingjelly"), pytest.importorskip("snn_ext.snntorch")
    node = hosts[0].ATIFuNode(step_mode="m")
    assert torch.equal(jvp(node, (x,), (direction,))[1], want)
    node.reset()
    with forward_ad.dual_level():
        out = node(forward_ad.make_dual(x, direction))
        assert torch.equal(forward_ad.unpack_dual(out).tangent, want)
    assert jvp(lambda x: hosts[1].ATIFu()(x[0])[0], (x,), (direction,))[1].any()
