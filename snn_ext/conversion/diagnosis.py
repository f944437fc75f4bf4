"""Spike counts of a streaming net that differ from those of the quantised analog net, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_count
from ..simulation.analog import AnalogTwin
from ..simulation.engine import Simulation
from .graph_tools import calls_neuron
from .net import ConvertedNet

__all__ = ["LayerDiagnosis", "diagnose"]


@dataclass
class LayerDiagnosis:
    """Counts of one layer after T steps.

    Attributes
    ----------
    name : str
        Name of the layer.
    neurons : int
        Neurons times samples.
    mismatches : int
        Counts that differ from the staircase of the charge that the neuron has received.
    early : int
        Mismatches with a final potential below 0: spikes were fired before negative charge arrived.
    late : int
        Mismatches with a final potential not below the threshold: charge arrived too late to be fired.
    unexplained : int
        Mismatches with a final potential in [0, threshold) and a count that is not clipped at 0 or T. There are none,
        except by rounding of charges on an edge of the staircase.
    clipped : int
        Neurons with a charge for fewer than 0 or more than T spikes.
    against_quantized : int
        Counts that differ from those of the quantised analog net: mismatches, and errors of the layers before.
    """

    name: str
    neurons: int
    mismatches: int
    early: int
    late: int
    unexplained: int
    clipped: int
    against_quantized: int


@torch.no_grad()
def diagnose(snn: ConvertedNet, x: Tensor, time_steps: int, *, memory: int = 1 << 30) -> list[LayerDiagnosis]:
    r"""Compare the spike counts of each layer with the staircase of its charge.

    Under constant current a neuron fires :math:`n = \min(T, \max(0, \lfloor Q / \theta \rfloor))` spikes for the
    charge :math:`Q = V(0) + \sum_t I(t)`. Under a varying current it may fire early or late. As
    :math:`V(T) = Q - n \theta`, a count is wrong exactly where the final potential lies outside
    :math:`[0, \theta)` (outside :math:`(0, \theta]` for neurons that fire above their threshold) and the count is not
    clipped.

    Parameters
    ----------
    snn : ConvertedNet
        Of the streaming schedule, with reset by subtraction.
    x : Tensor
        Samples ``[N, ...]``.
    time_steps : int
        T.
    memory : int
        Bytes for the activations of a chunk of time.

    Returns
    -------
    list of LayerDiagnosis
        In the order of the forward pass.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import snn_ext
    >>> from snn_ext.conversion import diagnose
    >>> x = torch.rand(16, 4)
    >>> snn = snn_ext.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), x, method="data-norm")
    >>> diagnose(snn, x, 8)[0].mismatches           # the current into the first layer is constant
    0
    """
    if not isinstance(snn, ConvertedNet):
        bad_type("snn", snn, "a converted net")
    if snn.schedule != "streaming":
        bad_value("snn", f"the schedule {snn.schedule!r}", "'streaming': the phased one has no mismatches")
    check_count("time_steps", time_steps)
    net = snn.one_step()
    layers = [n for n in net.graph.nodes if calls_neuron(net, n)]
    if any(snn.get_submodule(str(n.target)).v_reset is not None for n in layers):
        bad_value("snn", "neurons that reset to zero", "reset by subtraction")
    if any(len(snn.get_submodule(str(n.target)).thresholds().of_steps) > 1 for n in layers):  # type: ignore[operator]
        bad_value("snn", "a neuron with a threshold for each step", "neurons with one threshold")
    expected = AnalogTwin(snn, time_steps).rates(x)
    charges: dict[fx.Node, Any] = dict.fromkeys(layers, 0.0)
    counts: dict[fx.Node, Any] = dict.fromkeys(layers, 0.0)
    states: dict[fx.Node, tuple[Any, ...]] = {}
    targets = [*layers, *(node.args[0] for node in layers)]
    for values in Simulation(net, memory=memory).stream(x, time_steps, targets, states=states):
        for node in layers:
            charges[node] = charges[node] + values[node.args[0]].double().sum(0)
            counts[node] = counts[node] + (values[node] != 0).double().sum(0)
    return [
        _compare(node, snn.get_submodule(str(node.target)), charges[node], counts[node], states[node][0],
                 expected[str(node.target)], time_steps)
        for node in layers
    ]  # fmt: skip


def _compare(
    node: fx.Node, neuron: nn.Module, charge: Any, count: Any, residual: Tensor, expected: Tensor, time_steps: int
) -> LayerDiagnosis:
    module: Any = neuron
    step = expected.unsqueeze(0)
    thresholds = module.thresholds()
    theta = module._of_step(thresholds, 0, step.shape[1:]).double()
    level = (charge + module.initial_potential(step, thresholds).double()) / theta
    wanted = level.floor() if module.fire_at_threshold else level.ceil() - 1.0
    wrong = count != wanted.clamp(0, time_steps)
    residual = residual.double()
    if module.fire_at_threshold:
        early, late = residual < 0, residual >= theta
    else:
        early, late = residual <= 0, residual > theta
    clipped = (wanted < 0) | (wanted > time_steps)
    unexplained = wrong & ~early & ~late & ~clipped
    other = count != (expected.double() * time_steps).round()
    early, late = wrong & early, wrong & late
    numbers = [int(flags.sum()) for flags in (wrong, early, late, unexplained, clipped, other)]
    return LayerDiagnosis(str(node.target), count.numel(), *numbers)
