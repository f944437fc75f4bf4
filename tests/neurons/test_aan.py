"""AAN takes the place of nn.ReLU."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from snn_ext import AAN, BNAAN
from snn_ext.functional import asn_transfer


def test_values_and_gradient_are_those_of_the_transfer_function() -> None:
    for constants in ({}, {"m_f": 0.3}, {"m_f": 0.2, "theta_0": 0.1}, {"tau_beta": 30.0}):
        s = torch.randn(4, 3, 5, requires_grad=True)
        wide = s.detach().double().requires_grad_()
        found, want = AAN(**constants)(s), asn_transfer(wide, **constants)
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(f.sum(), x)[0].double() for f, x in ((found, s), (want, wide))]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_it_stands_where_a_relu_stood() -> None:
    activation: Any = AAN
    net = nn.Sequential(nn.Conv2d(3, 4, 3), activation(inplace=True), nn.Flatten(), nn.Linear(144, 2))
    s = torch.rand(2, 3, 8, 8)
    net(s).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert net(s).isfinite().all()
    assert torch.equal(torch.fx.symbolic_trace(net)(s), net(s))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(s), net(s))
    torch._dynamo.reset()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(s), net(s))
    assert not list(AAN().parameters()) and not AAN().state_dict()


def test_zero_padding_stays_zero() -> None:
    assert AAN(m_f=0.03)(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_it_warns_once_where_one_spike_a_step_is_not_enough() -> None:
    activation = AAN(m_f=0.03)
    assert activation.ceiling == pytest.approx(1.94, abs=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        activation(torch.tensor([1.0, 2.0]))
        AAN()(torch.tensor([1e9]))
        AAN(m_f=0.03, dt=0.25)(torch.tensor([1e9]))
        activation(torch.zeros(0))
    with pytest.warns(UserWarning, match=r"s: got an activation of 4\.\d+, want at most 1\.94: one spike every 1 ms"):
        activation(torch.tensor([100.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        activation(torch.tensor([100.0]))


def test_the_input_layer_normalises_and_activates() -> None:
    for dims, shape in ((0, (8, 3)), (1, (8, 3, 6)), (2, (8, 3, 6, 6)), (3, (4, 3, 2, 2, 2))):
        layer = BNAAN(3, dims=dims, m_f=0.2)
        s = torch.rand(shape) * 255
        normal = nn.functional.batch_norm(s, None, None, training=True)
        torch.testing.assert_close(layer(s), asn_transfer(normal, 0.2), rtol=1e-3, atol=1e-4)
    assert "m_f=0.2" in repr(layer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AAN(0.1), "inplace: got 0.1"),
        (lambda: AAN(m_f=-1.0), "m_f: got -1.0"),
        (lambda: AAN(m_f=torch.tensor(0.1)), "m_f: got"),
        (lambda: AAN(theta_0=0.0), "theta_0: got 0.0"),
        (lambda: AAN(m_f=3.0), "theta_0: got 3.0, want < 2"),
        (lambda: AAN(dt=0.0), "dt: got 0.0"),
        (lambda: BNAAN(0), "num_features: got 0"),
        (lambda: BNAAN(3, dims=4), "dims: got 4"),
    ],
)
def test_wrong_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert str(caught.value).startswith(message) and "want" in str(caught.value)


@pytest.mark.parametrize(
    "make", [AAN, lambda: AAN(m_f=0.3), lambda: AAN(tau_beta=30.0), lambda: BNAAN(3)], ids=["aan", "0.3", "exact", "bn"]
)
def test_made_on_meta_it_is_what_it_is_elsewhere(make: Any) -> None:
    torch.manual_seed(0)
    want, x = make(), torch.rand(4, 3, 5, 5)
    with torch.device("meta"):
        found = make()
        assert found(torch.empty(4, 3, 5, 5)).is_meta
    found.to_empty(device="cpu")
    for module in found.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(found(x), want(x))
    constants = [[m.h, m.ceiling, m._watched] for net in (found, want) for m in net.modules() if isinstance(m, AAN)]
    assert constants[0] == constants[1]
