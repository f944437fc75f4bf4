"""Nets of adaptive neurons in milliseconds: firing rate, matching time, sweep of precisions, arousal."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from recipes.models.adaptive import layout_net  # noqa: E402
from snn_ext import BNAAN, convert, evaluate, set_precision  # noqa: E402
from snn_ext.conversion import ConvertedNet  # noqa: E402
from snn_ext.evaluation import (  # noqa: E402
    Arousal,
    ArousedSimulation,
    Evaluation,
    Margins,
    estimate_arousal,
    lowest_rate,
    observe_margins,
    sweep_precision,
)
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.simulation.analog import AnalogTwin  # noqa: E402
from snn_ext.spikingjelly import ASNNode  # noqa: E402
from tests.conversion.nets import images, loop, trained, vgg  # noqa: E402


@pytest.fixture(scope="module")
def task() -> tuple[nn.Module, ConvertedNet, Tensor, Tensor]:
    """Return a trained net of features, its AdSNN, and data of which some are hard."""
    torch.manual_seed(3)
    labels, centres = torch.randint(0, 4, (240,)), torch.randn(4, 6)
    x = centres[labels] + 0.8 * torch.randn(240, 6)
    ann = layout_net("d20-d20", (6,), 4)
    optimizer = torch.optim.Adam(ann.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(ann(x), labels).backward()
        optimizer.step()
    return ann.eval(), convert(ann, x, method="adsnn"), x, labels


def test_figures_in_milliseconds_are_those_of_the_spikes(task: Any) -> None:
    ann, snn, x, labels = task
    counts: dict[str, Tensor] = {}

    def count(name: str, module: nn.Module, spikes: Tensor) -> None:
        counts[name] = counts.get(name, torch.zeros(())) + spikes.sum(0)

    output = torch.cat(list(Simulation(snn).run(x, 200, count)))
    evaluation = evaluate(snn, [(x[:100], labels[:100]), (x[100:], labels[100:])], 200, ann=ann, progress=False)
    rates = torch.cat([c for c in counts.values()], 1).mean() / 0.2
    assert evaluation.firing_rate == pytest.approx(float(rates), rel=1e-6) and evaluation.dt == 1.0
    accuracy = (output.argmax(2) == labels).double().mean(1)
    assert torch.equal(evaluation.accuracy, accuracy)  # of every millisecond, not of a sum over time
    time = evaluation.matching_time()
    assert time == 1 + int((accuracy >= 0.99 * accuracy.max() - 1e-9).nonzero()[0])
    assert evaluation.stability() == pytest.approx(float(accuracy[int(time) - 1 :].std(correction=0)))
    for layer in evaluation.layers:  # once the volley at the onset is over
        late = 2 * layer.normalised_rate[-1] - layer.normalised_rate[99]
        assert 0.95 < late < 1.05
    again = Evaluation.from_json(evaluation.to_json())
    assert (again.firing_rate, again.matching_time()) == (evaluation.firing_rate, time)
    assert [layer.kind for layer in evaluation.layers] == ["input", "neuron", "neuron"]
    assert [layer.fan_out for layer in evaluation.layers] == [20.0, 20.0, 4.0]


def test_the_length_of_a_step_counts(task: Any) -> None:
    ann, _, x, labels = task
    rates, times = [], []
    for dt in (1.0, 0.5):
        net = layout_net("d20-d20", (6,), 4, activation=lambda dt=dt: __import__("snn_ext").AAN(dt=dt))
        net.load_state_dict(ann.state_dict())
        snn = convert(net.eval(), x, method="adsnn", dt=dt)
        evaluation = evaluate(snn, [(x, labels)], round(200 / dt), progress=False)
        rates.append(evaluation.firing_rate)
        times.append(evaluation.matching_time())
    assert rates[0] == pytest.approx(rates[1], rel=0.1) and abs(times[0] - times[1]) < 60


def test_nets_without_milliseconds_and_delays_of_a_smoothed_read_out_are_refused(task: Any) -> None:
    _, snn, x, labels = task
    with pytest.raises(ValueError, match="delay: got 5, want 0 for a read-out that is smoothed"):
        evaluate(snn, [(x, labels)], 10, delay=5, progress=False)
    other = evaluate(convert(trained(vgg()), images(), method="data-norm"), [images()], 3, progress=False)
    with pytest.raises(ValueError, match="snn: got 'a net whose steps have no length'"):
        _ = other.firing_rate


def test_the_sweep_finds_the_lowest_rate_that_matches(task: Any) -> None:
    ann, snn, x, labels = task
    sweep = sweep_precision(snn, [(x, labels)], 250, m_f=(0.1, 0.3, 1.0), ann=ann, progress=False)
    rates = [e.firing_rate for e in sweep.values()]
    assert rates == sorted(rates, reverse=True) and snn.get_submodule("1").m_f == torch.tensor([0.1])
    matching = [m for m, e in sweep.items() if e.accuracy[-1] >= e.analog_accuracy - 0.02]
    assert lowest_rate(sweep, within=2.0) == max(matching)
    with pytest.raises(ValueError, match="sweep: got 'a best accuracy of"):
        lowest_rate({m: e for m, e in sweep.items() if m == 1.0}, within=0.0)


def test_a_sweep_without_a_net_refers_to_the_analog_net_of_the_precision_it_came_with(task: Any) -> None:
    _, snn, x, _ = task
    decided = AnalogTwin(snn)(x).argmax(1)
    coarse = _at(snn, 1.9)
    assert bool((AnalogTwin(coarse)(x).argmax(1) != decided).any())  # else there is nothing to tell
    sweep = sweep_precision(snn, [(x, decided)], 20, m_f=(0.1, 1.9), progress=False)
    assert [e.analog_accuracy for e in sweep.values()] == [1.0, 1.0]


AROUSAL = Arousal(m_f_low=1.0, m_f_high=0.1, wait=80.0, window=20.0, threshold=1.5)


@pytest.mark.parametrize("kind", ["features", "images"])
def test_in_a_mixed_batch_each_sample_gets_exactly_what_it_gets_alone(task: Any, kind: str) -> None:
    if kind == "features":
        snn, x = task[1], task[2][:12]
    else:  # convolutions, pooling, and weights that are on no grid of their own
        x = images(6)
        snn = convert(trained(layout_net("6c3-m2-8c3-a2-d12", (2, 8, 8), 5)), x, method="adsnn")
    low = torch.cat(list(Simulation(_at(snn, 1.0)).run(x, 100)))[80:]
    margins = low.topk(2, 2).values.diff(dim=2).abs().squeeze(2).mean(0)
    arousal = Arousal(1.0, 0.1, 80.0, 20.0, float(margins.median()))
    simulation, seen = ArousedSimulation(snn, arousal), dict[str, list[Tensor]]()
    together = torch.cat(list(simulation.run(x, 200, lambda n, m, s: seen.setdefault(n, []).append(s))))
    aroused = simulation.aroused.clone()
    assert 0 < int(aroused.sum()) < len(x)
    for i in range(len(x)):
        alone, spikes = ArousedSimulation(snn, arousal), dict[str, list[Tensor]]()
        result = torch.cat(list(alone.run(x[i : i + 1], 200, lambda n, m, s: spikes.setdefault(n, []).append(s))))  # noqa: B023
        assert torch.equal(result[:, 0], together[:, i]) and bool(alone.aroused) == bool(aroused[i])
        for name, parts in seen.items():
            assert torch.equal(torch.cat(spikes[name])[:, 0], torch.cat(parts)[:, i])


def test_certain_samples_go_on_as_without_arousal_and_state_is_carried_over(task: Any) -> None:
    _, snn, x, _ = task
    simulation = ArousedSimulation(snn, AROUSAL)
    output = torch.cat(list(simulation.run(x, 200)))
    low = loop(_at(snn, 1.0), x, 200)
    kept = ~simulation.aroused
    assert torch.equal(output[:, kept], low[:, kept]) and torch.equal(output[:100], low[:100])
    snn = _at(snn, 1.0)  # by hand: the net itself, switched between two steps
    switched = x[simulation.aroused]
    with torch.no_grad():
        for _ in range(100):
            snn(switched)
        set_precision(snn, 0.1)
        assert torch.equal(torch.stack([snn(switched) for _ in range(100)]), output[100:, simulation.aroused])


def test_evaluate_with_arousal_counts_both_groups(task: Any, tmp_path: Path) -> None:
    ann, snn, x, labels = task
    batches = [(x[:100], labels[:100]), (x[100:], labels[100:])]
    result = evaluate(snn, batches, 200, ann=ann, arousal=AROUSAL, progress=False, resume=tmp_path / "state.pt")
    low, high = (evaluate(_at(snn, m), batches, 200, ann=ann, progress=False) for m in (1.0, 0.1))
    assert low.firing_rate < result.firing_rate < high.firing_rate and 0 < result.selectivity < 1
    simulation, spikes = ArousedSimulation(snn, AROUSAL), [0.0]

    def count(name: str, module: nn.Module, seen: Tensor) -> None:
        spikes[0] += float(seen.sum())

    switched = torch.cat(list(simulation.run(x, 200, count)))
    assert torch.equal(result.accuracy, (switched.argmax(2) == labels).double().mean(1))
    assert float(result.spikes[-1]) * len(x) == pytest.approx(spikes[0])
    assert result.selectivity == pytest.approx(float(simulation.aroused.double().mean()))
    assert snn.get_submodule("1").m_f == torch.tensor([0.1])


def test_the_estimate_selects_the_share_of_the_errors(task: Any) -> None:
    _, snn, x, labels = task
    margins = observe_margins(snn, [(x, labels)], 200, m_f_low=1.0)
    for share in (50.0, 90.0, 100.0):
        arousal = margins.estimate(m_f_high=0.1, errors=share, window=30.0)
        first = round(arousal.wait)
        mean = margins.margins[first : first + 30].double().mean(0)
        selected = (mean <= arousal.threshold)[margins.wrong].double().mean()
        assert share / 100 <= selected < share / 100 + 2 / int(margins.wrong.sum())
        assert arousal.wait == margins.matching_time()
    best = estimate_arousal(snn, [(x, labels)], 200, m_f_low=1.0)
    spent = {w: s * (200 - best.wait - w) for w, (_, s) in margins.by_window().items()}
    assert spent[best.window] == min(spent.values())


def off_the_grid(snn: nn.Module) -> nn.Module:
    """Return a copy whose weights are as they come, so that sums of spikes are rounded."""
    twin = copy.deepcopy(snn)
    for module in twin.modules():
        if hasattr(module, "spike_source"):
            module.spike_bits = None
    set_precision(twin, 0.1)
    return twin


@pytest.mark.parametrize("grid", [True, False], ids=["on a grid", "off it"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_the_sample_that_sets_the_threshold_is_switched(task: Any, chunk: int | None, grid: bool) -> None:
    snn, x = task[1] if grid else off_the_grid(task[1]), task[2]
    for seed in range(6):
        labels = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(seed))
        margins = observe_margins(snn, [(x[:40], labels)], 90)
        simulation = ArousedSimulation(snn, margins.estimate(wait=40.0, window=30.0, errors=100.0), chunk=chunk)
        list(simulation.run(x[:40], 90))
        assert bool(simulation.aroused[margins.wrong].all())


def test_a_threshold_is_above_the_margins_from_before_they_were_rounded() -> None:
    rounded_down = 0
    for seed in range(20):
        exact = 4 * torch.rand(60, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        margins = Margins(0.3, 1.0, exact.float(), torch.ones(60), torch.ones(40, dtype=torch.bool))
        (threshold, share) = margins.by_window((30.0,), wait=10.0, errors=100.0)[30.0]
        largest = float(exact[10:40].mean(0).max())
        assert largest <= threshold < largest + 1e-4 and share == 1.0
        rounded_down += float(margins.margins[10:40].double().mean(0).max()) < largest
    assert rounded_down > 0  # else the test would show nothing


def test_a_net_that_gives_nan_is_no_certain_one(task: Any) -> None:
    _, snn, x, labels = task
    broken = copy.deepcopy(snn)
    with pytest.raises(ValueError, match="loader: got 'NaN or infinite values in the inputs of batch 2'"):
        observe_margins(snn, [(x, labels), (x / 0, labels)], 20)
    with pytest.raises(ValueError, match="loader: got 'labels from 1 to 4', want class numbers from 0 to 3"):
        observe_margins(snn, [(x, labels + 1)], 20)
    for module in broken.modules():
        if hasattr(module, "spike_source"):
            module.analog_weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="snn: got 'NaN or infinite values in the (parameter|buffer)"):
        observe_margins(broken, [(x, labels)], 20)


def test_without_an_error_nothing_is_switched() -> None:
    margins = Margins(0.3, 1.0, torch.rand(100, 5), torch.ones(100), torch.zeros(5, dtype=torch.bool))
    with pytest.warns(UserWarning, match="no sample is decided wrongly"):
        assert margins.estimate().threshold == -math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m_f_high": 2.0}, "m_f_high: got 2.0, want less than m_f_low"),
        ({"m_f_low": -1.0}, "m_f_low: got -1.0, want a finite number > 0"),
        ({"window": 0.0}, "window: got 0.0"),
        ({"wait": -1.0}, "wait: got -1.0"),
    ],
)
def test_bad_settings_are_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arousal(**{**AROUSAL.__dict__, **change})


def test_a_threshold_that_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="threshold: got '1'"):
        Arousal(0.3, 0.1, 10.0, 10.0, "1")  # type: ignore[arg-type]


def test_stimulus_that_ends_before_the_decision_is_refused(task: Any) -> None:
    _, snn, x, _ = task
    simulation = ArousedSimulation(snn, Arousal(0.3, 0.1, 20.0, 10.0, 1.0))
    with pytest.raises(ValueError, match="time_steps: got 30, want more than the 30 of waiting time and window"):
        next(simulation.run(x, 30))


def test_an_estimate_needs_a_step_after_the_window() -> None:
    for steps, enough in ((30, False), (31, True)):
        margins = Margins(0.3, 1.0, torch.rand(steps, 4), torch.ones(steps), torch.ones(4, dtype=torch.bool))
        if enough:
            assert margins.estimate(wait=20.0, window=10.0).window == 10.0
        else:
            with pytest.raises(ValueError, match="time_steps: got 30, want more than waiting time and window, 20 ms"):
                margins.estimate(wait=20.0, window=10.0)


def test_arousal_needs_a_read_out_that_is_smoothed() -> None:
    with pytest.raises(ValueError, match="net: got 'Sequential', want a net with a smoothed read-out"):
        ArousedSimulation(nn.Sequential(ASNNode(scale_output=True), nn.Linear(4, 2)), AROUSAL)


def test_a_margin_is_that_of_two_classes_at_least() -> None:
    for last, shape in ((nn.Linear(4, 2), (1, 4)), (nn.Linear(4, 1), (3, 4)), (nn.Conv2d(4, 2, 1), (3, 4, 2, 2))):
        x = torch.rand(shape)
        snn = convert(nn.Sequential(BNAAN(4, dims=len(shape) - 2), last).eval(), x, method="adsnn")
        simulation = ArousedSimulation(snn, Arousal(1.0, 0.1, 3.0, 2.0, 1.0))
        if len(x) == 1:  # two classes of one sample are enough
            assert torch.cat(list(simulation.run(x, 8))).shape == (8, 1, 2)
        else:
            with pytest.raises(ValueError, match=r"net: got 'an output \[3, .*', want scores \[N, K\] of at least two"):
                next(simulation.run(x, 8))


def _at(snn: nn.Module, m_f: float) -> Any:
    twin = copy.deepcopy(snn)
    set_precision(twin, m_f)
    return twin
