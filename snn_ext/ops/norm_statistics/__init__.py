"""``norm_statistics``: mean and variance of a batch, and the gradient through them; no torch operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..layout import dense
from ..machine.cpu import Library, threads_for
from ..machine.source import Argument
from ..machine.torch_parts import AlwaysRuns
from ..registry import register, select

__all__ = ["CpuImplementation", "TorchImplementation", "add_norm_gradient", "batch_statistics"]

_COLLECT = (
    Argument("x", "const float *"),
    *(Argument(name, "float *") for name in ("mean", "squares")),
    *(Argument(name, "index_t") for name in ("samples", "channels", "stride")),
    Argument("threads", "int"),
)
_ADD = (
    Argument("grad", "float *"),
    *(Argument(name, "const float *") for name in ("x", "mean", "slope", "offset")),
    *(Argument(name, "index_t") for name in ("N", "channels", "stride")),
    Argument("threads", "int"),
)


def batch_statistics(x_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (of n, not n - 1) of each channel over time, batch and space, with the bits of torch.

    Examples
    --------
    >>> batch_statistics(torch.tensor([[[0.0, 1.0]], [[2.0, 5.0]]]))
    (tensor([1., 3.]), tensor([1., 4.]))
    """
    found = select("norm_statistics", x_seq.device, x_seq.dtype)
    if not x_seq.is_contiguous() or x_seq.ndim < 4 or x_seq.stride(2) == 1:  # there torch is as fast
        found = _IN_TORCH
    mean, variance = found.collect(x_seq)
    return mean, variance


def add_norm_gradient(grad: Tensor, x_seq: Tensor, mean: Tensor, slope: Tensor, offset: Tensor) -> None:
    """Add ``(x - mean) * slope + offset`` to a gradient in place.

    Parameters
    ----------
    grad, x_seq : Tensor
        ``[T, N, C, ...]``.
    mean, slope, offset : Tensor
        ``[C]``.

    Examples
    --------
    >>> grad, one = torch.zeros(1, 1, 2), torch.ones(2)
    >>> add_norm_gradient(grad, torch.tensor([[[3.0, 4.0]]]), one, 2 * one, one)
    >>> grad
    tensor([[[5., 7.]]])
    """
    found = select("norm_statistics", grad.device, grad.dtype)
    if dense(grad) is not grad or grad.stride() != x_seq.stride():
        found = _IN_TORCH
    found.add(grad, x_seq, mean, slope, offset)


class CpuImplementation(Library):
    """``cpu.c``, for float32 and a dense sequence."""

    def __init__(self) -> None:
        super().__init__("norm_statistics", __name__, {"collect": _COLLECT, "add": _ADD})

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it cannot run, in one line, or None."""
        return f"it is not written for {dtype}" if dtype != torch.float32 else super().why_not(device, dtype)

    def collect(self, x_seq: Tensor) -> tuple[Tensor, Tensor]:
        """Sum in float64: rounded to float32, as in torch, the sums do not show the order of their terms."""
        assert self._calls is not None
        (time_steps, samples, channels), inner = x_seq.shape[:3], x_seq.stride(2)
        found = x_seq.new_empty(2, channels)
        pointers = (array.data_ptr() for array in (x_seq, *found))
        self._calls["collect"](*pointers, time_steps * samples, channels, inner, threads_for(x_seq))
        mean, squares = found
        return mean, (squares.double() / (x_seq.numel() // channels)).to(x_seq.dtype)

    def add(self, grad: Tensor, x_seq: Tensor, *of_channels: Tensor) -> None:
        """Add in one pass."""
        assert self._calls is not None
        arrays = (grad, x_seq, *(tensor.contiguous() for tensor in of_channels))
        sizes = grad.numel(), grad.shape[2], grad.stride(2)
        self._calls["add"](*(array.data_ptr() for array in arrays), *sizes, threads_for(grad))

    def _agrees_with_torch(self, calls: dict[str, Callable[..., int]]) -> bool:
        trial = CpuImplementation()
        trial._calls = calls
        x = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32, device="cpu").remainder(11).view(2, 3, 5, 7)
        of_channels = x[0, 0, :, :3].T.contiguous()
        for each in (x, x.transpose(2, 3).contiguous().transpose(2, 3)):
            found, want = each.clone(memory_format=torch.preserve_format), each.clone()
            trial.add(found, each, *of_channels)
            _IN_TORCH.add(want, each, *of_channels)
            if not torch.equal(found, want):
                return False
        return all(map(torch.allclose, trial.collect(x), _IN_TORCH.collect(x)))


_CHUNK = 1 << 16
"""Elements that stay in a cache while three operations go over them."""


class TorchImplementation(AlwaysRuns):
    """The same by tensor operations, on some samples after the others."""

    def collect(self, x_seq: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance by the kernel of torch's own norm."""
        mean, variance = torch.batch_norm_update_stats(x_seq.flatten(0, 1), None, None, 0.0)
        return mean, variance

    def add(self, grad: Tensor, x_seq: Tensor, mean: Tensor, slope: Tensor, offset: Tensor) -> None:
        """Add in three operations."""
        shape = -1, *[1] * (x_seq.ndim - 3)
        mean, slope, offset = mean.view(shape), slope.view(shape), offset.view(shape)
        rows = max(1, _CHUNK // x_seq[0, 0].numel())
        for g_step, x_step in zip(grad, x_seq, strict=True):
            for g, x in zip(g_step.split(rows), x_step.split(rows), strict=True):
                g.add_((x - mean).mul_(slope).add_(offset))


_IN_TORCH = TorchImplementation()
register("norm_statistics", CpuImplementation())
register("norm_statistics", _IN_TORCH)
