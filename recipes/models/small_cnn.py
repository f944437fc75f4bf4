"""A small convolutional net for 28x28 grey images."""

from __future__ import annotations

import copy

from spikingjelly.activation_based import layer
from torch import Tensor, nn

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Three convolutions of 3x3, each with batch norm, an activation and average pooling; then a linear read-out.

    As built it is an analog ReLU net. To run it as a spiking net, replace its activations
    (:func:`snn_ext.replace_neurons`), set the step mode "m" and give it ``time_steps``::

        replace_neurons(net, lambda relu: ATIFuNode(scale_output=True))
        functional.set_step_mode(net, "m")
        net.time_steps = 4

    The image is constant over time, so the stem runs once, and its result is the current into the first spiking
    layer at every step. The output is the mean over the steps of the last linear layer: with ``scale_output=True``
    in the units of the analog net.

    Parameters
    ----------
    channels : tuple of int
        Channels of the three convolutions.
    classes : int
        Number of outputs.

    Attributes
    ----------
    time_steps : int or None
        Number of steps of the spiking net; ``None`` runs the analog net.

    Notes
    -----
    ``[N, 1, 28, 28]`` to ``[N, classes]``, analog or spiking.

    Examples
    --------
    >>> import torch
    >>> SmallCNN()(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: tuple[int, int, int] = (8, 32, 64), classes: int = 10) -> None:
        super().__init__()
        first, second, third = channels
        self.time_steps: int | None = None
        # Plain modules: the stem never sees time, and set_step_mode passes it by.
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first))
        self.body = nn.Sequential(
            nn.ReLU(),
            layer.AvgPool2d(2),
            layer.Conv2d(first, second, 3, padding=1, bias=False),
            layer.BatchNorm2d(second),
            nn.ReLU(),
            layer.AvgPool2d(2),
            layer.Conv2d(second, third, 3, padding=1, bias=False),
            layer.BatchNorm2d(third),
            nn.ReLU(),
            layer.AvgPool2d(2),
            layer.Flatten(),
            layer.Linear(9 * third, classes),
        )

    def plain(self) -> nn.Sequential:
        """Return the analog net as a copy of ``torch.nn`` layers alone, which every converter reads."""
        layers = copy.deepcopy([*self.stem, *self.body])
        for module in layers:
            module.__class__ = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn"))
        return nn.Sequential(*layers).eval()

    def forward(self, images: Tensor) -> Tensor:
        current = self.stem(images)
        if self.time_steps is None:
            return self.body(current)
        return self.body(current.expand(self.time_steps, *current.shape)).mean(0)
