"""Data-based normalisation: thresholds from the activations of the analog net."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
from torch import Tensor, nn

from .._errors import bad_value, check_real
from .._progress import bar
from ..neurons.base import MIN_THRESHOLD
from .report import Notes

__all__ = ["LargestActivations", "above_floor", "check_percentile", "order_statistic"]


def check_percentile(percentile: float) -> None:
    """Raise if an option is no percentile, or the fraction that stands for one."""
    want = "a number in [1, 100], in percent"
    if check_real("percentile", percentile, want) < 1.0 or percentile > 100.0:
        meant = f": {100.0 * percentile:g} for the fraction {percentile:g}" if 0.0 < percentile < 1.0 else ""
        bad_value("percentile", percentile, want + meant)


def above_floor(name: str, threshold: Tensor, notes: Notes, *, share: float = 1 / 32) -> Tensor:
    """Return the threshold of a layer, at least the smallest one that a neuron can have.

    A larger threshold is right too, at lower rates, and is noted. Raise where the wanted one is below a share of it.
    """
    least = float(threshold.min())
    if least >= MIN_THRESHOLD:
        return threshold
    if not least >= MIN_THRESHOLD * share:
        raise ValueError(
            f"calibration: got activations of {least:.3g} in {name}, want at least the smallest "
            f"threshold, {MIN_THRESHOLD:g}: weights before it that are multiplied, and those behind it divided"
        )
    notes.add(name, f"has activations of {least:.3g} only; its threshold is the smallest one, {MIN_THRESHOLD:g}")
    return threshold.clamp_min(MIN_THRESHOLD * (1 + 2**-23))  # in float32 the number itself is a little below it


class LargestActivations:
    """The largest activations of some layers over all batches, and thresholds from them.

    Parameters
    ----------
    ann : nn.Module
        The analog net.
    names : iterable of str
        Its activation modules.
    batches : iterable of Tensor
        Inputs; gone through once here, and a second time for a percentile below 100.
    channel_wise : bool
        One value for each channel (dim 1) instead of one for each layer.

    Attributes
    ----------
    maxima : dict of str to Tensor
        The true maximum over all batches, ``[1]`` or ``[C]``.
    notes : Notes
        Layers that are silent, or whose percentile is 0.
    """

    def __init__(
        self,
        ann: nn.Module,
        names: Iterable[str],
        batches: Iterable[Tensor],
        *,
        channel_wise: bool = False,
        progress: bool = False,
    ) -> None:
        self._ann, self._names, self._batches, self._channel_wise = ann, list(names), batches, channel_wise
        self._progress = progress
        self._counts = dict.fromkeys(self._names, 0)
        self.maxima: dict[str, Tensor] = {}
        self.notes = Notes()

        def note(name: str, rows: Tensor) -> None:
            self._counts[name] += rows.shape[1]
            top = rows.amax(1)
            self.maxima[name] = torch.maximum(self.maxima[name], top) if name in self.maxima else top

        self._watch(note)

    def thresholds(self, percentile: float = 100.0) -> dict[str, Tensor]:
        """Return the maximum, or a percentile: the smallest value with at least that share at or below it.

        A percentile is an order statistic of all values, zeros included. It takes a second pass, in which only the
        largest values are kept. Where it is 0, the maximum is taken. Where nothing was ever active, a channel gets the
        threshold of its layer, a layer 1. Both are noted.
        """
        found = self.maxima
        if percentile < 100.0:
            largest: dict[str, Tensor] = {}

            def keep(name: str, rows: Tensor) -> None:
                kept = torch.cat((largest[name], rows), dim=1) if name in largest else rows
                wanted = self._counts[name] - _rank(percentile, self._counts[name]) + 1
                largest[name] = kept if kept.shape[1] <= wanted else kept.topk(wanted, dim=1).values

            self._watch(keep)
            found = {name: values.amin(1) for name, values in largest.items()}
        return {name: self._positive(name, found[name].float(), percentile) for name in self._names}

    def _positive(self, name: str, threshold: Tensor, percentile: float) -> Tensor:
        maximum = self.maxima[name].float()
        layer = maximum.amax()
        if not bool(layer > 0):
            self.notes.add(name, "was never active; its threshold is 1")
            return torch.ones_like(threshold)
        if not bool(layer.isfinite()):
            raise ValueError(f"calibration: got an activation of {float(layer)} in {name}, want finite ones")
        seldom = int(((threshold <= 0) & (maximum > 0)).sum())
        if seldom:
            where = f" in {seldom} channels" if self._channel_wise else ""
            self.notes.add(name, f"is active too seldom for percentile {percentile:g}{where}; the maximum is taken")
        return torch.where(threshold > 0, threshold, torch.where(maximum > 0, maximum, layer))

    @torch.no_grad()
    def _watch(self, see: Callable[[str, Tensor], None]) -> None:
        """Show the activations of each batch as ``[1 or C, values]``."""

        def hook_of(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                see(name, output.movedim(1, 0).flatten(1) if self._channel_wise else output.reshape(1, -1))

            return hook

        hooks = [self._ann.get_submodule(name).register_forward_hook(hook_of(name)) for name in self._names]
        try:
            for x in bar("see activations", "batch", self._batches, progress=self._progress):
                self._ann(x)
        finally:
            for hook in hooks:
                hook.remove()


def order_statistic(values: Tensor, percentile: float) -> Tensor:
    """Return the smallest of some values with at least ``percentile`` % of them at or below it.

    Examples
    --------
    >>> import torch
    >>> order_statistic(torch.arange(1.0, 11.0), 80.0)
    tensor(8.)
    """
    return values.flatten().kthvalue(_rank(percentile, values.numel())).values


def _rank(percentile: float, count: int) -> int:
    """Return the 1-based rank of a percentile, exactly: as the decimal fraction that it is written as."""
    return max(1, math.ceil(Fraction(repr(float(percentile))) * count / 100))
