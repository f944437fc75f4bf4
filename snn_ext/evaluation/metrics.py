"""Sums over a simulation: decisions for every delay and step, spikes, agreement with the analog net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.layout import in_order_of
from ..ops.spike_counts import spike_counts
from .decisions import Decision, decision

__all__ = ["LayerSums", "ReadoutSums"]

# A variance is a difference of two large sums; up to this share of its square it is rounding alone.
_ROUNDING = 1e-12
# Steps whose spikes are added up at a time, from counts: few calls, and less memory than the counts of a batch.
_STEPS_OF_COUNTS = 4


class ReadoutSums:
    r"""Decisions and errors of a counting read-out, for every delay of a grid and every stopping time.

    .. math:: r(t; t_d) = \frac{1}{t - t_d} \sum_{\tau = t_d + 1}^{t} y(\tau)

    Parameters
    ----------
    time_steps : int
        T.
    delays : sequence of int
        Steps of output that are not counted.
    top : sequence of int
        A decision counts as right if the label is among as many of the largest scores.
    metric : Decision, optional
        Which decisions are right; by default, those for the class of the label.
    smoothed : bool
        The output is the state of a read-out that filters itself: its value at each step decides, and no sum is taken.
        There are no delays then.

    Attributes
    ----------
    correct : Tensor
        Right decisions, ``[len(top), D, T]``, float64; zero for t <= t_d, where there is no decision.
    squared_error : Tensor
        Sum over the samples of the mean squared difference to the analog output, ``[D, T]``, float64. While nothing is
        counted the rate is 0.

    Notes
    -----
    All delays come from one simulation: y is summed up once, and sums at t_d are subtracted. Source: Hwang et al. 2021,
    delayed evaluation.
    """

    def __init__(
        self,
        time_steps: int,
        delays: Sequence[int],
        top: Sequence[int],
        smoothed: bool = False,
        metric: Decision | None = None,
    ) -> None:
        self.time_steps, self.delays, self.top, self.smoothed = time_steps, tuple(delays), tuple(top), smoothed
        self.decision = decision("class", top) if metric is None else metric
        self.correct = torch.zeros(len(top), len(delays), time_steps, dtype=torch.float64, device="cpu")
        self.squared_error = torch.zeros(len(delays), time_steps, dtype=torch.float64, device="cpu")
        self.analog_correct = torch.zeros(len(top), dtype=torch.float64, device="cpu")
        self.samples = 0

    def begin(self, analog_output: Tensor, labels: Tensor | None) -> None:
        """Start a batch."""
        self._shape = analog_output.shape
        self._target, self._labels, self._t = analog_output.reshape(len(analog_output), -1).double(), labels, 0
        self._total = torch.zeros_like(self._target)
        self._at_delay: dict[int, Tensor] = {0: self._total}
        self.samples += len(analog_output)

    def count_analog(self, scores: Tensor, labels: Tensor) -> None:
        """Count the right decisions of the analog net."""
        self.analog_correct += self.decision.count(scores.unsqueeze(0), labels, torch.ones(1, device="cpu"))[:, 0].cpu()

    def add(self, output: Tensor) -> None:
        """Add the next steps of output, ``[T', N, ...]``."""
        if self.smoothed:
            self._add_smoothed(output.reshape(len(output), *self._target.shape).double())
            return
        sums = output.reshape(len(output), *self._target.shape).double().cumsum(0) + self._total
        steps = self._t + 1 + torch.arange(len(sums), device="cpu")
        for delay in self.delays:
            if self._t < delay <= int(steps[-1]):
                self._at_delay[delay] = sums[delay - self._t - 1].clone()
        for row, delay in enumerate(self.delays):
            counting = steps > delay
            silent = steps[~counting] - 1
            if len(silent):
                self.squared_error[row, silent] += self._target.square().mean(1).sum().cpu()
            if not counting.any():
                continue
            since = sums[counting.to(sums.device)] - self._at_delay[delay]
            columns = steps[counting] - 1
            rate = since / (steps[counting] - delay).to(since)[:, None, None]
            self.squared_error[row, columns] += (rate - self._target).square().mean(2).sum(1).cpu()
            self._count(row, columns, since, steps[counting] - delay)
        self._total, self._t = sums[-1].clone(), int(steps[-1])

    def _add_smoothed(self, output: Tensor) -> None:
        columns = slice(self._t, self._t + len(output))
        self.squared_error[0, columns] += (output - self._target).square().mean(2).sum(1).cpu()
        self._count(0, columns, output, torch.ones(len(output), device="cpu"))
        self._t += len(output)

    def _count(self, row: int, columns: Any, sums: Tensor, steps: Tensor) -> None:
        """Count the right decisions of the sums ``[T', N, K]`` over so many steps."""
        if self._labels is not None:
            right = self.decision.count(sums.reshape(len(sums), *self._shape), self._labels, steps)
            self.correct[:, row, columns] += right.cpu()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("correct", "squared_error", "analog_correct", "samples")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _load(self, state)


class LayerSums:
    """Spikes, synaptic operations and rates of one layer.

    Parameters
    ----------
    time_steps : int
        T.
    correlation_steps : sequence of int
        Steps at which rates are compared with activations.
    sample : int
        Pairs of rate and activation that are kept of a batch, for a scatter plot.

    Attributes
    ----------
    fan_out : Tensor or None
        Synapses of each neuron, float64, in the shape of a sample; to be set before the first batch if they are known.
    spikes, synops : Tensor
        Sums over the samples at each step, ``[T]``, float64.
    moments : Tensor
        Sums of 1, r, a, r^2, a^2 and r a at each step of the correlation, ``[S, 6]``, float64.
    """

    def __init__(self, time_steps: int, correlation_steps: Sequence[int] = (), sample: int = 200) -> None:
        self.fan_out: Tensor | None = None
        self.steps, self.sample = tuple(correlation_steps), sample
        self.spikes = torch.zeros(time_steps, dtype=torch.float64, device="cpu")
        self.synops = torch.zeros(time_steps, dtype=torch.float64, device="cpu")
        self.moments = torch.zeros(len(self.steps), 6, dtype=torch.float64, device="cpu")
        self.activation, self.neurons, self.analog = 0.0, 0, False
        self.scatter: list[Tensor] = []  # for each batch [S, 2, at most sample]

    def begin(self, total: float | None, activation: Tensor | None = None) -> None:
        """Start a batch.

        Parameters
        ----------
        total : float or None
            Sum of the analog activations; ``None`` for a layer that the analog net does not have.
        activation : Tensor, optional
            The activations ``[N, ...]``, for the correlation.
        """
        self._activation, self._t = activation, 0
        self._count: Tensor | None = None
        self._pairs: list[Tensor] = []
        if total is not None:
            self.activation += total
            self.analog = True

    def add(self, spikes: Tensor) -> None:
        """Add the spikes of the next steps, ``[T', N, ...]``."""
        steps = len(spikes)
        self.neurons = spikes[0, 0].numel()
        columns = slice(self._t, self._t + steps)
        fan_out = spikes.new_zeros(spikes.shape[2:], dtype=torch.float64) if self.fan_out is None else self.fan_out
        fan_out = in_order_of(spikes[0, :1], fan_out.unsqueeze(0))[0]
        found = spike_counts(spikes, fan_out).cpu()
        self.spikes[columns] += found[0]
        if self.fan_out is not None:
            self.synops[columns] += found[1]
            self.fan_out = fan_out  # all chunks have one layout
        if self._activation is not None and self.steps:
            self._compare(spikes)
        self._t += steps

    def add_counts(self, start: int, counts: Tensor, time_steps: int) -> None:
        """Add neurons ``[N, ...]`` that fire in the first n of ``time_steps`` steps from ``start`` on."""
        self.neurons = counts[0].numel()
        order = sorted(range(1, counts.ndim), key=counts.stride, reverse=True)  # as they lie in memory: no copy
        counts = counts.permute(0, *order).flatten(1)
        fan_out = None if self.fan_out is None else self.fan_out.permute([dim - 1 for dim in order]).flatten()
        fired = torch.empty_like(counts, dtype=torch.float32)
        for steps in torch.arange(time_steps, device="cpu").split(_STEPS_OF_COUNTS):
            per_neuron = torch.stack([torch.gt(counts, int(n), out=fired).sum(0) for n in steps]).double()
            self.spikes[start + steps] += per_neuron.sum(1).cpu()
            if fan_out is not None:
                self.synops[start + steps] += (per_neuron @ fan_out).cpu()

    def end(self) -> None:
        """End a batch."""
        if self._pairs:
            self.scatter.append(torch.stack(self._pairs))
        self._count = self._activation = None

    def _compare(self, spikes: Tensor) -> None:
        assert self._activation is not None
        if self._count is None:
            self._count = torch.zeros_like(spikes[0], dtype=torch.float32)
        done = 0
        for row, step in enumerate(self.steps):
            if self._t < step <= self._t + len(spikes):
                self._count += spikes[done : step - self._t].sum(0, dtype=torch.float32)
                done = step - self._t
                rate, activation = (self._count / step).flatten().double(), self._activation.flatten().double()
                sums = (rate, activation, rate.square(), activation.square(), rate * activation)
                moments = [rate.numel(), *(float(s.sum()) for s in sums)]
                self.moments[row] += torch.tensor(moments, dtype=torch.float64, device="cpu")
                stride = -(-rate.numel() // self.sample)
                self._pairs.append(torch.stack([rate[::stride], activation[::stride]]).float().cpu())
        self._count += spikes[done:].sum(0, dtype=torch.float32)

    def state_dict(self) -> dict[str, Any]:
        names = ("spikes", "synops", "moments", "activation", "neurons", "analog", "scatter")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _load(self, state)

    def correlation(self) -> Tensor:
        """Return Pearson's coefficient at each step of the correlation; NaN where one side does not vary."""
        n, r, a, rr, aa, ra = self.moments.unbind(1)
        rates, activations = n * rr - r * r, n * aa - a * a
        varies = (rates > _ROUNDING * n * rr) & (activations > _ROUNDING * n * aa)
        found = ((n * ra - r * a) / (rates * activations).sqrt()).clamp(-1.0, 1.0)
        return torch.where(varies, found, torch.nan)


def _load(sums: ReadoutSums | LayerSums, state: dict[str, Any]) -> None:
    """Take over sums of the same names, types and shapes; raise ``ValueError`` where one is another."""
    own = sums.state_dict()
    if own.keys() != state.keys():
        raise ValueError(f"state: got {[*state]}, want {[*own]}")
    for name, value in own.items():
        there, kind = state[name], type(value)
        if not isinstance(there, kind) or isinstance(there, bool) != isinstance(value, bool):
            raise ValueError(f"{name}: got a {type(there).__name__}, want a {kind.__name__}")
        if isinstance(value, Tensor) and (there.shape, there.dtype) != (value.shape, value.dtype):
            raise ValueError(f"{name}: got {there.dtype} {list(there.shape)}, want {value.dtype} {list(value.shape)}")
    for name in own:
        setattr(sums, name, state[name])
