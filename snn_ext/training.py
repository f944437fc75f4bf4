"""Training nets of spiking neurons: thresholds kept out of weight decay, and a net that sees a constant input."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ._errors import bad_type, check_count, check_real
from .hosts import host_of
from .neurons import ThresholdNeuron
from .neurons.quantized import QuantizedActivation

__all__ = ["ConstantInputNet", "parameter_groups"]


def parameter_groups(
    net: nn.Module, lr: float, threshold_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return optimizer groups in which the parameters of neurons and quantised activations have no weight decay.

    Weight decay would pull thresholds towards zero. Neurons are found at any depth, those of the hosts included; of the
    latter only their own parameters count, not the weights of recurrent layers inside them.

    Parameters
    ----------
    net : nn.Module
        Any net; without parameters in neurons, there is one group.
    lr, threshold_lr : float
        Learning rates of the weights and of the neurons' parameters; the same by default.
    weight_decay : float
        Of the weights alone.

    Returns
    -------
    list of dict
        The group of the weights, and behind it the group of the neurons' parameters, if there are any.

    Examples
    --------
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(nn.Linear(8, 8), ATIFuNode(), nn.Linear(8, 2))
    >>> weights, thresholds = parameter_groups(net, lr=1e-2, threshold_lr=1e-3, weight_decay=5e-4)
    >>> [len(group["params"]) for group in (weights, thresholds)]
    [4, 1]
    >>> optimizer = torch.optim.SGD([weights, thresholds])
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    threshold_lr = lr if threshold_lr is None else threshold_lr
    for name, value in (("lr", lr), ("threshold_lr", threshold_lr), ("weight_decay", weight_decay)):
        check_real(name, value, "a finite number >= 0", 0.0)
    of_neurons = {  # as an ordered set: a neuron that stands in two places counts once
        parameter: None
        for module in net.modules()
        if host_of(module) is not None or isinstance(module, QuantizedActivation)
        for parameter in module.parameters(recurse=isinstance(module, ThresholdNeuron))
    }
    weights = [parameter for parameter in net.parameters() if parameter not in of_neurons]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": lr, "weight_decay": weight_decay}]
    if of_neurons:
        groups.append({"params": list(of_neurons), "lr": threshold_lr, "weight_decay": 0.0})
    return groups


class ConstantInputNet(nn.Module):
    """A spiking net that gets one constant input for T steps, and returns the mean of its outputs: direct coding.

    From outside it looks like the analog net, ``[N, ...]`` to ``[N, classes]``, and with ``time_steps=None`` it is that
    net. The stem, usually the first convolution, does not see time: it runs once, and its result is the current into
    the body at every step. A body in step mode "m" gets the whole sequence ``[T, N, ...]`` at once, any other one is
    called T times. The neurons are not reset: do it before each call, as for any other net of the host.
    :func:`snn_ext.evaluate` takes the trained net as it is.

    Parameters
    ----------
    body : nn.Module
        Begins with the first neurons. Any layers of either host; in snnTorch with ``init_hidden=True``.
    time_steps : int, optional
        T; an attribute that may be set later.
    stem : nn.Module, optional
        Layers without state, of plain PyTorch: SpikingJelly's ``set_step_mode`` does not touch these.

    Examples
    --------
    An analog net, calibrated, then spiking:

    >>> from spikingjelly.activation_based import functional
    >>> from snn_ext import calibrate
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = ConstantInputNet(nn.Sequential(nn.ReLU(), nn.Linear(6, 2)), stem=nn.Linear(4, 6))
    >>> x = torch.rand(5, 4)
    >>> _ = calibrate(net, [x], lambda relu: ATIFuNode(scale_output=True), time_steps=4)
    >>> functional.set_step_mode(net, "m")
    >>> net.time_steps = 4
    >>> net(x).shape
    torch.Size([5, 2])
    """

    def __init__(self, body: nn.Module, time_steps: int | None = None, *, stem: nn.Module | None = None) -> None:
        super().__init__()
        for name, module in (("body", body), ("stem", stem)):
            if not isinstance(module, nn.Module) and (name, module) != ("stem", None):
                bad_type(name, module, "an nn.Module")
        if time_steps is not None:
            check_count("time_steps", time_steps)
        self.stem = nn.Identity() if stem is None else stem
        self.body, self.time_steps = body, time_steps

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean output over the steps, ``[N, ...]``."""
        current = self.stem(x)
        if self.time_steps is None:
            return self.body(current)
        if any(getattr(module, "step_mode", "s") == "m" for module in self.body.modules()):
            return self.body(current.expand(self.time_steps, *current.shape)).mean(0)
        return torch.stack([self.body(current) for _ in range(self.time_steps)]).mean(0)

    def one_step(self) -> nn.Module:
        """Return the net of a single step, of the same layers: the form in which a simulation runs it."""
        return nn.Sequential(OrderedDict(stem=self.stem, body=self.body))

    def extra_repr(self) -> str:
        return f"time_steps={self.time_steps}"
