"""Training of an autoencoder, which a later call continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ..models.convertible import autoencoder
from .files import intact, load_tensors, save_tensors

__all__ = ["train_autoencoder"]


def train_autoencoder(images: Tensor, options: Any, path: Path) -> nn.Module:
    """Train with the squared error, or load the finished net; an interrupted training goes on after its last epoch.

    Seed and epoch alone decide what an epoch draws, so a continued training ends in the same net.
    """
    torch.manual_seed(options.seed)
    net = autoencoder(images.shape[1], width=options.width).to(options.device)
    optimizer = torch.optim.Adam(net.parameters(), options.lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, options.milestones, 0.1)
    names = ("data", "width", "epochs", "batch_size", "lr", "milestones", "seed")
    settings = {name: getattr(options, name) for name in names} | {"images": len(images)}
    state = {"net": net, "optimizer": optimizer, "schedule": schedule}
    start = 0
    if path.exists():
        kind = "a checkpoint of this training", "remove it to start afresh"
        checkpoint = load_tensors(path, *kind)
        with intact(path, *kind):
            there = checkpoint["settings"]
        if there != settings:
            raise ValueError(f"--out: got {path} of another training, want the same settings or another folder")
        with intact(path, *kind):
            for name, part in state.items():
                part.load_state_dict(checkpoint[name])
            start = checkpoint["epochs"]
    steps = len(images) // options.batch_size
    with tqdm(
        total=options.epochs * steps, initial=start * steps, desc="autoencoder", unit="batch", disable=None
    ) as bar:
        for epoch in range(start, options.epochs):
            generator = torch.Generator().manual_seed(1_000_003 * options.seed + epoch)
            order = torch.randperm(len(images), generator=generator)[: steps * options.batch_size]
            for index in order.split(options.batch_size):
                batch = images[index].to(options.device)
                loss = functional.mse_loss(net(batch), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
                bar.update()
            schedule.step()
            saved = {name: part.state_dict() for name, part in state.items()}
            save_tensors({**saved, "settings": settings, "epochs": epoch + 1}, path)
    return net.eval()
