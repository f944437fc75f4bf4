"""Spike-Norm: thresholds from the weighted spike input, with the spiking net in the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..._progress import bar
from ..batches import Batches
from ..canonicalize import AnalogNet
from ..layerwise import Layerwise
from ..spiking import ThresholdSetter
from .rate import RateRecipe

__all__ = ["SpikeNormRecipe", "spike_norm"]

_STEPS = 256


@dataclass(eq=False, kw_only=True)
class SpikeNormRecipe(RateRecipe):
    """Spike-Norm: the threshold of a layer is the largest current that it gets, with the spiking net in the loop.

    Parameters
    ----------
    calibration, memory, encoder, seed, precharge, reset, readout, schedule, wait, fold_scales, residual, channel_wise
        As in :class:`RateRecipe`; all batches of the calibration are simulated, and kept in memory.
    time_steps : int, optional
        Steps of the simulation; 256 by default, where the paper takes 2500.

    Notes
    -----
    Source: Sengupta et al. 2019, algorithm 1; the paper's own setting is ``encoder="poisson", reset="zero",
    time_steps=2500`` with 256 images.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from spikingjelly.activation_based.ann2snn import Converter
    >>> from snn_ext.conversion import SpikeNormRecipe
    >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> Converter(SpikeNormRecipe(torch.rand(64, 4), time_steps=32)).convert(ann).report[0].rule
    'Spike-Norm'
    """

    def set_thresholds(self, thresholds: ThresholdSetter, analog: AnalogNet, batches: Batches) -> None:
        """Simulate the spiking net, one layer after the other."""
        rule = "Spike-Norm per channel" if self.channel_wise else "Spike-Norm"

        def set_threshold(name: str, maximum: Tensor) -> None:
            if name not in thresholds.activations:  # the encoder keeps its own
                return
            if thresholds.given(name) is None:
                maximum = torch.where(maximum > 0, maximum, maximum.amax())
                if not bool((maximum > 0).all()):
                    thresholds.notes.add(name, "gets no positive current; its threshold is 1")
                    maximum = torch.ones_like(maximum)
            thresholds.set(name, maximum, rule)

        steps = thresholds.net.time_steps or _STEPS
        spike_norm(
            thresholds.net, list(batches), steps, set_threshold,
            channel_wise=self.channel_wise, memory=self.memory, progress=self.progress,
        )  # fmt: skip


def spike_norm(
    net: fx.GraphModule,
    batches: Sequence[Tensor],
    time_steps: int,
    set_threshold: Callable[[str, Tensor], object],
    *,
    channel_wise: bool = False,
    memory: int = 1 << 30,
    progress: bool = False,
) -> None:
    r"""Set the threshold of one layer after the other to the largest current that it gets at any step.

    .. math:: \theta_l = \max_{t, n, i} \sum_j w_{ij}\, \theta_{l-1}\, s_j(t) + b_i

    with the spikes :math:`s` of the layers before, which run with the thresholds that they have been given. Linear in
    depth: see :class:`Layerwise`.

    Parameters
    ----------
    net : fx.GraphModule
        The spiking net, with scaled outputs and any thresholds.
    batches : sequence of Tensor
        Calibration inputs.
    time_steps : int
        Steps of the simulation.
    set_threshold : callable
        ``set_threshold(name, maximum)`` sets the threshold of a layer; it may decide on another one than the maximum,
        ``[1]`` or ``[C]``.
    channel_wise : bool
        The maximum for each channel (dim 1).
    memory : int
        Bytes for spike trains.
    progress : bool
        Show a progress bar (tqdm) on a terminal.

    Notes
    -----
    Source: Sengupta et al. 2019, algorithm 1, which has no biases; here a bias belongs to the current.
    """
    layers = Layerwise(net, batches, time_steps, memory)
    for node in bar("simulate", "layer", layers.layers(), progress=progress):
        maximum: Tensor | None = None
        is_constant = layers.is_constant(node)
        for batch in range(len(batches)):
            for current in layers.current(node, batch):
                current = current[:1] if is_constant else current
                others = [d for d in range(current.ndim) if d != 2] if channel_wise else []
                top = current.amax(others).reshape(-1)
                maximum = top if maximum is None else torch.maximum(maximum, top)
        assert maximum is not None
        set_threshold(str(node.target), maximum)
        for _ in layers.finish(node):
            pass
