"""What ``evaluate`` counts: against a loop over the steps, with synapses counted one neuron at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import convert, evaluate  # noqa: E402
from tests.properties import references as ref  # noqa: E402
from tests.properties.nets import (  # noqa: E402
    PlainMaxPool,
    PlainNeuron,
    brute_force_fan_out,
    nets,
    plain_spiking,
    relu,
    run_plain,
)
from tests.properties.profiles import examples  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:calibration. .* was never active")
T = 7


@st.composite
def evaluations(draw: Any) -> tuple[nn.Module, Any, Tensor, Tensor]:
    """Draw an analog net, what it is converted to, inputs and labels."""
    ann, x = draw(nets(relu, torch.float64))
    snn = convert(ann, x, method="data-norm", precharge=draw(st.sampled_from((0.0, 0.5))))
    classes = ann[-1].out_features
    return ann, snn, x, torch.tensor([draw(st.integers(0, classes - 1)) for _ in x])


def events_of(plain: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output of every step, and for every layer where there was a spike, both ``[T, N, ...]``."""
    found: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: found.setdefault(name, []).append(o != 0))
        for name, module in plain.named_modules()
        if isinstance(module, PlainNeuron | PlainMaxPool)
    ]
    output = run_plain(plain, x, T)
    for hook in hooks:
        hook.remove()
    return output, {name: torch.stack(steps) for name, steps in found.items()}


def rank(scores: list[float], label: int) -> int:
    """Return the place of a class, from 0; of equal scores the first class comes first."""
    return sorted(range(len(scores)), key=lambda k: (-scores[k], k)).index(label)


def macs_of(ann: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of a pass of one sample: for each output as many as it has weights."""
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(lambda m, i, o: counts.append(o[0].numel() * m.weight[0].numel()))
        for module in ann.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        ann(x)
    for hook in hooks:
        hook.remove()
    return sum(counts)


@examples(25)
@given(st.data(), evaluations())
def test_figures_are_those_of_a_plain_loop(data: Any, case: Any) -> None:
    ann, snn, x, labels = case
    delay = data.draw(st.integers(0, T - 1))
    delays = tuple(sorted({0, delay}))
    found = evaluate(snn, [(x, labels)], T, ann=ann, delay=delays, top=(1, 2), progress=False)
    plain = plain_spiking(ann, {layer.name: layer.threshold for layer in snn.report}, snn.report[0].precharge)
    output, events = events_of(plain, x)
    with torch.no_grad():
        analog = ann(x)

    # decisions and errors
    for top in (1, 2):
        for d in delays:
            for t in range(1, T + 1):
                got = float(found.accuracy_at(d, top)[t - 1])
                counted = output[d:t].sum(0)
                if t <= d:
                    assert got != got  # no decision yet
                    error = analog.square().mean()
                else:
                    right = [
                        rank(scores, int(label)) < top for scores, label in zip(counted.tolist(), labels, strict=True)
                    ]
                    assert got == pytest.approx(sum(right) / len(right), abs=1e-12)
                    error = (counted / (t - d) - analog).square().mean()
                assert float(found.mse_at(d)[t - 1]) == pytest.approx(float(error), rel=1e-9, abs=1e-12)
    right = [rank(scores, int(label)) == 0 for scores, label in zip(analog.tolist(), labels, strict=True)]
    assert found.analog_accuracy == pytest.approx(sum(right) / len(right))
    for level, step in found.latency.items():
        reached = [t for t in range(T) if float(found.accuracy[t]) >= level / 100 * found.analog_accuracy - 1e-9]
        assert step == (reached[0] + 1 if reached else None)

    # spikes and synaptic operations
    fan_out = brute_force_fan_out(ann, x)
    assert {layer.name for layer in found.layers} == events.keys() == fan_out.keys()
    for layer in found.layers:
        spikes = events[layer.name].flatten(2).double()
        ref.assert_close(layer.spikes, spikes.sum((1, 2)).cumsum(0) / len(x), 1e-12)
        operations = spikes @ fan_out[layer.name].flatten()
        ref.assert_close(layer.synops, operations.sum(1).cumsum(0) / len(x), 1e-12)
        assert layer.fan_out == pytest.approx(float(fan_out[layer.name].mean()))
        assert layer.neurons == spikes.shape[2]
    neurons = [layer for layer in found.layers if layer.kind == "neuron"]
    ref.assert_close(found.spikes, torch.stack([layer.spikes for layer in neurons]).sum(0), 1e-12)
    ref.assert_close(found.synops, torch.stack([layer.synops for layer in found.layers]).sum(0), 1e-12)
    assert found.macs == macs_of(ann, x)


def assert_same_figures(got: Any, want: Any) -> None:
    ref.assert_same(got.correct, want.correct)
    ref.assert_close(got.mse, want.mse, 1e-12)
    assert (got.samples, got.macs, got.analog_correct) == (want.samples, want.macs, want.analog_correct)
    for one, other in zip(got.layers, want.layers, strict=True):
        assert (one.name, one.neurons) == (other.name, other.neurons)
        ref.assert_same(one.spikes, other.spikes)
        ref.assert_same(one.synops, other.synops)
        assert one.mean_activation == (
            None if other.mean_activation is None else pytest.approx(other.mean_activation, rel=1e-12)
        )
        assert one.correlation == pytest.approx(other.correlation, rel=1e-6, abs=1e-6, nan_ok=True)


class Interrupted:
    """Batches of which some come, and then none."""

    def __init__(self, batches: list[Any], count: int) -> None:
        self.batches, self.count = batches, count

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches[: self.count]
        raise KeyboardInterrupt


@examples(12)
@given(st.data(), evaluations())
def test_figures_depend_neither_on_batches_nor_on_chunks_nor_on_an_interruption(data: Any, case: Any) -> None:
    ann, snn, x, labels = case
    assume(len(x) > 1)
    options: dict[str, Any] = {
        "ann": ann, "delay": (0, 2), "top": (1, 2), "correlation_steps": (3, T), "progress": False,
    }  # fmt: skip
    want = evaluate(snn, [(x, labels)], T, **options)
    size, chunk = data.draw(st.integers(1, len(x))), data.draw(st.integers(1, T + 1))
    memory = data.draw(st.sampled_from((1 << 30, 1)))
    batches = list(zip(x.split(size), labels.split(size), strict=True))
    assert_same_figures(evaluate(snn, batches, T, chunk=chunk, memory=memory, **options), want)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "state.pt")
        done = data.draw(st.integers(0, len(batches) - 1))
        with pytest.raises(KeyboardInterrupt):
            evaluate(snn, Interrupted(batches, done), T, chunk=chunk, resume=file, **options)
        other = data.draw(st.integers(1, T + 1))  # of the chunks, which are no setting of the figures
        assert_same_figures(evaluate(snn, batches, T, chunk=other, resume=file, **options), want)
        assert not file.exists()
