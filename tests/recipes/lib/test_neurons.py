"""The neurons of the recipes are those of the package's table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("tqdm", reason="recipes need snn_ext[recipes]")

from recipes.lib.neurons import NEURONS, OURS, NeuronOptions, spikingjelly_neuron  # noqa: E402
from recipes.lib.snntorch_trainer import snntorch_neuron  # noqa: E402
from snn_ext.neurons import NEURONS as TABLE  # noqa: E402
from tests.hosts import grid  # noqa: E402


def test_what_cannot_be_trained_over_a_few_steps_is_no_choice() -> None:
    assert {*TABLE} - {*NEURONS} == {"asn"} and {*NEURONS} - {*TABLE} == {"relu", "if"}


@pytest.mark.parametrize("v_init", [None, 0.25])
@pytest.mark.parametrize("name", OURS)
def test_the_options_make_the_same_neuron_in_both_hosts(name: str, v_init: float | None) -> None:
    options = NeuronOptions(neuron=name, v_threshold=0.75, v_init=v_init)
    ours: Any = spikingjelly_neuron(options)
    theirs: Any = snntorch_neuron(options)
    assert (type(ours), type(theirs)) == (TABLE[name].of("spikingjelly"), TABLE[name].of("snntorch"))
    assert v_init is None or ours.v_init.item() == v_init
    theirs.step_mode = "m"
    assert torch.equal(ours(grid()), theirs(grid()))


@pytest.mark.parametrize("name", ["relu", "if", "pcmp"])
def test_a_threshold_that_is_not_trained_has_no_scale_of_its_gradient(name: str) -> None:
    with pytest.raises(ValueError, match=f"--grad-scale: got lsq with --neuron {name}, want a trainable threshold"):
        NeuronOptions(neuron=name, grad_scale="lsq")


@pytest.mark.parametrize("name", ["atif-u", "atif-nu"])
def test_the_scale_of_the_gradient_reaches_the_neuron(name: str) -> None:
    assert spikingjelly_neuron(NeuronOptions(neuron=name, grad_scale="lsq")).grad_scale == "lsq"
