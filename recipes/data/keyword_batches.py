"""Batches of spoken words that depend on a seed and an epoch alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .augment import Augment
from .background import TRAINED, background
from .features import to_float
from .mfcc import MFCC
from .speech_commands import Clips

__all__ = ["FeatureBatches", "KeywordBatches"]


class FeatureBatches:
    """Features, standardised: each clip comes once.

    Parameters
    ----------
    features, labels : Tensor
        ``[N, 1, frames, coefficients]`` and ``[N]``.
    batch_size : int
        Clips in a batch over all processes.
    mean, std : Tensor
        Of each coefficient, ``[coefficients]``.
    shuffle : int, optional
        Seed of an order in which the first clips have all words; by default it is that of the features.
    rank, processes : int
        Which share of how many.
    device : torch.device
        Where the batches are made.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, batch_size: int, mean: Tensor, std: Tensor, *,
        shuffle: int | None = None, rank: int = 0, processes: int = 1, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.features, self.labels, self.batch_size = features, labels, batch_size
        self.mean, self.std, self.device = mean.to(device), std.to(device), device
        self.share = slice(rank, None, processes)
        drawn = None if shuffle is None else torch.Generator().manual_seed(shuffle)
        self.order = torch.arange(len(labels)) if drawn is None else torch.randperm(len(labels), generator=drawn)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.labels), self.batch_size):
            index = self.order[start : start + self.batch_size][self.share]
            if len(index):
                features = (self.features[index].to(self.device) - self.mean) / self.std
                yield features, self.labels[index].to(self.device)


class KeywordBatches:
    """Shuffled clips, augmented and turned into features on the way, with others among them that are none of the words.

    Everything random is drawn for the whole batch from generators seeded by ``(seed, epoch)``, and each process takes
    its rows. So an epoch can be repeated exactly, and any number of processes see together what one sees.

    Parameters
    ----------
    clips : Clips
        The training clips.
    batch_size : int
        Clips in a batch over all processes; an incomplete last batch is left out.
    front_end : MFCC
        On the device where the batches are made.
    mean, std : Tensor
        Of each coefficient, ``[coefficients]``.
    augment : Augment
        Of the clips.
    background : float
        As many sounds that are no word come on top, as a share of the clips. There is no class for them: their target
        is the uniform distribution, so that a net is to be sure of no word where there is none.
    unknown : Clips, optional
        Clips of words that are to be taken for none; their target is the uniform distribution too.
    unknown_share : float
        As many of them come on top, as a share of the clips.
    mixup : float
        alpha of the Beta distribution from which the weight of a mixture of two samples is drawn; 0 for none.
    seed, rank, processes : int
        Seed of the run; which share of how many.

    Notes
    -----
    The targets are probabilities ``[N, words]``. ``seconds`` is the time that the batches of this epoch have taken.
    """

    def __init__(
        self, clips: Clips, batch_size: int, front_end: MFCC, mean: Tensor, std: Tensor, augment: Augment, *,
        background: float = 0.0, unknown: Clips | None = None, unknown_share: float = 0.0, mixup: float = 0.0,
        seed: int = 0, rank: int = 0, processes: int = 1,
    ) -> None:  # fmt: skip
        self.clips, self.labels, self.batch_size = clips, clips.labels, batch_size
        self.front_end, self.augment, self.device = front_end, augment, front_end.window.device
        self.mean, self.std = mean.to(self.device), std.to(self.device)
        self.extra, self.mixup, self.seed = round(background * batch_size), mixup, seed
        self.unknown, self.strangers = unknown, 0 if unknown is None else round(unknown_share * batch_size)
        self.share = slice(rank, None, processes)
        self.epoch, self.seconds = 0, 0.0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.seconds = 0.0
        draw = np.random.default_rng([self.seed, self.epoch])
        generator = torch.Generator().manual_seed(int(draw.integers(2**62)))
        order = torch.from_numpy(draw.permutation(len(self.labels)))
        for index in order[: len(self) * self.batch_size].split(self.batch_size):
            began = time.perf_counter()
            weight = draw.beta(self.mixup, self.mixup) if self.mixup else 1.0
            batch = self._batch(index, weight, generator)
            self.seconds += time.perf_counter() - began
            yield batch

    @torch.no_grad()
    def _batch(self, index: Tensor, weight: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        words = len(self.clips.words)
        waveforms = self.clips.waveforms[index]
        if self.unknown is not None and self.strangers:
            drawn = torch.randint(len(self.unknown), (self.strangers,), generator=generator)
            waveforms = torch.cat([waveforms, self.unknown.waveforms[drawn]])
        features = self.augment(to_float(waveforms.to(self.device)), self.front_end, generator)
        if self.extra:
            noise = background(self.extra, waveforms.shape[1], generator, TRAINED).to(self.device)
            features = torch.cat([features, self.front_end(noise)])
        targets = torch.full((len(features), words), 1.0 / words, device=self.device)
        targets[: len(index)] = torch.eye(words, device=self.device)[self.labels[index].to(self.device)]
        features = (features - self.mean) / self.std
        if self.mixup:
            features = weight * features + (1.0 - weight) * features.roll(1, 0)
            targets = weight * targets + (1.0 - weight) * targets.roll(1, 0)
        return features[self.share], targets[self.share]
