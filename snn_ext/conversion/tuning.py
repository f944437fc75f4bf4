"""Fine calibration: thresholds, pre-charges and biases by the gradient of what the whole net outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor, nn
from torch.func import functional_call

from .._channel_search import LARGEST_PRECHARGE
from .._progress import bar
from .spiking import ThresholdSetter

__all__ = ["held_out", "tune"]

_BATCH, _HELD_OUT, _PATIENCE = 32, 4, 10
_CHANNEL_RATE, _WEIGHT_RATE = 1e-2, 3e-4


@torch.enable_grad()
def tune(
    thresholds: ThresholdSetter,
    inputs: Tensor,
    targets: Tensor,
    time_steps: int,
    *,
    epochs: int,
    weights: bool,
    progress: bool = True,
) -> None:
    """Let a calibrated net follow the surrogate gradient of its squared distance to the analog output.

    Adam with a cosine schedule; the surrogate is a triangle that reaches one threshold to either side. A quarter of the
    inputs is held out: the best parameters on them are kept, those at the start included, and the tuning ends when
    nothing has got better for some epochs.

    Parameters
    ----------
    thresholds : ThresholdSetter
        Of a net between scales that :func:`snn_ext.conversion.calibration.calibrate` has calibrated.
    inputs, targets : Tensor
        ``[N, ...]``, and the output of the analog net for them. The net was calibrated without the last
        :func:`held_out` of them: on inputs of the calibration the error of its own is too small to be reached again.
    time_steps : int
        T.
    epochs : int
        At most.
    weights : bool
        Change weights and biases of layers too.
    progress : bool
        Show a progress bar.
    """
    held = held_out(len(inputs))
    if not held:
        return
    net, channels = thresholds.net, _Channels(thresholds, time_steps)
    layers = {name: p.detach().clone() for name, p in net.named_parameters() if not name.startswith(channels.prefixes)}
    trained = [*channels.parameters(), *(layers.values() if weights else ())]
    for tensor in trained:
        tensor.requires_grad_()
    groups = [{"params": list(channels.parameters()), "lr": _CHANNEL_RATE}]
    groups += [{"params": list(layers.values()), "lr": _WEIGHT_RATE}] if weights else []
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(0)

    def loss(index: Tensor) -> Tensor:
        functional.reset_net(net)
        x = inputs[index]
        output = functional_call(net, layers | channels.values(), (x.expand(time_steps, *x.shape),))
        return (output.mean(0) - targets[index]).square().mean()

    def error_held_out() -> float:
        with torch.no_grad():
            index = torch.arange(len(inputs) - held, len(inputs)).split(_BATCH)
            return math.fsum(float(loss(i)) * len(i) for i in index)

    neurons: list[Any] = [net.get_submodule(name) for name in thresholds.errors]
    surrogates = [neuron.surrogate_function for neuron in neurons]
    net.step_mode = "m"
    for neuron in neurons:
        neuron.surrogate_function = surrogate.PiecewiseQuadratic(alpha=1.0)
    try:
        best, kept, waited = error_held_out(), _copies(trained), 0
        for _ in bar("tune", "epoch", range(epochs), progress=progress):
            for index in torch.randperm(len(inputs) - held, generator=generator).split(_BATCH):
                optimizer.zero_grad()
                loss(index).backward()
                optimizer.step()
            schedule.step()
            error = error_held_out()
            best, kept, waited = (error, _copies(trained), 0) if error < best else (best, kept, waited + 1)
            if waited == _PATIENCE:
                break
    finally:
        for neuron, own in zip(neurons, surrogates, strict=True):
            neuron.surrogate_function = own
        functional.reset_net(net)
        net.step_mode = "s"
    with torch.no_grad():
        for tensor, value in zip(trained, kept, strict=True):
            tensor.copy_(value)
    channels.apply()
    for name, value in layers.items() if weights else ():
        place, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(place), leaf, nn.Parameter(value.detach()))


def held_out(inputs: int) -> int:
    """Return how many of so many inputs, the last ones, decide on the best parameters."""
    return inputs // _HELD_OUT


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


class _Channels:
    """Thresholds, pre-charges and biases as free variables: log factor, units of the threshold, units of it over T."""

    def __init__(self, thresholds: ThresholdSetter, time_steps: int) -> None:
        self._thresholds, self._time_steps = thresholds, time_steps
        modules: dict[str, Any] = dict(thresholds.net.named_modules())
        self._free: dict[str, tuple[Tensor, Tensor, Tensor]] = {
            name: (
                torch.zeros_like(modules[f"{name}_before"].weight),
                modules[name].v_init.detach().clone(),
                modules[f"{name}_before"].bias.detach() * time_steps,
            )
            for name in thresholds.errors
        }
        self.prefixes = tuple(f"{name}." for name in self._free)

    def parameters(self) -> Iterator[Tensor]:
        for free in self._free.values():
            yield from free

    def values(self) -> dict[str, Tensor]:
        """Return what the buffers of neurons and scales are to be, for a functional call."""
        found: dict[str, Tensor] = {}
        for name, (_, precharge, bias) in self._free.items():
            theta = self._threshold(name)
            found |= {
                f"{name}_before.weight": theta.reciprocal(),
                f"{name}_before.bias": bias / self._time_steps,
                f"{name}.v_init": precharge.clamp(0.0, LARGEST_PRECHARGE),
                f"{name}_after.weight": theta,
            }
        return found

    def apply(self) -> None:
        """Write the values into the net."""
        modules: dict[str, Any] = dict(self._thresholds.net.named_modules())
        values = {name: value.detach() for name, value in self.values().items()}
        for name in self._free:
            rule = f"{self._thresholds.rules[name]}, tuned"
            self._thresholds.set(name, values[f"{name}_after.weight"], rule)
            modules[name].v_init = values[f"{name}.v_init"]
            modules[f"{name}_before"].bias = values[f"{name}_before.bias"]

    def _threshold(self, name: str) -> Tensor:
        clip, log_factor = self._thresholds.activations[name].clip, self._free[name][0]
        theta = self._thresholds.values[name].to(log_factor) * log_factor.exp()
        return theta if clip is None else theta.clamp(max=clip)
