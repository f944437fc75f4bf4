"""Conversion to a net of adaptive spiking neurons (AdSNN)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..._errors import bad_value, check_real
from ...functional import asn_ceiling
from ...functional.asn import check_constant
from ...neurons.aan import AAN
from ..activations import Activation
from ..asn_net import adaptive_net
from ..batches import Batches
from ..canonicalize import AnalogNet
from ..graph_tools import assign, refuse
from ..net import ConvertedNet
from ..report import LayerReport, Report
from ..thresholds import LargestActivations, above_floor, check_percentile
from .base import ConversionRecipe, check_result, measure_rates

__all__ = ["AdSNNRecipe"]

_REPORT_MS = 100.0


@dataclass(eq=False, kw_only=True)
class AdSNNRecipe(ConversionRecipe):
    """Conversion to adaptive spiking neurons: of a net trained with AANs, or, with adaptive heights, of a ReLU net.

    Batch norm goes into weights and biases, biases are added to the activation S, the height of a spike goes into the
    weights that receive it. A maximum or average pooling beside an activation is merged into its neurons: filter, pool,
    spike. The currents of branches are summed before one neuron. The output is the activation S of a read-out without
    spikes, smoothed with 50 ms, at every step.

    Parameters
    ----------
    calibration, memory
        As in :class:`ConversionRecipe`. Nothing is fitted to the calibration data with ``spike_height="fixed"``: they
        tell shapes, and whether spikes can carry the activations.
    m_f : float, optional
        Precision to deploy; that of the AANs by default, 0.1 for a ReLU net. See also
        :func:`snn_ext.set_precision`.
    spike_height : {"fixed", "adaptive"}
        "fixed" for a net that was trained with :class:`snn_ext.AAN`. "adaptive" for a ReLU net as it is: a spike then
        carries the threshold at its time, and the transfer function is linear.
    percentile : float
        With "adaptive": the percentile of its activations that is the unit of a layer, in [1, 100]; 100 is the
        maximum.
    tau_phi, tau_readout : float
        Membrane filter of the neurons, and of the read-out, in ms.
    dt : float
        Length of a step in ms.
    fold_scales : bool
        Put the height h of a spike into the weights that receive it. Without it the neurons emit h, and weights are
        those of the analog net.

    Notes
    -----
    Source: Zambrano et al. 2017, on the conversion of networks; its discussion on adaptive heights.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from spikingjelly.activation_based.ann2snn import Converter
    >>> from snn_ext import AAN, BNAAN
    >>> from snn_ext.conversion import AdSNNRecipe
    >>> ann = nn.Sequential(BNAAN(4, dims=0), nn.Linear(4, 8), nn.BatchNorm1d(8), AAN(), nn.Linear(8, 2)).eval()
    >>> snn = Converter(AdSNNRecipe(torch.rand(64, 4))).convert(ann)
    >>> [layer.rule for layer in snn.report]
    ['AAN', 'AAN']
    """

    m_f: float | None = None
    spike_height: Literal["fixed", "adaptive"] = "fixed"
    percentile: float = 100.0
    tau_phi: float = 5.0
    tau_readout: float = 50.0
    dt: float = 1.0
    fold_scales: bool = True

    pools: ClassVar[Literal["behind", "before"]] = "before"

    def check(self) -> None:
        """Check the options, one by one and together."""
        super().check()
        if self.m_f is not None:
            check_constant("m_f", self.m_f)
        for name in ("tau_phi", "dt"):
            check_constant(name, getattr(self, name))
        check_real("tau_readout", self.tau_readout, "a finite number >= 0: 0 is no filter", 0.0)
        check_percentile(self.percentile)
        if self.spike_height == "fixed" and self.percentile != 100.0:
            bad_value("percentile", self.percentile, "100.0 with spike_height='fixed', whose unit is that of the AANs")
        if self.spike_height == "adaptive" and not self.fold_scales:
            bad_value("fold_scales", False, "True with spike_height='adaptive': its spikes have their value themselves")

    def build(self, analog: AnalogNet, batches: Batches) -> ConvertedNet:
        """Find the unit of each layer, put neurons in, check, and warn of activations that spikes cannot carry."""
        activations, x = analog.activations, analog.x
        self._check_activations(activations)
        largest = LargestActivations(analog.graph, activations, batches, progress=self.progress)
        units, rule = {name: torch.ones(1) for name in activations}, "AAN"
        if self.spike_height == "adaptive":
            units, rule = largest.thresholds(self.percentile), f"ReLU, unit: percentile {self.percentile:g}"
            # Spikes of a larger unit are coarser, and no lower rate makes up for it.
            units = {name: above_floor(name, unit, largest.notes, share=1 / 4) for name, unit in units.items()}
        constants = {name: self._constants(activations[name], units[name]) for name in activations}
        wanted = _at_precision(analog, constants)
        net = adaptive_net(
            analog, constants, tau_phi=self.tau_phi, tau_readout=self.tau_readout, fold_scales=self.fold_scales
        )
        rates = check_result(net, x, wanted)
        self._warn_above_ceiling(net, largest.maxima)
        net.report = Report(_layer_report(net, name, rule, largest.notes.get(name, [])) for name in activations)
        steps = max(1, round(_REPORT_MS / self.dt))  # as many before, for the volley at the onset is no rate
        measure_rates(net, x, rates, steps, skip=steps, memory=self.memory, progress=self.progress)
        return net

    def _check_activations(self, activations: dict[str, Activation]) -> None:
        for name, activation in activations.items():
            if self.spike_height == "fixed" and activation.adaptive is None:
                want = "AANs in its place and the net trained with them, or spike_height='adaptive'"
                refuse(f"{activation.kind} {name}", want)
            if self.spike_height == "adaptive" and activation.adaptive is not None:
                refuse(f"AAN {name}", "spike_height='fixed': spikes of adaptive height stand for a ReLU")
            if activation.clip is not None or activation.quantized is not None:
                refuse(f"{activation.kind} {name}", "a ReLU: spikes of adaptive height have no upper limit")
            if activation.adaptive is not None and activation.adaptive.dt != self.dt:
                bad_value("dt", self.dt, f"that of the AANs, {activation.adaptive.dt:g}")
        synapses = {a.adaptive.tau_beta for a in activations.values() if a.adaptive is not None}
        if len(synapses) > 1:  # f(S) counts on the synapses that receive the spikes, which belong to the next neurons
            refuse(f"AANs with tau_beta of {', '.join(f'{tau:g}' for tau in sorted(synapses))} ms", "one for the net")

    def _constants(self, activation: Activation, unit: Tensor) -> dict[str, Any]:
        """Return the arguments of the neurons for an activation."""
        constants: dict[str, Any] = {"v_threshold": unit, "spike_height": self.spike_height, "dt": self.dt}
        aan = activation.adaptive
        if aan is None:
            return constants | {"m_f": 0.1 if self.m_f is None else self.m_f}
        constants |= {"tau_gamma": aan.tau_gamma, "tau_eta": aan.tau_eta, "tau_beta": aan.tau_beta}
        if self.m_f is not None:
            return constants | {"m_f": self.m_f}
        return constants | {"m_f": aan.m_f, "theta_0": aan.theta_0}

    def _warn_above_ceiling(self, net: ConvertedNet, maxima: dict[str, Tensor]) -> None:
        for name, largest in maxima.items():
            node: Any = net.get_submodule(name)
            m_f, theta_0 = float(node.m_f), float(node.theta_0)
            times = {t: getattr(node, t) for t in ("tau_gamma", "tau_eta", "tau_beta", "dt")}
            ceiling = asn_ceiling(m_f, theta_0, **times, spike_height=node.spike_height) * float(node.v_threshold)
            if largest > ceiling:
                warnings.warn(
                    f"calibration: {name} has an activation of {float(largest):.3g}, and one spike every {self.dt:g} "
                    f"ms of neurons with m_f = {m_f:g} cannot carry more than {ceiling:.3g}; take a larger m_f or a "
                    "smaller dt",
                    stacklevel=2,
                )


def _at_precision(analog: AnalogNet, constants: dict[str, dict[str, Any]]) -> Tensor:
    """Return the output of the analog net at the precision that is deployed; AANs in it are replaced."""
    changed = False
    for name, activation in analog.activations.items():
        if activation.adaptive is not None:
            given = {k: v for k, v in constants[name].items() if k not in ("v_threshold", "spike_height")}
            aan = AAN(**given)
            aan._watched = False  # the ceiling is warned of with the name of the layer
            changed |= (aan.m_f, aan.theta_0) != (activation.adaptive.m_f, activation.adaptive.theta_0)
            assign(analog.graph, name, aan)
    return analog.graph(analog.x) if changed else analog.output


def _layer_report(net: ConvertedNet, name: str, rule: str, notes: list[str]) -> LayerReport:
    layer = LayerReport(name, 0.0, 0.0, 0.0, None, rule, notes=notes)
    layer.describe(net.get_submodule(name))
    return layer
