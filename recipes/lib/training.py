"""Training of a classifier, analog or spiking: the same code for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from tqdm import tqdm

from snn_ext import train_epoch

__all__ = ["accuracy", "right", "seed_everything", "train"]


class BatchLoader(Protocol):
    """Yields batches of inputs and labels, and says how many, as a ``DataLoader``."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


def seed_everything(seed: int) -> torch.Generator:
    """Seed torch, forbid algorithms that are not reproducible, and return a generator for a loader that shuffles."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    return torch.Generator().manual_seed(seed)


def train(
    net: nn.Module,
    loader: BatchLoader,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    name: str,
    on_step: Callable[[], None] | None = None,
    **options: Any,
) -> None:
    """Train with cross entropy and a cosine schedule that ends at zero; the state is reset after every batch.

    Parameters
    ----------
    net : nn.Module
        ``[N, ...]`` to ``[N, classes]``.
    loader : DataLoader or Batches
        Yields images and labels; one with ``set_epoch`` is told the number of each pass.
    optimizer : Optimizer
        Its learning rates are those at the start.
    epochs : int
        Passes over the loader.
    name : str
        Stands at the progress bar.
    on_step : callable, optional
        Called after every step of the optimizer.
    options
        Of :func:`snn_ext.train_epoch`: loss at every step, distillation.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    with tqdm(total=epochs * len(loader), desc=name, unit="batch", dynamic_ncols=True, disable=None) as bar:

        def after_step(loss: float) -> None:
            schedule.step()
            if on_step is not None:
                on_step()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        for epoch in range(epochs):
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            train_epoch(net, loader, optimizer, on_step=after_step, **options)


def right(scores: Tensor, labels: Tensor) -> Tensor:
    """Return which samples have their largest score at their label, ``[N]``; scores with a NaN among them name none."""
    return (scores.argmax(1) == labels) & ~scores.isnan().any(1)


@torch.no_grad()
def accuracy(net: nn.Module, loader: BatchLoader) -> float:
    """Return the share of samples that a net gets right; its state is reset before and after every batch."""
    correct = samples = 0
    training = net.training
    net.eval()
    try:
        for inputs, labels in loader:
            functional.reset_net(net)
            correct += int(right(net(inputs), labels).sum())
            samples += len(labels)
    finally:
        functional.reset_net(net)
        net.train(training)
    return correct / samples
