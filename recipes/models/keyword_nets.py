"""Nets for keywords ``[N, 1, frames, coefficients]``: a separable one, and a recurrent layer of the host's LIF."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

from .batch_norm import GlobalBatchNorm2d, GlobalBatchNormSequence2d
from .classifier import Classifier, scaled

__all__ = ["RecurrentLIF", "separable"]


def separable(
    classes: int = 35, in_channels: int = 1, *, width: float = 1.0, norm: bool = True, coefficients: int = 10
) -> Classifier:
    """Build a net of four depthwise-separable blocks over time: 83,363 parameters with 35 classes, 9 activations.

    Neighbouring cepstral coefficients have no more in common than distant ones, so the stem sees all of them at once
    and every later convolution runs along time alone: depthwise over 9 steps, then pointwise over 128 channels. Each
    of both ends in an activation, so every weight behind the stem is fed by spikes. The stem and the first block
    halve the time: 48 frames become 24, then 12.

    Parameters
    ----------
    classes : int
        Number of outputs.
    in_channels : int
        Channels of the input, 1.
    width : float
        Factor on all widths.
    norm : bool
        Batch norm after each convolution.
    coefficients : int
        Last dimension of the input.

    Returns
    -------
    Classifier

    Examples
    --------
    >>> import torch
    >>> separable()(torch.rand(2, 1, 48, 10)).shape
    torch.Size([2, 35])
    """
    channels = scaled(128, width)
    stem = nn.Sequential(
        nn.Conv2d(in_channels, channels, (5, coefficients), (2, 1), (2, 0), bias=not norm),
        *[GlobalBatchNorm2d(channels)] * norm,
    )
    body: list[nn.Module] = [nn.ReLU()]
    for stride in (2, 1, 1, 1):
        depthwise = layer.Conv2d(channels, channels, (9, 1), (stride, 1), (4, 0), groups=channels, bias=not norm)
        pointwise = layer.Conv2d(channels, channels, 1, bias=not norm)
        for convolution in (depthwise, pointwise):
            body += [convolution, *[GlobalBatchNormSequence2d(channels)] * norm, nn.ReLU()]
    body += [layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, classes)]
    return Classifier(stem, nn.Sequential(*body))


class RecurrentLIF(nn.Module):
    """One recurrent layer of SpikingJelly's LIF neurons, which sees the frames one after another: the usual rival.

    ``i[t] = W x[frame of t] + R z[t-1] + b``; the output is the mean over the steps of a linear layer of the spikes.

    Parameters
    ----------
    classes : int
        Number of outputs.
    coefficients : int
        Last dimension of the input ``[N, 1, frames, coefficients]``.
    neurons : int
        In the recurrent layer.
    time_steps : int
        T: the frames are spread evenly over them, each is held until the next.
    tau : float
        Time constant of the membrane in steps.

    Examples
    --------
    >>> import torch
    >>> RecurrentLIF(time_steps=10)(torch.rand(2, 1, 48, 10)).shape
    torch.Size([2, 35])
    """

    def __init__(
        self, classes: int = 35, coefficients: int = 10, *, neurons: int = 128, time_steps: int = 200,
        tau: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.time_steps = time_steps
        self.input = nn.Linear(coefficients, neurons)
        self.recurrent = nn.Linear(neurons, neurons, bias=False)
        self.lif = neuron.LIFNode(
            tau, decay_input=False, v_reset=None, surrogate_function=surrogate.ATan(), detach_reset=True
        )
        self.readout = nn.Linear(neurons, classes)
        nn.init.orthogonal_(self.recurrent.weight, 0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.readout(self.spikes(features).mean(0))

    def spikes(self, features: Tensor) -> Tensor:
        """Return the spike trains ``[T, N, neurons]``."""
        currents = self.input(features.squeeze(1))  # once a frame
        frames = torch.arange(self.time_steps) * currents.shape[1] // self.time_steps
        spikes = currents.new_zeros(len(currents), self.recurrent.in_features)
        trains = []
        for frame in frames.tolist():
            spikes = self.lif(currents[:, frame] + self.recurrent(spikes))
            trains.append(spikes)
        return torch.stack(trains)
