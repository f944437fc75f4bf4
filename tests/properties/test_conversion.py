"""Random nets, converted: against the same nets with neurons, or staircases, instead of their activations.

Inputs, weights and the statistics of batch norm lie on grids and the arithmetic is float64, where all their sums are
exact: so everything is compared to the last bit, ties included.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from spikingjelly.activation_based import functional as host  # noqa: E402

from snn_ext import convert, snntorch  # noqa: E402
from snn_ext.conversion import ConvertedNet, QuantizedReLU, fold_scales  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode  # noqa: E402
from tests.properties import references as ref  # noqa: E402
from tests.properties.nets import (  # noqa: E402
    PlainNeuron,
    activations,
    clip_of,
    nets,
    plain_relu,
    plain_spiking,
    plain_staircase,
    quantised,
    relu,
    run_plain,
)
from tests.properties.profiles import examples  # noqa: E402

# A layer that is never active gets the threshold 1 and a warning; random nets have such layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:calibration. .* was never active"),
    pytest.mark.filterwarnings("ignore:calibration. .* gets no positive current"),
]
T = 8
exact_nets = nets(relu, torch.float64)
powers = st.sampled_from((1, 2, 4, 8))
starts = st.sampled_from((0.0, 0.25, 0.5, 1.0))


def thresholds_of(snn: ConvertedNet) -> dict[str, float]:
    return {layer.name: layer.threshold for layer in snn.report}


@torch.no_grad()
def loop(snn: nn.Module, x: Tensor, time_steps: int) -> Tensor:
    host.reset_net(snn)
    output = torch.stack([snn(x) for _ in range(time_steps)])
    host.reset_net(snn)
    return output


# -- what a converted net computes -------------------------------------------------------------------------------------


@examples(20)
@given(exact_nets, powers, starts)
def test_phased_net_is_the_net_of_staircases(case: Any, time_steps: int, precharge: float) -> None:
    ann, x = case
    snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=time_steps, precharge=precharge)
    with torch.no_grad():
        wanted = plain_staircase(ann, thresholds_of(snn), precharge, time_steps)(x)
    latency = snn.latency
    assert latency is not None and (latency - time_steps) % max(time_steps - 1, 1) == 0
    output = loop(snn, x, latency)
    ref.assert_same(output.sum(0) / latency, wanted)
    assert not output[:-time_steps].any()


@examples(15)
@given(st.data(), powers)
def test_phased_net_of_quantised_activations_is_that_net(data: Any, levels: int) -> None:
    ann, x = data.draw(nets(quantised(levels), torch.float64))
    snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=levels)
    with torch.no_grad():
        ref.assert_same(loop(snn, x, snn.latency or 0).sum(0) / snn.latency, ann(x))


@examples(30)
@given(st.data(), exact_nets, starts)
def test_streaming_net_is_the_loop_over_its_neurons(data: Any, case: Any, precharge: float) -> None:
    ann, x = case
    reset = data.draw(st.sampled_from(("subtract", "zero")))
    encoder, readout = data.draw(st.sampled_from(("direct", "if"))), data.draw(st.sampled_from(("linear", "spikes")))
    folded = data.draw(st.booleans())
    snn = convert(
        ann, x, method="data-norm", precharge=precharge, reset=reset, encoder=encoder, readout=readout,
        fold_scales=folded,
    )  # fmt: skip
    thresholds, zero = thresholds_of(snn), reset == "zero"
    plain = plain_spiking(ann, thresholds, precharge, zero=zero)
    if encoder == "if":
        plain = nn.Sequential(PlainNeuron(1.0, precharge, zero=zero), plain)
    if readout == "spikes":
        plain = nn.Sequential(plain, PlainNeuron(thresholds["output_spikes"], precharge, zero=zero, ones=True))
    ref.assert_same(loop(snn, x, T), run_plain(plain, x, T))


@examples(15)
@given(st.data(), powers)
def test_streaming_net_of_quantised_activations_starts_and_fires_as_they_round(data: Any, levels: int) -> None:
    ann, x = data.draw(nets(quantised(levels), torch.float64))
    snn = convert(ann, x, method="data-norm")
    ref.assert_same(loop(snn, x, T), run_plain(plain_spiking(ann, {}), x, T))


@examples(20)
@given(st.data(), exact_nets, starts)
def test_every_way_to_run_and_to_copy_a_net_gives_the_same_bits(data: Any, case: Any, precharge: float) -> None:
    ann, x = case
    phased = data.draw(st.booleans())
    options: dict[str, Any] = {"schedule": "phased", "time_steps": 4} if phased else {}
    snn = convert(ann, x, method="data-norm", precharge=precharge, **options)
    steps = snn.latency or T
    wanted = loop(snn, x, steps)
    chunk = data.draw(st.integers(1, steps + 1))
    ref.assert_same(torch.cat(list(Simulation(snn, chunk=chunk).run(x, steps))), wanted)
    for twin in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        ref.assert_same(loop(twin, x, steps), wanted)
        assert twin.report == snn.report and twin.latency == snn.latency
    other = convert(_other(ann), x, method="data-norm", **options)
    if other.state_dict().keys() == snn.state_dict().keys():  # an identity has a scale where thresholds differ
        other.load_state_dict(snn.state_dict())
        ref.assert_same(loop(other, x, steps), wanted)
        assert other.report == snn.report
    if not phased:
        twin = snn.to_snntorch()
        snntorch.reset(twin)
        with torch.no_grad():
            ref.assert_same(torch.stack([twin(x) for _ in range(steps)]), wanted)
    host.set_step_mode(snn, "m")
    with torch.no_grad():
        ref.assert_same(snn(x.expand(steps, *x.shape)), wanted)


def _other(ann: nn.Module) -> nn.Module:
    """Return a net of the same layers with other weights."""
    other = copy.deepcopy(ann)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(-parameter + 0.25)
    return other


@examples(20)
@given(st.data())
def test_folding_the_scales_of_a_trained_net_keeps_its_function(data: Any) -> None:
    def neuron(draw: Any) -> nn.Module:
        threshold, v_init = draw(st.sampled_from((0.5, 1.0, 0.75, 2.3))), draw(st.sampled_from((0.0, 0.5)))
        return ATIFuNode(threshold, v_init=v_init, scale_output=True)

    # Behind maximum pooling a net of neurons that were not converted has values, not counts: that is another net.
    net, x = data.draw(nets(neuron, torch.float64, max_pool=False))
    folded = fold_scales(net)
    assert not any(getattr(module, "scale_output", False) for module in folded.modules())
    ref.assert_close(loop(folded, x, T), loop(net, x, T), 1e-12)


# -- thresholds and the report -----------------------------------------------------------------------------------------


def activity(ann: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Return the values of every activation over all batches, samples first."""
    found: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: found.setdefault(name, []).append(o))
        for name, module in activations(ann).items()
    ]
    with torch.no_grad():
        for batch in batches:
            ann(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(values) for name, values in found.items()}


def rounded(threshold: float, clip: float | None) -> float:
    return float(torch.tensor(threshold if clip is None else min(threshold, clip), dtype=torch.float32))


@examples(25)
@given(exact_nets, st.sampled_from((100.0, 99.0, 75.0, 12.5)), st.booleans(), st.integers(1, 3))
def test_thresholds_of_data_normalisation_are_order_statistics(
    case: Any, percentile: float, channel_wise: bool, size: int
) -> None:
    ann, x = case
    batches = list(x.split(size))
    snn = convert(ann, batches, method="data-norm", percentile=percentile, channel_wise=channel_wise)
    found = activity(ann, batches)
    assert {layer.name for layer in snn.report} == found.keys()
    for name, values in found.items():
        rows = values.movedim(1, 0).flatten(1).tolist() if channel_wise else [values.flatten().tolist()]
        top = max(max(row) for row in rows) or 1.0
        wanted = []
        for row in rows:
            statistic = sorted(row)[max(1, math.ceil(percentile / 100 * len(row))) - 1]
            wanted.append(rounded(statistic or max(row) or top, clip_of(activations(ann)[name])))
        got = snn.report[name].threshold
        assert (got if isinstance(got, list) else [got]) == wanted


@examples(20)
@given(st.data(), exact_nets, st.integers(1, 6), st.booleans())
def test_thresholds_of_spike_norm_are_the_largest_currents_of_the_loop(
    data: Any, case: Any, time_steps: int, zero: bool
) -> None:
    ann, x = case
    size, memory = data.draw(st.integers(1, len(x))), data.draw(st.sampled_from((1 << 30, 1)))
    batches = list(x.split(size))
    reset = "zero" if zero else "subtract"
    snn = convert(ann, batches, method="spike-norm", time_steps=time_steps, reset=reset, memory=memory)
    thresholds = dict.fromkeys(activations(ann), 1e30)
    for layer in snn.report:
        plain = plain_spiking(ann, thresholds, zero=zero)
        neuron: Any = plain.get_submodule(layer.name)
        largest = -math.inf
        for batch in batches:
            run_plain(plain, batch, time_steps)
            largest = max(largest, neuron.largest)
        wanted = rounded(largest if largest > 0 else 1.0, clip_of(activations(ann)[layer.name]))
        assert layer.threshold == wanted
        thresholds[layer.name] = wanted


@examples(12)
@given(nets(plain_relu, torch.float64), starts)
def test_report_says_what_the_net_is_and_does(case: Any, precharge: float) -> None:
    ann, x = case
    snn = convert(ann, x, method="data-norm", time_steps=T, precharge=precharge)
    plain = plain_spiking(ann, thresholds_of(snn), precharge)
    run_plain(plain, x, T)
    values = activity(ann, [x])
    assert [layer.name for layer in snn.report] == [n for n, m in _in_order(snn) if hasattr(m, "v_init")]
    for layer in snn.report:
        neuron: Any = plain.get_submodule(layer.name)
        error = neuron.count / T - values[layer.name] / layer.threshold
        assert layer.rate_error == pytest.approx(float(error.square().mean().sqrt()), abs=1e-6)
        assert (layer.scale, layer.precharge, layer.steps) == (layer.threshold, precharge, T)
        assert snn.get_submodule(layer.name).v_threshold.item() == layer.threshold


def _in_order(snn: Any) -> list[tuple[str, nn.Module]]:
    return [(str(n.target), snn.get_submodule(str(n.target))) for n in snn.graph.nodes if n.op == "call_module"]


# -- quantised activations ---------------------------------------------------------------------------------------------


@examples(60)
@given(st.data(), st.integers(1, 9), st.sampled_from(("floor", "round", "ceil")))
def test_quantised_activation_is_its_equation_and_the_gradient_passes_inside_the_clip(
    data: Any, levels: int, rounding: Any
) -> None:
    threshold = data.draw(st.sampled_from((0.5, 1.0, 2.0)))
    numerators = data.draw(st.lists(st.integers(-40, 120), min_size=1, max_size=30))
    x = torch.tensor([threshold * n / 64 for n in numerators], dtype=torch.float64)
    layer = QuantizedReLU(levels, threshold, rounding).double()
    round_to = {"floor": math.floor, "round": lambda v: math.floor(v + 0.5), "ceil": math.ceil}[rounding]
    counts = [min(levels, max(0, round_to(n / 64 * levels))) for n in numerators]
    x.requires_grad_()
    y = layer(x)
    ref.assert_close(y, torch.tensor([threshold * count / levels for count in counts], dtype=torch.float64), 1e-15)
    inside = [k for k, n in enumerate(numerators) if 0 < n < 64]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    outside = [k for k, n in enumerate(numerators) if not 0 <= n <= 64]
    assert gradient[inside].eq(1.0).all() and gradient[outside].eq(0.0).all()
