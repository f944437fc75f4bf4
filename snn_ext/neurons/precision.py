"""The precision of a whole net of adaptive spiking neurons: :func:`set_precision`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value
from .._together import all_or_nothing
from ..functional import asn_spike_height
from .asn import AdaptiveSpikingNeuron, as_constant

__all__ = ["adaptive_neurons", "fold_height", "set_precision"]

_MANTISSA = 23
"""Bits of a sum that float32 certainly holds, with the weights rounded to the grid."""


def set_precision(net: nn.Module, m_f: float, theta_0: float | None = None) -> None:
    r"""Give all adaptive neurons of a net another precision, in place and without training.

    ``m_f`` and ``theta_0`` change together, the height h of a spike is computed anew, and with it every weight that
    receives spikes: :math:`w h`, from the weight :math:`w` of the analog net, so a change and its reversal restore the
    weights exactly. The states of the neurons stay: a net may be switched between two steps.

    Parameters
    ----------
    net : nn.Module
        From :func:`snn_ext.convert` with ``method="adsnn"``, or any net of adaptive neurons with ``scale_output=True``.
    m_f : float
        Adaptation of the threshold a spike, > 0: the smaller, the more precise, at more spikes.
    theta_0 : float, optional
        Threshold at rest in units of each neuron's threshold; ``m_f`` by default, as in the paper.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the net is unchanged then.

    Notes
    -----
    Weights are rounded to a grid of powers of two, at least 2^-23 of the sum of a neuron's weights, so that any sum of
    spikes is exact in float32: then the spikes depend neither on the batch nor on the order of summation.
    Source: Zambrano et al. 2017, on arousal.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext import AAN, BNAAN, convert
    >>> snn = convert(nn.Sequential(BNAAN(4, dims=0), nn.Linear(4, 2)), torch.rand(8, 4), method="adsnn")
    >>> set_precision(snn, 0.3)
    >>> snn.get_submodule("0.1").m_f
    tensor([0.3000])
    """
    neurons = adaptive_neurons(net)
    for name, value in (("m_f", m_f), ("theta_0", m_f if theta_0 is None else theta_0)):
        if isinstance(value, Tensor) and value.numel() > 1:
            bad_value(
                name, value, "one number for the net; a neuron's own set_precision takes one per channel or sample"
            )
        as_constant(name, value)
    for neuron in neurons.values():
        if neuron.spike_height == "fixed":
            asn_spike_height(float(m_f), None if theta_0 is None else float(theta_0))
    fed: list[Any] = [module for module in net.modules() if hasattr(module, "spike_source")]
    reported = [layer for layer in getattr(net, "report", ()) if layer.name in neurons]
    places: list[tuple[Any, str]] = [(n, name) for n in neurons.values() for name in ("m_f", "theta_0")]
    places += [(layer.weight, "data") for layer in fed]
    places += [(layer, name) for layer in reported for name in ("threshold", "scale")]
    with all_or_nothing(places):
        for neuron in neurons.values():
            neuron.set_precision(m_f, theta_0)
        for layer in fed:
            fold_height(layer, neurons[layer.spike_source].h)
        for layer in reported:
            layer.describe(neurons[layer.name])


def adaptive_neurons(net: nn.Module) -> dict[str, AdaptiveSpikingNeuron]:
    """Return the spiking adaptive neurons of a net by name; at least one.

    Examples
    --------
    >>> from snn_ext.spikingjelly import ASNNode
    >>> list(adaptive_neurons(nn.Sequential(nn.Linear(2, 2), ASNNode())))
    ['1']
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    found = {n: m for n, m in net.named_modules() if isinstance(m, AdaptiveSpikingNeuron) and m.emits_spikes}
    if not found:
        bad_value("net", type(net).__name__, "a net with at least one adaptive spiking neuron that is no read-out")
    return found


def fold_height(layer: Any, h: Tensor) -> None:
    """Multiply a layer's weights of the analog net by the height of the spikes that it receives.

    The layer has ``analog_weight`` and ``spike_bits``, the number of fractional bits of the arriving sums of spikes;
    ``None`` if their sums cannot be exact.
    """
    weight = layer.analog_weight.double() * h.detach().double().to(layer.analog_weight.device)
    weight = weight if layer.spike_bits is None else _on_grid(layer, weight)
    layer.weight.data = weight.to(layer.weight.dtype)


def _on_grid(layer: Any, weight: Tensor) -> Tensor:
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    inputs = [d for d in range(weight.ndim) if d != int(transposed)]
    largest = float((weight.abs().sum(inputs) if weight.ndim > 1 else weight.abs()).max())
    if not (math.isfinite(largest) and largest > 0):
        return weight
    steps = 2.0 ** (_MANTISSA - layer.spike_bits - math.ceil(math.log2(largest)))
    return torch.round(weight * steps) / steps
