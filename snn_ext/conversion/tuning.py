"""Fine calibration: thresholds, pre-charges and biases by the gradient of what the whole net outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import functional, surrogate
from torch import Tensor, nn
from torch.func import functional_call

from .._channel_search import LARGEST_PRECHARGE
from .._progress import bar
from .graph_tools import calls_neuron
from .layerwise import waited
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
    wait: int = 0,
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
    wait : int
        Each layer takes in one input and so many more before its first decision.
    progress : bool
        Show a progress bar.
    """
    held = held_out(len(inputs))
    if not held:
        return
    trial = _Trial(thresholds, time_steps, weights, wait)
    optimizer = torch.optim.Adam(trial.groups())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(0)

    def error_held_out() -> float:
        with torch.no_grad():
            index = torch.arange(len(inputs) - held, len(inputs)).split(_BATCH)
            return math.fsum(float(trial.loss(inputs[i], targets[i])) * len(i) for i in index)

    with trial.running():
        best, kept, waited = error_held_out(), trial.copies(), 0
        for _ in bar("tune", "epoch", range(epochs), progress=progress):
            for i in torch.randperm(len(inputs) - held, generator=generator).split(_BATCH):
                optimizer.zero_grad()
                trial.loss(inputs[i], targets[i]).backward()
                optimizer.step()
            schedule.step()
            error = error_held_out()
            best, kept, waited = (error, trial.copies(), 0) if error < best else (best, kept, waited + 1)
            if waited == _PATIENCE:
                break
    trial.apply(kept)


def held_out(inputs: int) -> int:
    """Return how many of so many inputs, the last ones, decide on the best parameters."""
    return inputs // _HELD_OUT


class _Trial:
    """A net beside which thresholds, pre-charges and biases, or the weights too, are free variables."""

    def __init__(self, thresholds: ThresholdSetter, time_steps: int, weights: bool, wait: int = 0) -> None:
        self._wait = wait
        self._net, self._time_steps, self._channels = thresholds.net, time_steps, _Channels(thresholds, time_steps)
        named = thresholds.net.named_parameters()
        others = {name: p.detach().clone() for name, p in named if not name.startswith(self._channels.prefixes)}
        self._fixed, self._weights = ({}, others) if weights else (others, {})
        self._trained = [*self._channels.parameters(), *self._weights.values()]
        for tensor in self._trained:
            tensor.requires_grad_()
        self._neurons: list[Any] = [thresholds.net.get_submodule(name) for name in thresholds.errors]

    def groups(self) -> list[dict[str, Any]]:
        """Return what is trained as groups of an optimizer."""
        groups = [{"params": list(self._channels.parameters()), "lr": _CHANNEL_RATE}]
        return groups + ([{"params": list(self._weights.values()), "lr": _WEIGHT_RATE}] if self._weights else [])

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the squared distance of the mean output to the analog one."""
        functional.reset_net(self._net)
        values = self._fixed | self._weights | self._channels.values()
        output = functional_call(self._net, values, (x.expand(self._time_steps, *x.shape),))
        return (output.mean(0) - target).square().mean()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the net take sequences, with the surrogate of the tuning; both are restored."""
        surrogates = [neuron.surrogate_function for neuron in self._neurons]
        self._net.step_mode = "m"
        for neuron in self._neurons:
            neuron.surrogate_function = surrogate.PiecewiseQuadratic(alpha=1.0)
        hooks = [layer.register_forward_pre_hook(self._waited) for layer in self._waiting()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for neuron, own in zip(self._neurons, surrogates, strict=True):
                neuron.surrogate_function = own
            functional.reset_net(self._net)
            self._net.step_mode = "s"

    def _waiting(self) -> list[nn.Module]:
        nodes = self._net.graph.nodes if self._wait else ()
        return [self._net.get_submodule(str(node.target)) for node in nodes if calls_neuron(self._net, node)]

    def _waited(self, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return torch.cat([*waited(inputs, self._wait)])

    def copies(self) -> list[Tensor]:
        """Return the values of all free variables."""
        return [tensor.detach().clone() for tensor in self._trained]

    @torch.no_grad()
    def apply(self, values: list[Tensor]) -> None:
        """Write such values into the net."""
        for tensor, value in zip(self._trained, values, strict=True):
            tensor.copy_(value)
        self._channels.apply()
        for name, weight in self._weights.items():
            place, _, leaf = name.rpartition(".")
            setattr(self._net.get_submodule(place), leaf, nn.Parameter(weight.detach()))


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
