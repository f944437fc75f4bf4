"""Pooling and encoding of spikes, and the quantised activation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402

from snn_ext.conversion import PoissonEncoder, QuantizedReLU, SpikeMaxPool1d, SpikeMaxPool2d, SpikeMaxPool3d  # noqa: E402


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_max_pooling_emits_spikes_whose_count_is_the_maximum_at_every_step(dims: int) -> None:
    plain = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](3, 2, padding=1, ceil_mode=True)
    pool = (SpikeMaxPool1d, SpikeMaxPool2d, SpikeMaxPool3d)[dims - 1].like(plain)
    train = (torch.rand(20, 2, 3, *[7] * dims) < torch.rand(2, 3, *[7] * dims)).float()
    single = torch.stack([pool(x) for x in train])
    assert ((single == 0) | (single == 1)).all()
    for t in (1, 5, 20):
        assert torch.equal(single[:t].sum(0), plain(train[:t].sum(0)))
    functional.reset_net(pool)
    pool.step_mode = "m"
    assert torch.equal(torch.cat([pool(train[:7]), pool(train[7:])]), single)
    assert isinstance(pool, type(plain))


@pytest.mark.parametrize("per_channel", [False, True], ids=["layer", "channel"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 60])
def test_spikes_that_carry_a_threshold_are_pooled_without_rounding_in_any_chunks(chunk: int, per_channel: bool) -> None:
    """A third of a threshold more or less an ulp, added up in float32, makes spikes of 1e-8."""
    theta = (torch.rand(3) * 2 + 0.05).reshape(-1, 1, 1) if per_channel else torch.tensor(0.1)
    events = (torch.rand(60, 2, 3, 6, 6) < torch.rand(2, 3, 6, 6)).float()
    pool, plain = SpikeMaxPool2d.like(nn.MaxPool2d(2)), nn.MaxPool2d(2)
    pool.step_mode = "m"
    pooled = torch.cat([pool(part) for part in (events * theta).split(chunk)])
    assert ((pooled == 0) | (pooled == theta)).all()
    counts = torch.stack([plain(count) for count in events.cumsum(0)])
    assert torch.equal((pooled != 0).float().cumsum(0), counts)


def test_poisson_events_have_rate_and_sign_of_the_input_and_are_independent() -> None:
    encoder = PoissonEncoder(seed=1)
    encoder.step_mode = "m"
    x = torch.rand(4, 3, 4, 4) * 2 - 1
    train = encoder(x.expand(2500, *x.shape))
    assert set(train.unique().tolist()) == {-1.0, 0.0, 1.0}
    deviation = (train.mean(0) - x) / (x.abs() * (1 - x.abs()) / 2500).sqrt()
    assert deviation.abs().max() < 4.5 and 0.9 < deviation.std() < 1.1
    flat = train.flatten(1)[:, :40]
    correlation = torch.corrcoef(flat.T) - torch.eye(40)
    assert correlation.abs().max() < 0.1  # 780 pairs, standard deviation 0.02
    lagged = ((flat[1:] - flat.mean(0)) * (flat[:-1] - flat.mean(0))).mean(0) / flat.var(0)
    assert lagged.abs().max() < 0.1


def test_poisson_train_belongs_to_the_sample_the_step_and_the_seed() -> None:
    x = torch.rand(5, 7)
    trains = {}
    for seed in (0, 1):
        encoder = PoissonEncoder(seed)
        trains[seed] = torch.stack([encoder(x) for _ in range(50)])
        functional.reset_net(encoder)
        assert torch.equal(torch.stack([encoder(x[3:]) for _ in range(50)]), trains[seed][:, 3:])
    assert not torch.equal(trains[0], trains[1])
    assert not torch.equal(trains[0][:25], trains[0][25:])
    same = PoissonEncoder(0)(torch.full((2, 64), 0.5))
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize("rounding", ["floor", "round", "ceil"])
def test_quantised_activation_rounds_as_its_name_says(rounding: str) -> None:
    x = torch.arange(-8, 40) / 32
    level = {"floor": torch.floor, "round": lambda v: torch.floor(v + 0.5), "ceil": torch.ceil}[rounding](x * 8)
    assert torch.equal(QuantizedReLU(8, 1.0, rounding)(x), level.clamp(0, 8) / 8)  # type: ignore[arg-type]


def test_quantised_activation_passes_gradients_inside_the_clip_and_trains_its_threshold() -> None:
    layer = QuantizedReLU(4, 0.5)
    x = torch.tensor([-0.1, 0.2, 0.3, 0.9], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert layer.threshold.grad is not None and layer.threshold.grad[0] > 0.9  # at least the clipped one
    target, fitted = 0.8, QuantizedReLU(4, 0.3)
    optimizer = torch.optim.SGD(fitted.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (fitted(torch.ones(8)) - target).square().mean().backward()
        optimizer.step()
    assert abs(fitted.threshold.item() - target) < 0.01
    assert QuantizedReLU(4, trainable=False).state_dict().keys() == {"threshold"}


def test_bad_arguments_of_the_quantised_activation_are_named() -> None:
    for message, arguments in {"levels": (0,), "threshold": (4, 0.0), "rounding": (4, 1.0, "up")}.items():
        with pytest.raises((TypeError, ValueError), match=f"{message}: got"):
            QuantizedReLU(*arguments)  # type: ignore[arg-type]
