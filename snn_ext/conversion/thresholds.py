"""Data-based normalisation: thresholds from the activations of the analog net."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from fractions import Fraction

import torch
from torch import Tensor, nn

__all__ = ["LargestActivations", "order_statistic"]


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
    """

    def __init__(
        self, ann: nn.Module, names: Iterable[str], batches: Iterable[Tensor], *, channel_wise: bool = False
    ) -> None:
        self._ann, self._names, self._batches, self._channel_wise = ann, list(names), batches, channel_wise
        self._counts = dict.fromkeys(self._names, 0)
        self.maxima: dict[str, Tensor] = {}

        def note(name: str, rows: Tensor) -> None:
            self._counts[name] += rows.shape[1]
            top = rows.amax(1)
            self.maxima[name] = torch.maximum(self.maxima[name], top) if name in self.maxima else top

        self._watch(note)

    def thresholds(self, percentile: float = 100.0) -> dict[str, Tensor]:
        """Return the maximum, or a percentile: the smallest value with at least that share at or below it.

        A percentile is an order statistic of all values, zeros included. It takes a second pass, in which only the
        largest values are kept. Where nothing was ever active, a channel gets the threshold of its layer, a layer 1,
        with a warning.
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
        return {name: _positive(name, found[name].float(), self.maxima[name].float()) for name in self._names}

    @torch.no_grad()
    def _watch(self, see: Callable[[str, Tensor], None]) -> None:
        """Show the activations of each batch as ``[1 or C, values]``."""

        def hook_of(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                see(name, output.movedim(1, 0).flatten(1) if self._channel_wise else output.reshape(1, -1))

            return hook

        hooks = [self._ann.get_submodule(name).register_forward_hook(hook_of(name)) for name in self._names]
        try:
            for x in self._batches:
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


def _positive(name: str, threshold: Tensor, maximum: Tensor) -> Tensor:
    layer = maximum.amax()
    if not bool(layer > 0):
        warnings.warn(f"calibration: {name} was never active; its threshold is 1", stacklevel=3)
        return torch.ones_like(threshold)
    if not bool(layer.isfinite()):
        raise ValueError(f"calibration: got an activation of {float(layer)} in {name}, want finite ones")
    fallback = torch.where(maximum > 0, maximum, layer)  # a percentile of 0 in a layer that is seldom active
    return torch.where(threshold > 0, threshold, fallback)
