"""``spike_convolution``: a layer applied to spikes, which adds only those that are there where that is faster.

A layer in a simulation, not a torch operator: ``select("spike_convolution", ...).prepare(layer)`` packs its weights.
It adds spike by spike, or multiplies whole windows, with the same bits. Which is faster depends on the processor, the
layer and the share of spikes, so both are timed, once for each kind of layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..machine.cpu import Library, threads_for
from ..machine.source import Argument
from ..machine.torch_parts import AlwaysRuns
from ..registry import register

__all__ = ["CpuImplementation", "TorchImplementation"]

_LANES = 16  # outputs in a block of weights; a constant of the C source, too
_ARGUMENTS = (
    *(Argument(name, "const float *") for name in ("x", "weight", "bias")),
    Argument("y", "float *"),
    *(Argument(name, "index_t") for name in ("N", "H", "W", "C", "K", "OH", "OW", "KH", "KW")),
    *(Argument(name, "index_t") for name in ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "limit")),
    Argument("threads", "int"),
)

# Multiply-accumulates for one output pixel below which torch's own layer is as fast.
_MIN_WORK: dict[type, int] = {nn.Conv2d: 128, nn.Linear: 6144}
# The ways are timed with this share of spikes, for about so many multiply-accumulates, but not fewer output pixels.
_TRIAL_DENSITY, _TRIAL_WORK, _TRIAL_PIXELS, _TRIALS = 0.125, 4e6, 24, 3


class CpuImplementation(Library):
    """``cpu.c``: ``nn.Conv2d`` without groups and ``nn.Linear``, float32, without gradients."""

    def __init__(self) -> None:
        super().__init__("spike_convolution", __name__, {"convolve": _ARGUMENTS}, f"#define LANES {_LANES}")

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it cannot run, in one line, or None."""
        return f"it is not written for {dtype}" if dtype != torch.float32 else super().why_not(device, dtype)

    def prepare(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return what computes a layer for spikes: the layer itself where that is faster, or another one is needed."""
        if not _is_suitable(layer):
            return layer
        assert self._calls is not None
        return _PackedLayer(self._calls["convolve"], layer)

    def _agrees_with_torch(self, calls: dict[str, Callable[..., int]]) -> bool:
        generator = torch.Generator().manual_seed(0)

        def grid(*shape: int) -> Tensor:
            return torch.randint(-16, 17, shape, generator=generator, device="cpu").to(torch.float32) / 16

        layers: tuple[tuple[nn.Module, tuple[int, ...]], ...] = (
            (_bare(nn.Conv2d, 5, 70, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), (3, 5, 7, 6)),
            (_bare(nn.Linear, 9, 13, bias=False), (4, 9)),
        )
        with torch.no_grad():
            for layer, shape in layers:
                for parameter in layer.parameters():
                    parameter.copy_(grid(*parameter.shape))
                x = (grid(*shape) > 0.5).to(torch.float32)
                x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
                run, want = _PackedLayer(calls["convolve"], layer), layer.forward(x)
                sparse, dense = (run.convolve(x, density) for density in (1.0, -1.0))
                if sparse is None or dense is None or not (torch.equal(sparse, want) and torch.equal(dense, want)):
                    return False
                noise = x * torch.rand(x.shape, generator=generator, device="cpu", dtype=torch.float32)
                run._weight.mul_(torch.rand(run._weight.shape, generator=generator, device="cpu", dtype=torch.float32))
                sparse, dense = (run.convolve(noise, density) for density in (1.0, -1.0))
                if sparse is None or dense is None or not torch.equal(sparse, dense):
                    return False
        return True


def _bare(kind: type[nn.Module], *sizes: Any, **settings: Any) -> nn.Module:
    """Return a layer in float32 on the CPU whose weights are left as they are: random ones would draw from the seed."""
    return nn.utils.skip_init(kind, *sizes, **settings, device="cpu", dtype=torch.float32)


class TorchImplementation(AlwaysRuns):
    """The layer itself."""

    def prepare(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the layer."""
        return layer


class _PackedLayer:
    """A layer with its weights in the order in which spikes meet them: ``[K / lanes, KH, KW, C, lanes]``."""

    def __init__(self, convolve: Callable[..., int], layer: Any) -> None:
        self._convolve, self._layer = convolve, layer
        weight: Tensor = layer.weight.detach()
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        outputs = len(weight)
        padded = weight.new_zeros(-(-outputs // _LANES) * _LANES, *weight.shape[1:])
        padded[:outputs] = weight
        self._weight = padded.unflatten(0, (-1, _LANES)).permute(0, 3, 4, 2, 1).contiguous()
        self._bias = weight.new_zeros(len(padded))
        if layer.bias is not None:
            self._bias[:outputs] = layer.bias.detach()
        self._outputs, self._kernel = outputs, tuple(weight.shape[2:])
        steps: tuple[Any, ...] = ((1, 1), (0, 0), (1, 1))
        if isinstance(layer, nn.Conv2d):
            steps = (layer.stride, layer.padding, layer.dilation)
        self._stride, self._padding, self._dilation = steps

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output of the layer, in channels-last order."""
        found = self.convolve(x)
        result: Tensor = self._layer(x) if found is None else found
        return result

    def convolve(self, x: Tensor, max_density: float | None = None) -> Tensor | None:
        """Return the output; None for another layout, or too little memory.

        Images with a larger share of entries other than 0 than ``max_density``, by default the measured one, are
        multiplied whole. The bits do not depend on it.
        """
        image = x[:, :, None, None] if x.ndim == 2 else x
        suitable = x.dtype == torch.float32 and image.ndim == 4 and len(x) > 0
        if not suitable or not image.is_contiguous(memory_format=torch.channels_last):
            return None
        samples, channels, *size = image.shape
        found = self._output_size(size)
        if min(found) < 1 or channels != self._weight.shape[3]:
            return None  # the layer says what is wrong
        limit = self.best_density(size) if max_density is None else max_density
        y = x.new_empty(samples, *found, self._outputs).permute(0, 3, 1, 2)
        geometry = (*self._kernel, *self._stride, *self._padding, self._dilation[0])
        shape = (samples, *size, channels, self._outputs, *found, *geometry)
        pointers = (t.data_ptr() for t in (image, self._weight, self._bias, y))
        if self._convolve(*pointers, *shape, int(limit * image[0].numel()), threads_for(y)):
            return None
        return y.flatten(1) if x.ndim == 2 else y

    def best_density(self, size: Sequence[int]) -> float:
        """Return the share of spikes up to which adding them one by one is faster for images of a size, as measured."""
        key = (self._outputs, *self._weight.shape, *size, *self._stride, *self._padding, *self._dilation)
        if key not in _best_densities:
            _best_densities[key] = self._measured(size)
        return _best_densities[key]

    def _measured(self, size: Sequence[int]) -> float:
        """Time both ways on some rows of pixels; spike by spike also without any, as it is a line in their number."""
        channels = self._weight.shape[3]
        height, width = self._output_size(size)
        pixels = max(_TRIAL_PIXELS, int(_TRIAL_WORK / (math.prod(self._kernel) * channels * self._outputs)))
        rows = min(size[0], self._dilation[0] * (self._kernel[0] - 1) + 1 + self._stride[0] * (pixels // width))
        images = 1 if rows < size[0] else -(-pixels // (height * width))
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(images, rows, size[1], channels, generator=generator, device="cpu", dtype=torch.float32)
        spikes = (noise < _TRIAL_DENSITY).to(torch.float32).permute(0, 3, 1, 2)
        trials = {"dense": (spikes, -1.0), "sparse": (spikes, 1.0), "none": (torch.zeros_like(spikes), 1.0)}
        seconds = dict.fromkeys(trials, math.inf)
        for _ in range(_TRIALS):
            for name, (x, density) in trials.items():
                start = time.perf_counter()
                self.convolve(x, density)
                seconds[name] = min(seconds[name], time.perf_counter() - start)
        spent = seconds["sparse"] - seconds["none"]
        share = _TRIAL_DENSITY * (seconds["dense"] - seconds["none"]) / spent if spent > 0 else 1.0
        return min(max(share, 0.0), 1.0)

    def _output_size(self, size: Sequence[int]) -> list[int]:
        return [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, self._kernel, self._stride, self._padding, self._dilation, strict=True)
        ]


_best_densities: dict[tuple[int, ...], float] = {}  # by the kind of a layer and the size of its images


def _is_suitable(layer: Any) -> bool:
    if type(layer) not in _MIN_WORK or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if not plain or layer.dilation[1] != 1:
            return False
    worth = weight.numel() >= _MIN_WORK[type(layer)] and weight.shape[1] >= 1
    return worth and weight.dtype == torch.float32 and weight.device.type == "cpu" and bool(weight.isfinite().all())


register("spike_convolution", CpuImplementation())
register("spike_convolution", TorchImplementation())
