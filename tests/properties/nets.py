"""Random nets on exact arithmetic, and spiking nets written down as loops over their own modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from snn_ext.conversion import QuantizedReLU

Make = Callable[[Any], nn.Module]


# -- drawing -----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """An activation on a branch plus what comes in, directly or through weights."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch(x) + self.shortcut(x))


class Concatenation(nn.Module):
    """Two branches beside each other."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], 1)


def relu(draw: Any) -> nn.Module:
    return draw(st.sampled_from((nn.ReLU, nn.ReLU, nn.ReLU6, lambda: nn.Hardtanh(0.0, 1.5))))()


def plain_relu(draw: Any) -> nn.Module:
    return nn.ReLU()


def quantised(levels: int) -> Make:
    """Return what draws a quantised activation of a threshold and a rounding of its own."""

    def make(draw: Any) -> nn.Module:
        threshold, rounding = draw(st.sampled_from((0.5, 1.0, 2.0))), draw(st.sampled_from(("floor", "round", "ceil")))
        return QuantizedReLU(levels, threshold, rounding)

    return make


@st.composite
def nets(draw: Any, activation: Make, dtype: torch.dtype, *, max_pool: bool = True) -> tuple[nn.Sequential, Tensor]:
    """Draw a net in evaluation mode, and inputs ``[N, ...]`` on a grid of 1/16; all sums of its forward pass are exact.

    Weights and biases are on a grid of 1/8, variances are powers of 4, sizes powers of 2.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    layers: list[nn.Module] = []
    if draw(st.sampled_from((False, False, False, True))):
        features = draw(st.integers(1, 7))
        shape: tuple[int, ...] = (features,)
    else:
        size = draw(st.sampled_from(((4, 4), (8, 4), (8, 8), (2, 2))))
        shape = (draw(st.integers(1, 3)), *size)
        features = _spatial(draw, layers, shape, activation, max_pool)
    for _ in range(draw(st.integers(0, 2)) + (not layers)):
        outputs = draw(st.integers(1, 6))
        layers.append(nn.Linear(features, outputs, bias=draw(st.booleans())))
        layers += [nn.BatchNorm1d(outputs)] if draw(st.booleans()) else []
        layers.append(activation(draw))
        features = outputs
    layers += [nn.Dropout(0.5)] if draw(st.booleans()) else []
    layers.append(nn.Linear(features, draw(st.integers(2, 4))))
    net = nn.Sequential(*layers).to(dtype)
    _on_a_grid(net, generator)
    x = torch.randint(0, 17, (draw(st.integers(1, 5)), *shape), generator=generator).to(dtype) / 16
    return net.eval(), x


def _spatial(draw: Any, layers: list[nn.Module], shape: tuple[int, ...], activation: Make, max_pool: bool) -> int:
    """Append the layers that see images, and return how many features they flatten to."""
    channels, height, width = shape

    def convolution(inputs: int, outputs: int, stride: int = 1, kernel: int | None = None) -> list[nn.Module]:
        kernel = draw(st.sampled_from((1, 3))) if kernel is None else kernel
        groups = inputs if inputs == outputs and draw(st.booleans()) else 1
        bias, norm = draw(st.booleans()), draw(st.booleans())
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
        return [layer, nn.BatchNorm2d(outputs)] if norm else [layer]

    for position in range(draw(st.sampled_from((2, 3, 1)))):
        kind = draw(st.sampled_from(("residual", "concatenation", "plain"))) if position else "plain"
        outputs = draw(st.integers(1, 4))
        if kind == "plain":
            stride = 2 if min(height, width) >= 4 and draw(st.booleans()) else 1
            layers += [*convolution(channels, outputs, stride), activation(draw)]
            channels, height, width = outputs, height // stride, width // stride
        elif kind == "residual":
            identity = draw(st.sampled_from((True, True, False)))
            outputs = channels if identity else outputs
            branch = nn.Sequential(*convolution(channels, outputs), activation(draw), *convolution(outputs, outputs))
            shortcut = nn.Identity() if identity else nn.Sequential(*convolution(channels, outputs, kernel=1))
            layers.append(Residual(branch, shortcut, activation(draw)))
            channels = outputs
        else:
            one = nn.Sequential(*convolution(channels, outputs), activation(draw))
            other = nn.Identity() if draw(st.booleans()) else nn.Sequential(*convolution(channels, 2), activation(draw))
            channels = outputs + (channels if isinstance(other, nn.Identity) else 2)
            layers.append(Concatenation(one, other))
        pool = draw(st.sampled_from((None, "average", "maximum", "overlapping")))
        if pool == "overlapping" and max_pool:
            layers.append(nn.MaxPool2d(3, 1, 1))
        elif pool in ("average", "maximum") and min(height, width) >= 2 and (max_pool or pool == "average"):
            layers.append(nn.AvgPool2d(2) if pool == "average" else nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    if draw(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(1))
        height = width = 1
    layers.append(nn.Flatten())
    return channels * height * width


def _on_a_grid(net: nn.Module, generator: torch.Generator) -> None:
    def integers(like: Tensor, low: int, high: int) -> Tensor:
        return torch.randint(low, high, like.shape, generator=generator).to(like)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps = 1e-30  # nothing beside a variance; torch 2.11 takes no 0
                module.running_var.copy_(4.0 ** integers(module.running_var, -1, 2))
                module.running_mean.copy_(integers(module.running_mean, -4, 5) / 8)
                module.weight.copy_(integers(module.weight, -4, 9) / 4)
                module.bias.copy_(integers(module.bias, -2, 5) / 8)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                for parameter in module.parameters():
                    parameter.copy_(integers(parameter, -5, 8) / 8)


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, QuantizedReLU)


def activations(net: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if isinstance(module, ACTIVATIONS)}


def clip_of(module: nn.Module) -> float | None:
    return {nn.ReLU6: 6.0, nn.Hardtanh: getattr(module, "max_val", None)}.get(type(module))


def put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, module)


# -- spiking nets as loops ---------------------------------------------------------------------------------------------


class PlainNeuron(nn.Module):
    """Integrates and fires; emits its threshold, in the units of the analog net."""

    def __init__(
        self, threshold: float, v_init: float, *, at: bool = True, zero: bool = False, ones: bool = False
    ) -> None:
        super().__init__()
        self.threshold, self.at, self.zero = threshold, at, zero
        self.start, self.height = v_init * threshold, 1.0 if ones else threshold
        self.restart()

    def restart(self) -> None:
        self.v: Any = self.start
        self.count: Any = 0
        self.largest = -float("inf")

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, float(x.max()))
        h = self.v + x
        fires = h >= self.threshold if self.at else h > self.threshold
        self.v = torch.where(fires, torch.zeros_like(h) if self.zero else h - self.threshold, h)
        self.count = self.count + fires.double()
        return fires.to(x.dtype) * self.height


class PlainMaxPool(nn.Module):
    """Lets pass what the running maximum of the sums in a window grows by."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.restart()

    def restart(self) -> None:
        self.sum: Any = None

    def forward(self, x: Tensor) -> Tensor:
        before = torch.zeros_like(x) if self.sum is None else self.sum
        self.sum = before + x
        result: Tensor = self.pool(self.sum) - self.pool(before)
        return result


START = {"floor": 0.0, "round": 0.5, "ceil": 1.0}


def plain_spiking(
    ann: nn.Module, thresholds: dict[str, float], precharge: float = 0.0, *, zero: bool = False
) -> nn.Module:
    """Return the analog net with neurons instead of its activations; batch norm and scales stay where they are."""
    net = copy.deepcopy(ann)
    for name, module in list(net.named_modules()):
        if isinstance(module, QuantizedReLU):
            start = START[module.rounding]
            put(net, name, PlainNeuron(module.threshold.item(), start, at=module.rounding != "ceil"))
        elif isinstance(module, ACTIVATIONS):
            put(net, name, PlainNeuron(thresholds[name], precharge, zero=zero))
        elif isinstance(module, nn.MaxPool2d):
            put(net, name, PlainMaxPool(module))
    return net


@torch.no_grad()
def run_plain(net: nn.Module, x: Tensor, time_steps: int) -> Tensor:
    """Return the output of every step, ``[T, N, ...]``."""
    for module in net.modules():
        if isinstance(module, PlainNeuron | PlainMaxPool):
            module.restart()
    return torch.stack([net(x) for _ in range(time_steps)])


class Staircase(nn.Module):
    """What a neuron makes of a constant input: its rate after T steps, times its threshold."""

    def __init__(self, threshold: float, v_init: float, time_steps: int, at: bool = True) -> None:
        super().__init__()
        self.threshold, self.start, self.time_steps, self.at = threshold, v_init * threshold, time_steps, at

    def forward(self, x: Tensor) -> Tensor:
        levels = self.threshold * torch.arange(1, self.time_steps + 1, dtype=x.dtype)
        charge = (x * self.time_steps + self.start)[..., None]
        count = (charge >= levels if self.at else charge > levels).sum(-1)
        return count.to(x.dtype) * self.threshold / self.time_steps


def plain_staircase(ann: nn.Module, thresholds: dict[str, float], precharge: float, time_steps: int) -> nn.Module:
    """Return the analog net with staircases instead of its activations."""
    net = copy.deepcopy(ann)
    for name, module in activations(ann).items():
        if isinstance(module, QuantizedReLU):
            start = START[module.rounding]
            step = Staircase(module.threshold.item(), start, time_steps, module.rounding != "ceil")
        else:
            step = Staircase(thresholds[name], precharge, time_steps)
        put(net, name, step)
    return net


# -- counting ----------------------------------------------------------------------------------------------------------


class Tap(nn.Module):
    """Stands for a layer of neurons: emits what it is told, and keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.emit: Tensor | None = None
        self.got: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.got = x
        return torch.zeros_like(x) if self.emit is None else self.emit


class Weights(nn.Module):
    """Stands for a layer with weights, all of them 1; lets nothing pass."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)
        nn.init.ones_(self.layer.weight)
        self.layer.bias = None

    def forward(self, x: Tensor) -> Tensor:
        self.got = self.layer(x)
        return torch.zeros_like(self.got)


class Nothing(Tap):
    """Stands for a maximum pooling of spikes, which costs no operation; what it lets pass is counted behind it."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(self.pool(x))
        self.shape = y.shape
        return y if self.emit is None else self.emit


@torch.no_grad()
def brute_force_fan_out(ann: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Count for every neuron, with a spike of it alone, the sums that get a weight: the non-zeros of a Jacobian."""
    net = copy.deepcopy(ann).float()
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            put(net, name, nn.Identity())
        elif isinstance(module, ACTIVATIONS):
            put(net, name, Tap())
        elif isinstance(module, nn.MaxPool2d):
            put(net, name, Nothing(module))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            put(net, name, Weights(module))
    taps: dict[str, Tap] = {name: module for name, module in net.named_modules() if isinstance(module, Tap)}
    ends = [module for module in net.modules() if isinstance(module, Weights) or type(module) is Tap]
    net(torch.zeros_like(x[:1]).float())
    found = {}
    for name, tap in taps.items():
        shape = tap.shape[1:] if isinstance(tap, Nothing) else tap.got.shape[1:]  # type: ignore[union-attr]
        neurons = shape.numel()
        tap.emit = torch.eye(neurons).reshape(neurons, *shape)
        net(torch.zeros(neurons, *x.shape[1:]))
        tap.emit = None
        count = sum((end.got != 0).flatten(1).sum(1) for end in ends)  # type: ignore[union-attr]
        found[name] = count.reshape(shape).double()
    return found
