"""Converted nets, whole: pooling, residual units, encoders, the phased schedule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter  # noqa: E402

from snn_ext import convert, evaluate  # noqa: E402
from snn_ext.conversion import QuantizedReLU  # noqa: E402
from tests.conversion.nets import dyadic, images, vgg  # noqa: E402

T = 8


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = (nn.Conv2d(c, 6, 3, padding=1) for c in (2, 6, 6))
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        return self.head((self.conv2(self.conv1(x).relu()) + x).relu().mean((2, 3)))


def plain_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(72, 4),
    )  # fmt: skip


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(8, 2, 8, 8), torch.randint(4, (8,))


def test_analog_accuracy_and_activations_are_those_of_the_net_it_was_converted_from(
    data: tuple[Tensor, Tensor],
) -> None:
    ann = Residual().eval()
    snn = convert(ann, data[0], method="data-norm", precharge=0.5)
    own, given = evaluate(snn, [data], 64, progress=False), evaluate(snn, [data], 64, ann=ann, progress=False)
    assert own.analog_accuracy == given.analog_accuracy
    with torch.no_grad():
        activation = ann.stem(data[0]).relu()
    first = own.layers[0]
    assert first.mean_activation == pytest.approx(float(activation.mean() / activation.max()), rel=1e-5)
    assert [layer.kind for layer in own.layers] == ["neuron", "pool", "neuron", "neuron"]
    assert float(own.mse_at(0)[-1]) < float(own.mse_at(0)[7]) / 4
    assert own.macs == 64 * 6 * 18 + 2 * 16 * 6 * 54 + 24 and own.input_macs == 64 * 6 * 18


@pytest.mark.parametrize("channel_wise", [False, True], ids=["layer", "channel"])
def test_a_clip_holds_in_the_analog_net_that_rates_are_compared_with(
    channel_wise: bool, data: tuple[Tensor, Tensor]
) -> None:
    """A neuron saturates at the clip of its activation, so that is what its rate is to approach."""
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Hardtanh(0.0, 0.05), nn.Flatten(), nn.Linear(144, 4)).eval()
    snn = convert(ann, data[0], method="data-norm", precharge=0.5, channel_wise=channel_wise)
    found = evaluate(snn, [data], 200, progress=False)
    with torch.no_grad():
        assert float(found.mse_at(0)[-1]) < 1e-3 * float(ann(data[0]).var())
        wanted = ann[1](ann[0](data[0])).mean() / 0.05
    assert found.layers[0].mean_activation == pytest.approx(float(wanted), rel=1e-5)
    assert float(found.layers[0].normalised_rate[-1]) == pytest.approx(1.0, abs=0.01)


def test_synops_of_a_folded_net_agree_with_the_counter_of_the_host(data: tuple[Tensor, Tensor]) -> None:
    snn = convert(plain_net(), data[0], method="data-norm", precharge=0.5)
    evaluation = evaluate(snn, [data], T, progress=False)
    total = 0
    functional.reset_net(snn)
    with torch.no_grad():
        for _ in range(T):
            counter = SynOpCounter()
            with DispatchCounterMode([counter]):
                snn(data[0])
            total += counter.get_total()
    functional.reset_net(snn)
    assert total > 0 and float(8 * evaluation.synops[-1]) == pytest.approx(total, abs=1e-6)


def test_signed_events_of_an_encoder_count_as_spikes(data: tuple[Tensor, Tensor]) -> None:
    x = 2 * data[0] - 1
    snn = convert(plain_net(), x, method="data-norm", encoder="poisson", readout="spikes")
    evaluation = evaluate(snn, [x], 200, progress=False)
    encoder = evaluation.layers[0]
    assert encoder.kind == "input" and evaluation.input_macs == 0
    assert float(encoder.spikes[-1]) / 200 == pytest.approx(float(x.abs().sum()) / 8, rel=0.05)
    assert float(encoder.normalised_rate[-1]) == pytest.approx(1.0, rel=0.05)


class Interrupted(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Tensor]:
        yield self[0]
        raise KeyboardInterrupt


def test_events_do_not_depend_on_where_an_evaluation_was_interrupted(
    data: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    def snn(seed: int = 0) -> nn.Module:
        torch.manual_seed(1)
        return convert(plain_net(), data[0], method="data-norm", encoder="poisson", seed=seed)

    batches = list(data[0].split(4))
    whole = evaluate(snn(), batches, T, progress=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(snn(), Interrupted(batches), T, resume=tmp_path / "state.pt", progress=False)
    with pytest.raises(ValueError, match="another net"):
        evaluate(snn(seed=1), batches, T, resume=tmp_path / "state.pt", progress=False)
    assert evaluate(snn(), batches, T, resume=tmp_path / "state.pt", progress=False).to_json() == whole.to_json()
    assert evaluate(snn(seed=1), batches, T, progress=False).to_json() != whole.to_json()


@pytest.mark.parametrize("build", [plain_net, Residual])
def test_phased_net_answers_at_its_latency(build: object, data: tuple[Tensor, Tensor]) -> None:
    ann = build().eval()  # type: ignore[operator]
    phased = convert(ann, data[0], method="data-norm", schedule="phased", time_steps=T, precharge=0.5)
    evaluation = evaluate(phased, [data], phased.latency, progress=False)
    streaming = evaluate(convert(ann, data[0], method="data-norm", precharge=0.5), [data], T, progress=False)
    assert evaluation.time_steps == phased.latency > T
    assert evaluation.macs == streaming.macs
    # the same number of spikes but for the mismatches of the streaming schedule, and the same synapses
    assert float(evaluation.spikes[-1]) == pytest.approx(float(streaming.spikes[-1]), rel=0.25)
    per_spike = [float(e.synops[-1] / e.spikes[-1]) for e in (evaluation, streaming)]
    assert per_spike[0] == pytest.approx(per_spike[1], rel=0.25)


@pytest.mark.parametrize("pool", [nn.AvgPool2d, nn.MaxPool2d])
def test_phased_net_has_the_same_figures_by_counts_and_by_steps(pool: type[nn.Module]) -> None:
    ann = dyadic(vgg(lambda: QuantizedReLU(4, 0.5, "round"), lambda: pool(2)))
    x = images()
    snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=4)
    loader = [(x[:5], torch.arange(5)), (x[5:], torch.arange(3))]
    by_counts = evaluate(snn, loader, snn.latency, delay=(0, snn.latency - 4), top=(1, 2), progress=False)
    by_steps = evaluate(snn, loader, snn.latency, delay=(0, snn.latency - 4), top=(1, 2), progress=False, chunk=7)
    assert by_counts.to_json() == by_steps.to_json()
    assert by_counts.spikes[-1] > 0
