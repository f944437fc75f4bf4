"""Batches of words: an epoch can be repeated, shared out, and holds what it says."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("soundfile")

from recipes.data.augment import Augment  # noqa: E402
from recipes.data.keyword_batches import FeatureBatches, KeywordBatches  # noqa: E402
from recipes.data.mfcc import MFCC  # noqa: E402
from recipes.data.speech_commands import Clips  # noqa: E402

MEAN, STD = torch.arange(10.0), torch.arange(1.0, 11.0)


@pytest.fixture(scope="module")
def clips() -> Clips:
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randint(-3_000, 3_000, (10, 16_000), generator=generator, dtype=torch.int16)
    return Clips(waveforms, torch.arange(10) % 3, ("a", "b", "c"), ("x",) * 10)


def batches(clips: Clips, augment: Augment | None = None, epoch: int = 0, **options: float) -> KeywordBatches:
    made = KeywordBatches(clips, 4, MFCC(), MEAN, STD, augment or Augment(), **options)  # type: ignore[arg-type]
    made.set_epoch(epoch)
    return made


NONE = Augment(shift=0.0, noise_share=0.0, time_masks=0, band_masks=0)


def test_epoch_repeats_exactly_and_the_next_one_is_another(clips: Clips) -> None:
    first, again, other = (list(batches(clips, epoch=e, background=0.5, mixup=1.0)) for e in (3, 3, 4))
    assert len(first) == 2
    assert all(torch.equal(x, y) for one, two in zip(first, again, strict=True) for x, y in zip(one, two, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_processes_see_together_what_one_sees(clips: Clips) -> None:
    options = {"background": 0.5, "mixup": 1.0}
    whole = list(batches(clips, **options))
    shares = [list(batches(clips, **options, rank=rank, processes=2)) for rank in range(2)]
    for step, (features, targets) in enumerate(whole):
        for rank in range(2):
            assert torch.equal(shares[rank][step][0], features[rank::2])
            assert torch.equal(shares[rank][step][1], targets[rank::2])


def test_batches_without_augmentation_are_the_standardised_features(clips: Clips) -> None:
    features = (MFCC()(clips.waveforms / 32_768) - MEAN) / STD
    seen = {}
    for rows, targets in batches(clips, NONE):
        for row, target in zip(rows, targets, strict=True):
            (index,) = [i for i in range(10) if torch.allclose(row, features[i], atol=1e-4)]
            seen[index] = target
    assert len(seen) == 8  # two batches of four, each clip once
    assert all(torch.equal(target, torch.eye(3)[i % 3]) for i, target in seen.items())
    in_order = FeatureBatches(MFCC()(clips.waveforms / 32_768), clips.labels, 4, MEAN, STD)
    assert len(in_order) == 3
    assert torch.equal(torch.cat([x for x, _ in in_order]), features)
    assert torch.equal(torch.cat([y for _, y in in_order]), clips.labels)


def test_background_comes_on_top_and_is_no_word(clips: Clips) -> None:
    for features, targets in batches(clips, background=0.5):
        assert features.shape == (6, 1, 48, 10) and features.isfinite().all()
        assert torch.equal(targets[:4].max(1).values, torch.ones(4))
        assert torch.equal(targets[4:], torch.full((2, 3), 1 / 3))


def test_unknown_words_come_on_top_and_are_none_of_the_words(clips: Clips) -> None:
    strangers = Clips(torch.full((2, 16_000), 99, dtype=torch.int16), torch.tensor([0, 1]), ("d", "e"), ("y",) * 2)
    wanted = (MFCC()(strangers.waveforms[:1] / 32_768) - MEAN) / STD
    for features, targets in batches(clips, NONE, unknown=strangers, unknown_share=0.5, background=0.25):
        assert features.shape == (7, 1, 48, 10) and torch.allclose(features[4:6], wanted.expand(2, -1, -1, -1))
        assert torch.equal(targets[4:], torch.full((3, 3), 1 / 3)) and (targets[:4].max(1).values == 1).all()


def test_first_batches_of_a_shuffled_set_have_all_words(clips: Clips) -> None:
    features, labels = torch.arange(300.0).view(300, 1, 1, 1), torch.arange(300) // 100
    made = FeatureBatches(features, labels, 20, torch.zeros(1), torch.ones(1), shuffle=0)
    assert set(next(iter(made))[1].tolist()) == {0, 1, 2}
    assert sorted(torch.cat([x for x, _ in made]).flatten().tolist()) == list(range(300))
    assert all(torch.equal(y, x.flatten().long() // 100) for x, y in made)


def test_mixture_keeps_the_sum_of_the_targets(clips: Clips) -> None:
    for _, targets in batches(clips, mixup=1.0, background=0.25):
        assert torch.allclose(targets.sum(1), torch.ones(len(targets)))
