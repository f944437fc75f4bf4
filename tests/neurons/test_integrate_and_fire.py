"""What the integrate-and-fire neurons do in both hosts alike, and the table of all neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext.functional import best_points, best_threshold
from snn_ext.neurons import NEURONS, ThresholdNeuron
from snn_ext.snntorch import ATIFnu
from snn_ext.spikingjelly import ATIFnuNode
from tests.hosts import INTEGRATE_AND_FIRE, make, reset, steps

ROOT = Path(__file__).parents[2]


def test_the_table_holds_every_neuron_of_either_host() -> None:
    for host in ("spikingjelly", "snntorch"):
        namespace = getattr(snn_ext, host)
        classes = {getattr(namespace, name) for name in namespace.__all__ if isinstance(getattr(namespace, name), type)}
        assert {neuron.of(host) for neuron in NEURONS.values()} == classes
        assert all(issubclass(kind, ThresholdNeuron) for kind in classes)


@pytest.mark.parametrize("name", NEURONS)
def test_the_readme_names_every_neuron_as_the_table_does(name: str) -> None:
    neuron = NEURONS[name]
    beginning = f"| {neuron.title} | `{neuron.spikingjelly}` | `{neuron.snntorch}` |"
    (row,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(beginning))
    assert neuron.source in row


@pytest.mark.parametrize("store", [False, True], ids=["", "stored"])
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", INTEGRATE_AND_FIRE)
def test_thresholds_are_computed_once_for_a_call(
    name: str, mode: str, store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    neuron: Any = make(name, step_mode=mode)
    if store:
        setattr(neuron, "store_v_seq" if hasattr(neuron, "store_v_seq") else "output", True)
    calls, thresholds = [], type(neuron).thresholds

    def counted(self: Any, x_seq: Tensor | None = None) -> Any:
        calls.append(x_seq)
        return thresholds(self, x_seq)

    monkeypatch.setattr(type(neuron), "thresholds", counted)
    x = torch.rand((2, 3) if mode == "s" else (2, 2, 3))
    for done in (1, 2):  # the first call of a sequence, and one that carries on
        neuron(x)
        assert len(calls) == done


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", [ATIFnuNode, ATIFnu])
def test_at_keeps_the_dtype_and_whether_the_points_are_trained(kind: Any, trained: bool, dtype: torch.dtype) -> None:
    neuron = kind(0.75, T=4).to(dtype)
    neuron.p.requires_grad_(trained)
    twin = neuron.at(8)
    assert twin.p.dtype == dtype and isinstance(twin.p, nn.Parameter) and twin.p.requires_grad == trained
    fine = kind(0.75, T=4).double()
    with torch.no_grad():
        fine.p[1] += 2.0**-50
    assert fine.at(4).p[1] == fine.p[1], "no rounding on the way"


@pytest.mark.parametrize("name", INTEGRATE_AND_FIRE)
def test_fitted_neurons_quantise_their_inputs_best(name: str) -> None:
    neuron: Any = make(name)
    x = torch.rand(500)
    with torch.no_grad():
        neuron.v_init.zero_()
    neuron.fit(x, 4)
    want = best_points(x, 4) if hasattr(neuron, "p") else best_threshold(x, 4)
    assert torch.equal(neuron._raw_threshold().detach(), torch.as_tensor(want).reshape(-1))
    reset(neuron)
    assert steps(neuron, x.expand(4, 1, -1)).shape == (4, 1, 500)
