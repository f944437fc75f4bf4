"""``spike_convolution``: a layer applied to spikes, which adds only those that are there.

A layer in a simulation, not a torch operator: ``select("spike_convolution", ...).prepare(layer)`` packs its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..machine.cpu import Library, threads_for
from ..machine.source import Argument
from ..machine.torch_parts import AlwaysRuns
from ..registry import register

__all__ = ["CpuImplementation", "TorchImplementation"]

_LANES = 64  # outputs whose sums are in registers together; a constant of the C source, too
_ARGUMENTS = (
    *(Argument(name, "const float *") for name in ("x", "weight", "bias")),
    Argument("y", "float *"),
    *(Argument(name, "index_t") for name in ("N", "H", "W", "C", "K", "OH", "OW", "KH", "KW")),
    *(Argument(name, "index_t") for name in ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "limit")),
    Argument("threads", "int"),
)

# Multiply-accumulates for one output pixel below which listing the spikes costs more than it saves.
_MIN_WORK = 6144
# Share of entries other than 0 up to which adding only those is faster than the dense layer.
_MAX_DENSITY = 0.35


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
                found = _PackedLayer(calls["convolve"], layer).sparse(x, 1.0)
                if found is None or not torch.equal(found, layer.forward(x)):
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
        found = self.sparse(x, _MAX_DENSITY)
        result: Tensor = self._layer(x) if found is None else found
        return result

    def sparse(self, x: Tensor, max_density: float) -> Tensor | None:
        """Return the output; None for too many entries other than 0, another layout, or too little memory."""
        image = x[:, :, None, None] if x.ndim == 2 else x
        suitable = x.dtype == torch.float32 and image.ndim == 4 and len(x) > 0
        if not suitable or not image.is_contiguous(memory_format=torch.channels_last):
            return None
        samples, channels, *size = image.shape
        found = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, self._kernel, self._stride, self._padding, self._dilation, strict=True)
        ]
        if min(found) < 1 or channels != self._weight.shape[3]:
            return None  # the layer says what is wrong
        y = x.new_empty(samples, *found, self._outputs).permute(0, 3, 1, 2)
        geometry = (*self._kernel, *self._stride, *self._padding, self._dilation[0])
        shape = (samples, *size, channels, self._outputs, *found, *geometry)
        pointers = (t.data_ptr() for t in (image, self._weight, self._bias, y))
        if self._convolve(*pointers, *shape, int(max_density * x.numel()), threads_for(y)):
            return None
        return y.flatten(1) if x.ndim == 2 else y


def _is_suitable(layer: Any) -> bool:
    if type(layer) not in (nn.Conv2d, nn.Linear) or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if not plain or layer.dilation[1] != 1:
            return False
    worth = weight.numel() >= _MIN_WORK and weight.shape[1] >= 1
    return worth and weight.dtype == torch.float32 and weight.device.type == "cpu" and bool(weight.isfinite().all())


register("spike_convolution", CpuImplementation())
register("spike_convolution", TorchImplementation())
