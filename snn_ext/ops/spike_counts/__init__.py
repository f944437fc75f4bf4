"""``spike_counts``: how many neurons fire at each step, and how many synapses their spikes meet; no torch operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..layout import dense, flat, in_memory_order, in_order_of
from ..machine.cpu import Library, threads_for
from ..machine.source import Argument
from ..machine.torch_parts import AlwaysRuns
from ..registry import register, select

__all__ = ["CpuImplementation", "TorchImplementation", "spike_counts"]

_ARGUMENTS = (
    Argument("x", "const float *"),
    Argument("fan_out", "const double *"),
    *(Argument(name, "double *") for name in ("spikes", "synapses")),
    *(Argument(name, "index_t") for name in ("T", "N", "M")),
    Argument("threads", "int"),
)


def spike_counts(spikes: Tensor, fan_out: Tensor) -> Tensor:
    """Count the spikes of each step, and the synapses that they meet.

    Parameters
    ----------
    spikes : Tensor
        ``[T, N, ...]``; an entry other than 0 is one spike.
    fan_out : Tensor
        Synapses of each neuron, float64, shaped as one sample. In the layout of a sample it is not copied.

    Returns
    -------
    Tensor
        Both counts, ``[2, T]``, float64, on the device of the spikes.

    Examples
    --------
    >>> spikes = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])
    >>> spike_counts(spikes, torch.tensor([3.0, 5.0], dtype=torch.float64))
    tensor([[1., 2.],
            [5., 8.]], dtype=torch.float64)
    """
    spikes = dense(spikes)
    if in_memory_order(spikes[0, 0]) is None:  # samples lie between the neurons of one
        spikes = spikes.contiguous()
    (steps, samples), size = spikes.shape[:2], fan_out.numel()
    x = flat(spikes, steps, samples * size).unflatten(1, (samples, size))
    in_order = flat(in_order_of(spikes[0, :1], fan_out.unsqueeze(0)), size)
    found: Tensor = select("spike_counts", x.device, x.dtype).count(x, in_order)
    return found


class CpuImplementation(Library):
    """``cpu.c``, for float32."""

    def __init__(self) -> None:
        super().__init__("spike_counts", __name__, {"count": _ARGUMENTS})

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it cannot run, in one line, or None."""
        return f"it is not written for {dtype}" if dtype != torch.float32 else super().why_not(device, dtype)

    def count(self, spikes: Tensor, fan_out: Tensor) -> Tensor:
        """Return both counts of ``[T, N, M]`` and ``[M]``."""
        assert self._calls is not None
        found = fan_out.new_empty(2, len(spikes))
        pointers = (t.data_ptr() for t in (spikes, fan_out, *found))
        self._calls["count"](*pointers, *spikes.shape, threads_for(spikes))
        return found

    def _agrees_with_torch(self, calls: dict[str, Callable[..., int]]) -> bool:
        trial, places = CpuImplementation(), torch.arange(3 * 5 * 37, dtype=torch.float32, device="cpu")
        trial._calls = calls
        spikes, fan_out = (places.remainder(7) - 3).relu().view(3, 5, 37), places[:37].double() * 1001
        return torch.equal(trial.count(spikes, fan_out), TorchImplementation().count(spikes, fan_out))


class TorchImplementation(AlwaysRuns):
    """The same by tensor operations."""

    def count(self, spikes: Tensor, fan_out: Tensor) -> Tensor:
        """Return both counts of ``[T, N, M]`` and ``[M]``; sums over the samples are exact in float32."""
        firing = (spikes != 0).sum(1, dtype=torch.float32).double()
        return torch.stack([firing.sum(1), firing @ fan_out])


register("spike_counts", CpuImplementation())
register("spike_counts", TorchImplementation())
