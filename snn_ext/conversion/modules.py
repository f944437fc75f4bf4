"""Modules of converted nets beside neurons: encoding, pooling of spikes, synapses with a scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from ..spikingjelly.host import CopiedMemories

__all__ = [
    "Gate", "InputShape", "PoissonEncoder", "Scale", "SpikeMaxPool1d", "SpikeMaxPool2d", "SpikeMaxPool3d",
    "over_channels",
]  # fmt: skip

States = tuple[Any, ...]


class Scale(nn.Module):
    """A synapse without mixing: ``weight * x + bias``, one number or one per channel (dim 1).

    It keeps a scale where no weight can take it up, as in an identity shortcut, and stands for a batch norm that has no
    layer before it.

    Examples
    --------
    >>> import torch
    >>> Scale(torch.tensor([2.0]))(torch.ones(1, 3))
    tensor([[2., 2., 2.]])
    """

    is_affine = True
    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone().reshape(-1))
        self.register_buffer("bias", None if bias is None else bias.detach().clone().reshape(-1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * over_channels(self.weight, x.ndim)
        return y if self.bias is None else y + over_channels(self.bias, x.ndim)

    def extra_repr(self) -> str:
        weight = self.weight.tolist()
        return f"{weight[0]:.4g}" if len(weight) == 1 else f"{len(weight)} channels"


def over_channels(value: Tensor, ndim: int) -> Tensor:
    """Return one number, or one per channel, in a shape that broadcasts to ``[N, C, ...]`` of ``ndim`` dimensions."""
    return value.reshape(()) if value.numel() == 1 else value.reshape(-1, *[1] * (ndim - 2))


class InputShape(nn.Identity):
    """Takes inputs of one shape only, that of a net which asks for sizes of its input.

    Parameters
    ----------
    shape : sequence of int
        Of one sample.

    Examples
    --------
    >>> import torch
    >>> InputShape((8,))(torch.rand(2, 16))
    Traceback (most recent call last):
    ValueError: x: got inputs [16], want [8] as in the calibration: the net asks for the size of its input
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[1:] != self.shape:
            raise ValueError(
                f"x: got inputs {list(input.shape[1:])}, want {list(self.shape)} as in the calibration: the net asks "
                "for the size of its input"
            )
        return input

    def extra_repr(self) -> str:
        return f"{self.shape}"


class _SpikeMaxPool(CopiedMemories):
    """The state of a max pooling of spikes; the geometry is that of the ``torch.nn`` class beside it."""

    emits_spikes = True
    _pool: Callable[[Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("count", 0.0)

    @classmethod
    def like(cls, pool: Any) -> _SpikeMaxPool:
        """Return the pooling of spikes with the geometry of a pooling of values."""
        return cls(pool.kernel_size, pool.stride, pool.padding, pool.dilation, ceil_mode=pool.ceil_mode)  # type: ignore

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        count = states[0]
        if not isinstance(count, Tensor) or count.shape != x.shape:
            count = torch.zeros_like(x, dtype=torch.float64)
        return (count.to(x.device, torch.float64),)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        (spike_seq,), states = self.multi_step_functional_forward((inputs[0].unsqueeze(0),), states)
        return (spike_seq[0],), states

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Pool a sequence: ``((x_seq,), (count,)) -> ((spike_seq,), (count,))``.

        Counts are float64, in which any number of float32 thresholds adds up exactly: a spike may carry its threshold.
        """
        x_seq, count = inputs[0], states[0]
        counts = torch.stack(list(accumulate(x_seq, initial=count)))
        maxima = self._pool(counts.flatten(0, 1)).unflatten(0, counts.shape[:2])
        return (maxima.diff(dim=0).to(x_seq.dtype),), (counts[-1],)


class SpikeMaxPool1d(nn.MaxPool1d, _SpikeMaxPool):
    """Exact max pooling of spikes over ``[N, C, L]``, by the rule of :class:`SpikeMaxPool2d`."""

    _pool, forward = nn.MaxPool1d.forward, base.MemoryModule.forward


class SpikeMaxPool2d(nn.MaxPool2d, _SpikeMaxPool):
    """Exact max pooling of spikes: the increment of the running maximum of the cumulative counts in each window.

    A count rises by at most one spike a step, so the output is a spike or 0, and after every step its sum is exactly
    the maximum of the counts, in any chunks of time, also for spikes that carry a threshold. The maximum of the spikes
    themselves would add up the spikes of several neurons.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> pool = SpikeMaxPool2d.like(nn.MaxPool2d((1, 2)))
    >>> one, other = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> [pool(x).item() for x in (one, other, other)]         # the counts are (1, 0), (1, 1), (1, 2)
    [1.0, 0.0, 1.0]
    """

    _pool, forward = nn.MaxPool2d.forward, base.MemoryModule.forward


class SpikeMaxPool3d(nn.MaxPool3d, _SpikeMaxPool):
    """Exact max pooling of spikes over ``[N, C, D, H, W]``, by the rule of :class:`SpikeMaxPool2d`."""

    _pool, forward = nn.MaxPool3d.forward, base.MemoryModule.forward


class Gate(CopiedMemories):
    r"""A factor that multiplies spikes: the function of the mean current so far, as in squeeze-and-excitation.

    .. math:: g(t) = f\Big( \frac{1}{t} \sum_{s=1}^{t} I(s) \Big)

    An approximation: it approaches the gate of the analog net, and the early steps, in which the mean is not yet that
    of the rates, weigh less and less.

    Parameters
    ----------
    gate : nn.Module
        The function, as ``nn.Sigmoid()``.

    Examples
    --------
    >>> import torch
    >>> gate = Gate(torch.nn.Hardsigmoid())
    >>> [round(gate(torch.tensor([[current]])).item(), 2) for current in (3.0, -3.0, 0.0)]     # means 3, 0, 0
    [1.0, 0.5, 0.5]
    """

    emits_spikes = False

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.register_memory("mean", 0.0)
        self.register_memory("t", 0)

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        mean, t = states
        return (mean, t) if isinstance(mean, Tensor) and mean.shape == x.shape else (torch.zeros_like(x), 0)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Take in one step: ``((x,), (mean, t)) -> ((gate,), (mean, t + 1))``."""
        x, (mean, t) = inputs[0], states
        mean = mean + (x - mean) / (t + 1)
        return (self.gate(mean),), (mean, t + 1)


class PoissonEncoder(base.MemoryModule):
    """Bernoulli events with the sign of the input: ``sign(x)`` where a uniform number is below ``|x|``, else 0.

    The random numbers depend on the seed, the step, the element and the sample itself, by a counter and a hash: one
    sample gives the same train in any batch, order, chunk of time and step mode, and on any device.

    Parameters
    ----------
    seed : int
        Seed of the train; other seeds give independent trains.

    Notes
    -----
    Source: Sengupta et al. 2019. ``|x| > 1`` saturates at one event a step.

    Examples
    --------
    >>> import torch
    >>> encoder = PoissonEncoder(seed=0)
    >>> encoder.step_mode = "m"
    >>> train = encoder(torch.tensor([[0.25, -0.5, 0.0, 2.0]]).expand(1000, 1, 4))
    >>> train.mean(0)
    tensor([[ 0.2490, -0.4850,  0.0000,  1.0000]])
    """

    emits_spikes = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_memory("t", 0)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: object
    ) -> tuple[tuple[Tensor, ...], States]:
        """Draw the events of one step: ``((x,), (t,)) -> ((events,), (t + 1,))``."""
        x, t = inputs[0], states[0]
        u = _uniform(_sample_keys(x), x[0].numel(), self.seed, t).reshape(x.shape)
        return (torch.sign(x) * (u < x.abs()).to(x.dtype),), (t + 1,)

    def extra_repr(self) -> str:
        return f"seed={self.seed}, step_mode={self.step_mode}"


# 64-bit arithmetic that wraps around; the constants are those of SplitMix64 (public domain, S. Vigna), as signed ints.
_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def _sample_keys(x: Tensor) -> Tensor:
    """Return one 64-bit number for each sample, from its content."""
    bits = x.detach().float().reshape(len(x), -1).contiguous().view(torch.int32).long()
    position = torch.arange(1, bits.shape[1] + 1, device=x.device) * _GAMMA
    return _mix(_mix(bits + position).sum(1))


def _uniform(keys: Tensor, size: int, seed: int, t: int) -> Tensor:
    """Return ``[N, size]`` numbers in [0, 1) with 24 random bits."""
    stream = _mix(torch.tensor(seed, device=keys.device) * _GAMMA + t)
    counter = torch.arange(1, size + 1, device=keys.device) * _GAMMA
    return (_mix(_mix(keys + stream).unsqueeze(1) + counter) >> 40 & 0xFFFFFF).float() / (1 << 24)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return z >> bits & ((1 << (64 - bits)) - 1)
