"""Augmentation does what its numbers say, and the same again from the same generator."""

from __future__ import annotations

import pytest
import torch

from recipes.data.augment import Augment, add_noise, mask, pink_noise, time_shift
from recipes.data.mfcc import MFCC


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_same_generator_gives_the_same_features_and_another_seed_others() -> None:
    x, front_end, augment = torch.randn(4, 16_000), MFCC(), Augment()
    first = augment(x, front_end, generator())
    torch.manual_seed(77)
    assert torch.equal(augment(x, front_end, generator()), first)
    assert not torch.equal(augment(x, front_end, generator(1)), first)


def test_nothing_to_do_leaves_the_features_alone() -> None:
    x = torch.randn(4, 16_000)
    augment = Augment(shift=0, noise_share=0, time_masks=0, band_masks=0)
    assert torch.equal(augment(x, MFCC(), generator()), MFCC()(x))


def test_clips_move_both_ways_by_at_most_the_limit_and_zeros_follow() -> None:
    x = torch.arange(1.0, 101.0).expand(500, 100)
    moved = time_shift(x, 7, generator())
    shifts = set()
    for row in moved:
        shift = int((row == 0).sum()) * (1 if row[0] == 0 else -1)
        shifts.add(shift)
        wanted = torch.zeros(100)
        wanted[max(shift, 0) : 100 + min(shift, 0)] = x[0, max(-shift, 0) : 100 - max(shift, 0)]
        assert torch.equal(row, wanted)
    assert shifts == set(range(-7, 8))


def test_noise_has_the_wanted_power_under_each_clip() -> None:
    x, noise = torch.randn(5, 16_000) * torch.tensor([[1.0], [0.1], [1e-3], [1.0], [0.0]]), torch.randn(5, 16_000)
    snr = torch.tensor([0.0, 10.0, -6.0, torch.inf, 3.0])
    noisy = add_noise(x, noise, snr)
    added = (noisy - x).square().mean(1)
    torch.testing.assert_close(10 * torch.log10(x.square().mean(1) / added)[:3], snr[:3], atol=0.01, rtol=0)
    assert torch.equal(noisy[3:], x[3:])
    assert torch.equal(add_noise(x, torch.zeros_like(x), snr), x)


def test_share_and_range_of_the_noise_are_kept() -> None:
    x = torch.randn(400, 1_600)
    noisy = Augment(shift=0, noise_share=0.25, snr=(5, 15)).waveform(x, generator())
    added = (noisy - x).square().mean(1)
    clean = added == 0
    assert 70 <= int((~clean).sum()) <= 130
    decibels = 10 * torch.log10(x.square().mean(1) / added)[~clean]
    assert decibels.min() >= 4.99 and decibels.max() <= 15.01 and decibels.std() > 2


def test_noise_comes_from_the_recording_that_was_given() -> None:
    recording = torch.arange(20_000.0)
    noisy = Augment(shift=0, noise_share=1, noise=recording).waveform(torch.ones(50, 16_000), generator())
    steps = (noisy - 1).diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-5, rtol=0)
    firsts = (noisy[:, 0] - 1) / steps.mean(1)
    assert firsts.max() <= 4001 and firsts.max() - firsts.min() > 1000


@pytest.mark.parametrize("axis", [1, 2])
def test_mask_is_one_stretch_up_to_its_width_filled_with_the_mean(axis: int) -> None:
    values = torch.randn(300, 48, 40)
    masked = mask(values, axis, 6, generator())
    changed = masked != values
    means = values.mean((1, 2), keepdim=True).expand_as(values)
    assert torch.equal(masked[changed], means[changed])
    lines = changed.any(3 - axis)
    assert torch.equal(lines.unsqueeze(3 - axis).expand_as(changed), changed)  # whole frames, or whole bands
    lengths = lines.sum(1)
    assert set(lengths.tolist()) == set(range(7))
    edges = (lines[:, 1:] != lines[:, :-1]).sum(1)
    assert edges.max() <= 2 and lines.any(0).all()


def test_pink_noise_loses_three_decibels_an_octave() -> None:
    power = torch.fft.rfft(pink_noise(200, 16_000, generator())).abs().square().mean(0)
    octaves = torch.stack([power[2**i : 2 ** (i + 1)].mean() for i in range(4, 12)])
    torch.testing.assert_close(10 * torch.log10(octaves).diff(), torch.full((7,), -3.01), atol=0.5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"shift": 2.0}, {"noise_share": -0.1}, {"snr": (10, 5)}, {"noise": torch.zeros(5)}, {"time_width": -1}],
)
def test_wrong_option_is_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: got"):
        Augment(**options)
