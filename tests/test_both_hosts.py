"""One neuron, many ways to run it: functional, step by step, as a sequence, in chunks, in either host. Same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from snn_ext.functional import integrate_and_fire, nonuniform_thresholds
from snn_ext.snntorch import PCMPIF, ATIFnu, ATIFu
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode
from tests.reference import awkward_inputs, each_input, each_tie

POINTS = torch.tensor([1.0, 0.6, 0.35, 0.1])
CHANNELS = torch.tensor([0.0, 0.25, 0.5, 1.0])


class Case(NamedTuple):
    node: Callable[..., nn.Module]  # of SpikingJelly
    neuron: Callable[..., nn.Module]  # of snnTorch
    arguments: dict[str, Any]  # of the operator
    threshold: float


def nonuniform(recursion: Any) -> Case:
    return Case(
        lambda **k: ATIFnuNode(POINTS, T=4, recursion=recursion, **k),
        lambda **k: ATIFnu(POINTS, T=4, recursion=recursion, **k),
        {
            "v": 0.0,
            "thresholds": nonuniform_thresholds(POINTS, recursion),
            "reset": "none" if recursion == "cumulative" else "subtract",
        },
        float(nonuniform_thresholds(POINTS, recursion)[0]),
    )


CASES = {
    "u": Case(lambda **k: ATIFuNode(0.75, **k), lambda **k: ATIFu(0.75, **k), {"v": 0.0}, 0.75),
    "u reset to zero": Case(
        lambda **k: ATIFuNode(0.7, v_reset=0.0, **k),
        lambda **k: ATIFu(0.7, reset_mechanism="zero", **k),
        {"v": 0.0, "reset": "zero"},
        0.7,
    ),
    "u with a start": Case(
        lambda **k: ATIFuNode(1.25, v_init=-0.5, **k), lambda **k: ATIFu(1.25, v_init=-0.5, **k), {"v": -0.625}, 1.25
    ),
    "u scaled": Case(
        lambda **k: ATIFuNode(0.3, scale_output=True, **k),
        lambda **k: ATIFu(0.3, scale_output=True, **k),
        {"v": 0.0, "scale": 0.3},
        0.3,
    ),
    "pcmp": Case(lambda **k: PCMPIFNode(0.5, **k), lambda **k: PCMPIF(0.5, **k), {"v": 0.25}, 0.5),
    "pcmp by channel": Case(
        lambda **k: PCMPIFNode(1.0, precharge=CHANNELS, **k),
        lambda **k: PCMPIF(1.0, precharge=CHANNELS, **k),
        {"v": CHANNELS.reshape(1, 4, 1)},
        1.0,
    ),
    "nu min": nonuniform("min"),
    "nu paper": nonuniform("paper"),
    "nu cumulative": nonuniform("cumulative"),
}

Run = Callable[[Case, Tensor, bool], tuple[Tensor, Tensor]]


def in_chunks(module: nn.Module, x_seq: Tensor) -> Tensor:
    return torch.cat([module(part) for part in (x_seq[:1], x_seq[1:3], x_seq[3:])])


def spikingjelly(mode: str, run: Callable[[nn.Module, Tensor], Tensor], **settings: Any) -> Run:
    def whole(case: Case, x_seq: Tensor, tie: bool) -> tuple[Tensor, Tensor]:
        node = case.node(step_mode=mode, fire_at_threshold=tie, **settings)
        return run(node, x_seq), node.v  # type: ignore[return-value]

    return whole


def snntorch(mode: str, run: Callable[[nn.Module, Tensor], Tensor], **settings: Any) -> Run:
    def whole(case: Case, x_seq: Tensor, tie: bool) -> tuple[Tensor, Tensor]:
        neuron = case.neuron(step_mode=mode, fire_at_threshold=tie, init_hidden=True, **settings)
        return run(neuron, x_seq), neuron._state.v  # type: ignore[return-value]

    return whole


def step_by_step(module: nn.Module, x_seq: Tensor) -> Tensor:
    return torch.stack([module(x) for x in x_seq])


def explicit_mem(case: Case, x_seq: Tensor, tie: bool) -> tuple[Tensor, Tensor]:
    neuron = case.neuron(fire_at_threshold=tie)
    mem: Any = neuron.reset_mem()  # type: ignore[operator]
    spikes = []
    for x in x_seq:
        spk, mem = neuron(x, mem)
        spikes.append(spk)
    return torch.stack(spikes), neuron._state.v  # type: ignore[return-value]


RUNS = {
    "spikingjelly single": spikingjelly("s", step_by_step),
    "spikingjelly multi": spikingjelly("m", lambda node, x: node(x)),
    "spikingjelly chunks": spikingjelly("m", in_chunks),
    "spikingjelly stored voltage": spikingjelly("m", lambda node, x: node(x), store_v_seq=True),
    "snntorch single": snntorch("s", step_by_step),
    "snntorch multi": snntorch("m", lambda neuron, x: neuron(x)),
    "snntorch chunks": snntorch("m", in_chunks),
    "snntorch multi with mem": snntorch("m", lambda neuron, x: neuron(x)[0], output=True),
    "snntorch explicit mem": explicit_mem,
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", CASES)
@each_input
@each_tie
def test_every_way_to_run_gives_the_bits_of_the_operator(run: str, name: str, kind: str, tie: bool) -> None:
    case = CASES[name]
    x_seq = awkward_inputs(4, (6, 4, 9), case.threshold)[kind]
    arguments = {"thresholds": torch.tensor([case.threshold]), "fire_at_threshold": tie, **case.arguments}
    want, v = integrate_and_fire(x_seq, **arguments)
    spikes, last = RUNS[run](case, x_seq, tie)
    assert torch.equal(spikes, want)
    assert torch.equal(last, v)


@pytest.mark.parametrize("run", RUNS)
def test_a_million_neuron_steps_agree_in_every_way_to_run(run: str) -> None:
    x_seq = torch.cat(list(awkward_inputs(4, (1, 4, 21_000), 0.75).values()), -1)
    want, v = integrate_and_fire(x_seq, 0.0, torch.tensor([0.75]))
    spikes, last = RUNS[run](CASES["u"], x_seq, True)
    assert int((spikes != want).sum()) == 0 and torch.equal(last, v)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["u", "u scaled", "nu min", "pcmp by channel"])
def test_input_of_any_width_keeps_its_dtype_and_a_wide_state(dtype: torch.dtype, run: str, name: str) -> None:
    case = CASES[name]
    x_seq = awkward_inputs(4, (6, 4, 9), case.threshold)["random"].to(dtype)
    spikes, last = RUNS[run](case, x_seq, True)
    assert spikes.dtype == dtype
    assert last.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype != torch.float64:  # the same values in float32 give the same spikes and the same state
        want, v = RUNS[run](case, x_seq.float(), True)
        assert torch.equal(spikes, want.to(dtype)) and torch.equal(last, v)
