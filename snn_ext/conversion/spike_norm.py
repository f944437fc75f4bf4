"""Spike-Norm: thresholds from the weighted spike input, with the spiking net in the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from .layerwise import Layerwise

__all__ = ["spike_norm"]


def spike_norm(
    net: fx.GraphModule,
    batches: Sequence[Tensor],
    time_steps: int,
    set_threshold: Callable[[str, Tensor], Tensor],
    *,
    channel_wise: bool = False,
    memory: int = 1 << 30,
) -> dict[str, Tensor]:
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
        ``set_threshold(name, maximum) -> threshold`` sets the threshold of a layer and returns it; it may decide on
        another one than the maximum.
    channel_wise : bool
        The maximum for each channel (dim 1).
    memory : int
        Bytes for spike trains.

    Returns
    -------
    dict of str to Tensor
        The thresholds by the name of the layer, ``[1]`` or ``[C]``.

    Notes
    -----
    Source: Sengupta et al. 2019, algorithm 1, which has no biases; here a bias belongs to the current.
    """
    layers = Layerwise(net, batches, time_steps, memory)
    thresholds: dict[str, Tensor] = {}
    for node in layers.layers():
        maximum: Tensor | None = None
        is_constant = layers.is_constant(node)
        for batch in range(len(batches)):
            for current in layers.current(node, batch):
                current = current[:1] if is_constant else current
                others = [d for d in range(current.ndim) if d != 2] if channel_wise else []
                top = current.amax(others).reshape(-1)
                maximum = top if maximum is None else torch.maximum(maximum, top)
        assert maximum is not None
        thresholds[str(node.target)] = set_threshold(str(node.target), maximum)
        for _ in layers.finish(node):
            pass
    return thresholds
