"""Surrogates: finite everywhere, the curve they claim to be, and the hosts' own objects recognised by value."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import snntorch.surrogate as snn_surrogate
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor

from snn_ext.functional import ATan, Sigmoid, SoftSign, Surrogate, as_surrogate, integrate_and_fire, spike
from tests.reference import DERIVATIVES, SURROGATES

each_surrogate = pytest.mark.parametrize("cls", SURROGATES, ids=lambda cls: cls.__name__)


def backward_of(function: Any, u: Tensor) -> Tensor:
    u = u.clone().requires_grad_()
    function(u).sum().backward()
    assert u.grad is not None
    return u.grad


@each_surrogate
@pytest.mark.parametrize("alpha", [1.0, 4.0, 25.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_derivative_is_finite_far_from_the_threshold(cls: type[Surrogate], alpha: float, dtype: torch.dtype) -> None:
    u = torch.cat((torch.linspace(-100, 100, 2001), torch.tensor([math.inf, -math.inf]))).to(dtype)
    derivative = cls(alpha).derivative(u)
    assert derivative.dtype == dtype
    assert derivative.isfinite().all()
    assert (derivative >= 0).all()
    assert torch.equal(backward_of(cls(alpha), u), derivative)


@each_surrogate
@pytest.mark.parametrize("alpha", [1.0, 4.0, 25.0])
def test_derivative_is_the_documented_curve(cls: type[Surrogate], alpha: float) -> None:
    u = torch.linspace(-3, 3, 601, dtype=torch.float64)
    want = torch.from_numpy(DERIVATIVES[cls](alpha, u.numpy()))
    torch.testing.assert_close(cls(alpha).derivative(u), want, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(cls(alpha, 0.5).derivative(u), 0.5 * want, rtol=1e-12, atol=1e-15)


@each_surrogate
def test_is_a_value_that_survives_pickle_copy_and_hashing(cls: type[Surrogate]) -> None:
    one = cls(2.5, gain=0.5)
    assert one == pickle.loads(pickle.dumps(one)) == copy.deepcopy(one)
    assert hash(one) == hash(cls(2.5, gain=0.5))
    assert len({one, cls(2.5, gain=0.5), cls(2.5), cls(4.0, gain=0.5)}) == 3
    with pytest.raises(AttributeError):
        one.alpha = 3.0  # type: ignore[misc]


def test_ids_are_those_of_the_operator_and_distinct() -> None:
    assert [cls.id for cls in SURROGATES] == list(range(7))


@each_surrogate
@pytest.mark.parametrize("alpha", [1.0, 2.5, 4, 25.0])
def test_recognises_spikingjelly_by_value(cls: type[Surrogate], alpha: float) -> None:
    host = getattr(sj_surrogate, cls.__name__)(alpha=alpha)
    assert as_surrogate(host) == cls(alpha)
    u = torch.linspace(-2, 2, 401)
    torch.testing.assert_close(backward_of(cls(alpha), u), backward_of(host, u), rtol=1e-5, atol=1e-6 * alpha)


@pytest.mark.parametrize(
    ("factory", "want"),
    [
        (snn_surrogate.sigmoid, Sigmoid(25.0)),
        (snn_surrogate.atan, ATan(2.0)),
        (snn_surrogate.fast_sigmoid, SoftSign(25.0, gain=2.0 / 25.0)),
    ],
)
def test_recognises_snntorch_by_value(factory: Any, want: Surrogate) -> None:
    assert as_surrogate(factory()) == want
    u = torch.linspace(-2, 2, 401)
    torch.testing.assert_close(backward_of(want, u), backward_of(factory(), u), rtol=1e-5, atol=1e-6)


def test_snntorch_arguments_are_read_from_the_closure() -> None:
    assert as_surrogate(snn_surrogate.sigmoid(slope=7)) == Sigmoid(7.0)
    assert as_surrogate(snn_surrogate.atan(alpha=3.0)) == ATan(3.0)
    assert as_surrogate(snn_surrogate.fast_sigmoid(slope=10)) == SoftSign(10.0, gain=0.2)


def host_surrogates() -> list[Any]:
    """Every surrogate of either host that can be made without arguments and takes a potential of any sign."""
    makers = {}
    for name, cls in vars(sj_surrogate).items():
        if inspect.isclass(cls) and issubclass(cls, sj_surrogate.SurrogateFunctionBase):
            makers[f"spikingjelly-{name}"] = cls
    for name, factory in vars(snn_surrogate).items():
        if inspect.isfunction(factory) and factory.__module__ == "snntorch.surrogate":
            makers[f"snntorch-{name}"] = factory
    usable = []
    for name, maker in makers.items():
        try:
            host = maker()
            host(torch.linspace(-1.5, 1.5, 7, requires_grad=True))
        except (TypeError, NotImplementedError, RuntimeError):  # needs arguments; abstract; takes probabilities only
            continue
        usable.append(pytest.param(host, id=name))
    assert len(usable) > 20
    return usable


@pytest.mark.parametrize("host", host_surrogates())
def test_every_host_object_gives_its_own_gradient_and_our_ties(host: Any) -> None:
    u = torch.linspace(-1.5, 1.5, 97)  # holds 0, and lies where the hosts' formulas are finite
    torch.manual_seed(1)
    want = backward_of(host, u) if host(u.clone().requires_grad_()).requires_grad else torch.zeros_like(u)
    h = u.clone().requires_grad_()
    torch.manual_seed(1)  # two of them draw random numbers
    spikes = spike(h, torch.zeros(()), as_surrogate(host))
    assert torch.equal(spikes, (u >= 0).float())
    if spikes.requires_grad:
        spikes.sum().backward()
    torch.testing.assert_close(torch.zeros_like(u) if h.grad is None else h.grad, want, rtol=1e-5, atol=1e-6)


def test_snntorch_sigmoid_overflows_where_ours_does_not() -> None:
    u = torch.tensor([-4.0])
    assert backward_of(snn_surrogate.sigmoid(slope=25), u).isnan().all(), "the host is mended: drop the remark"
    assert backward_of(as_surrogate(snn_surrogate.sigmoid(slope=25)), u).isfinite().all()


@pytest.mark.parametrize("tie", [True, False])
def test_unknown_callable_gives_its_gradient_but_not_its_ties(tie: bool) -> None:
    class Never(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, u: Tensor) -> Tensor:
            return torch.full_like(u, 0.3)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 7.0 * grad

    x_seq = torch.tensor([[0.5, 1.0, 1.5]], requires_grad=True)
    spikes, _ = integrate_and_fire(x_seq, 0.0, torch.ones(1), surrogate=Never.apply, fire_at_threshold=tie)
    assert spikes.tolist() == [[0.0, float(tie), 1.0]]
    spikes.sum().backward()
    assert torch.equal(x_seq.grad, torch.full((1, 3), 7.0))


@pytest.mark.parametrize("function", [lambda u: u, lambda u: u / 0.0, lambda u: (u > 0).float()], ids=["u", "inf", "0"])
def test_unknown_callable_can_not_put_nan_into_spikes(function: Any) -> None:
    h = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    assert spike(h, torch.ones(()), function).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_callable_of_another_dtype_does_not_change_the_spikes_dtype() -> None:
    h = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    assert spike(h, torch.ones((), dtype=torch.float64), lambda u: torch.sigmoid(u.float())).dtype == torch.float64


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 1)])
def test_threshold_gradient_has_the_shape_of_a_broadcast_threshold(shape: tuple[int, ...]) -> None:
    h = torch.randn(3, 5, dtype=torch.float64)
    threshold = torch.full(shape, 0.5, dtype=torch.float64, requires_grad=True)
    spike(h, threshold, Sigmoid(4.0)).sum().backward()
    want = -Sigmoid(4.0).derivative(h - 0.5)
    torch.testing.assert_close(threshold.grad, want.sum_to_size(shape))


def test_none_is_the_default_of_spikingjelly() -> None:
    assert as_surrogate(None) == as_surrogate(neuron.IFNode().surrogate_function) == Sigmoid(4.0)


def test_subclass_of_a_host_surrogate_is_not_taken_for_its_parent() -> None:
    class Mine(sj_surrogate.Sigmoid):
        pass

    mine = Mine()
    assert as_surrogate(mine) is mine


def test_serves_as_surrogate_function_of_ifnode() -> None:
    x_seq = torch.randn(4, 3, 5)
    found = []
    for surrogate in (Sigmoid(4.0), sj_surrogate.Sigmoid(4.0)):
        node = neuron.IFNode(v_reset=None, surrogate_function=surrogate, step_mode="m")
        x = x_seq.clone().requires_grad_()
        spikes = node(x)
        (spikes * x_seq).sum().backward()
        found.append((spikes.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_serves_as_spike_grad_of_leaky() -> None:
    x_seq = torch.randn(4, 3, 5)
    found = []
    for surrogate in (ATan(2.0), snn_surrogate.atan(2.0)):
        leaky = snn.Leaky(beta=0.9, spike_grad=surrogate, init_hidden=True)
        x = x_seq.clone().requires_grad_()
        spikes = torch.stack([leaky(step) for step in x])
        (spikes * x_seq).sum().backward()
        found.append((spikes.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_float64_derivative_is_exact_next_to_the_threshold() -> None:
    u = np.nextafter(0.0, 1.0)
    for cls in SURROGATES:
        assert float(cls(4.0).derivative(torch.tensor(u, dtype=torch.float64))) == pytest.approx(
            float(DERIVATIVES[cls](4.0, np.float64(0.0)))
        )
