"""The frame that VGG-16 and ResNet-18 share: a stem that never sees time, a body that may, and the mean over time."""

from __future__ import annotations

from spikingjelly.activation_based import layer
from torch import nn

from snn_ext import ConstantInputNet

from .batch_norm import GlobalBatchNorm2d, GlobalBatchNormSequence2d

__all__ = ["Classifier", "conv_norm", "scaled", "stem_conv_norm"]


class Classifier(ConstantInputNet):
    """An analog ReLU net as built; a spiking one once its activations are replaced and it is given ``time_steps``.

    ::

        replace_neurons(net, lambda relu: ATIFuNode(scale_output=True))
        functional.set_step_mode(net, "m")
        net.time_steps = 4

    Parameters
    ----------
    stem : nn.Module
        Convolution and batch norm, of plain modules: the image is constant over time, so they run once.
    body : nn.Module
        Begins with an activation and ends with the linear read-out.
    """

    def __init__(self, stem: nn.Module, body: nn.Module) -> None:
        super().__init__(body, stem=stem)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def scaled(channels: int, width: float) -> int:
    """Return a number of channels times ``width``, at least 4."""
    return max(4, round(channels * width))


def stem_conv_norm(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    """Return the first convolution, 3x3, with its batch norm, of modules without a step mode."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
    return nn.Sequential(convolution, *[GlobalBatchNorm2d(outputs)] * norm)


def conv_norm(inputs: int, outputs: int, norm: bool, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size (at stride 1) and its batch norm, or a bias instead."""
    convolution = layer.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not norm)
    return [convolution, *[GlobalBatchNormSequence2d(outputs)] * norm]
