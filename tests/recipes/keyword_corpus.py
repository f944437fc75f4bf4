"""A tiny corpus in the layout of Speech Commands: three words that are three chords, said by six voices."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from recipes.lib.neurons import NeuronOptions, make_spiking
from recipes.lib.spotter import Spotter
from recipes.models.keyword_nets import separable

CHORDS = {"yes": (400.0, 900.0), "no": (700.0, 1600.0), "stop": (1200.0, 2500.0)}


def write_corpus(folder: Path, clips: int = 2, more: Mapping[str, tuple[float, float]] = MappingProxyType({})) -> Path:
    """Write ``clips`` clips of each word, and of ``more``; four voices train, one each is for validation and test."""
    rng = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word, chord in (CHORDS | dict(more)).items():
        (folder / word).mkdir(parents=True, exist_ok=True)
        for voice in range(6):
            for n in range(clips):
                name = f"{word}/voice{voice}_nohash_{n}.wav"
                envelope = np.exp(-(((time - 0.5 + 0.05 * rng.standard_normal()) / 0.15) ** 2))
                sound = sum(np.sin(2 * np.pi * f * (1 + 0.02 * voice) * time) for f in chord)
                samples = 6_000 * envelope * sound + 20 * rng.standard_normal(16_000)
                with wave.open(str(folder / name), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(16_000)
                    file.writeframes(samples.astype("<i2").tobytes())
                if voice >= 4:
                    lists[[*lists][voice - 4]].append(name)
    for name, entries in lists.items():
        (folder / name).write_text("\n".join(entries) + "\n")
    return folder


def random_spotter() -> Spotter:
    """Return a net of random weights for three words: what it hears does not matter, only that it hears the same."""
    torch.manual_seed(2)
    net = separable(3, width=0.0625)
    net.body[-1].weight.data *= 20
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data.normal_(0.3, 0.5)
    make_spiking(net, NeuronOptions(neuron="atif-nu", time_steps=2))
    return Spotter(net, ("yes", "no", "stop"), torch.zeros(10), torch.full((10,), 5.0))


def sound(seconds: float) -> Tensor:
    """Return noise that swells, int16 at 16 kHz."""
    generator = torch.Generator().manual_seed(1)
    swell = torch.sin(torch.arange(int(16_000 * seconds)) / 3_000).abs()
    return (4_000 * swell * torch.randn(len(swell), generator=generator)).clamp(-32_768, 32_767).short()
