"""A trained net for keywords together with its front end: from waveforms to scores, and from a checkpoint to that."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from ..data.features import to_float
from ..data.mfcc import COEFFICIENTS, MFCC
from ..data.speech_commands import Clips
from ..models.keyword_nets import RecurrentLIF, separable
from ..models.resnet import resnet8, resnet18
from .checkpoints import A_CHECKPOINT, REMEDY, load_checkpoint, load_weights, spikingjelly_weights
from .files import intact, save_tensors
from .neurons import make_spiking
from .training import right

__all__ = [
    "CHECKPOINT", "MODELS", "RECURRENT", "Spotter", "build_keyword_net", "digit_accuracy", "load_spotter",
    "save_spotter",
]  # fmt: skip

CHECKPOINT = Path(__file__).parents[1] / "models" / "keywords.pt"
"""The trained net that comes along."""
MODELS = {"separable": separable, "resnet8": resnet8, "resnet18": resnet18}
RECURRENT = "recurrent-lif"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Spotter(nn.Module):
    """From waveforms ``[N, samples]`` in [-1, 1] at 16 kHz, of a second, to the scores of the words ``[N, words]``.

    Parameters
    ----------
    net : nn.Module
        From standardised features to scores; its state is reset after every call.
    words : tuple of str
        In the order of the scores.
    mean, std : Tensor
        Of each coefficient in training, ``[coefficients]``.
    frames : int
        Of the front end.

    Attributes
    ----------
    settings : dict
        The options that it was trained with.
    """

    def __init__(self, net: nn.Module, words: tuple[str, ...], mean: Tensor, std: Tensor, frames: int = 48) -> None:
        super().__init__()
        self.net, self.words, self.front_end = net, words, MFCC(frames)
        self.settings: dict[str, Any] = {}
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.eval()

    @torch.no_grad()
    def forward(self, waveforms: Tensor) -> Tensor:
        scores = self.net((self.front_end(waveforms.to(self.mean.device)) - self.mean) / self.std)
        functional.reset_net(self.net)
        return scores


def build_keyword_net(args: argparse.Namespace, classes: int) -> nn.Module:
    """Build the net that the options describe: an analog one, but for the recurrent layer."""
    if args.model == RECURRENT:
        return RecurrentLIF(classes, time_steps=args.time_steps)
    return MODELS[args.model](classes, 1, width=args.width)


def load_spotter(path: Path | str, device: torch.device | str = "cpu") -> Spotter:
    """Rebuild the trained net of a checkpoint of ``recipes.spot_keywords``, or of :func:`save_spotter`.

    Examples
    --------
    >>> spotter = load_spotter("runs/words/best.pt")  # doctest: +SKIP
    >>> spotter.words[spotter(waveforms)[0].argmax()]  # doctest: +SKIP
    """
    recipe = "recipes.spot_keywords"
    checkpoint = load_checkpoint("checkpoint", Path(path), recipe)
    with intact(path, A_CHECKPOINT.format(recipe), REMEDY):
        args, words = argparse.Namespace(**checkpoint["settings"]), tuple(checkpoint["words"])
        net = build_keyword_net(args, len(words))
        if args.model != RECURRENT and args.neuron != "relu":
            make_spiking(net, args)
        load_weights(net, spikingjelly_weights(checkpoint["model"], net))
        statistics = torch.tensor([checkpoint["mean"], checkpoint["std"]])
        if statistics.shape != (2, COEFFICIENTS) or not (statistics.isfinite().all() and (statistics[1] > 0).all()):
            raise ValueError("statistics of other features")
        spotter = Spotter(net, words, *statistics, frames=args.frames)
        spotter.settings = checkpoint["settings"]
    return spotter.to(device)


def save_spotter(checkpoint: Path | str, path: Path | str) -> None:
    """Write what :func:`load_spotter` needs of a checkpoint to a small file: no optimizer, no paths of this machine."""
    load_spotter(checkpoint)  # refuses what it could not load
    content = load_checkpoint("checkpoint", Path(checkpoint), "recipes.spot_keywords")
    content["settings"] |= {"start": None, "data": Path(content["settings"]["data"]).name}
    save_tensors({name: content[name] for name in ("model", "settings", "words", "mean", "std")}, Path(path))


@torch.no_grad()
def digit_accuracy(spotter: Spotter, clips: Clips, batch_size: int = 100) -> float:
    """Return the accuracy on clips of digits where the ten digits alone compete."""
    if missing := set(DIGITS) - set(spotter.words):
        raise ValueError(f"spotter: knows no {', '.join(sorted(missing))}; want a net for all ten digits")
    columns = torch.tensor([spotter.words.index(word) for word in DIGITS])
    wanted = torch.tensor([DIGITS.index(word) if word in DIGITS else -1 for word in clips.words])[clips.labels]
    correct = 0
    for waveforms, labels in zip(clips.waveforms.split(batch_size), wanted.split(batch_size), strict=True):
        scores = spotter(to_float(waveforms.to(spotter.mean.device))).cpu()[:, columns]
        correct += int(right(scores, labels).sum())
    return correct / len(wanted)
