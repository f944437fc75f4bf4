"""Training and measuring a classifier, analog or spiking: the same code for both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from snn_ext.functional import sqnr

__all__ = [
    "LayerMeasurement", "Measurement", "measure", "right", "seed_everything", "train",
]  # fmt: skip

BatchLoader = DataLoader[Any]


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
) -> None:
    """Train with cross entropy and a cosine schedule that ends at zero; the state is reset after every batch.

    Parameters
    ----------
    net : nn.Module
        ``[N, ...]`` to ``[N, classes]``.
    loader : DataLoader
        Yields images and labels.
    optimizer : Optimizer
        Its learning rates are those at the start.
    epochs : int
        Passes over the loader.
    name : str
        Stands at the progress bar.
    on_step : callable, optional
        Called after every step of the optimizer.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    net.train()
    with tqdm(total=epochs * len(loader), desc=name, unit="batch", dynamic_ncols=True) as bar:
        for _ in range(epochs):
            for images, labels in loader:
                loss = nn.functional.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                functional.reset_net(net)
                if on_step is not None:
                    on_step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()


def right(scores: Tensor, labels: Tensor) -> Tensor:
    """Return which samples have their largest score at their label, ``[N]``; scores with a NaN among them name none."""
    return (scores.argmax(1) == labels) & ~scores.isnan().any(1)


@dataclass
class LayerMeasurement:
    """What one spiking layer did on a data set.

    Attributes
    ----------
    neurons : int
        Neurons for one sample.
    spikes_per_neuron : float
        Mean number of spikes of a neuron in the T steps of one sample.
    sqnr_db : float
        Signal to quantisation noise ratio of the layer in its place in the net, in dB: signal is the neuron's input,
        averaged over time, where that is >= 0 (so it is the ReLU of it); noise is the difference to the decoded
        value, firing rate times threshold (p_1 for ATIF-nu). Over an evenly spaced sample of inputs; NaN if all of
        them are negative.
    inputs : Tensor
        That sample of inputs, flat, negative ones included.
    """

    neurons: int
    spikes_per_neuron: float
    sqnr_db: float
    inputs: Tensor


@dataclass
class Measurement:
    """Accuracy of a net (0..1) and what its spiking layers did, in the order of ``neurons``."""

    accuracy: float
    layers: list[LayerMeasurement]

    @property
    def spikes_per_neuron(self) -> float | None:
        """Mean over all spiking neurons of the net, ``None`` for an analog net."""
        neurons = sum(layer.neurons for layer in self.layers)
        return sum(layer.spikes_per_neuron * layer.neurons for layer in self.layers) / neurons if neurons else None

    def as_json(self) -> dict[str, Any]:
        names = ("neurons", "spikes_per_neuron", "sqnr_db")
        layers = [{name: getattr(layer, name) for name in names} for layer in self.layers]
        return {"accuracy": self.accuracy, "spikes_per_neuron": self.spikes_per_neuron, "layers": layers}


@torch.no_grad()
def measure(
    net: nn.Module, loader: BatchLoader, neurons: Iterable[nn.Module] = (), *, limit: int = 20_000
) -> Measurement:
    """Measure accuracy, and for each of the given spiking layers in step mode "m" its spikes and its SQNR.

    Parameters
    ----------
    net : nn.Module
        ``[N, ...]`` to ``[N, classes]``; it runs in eval mode and is reset before and after every batch.
    loader : DataLoader
        Yields images and labels.
    neurons : iterable of nn.Module
        Its spiking layers; none for an analog net.
    limit : int
        Inputs kept of a layer and batch for its SQNR.

    Returns
    -------
    Measurement
    """
    probes = [_Probe(neuron, limit) for neuron in neurons]
    correct = samples = 0
    training = net.training
    net.eval()
    try:
        for images, labels in loader:
            functional.reset_net(net)
            correct += int(right(net(images), labels).sum())
            samples += len(labels)
    finally:
        functional.reset_net(net)
        net.train(training)
        for probe in probes:
            probe.hook.remove()
    return Measurement(correct / samples, [probe.result(samples) for probe in probes])


class _Probe:
    """Watches one spiking layer by a forward hook."""

    def __init__(self, neuron: nn.Module, limit: int) -> None:
        self.limit = limit
        self.spikes = 0
        self.neurons = 0
        self.inputs: list[Tensor] = []
        self.decoded: list[Tensor] = []
        self.hook = neuron.register_forward_hook(self)

    def __call__(self, neuron: nn.Module, arguments: tuple[Tensor, ...], spike_seq: Tensor) -> None:
        self.spikes += int(spike_seq.count_nonzero())
        self.neurons = spike_seq[0, 0].numel()
        stride = -(-spike_seq[0].numel() // self.limit)
        self.inputs.append(arguments[0].flatten(1)[:, ::stride].mean(0))
        self.decoded.append(spike_seq.flatten(1)[:, ::stride].mean(0) * _scale(neuron, arguments[0]))

    def result(self, samples: int) -> LayerMeasurement:
        inputs, decoded = torch.cat(self.inputs), torch.cat(self.decoded)
        signal = inputs >= 0
        ratio = float(sqnr(inputs[signal], decoded[signal])) if signal.any() else nan
        return LayerMeasurement(self.neurons, self.spikes / (samples * self.neurons), ratio, inputs)


def _scale(neuron: nn.Module, x_seq: Tensor) -> Tensor | float:
    """Return the factor from a neuron's mean output to its decoded value."""
    if getattr(neuron, "scale_output", False):
        return 1.0
    return neuron.thresholds(x_seq).clip_level if hasattr(neuron, "thresholds") else neuron.v_threshold
