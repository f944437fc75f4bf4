"""What snnTorch's users do to a neuron: its attributes are set."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_ext.snntorch import PCMPIF, ATIFnu, ATIFu

from ..hosts import NEURONS, grid, reset
from ..spikingjelly.test_host import settable

CHANGED: dict[str, Any] = {
    "beta": torch.tensor(0.1),
    "threshold": torch.tensor(0.25),
    "spike_grad": snn.surrogate.sigmoid(slope=2),
    "surrogate_disable": True,
    "init_hidden": False,
    "output": True,
    "inhibition": True,
    "state_quant": torch.round,
    "state_function": torch.neg,
    "graded_spikes_factor": torch.tensor(7.0),
    "reset_delay": False,
    "reset_mechanism": "zero",
    "reset_mechanism_val": torch.tensor(1),
    "mem": torch.full((2, 3), 0.5),
}


def fingerprint(neuron: Any) -> list[Any]:
    x_seq = grid().requires_grad_()
    outputs = [neuron(x) for x in x_seq]
    spikes = torch.stack([out[0] if isinstance(out, tuple) else out for out in outputs])
    (spikes * grid(seed=1)).sum().backward()
    return [spikes.tolist(), x_seq.grad.tolist(), type(outputs[0])]


def test_every_attribute_of_the_host_is_known_here() -> None:
    assert settable(snn.Leaky(beta=1.0)) == {*CHANGED, "training"}


@pytest.mark.parametrize("attribute", CHANGED)
@pytest.mark.parametrize("name", NEURONS)
def test_an_attribute_of_the_host_acts_or_is_refused(name: str, attribute: str) -> None:
    neuron = NEURONS[name]()
    before = fingerprint(NEURONS[name]())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a potential that is dropped is told of by a warning
        try:
            setattr(neuron, attribute, CHANGED[attribute])
            after = fingerprint(neuron)
        except (TypeError, ValueError, UserWarning) as error:
            assert attribute.removesuffix("_val") in str(error) and "want" in str(error)
        else:
            assert after != before, f"{attribute} does nothing"


@pytest.mark.parametrize(("attribute", "want"), [("beta", "a parameter of shape"), ("graded_spikes_factor", "1: ")])
def test_the_value_that_does_nothing_may_be_set(attribute: str, want: str) -> None:
    neuron = ATIFu(init_hidden=True)
    setattr(neuron, attribute, torch.tensor(1.0))
    with pytest.raises(ValueError, match=rf"{attribute}: got .*, want {want}"):
        setattr(neuron, attribute, nn.Parameter(torch.tensor(1.0)))  # it would be trained


@pytest.mark.parametrize("by", ["reset_mechanism", "reset_mechanism_val"])
def test_the_mechanism_has_one_name_whichever_way_it_is_set(by: str) -> None:
    neuron, want = ATIFu(init_hidden=True), ATIFu(init_hidden=True, reset_mechanism="zero")
    setattr(neuron, by, CHANGED[by])
    assert neuron.reset_mechanism == "zero" and int(neuron.reset_mechanism_val) == 1
    assert fingerprint(neuron) == fingerprint(want)
    with pytest.raises(ValueError, match="reset_mechanism"):
        setattr(ATIFnu(T=4), by, CHANGED[by])


@pytest.mark.parametrize("make", [ATIFu, PCMPIF])
@pytest.mark.parametrize("value", [0.25, torch.tensor(0.25), torch.tensor([0.25])])
def test_a_threshold_of_the_hosts_own_form_may_be_set(make: Any, value: Any) -> None:
    neuron = make(init_hidden=True)
    neuron.threshold = value
    assert neuron.threshold.shape == (1,) and fingerprint(neuron) == fingerprint(make(0.25, init_hidden=True))


def test_a_threshold_that_is_computed_gets_its_gradient() -> None:
    neuron, source = PCMPIF(init_hidden=True), torch.tensor(0.5, requires_grad=True)
    neuron.threshold = 0.5 * source
    neuron(grid()[0]).sum().backward()
    assert source.grad is not None and source.grad != 0
    with pytest.raises(ValueError, match="threshold: got"):
        ATIFu().threshold = 0.5 * source


@pytest.mark.parametrize(("attribute", "value"), [("step_mode", "x"), ("init_hidden", 1), ("output", None)])
def test_a_wrong_value_is_refused_when_it_is_set(attribute: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{attribute}: got"):
        setattr(ATIFu(), attribute, value)


def test_levels_is_another_name_for_t() -> None:
    assert ATIFnu(levels=4).T == ATIFnu(T=4).T == ATIFnu([1.0, 0.5, 0.25, 0.1]).T == 4


@pytest.mark.parametrize("name", NEURONS)
def test_a_hidden_potential_put_in_by_hand_is_not_dropped_in_silence(name: str) -> None:
    neuron = NEURONS[name]()
    neuron(grid()[0])
    neuron.mem = torch.ones(2, 3)
    with pytest.warns(UserWarning, match="a fresh sequence starts"):
        neuron(grid()[0])
    reset(neuron)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        neuron(grid()[0])
