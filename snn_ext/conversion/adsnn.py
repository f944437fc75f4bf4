"""Conversion to a net of adaptive spiking neurons (AdSNN), as a recipe for SpikingJelly's own ``Converter``."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from spikingjelly.activation_based.ann2snn import FXConversionRecipe
from torch import Tensor, fx, nn

from .._errors import bad_value, check_bool, check_choice, check_count, check_real
from ..functional import asn_ceiling
from ..functional.asn import check_constant
from ..neurons.aan import AAN
from ..simulation.analog import AnalogTwin
from ..simulation.engine import Simulation
from .asn_net import adaptive_net
from .batches import Batches
from .canonicalize import Activation, assign, check_copy, finite_output, plain_copy, prepare, refuse
from .net import ConvertedNet
from .report import LayerReport, Report
from .thresholds import activation_thresholds

__all__ = ["AdSNNRecipe"]

_REPORT_SAMPLES, _REPORT_MS = 16, 100.0


class AdSNNRecipe(FXConversionRecipe):
    """Adaptive spiking neurons in the place of activations: a trained net of AANs, or with another height of ReLUs.

    Batch norm goes into weights and biases, biases are added to the activation S, the height of a spike goes into the
    weights that receive it. A maximum or average pooling beside an activation is merged into its neurons: filter, pool,
    spike. The currents of branches are summed before one neuron. The output is the activation S of a read-out without
    spikes, smoothed with 50 ms, at every step.

    Parameters
    ----------
    calibration : Tensor, iterable or callable
        A batch of inputs, a loader, or a function that returns a loader. Nothing is fitted to it with
        ``spike_height="fixed"``: it tells shapes, and whether spikes can carry the activations.
    m_f : float, optional
        Precision to deploy; that of the AANs by default, 0.1 for a ReLU net. See also
        :func:`snn_ext.set_precision`.
    spike_height : {"fixed", "adaptive"}
        "fixed" for a net that was trained with :class:`snn_ext.AAN`. "adaptive" for a ReLU net as it is: a spike then
        carries the threshold at its time, and the transfer function is linear.
    percentile : float
        With "adaptive": which percentile of its activations is the unit of a layer, in (0, 100]; 100 is the maximum.
    tau_phi, tau_readout : float
        Membrane filter of the neurons, and of the read-out, in ms.
    dt : float
        Length of a step in ms.
    fold_scales : bool
        Without it the neurons emit h in place of 1, and weights are those of the analog net.
    memory : int
        Bytes that the simulation for the report may take.

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

    def __init__(
        self,
        calibration: Any,
        *,
        m_f: float | None = None,
        spike_height: str = "fixed",
        percentile: float = 100.0,
        tau_phi: float = 5.0,
        tau_readout: float = 50.0,
        dt: float = 1.0,
        fold_scales: bool = True,
        memory: int = 1 << 30,
    ) -> None:
        self.calibration, self.m_f, self.spike_height, self.percentile = calibration, m_f, spike_height, percentile
        self.tau_phi, self.tau_readout, self.dt = tau_phi, tau_readout, dt
        self.fold_scales, self.memory = fold_scales, memory

    # -- the host's hooks -------------------------------------------------------------------------------------------

    def validate(self, converter: Any) -> None:
        """Check the arguments."""
        check_choice("spike_height", self.spike_height, ("fixed", "adaptive"))
        if self.m_f is not None:
            check_constant("m_f", self.m_f)
        for name in ("tau_phi", "dt"):
            check_constant(name, getattr(self, name))
        check_real("tau_readout", self.tau_readout, "a finite number >= 0: 0 is no filter", 0.0)
        if check_real("percentile", self.percentile, "a number in (0, 100]", 0.0, 100.0) <= 0:
            bad_value("percentile", self.percentile, "a number in (0, 100]")
        if self.spike_height == "fixed" and self.percentile != 100.0:
            bad_value("percentile", self.percentile, "100.0 with spike_height='fixed', whose unit is that of the AANs")
        if self.spike_height == "adaptive" and not check_bool("fold_scales", self.fold_scales):
            bad_value("fold_scales", False, "True with spike_height='adaptive': its spikes have their value themselves")
        check_bool("fold_scales", self.fold_scales)
        check_count("memory", self.memory)

    def before_trace(self, converter: Any, ann: nn.Module) -> nn.Module:
        """Copy the net and find its activations; they travel as plain ReLUs through the host's tracer."""
        self._batches = Batches(self.calibration, converter.device)
        self._first = self._batches.first()
        ann = plain_copy(ann).to(converter.device)
        graph, self._activations = prepare(ann, self._first, pools="before")
        self._check_activations()
        self._reference = finite_output(ann, self._first[:_REPORT_SAMPLES])
        for name in self._activations:
            assign(graph, name, nn.ReLU())
        return graph

    def after_trace(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Put the activations back, and check that the copy computes what the net does."""
        for name, activation in self._activations.items():
            assign(fx_model, name, activation.module())
        check_copy(fx_model(self._first[:_REPORT_SAMPLES]), self._reference)
        return fx_model

    def calibrate(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Find the units of ReLU layers, and the largest activations."""
        names = list(self._activations)
        self._units = {name: torch.ones(1) for name in names}
        if self.spike_height == "adaptive":
            self._units = activation_thresholds(
                fx_model, names, self._batches, percentile=self.percentile, channel_wise=False
            )
        self._largest = _largest_activations(fx_model, names, self._batches)
        return fx_model

    def replace(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Put neurons in the place of activations."""
        constants = {name: self._constants(name, activation) for name, activation in self._activations.items()}
        self._deployed = self._at_precision(fx_model, constants)
        return adaptive_net(
            fx_model, constants, self._first, tau_phi=self.tau_phi, tau_readout=self.tau_readout,
            fold_scales=self.fold_scales,
        )  # fmt: skip

    def finalize(self, converter: Any, fx_model: fx.GraphModule) -> nn.Module:
        """Check the net, warn of what spikes can not carry, and write the report."""
        net: Any = fx_model
        error = _distance(AnalogTwin(net)(self._first[:_REPORT_SAMPLES]), self._deployed)
        if not error <= 1e-3:
            raise RuntimeError(
                f"conversion: the spiking net stands for another analog net, which differs by {error:.3g} of its "
                "output; this is a defect of snn_ext"
            )
        self._warn_above_ceiling(net)
        net.report = Report(self._layer_report(net, name) for name in self._activations)
        self._measure_rates(net)
        net.to(memory_format=torch.channels_last)
        return net.eval()

    # -- what they call ---------------------------------------------------------------------------------------------

    def _check_activations(self) -> None:
        for name, activation in self._activations.items():
            if self.spike_height == "fixed" and activation.adaptive is None:
                want = "AANs in its place and the net trained with them, or spike_height='adaptive'"
                refuse(f"{_kind(activation)} {name}", want)
            if self.spike_height == "adaptive" and activation.adaptive is not None:
                refuse(f"AAN {name}", "spike_height='fixed': spikes of adaptive height stand for a ReLU")
            if activation.clip is not None or activation.quantized is not None:
                refuse(f"{_kind(activation)} {name}", "a ReLU: spikes of adaptive height have no upper limit")
            if activation.adaptive is not None and activation.adaptive.dt != self.dt:
                bad_value("dt", self.dt, f"that of the AANs, {activation.adaptive.dt:g}")
        synapses = {a.adaptive.tau_beta for a in self._activations.values() if a.adaptive is not None}
        if len(synapses) > 1:  # f(S) counts on the synapses that receive the spikes, which belong to the next neurons
            refuse(f"AANs with tau_beta of {', '.join(f'{tau:g}' for tau in sorted(synapses))} ms", "one for the net")

    def _constants(self, name: str, activation: Activation) -> dict[str, Any]:
        """Return the arguments of the neurons in the place of an activation."""
        constants: dict[str, Any] = {"v_threshold": self._units[name], "spike_height": self.spike_height, "dt": self.dt}
        aan = activation.adaptive
        if aan is None:
            return constants | {"m_f": 0.1 if self.m_f is None else self.m_f}
        constants |= {"tau_gamma": aan.tau_gamma, "tau_eta": aan.tau_eta, "tau_beta": aan.tau_beta}
        if self.m_f is not None:
            return constants | {"m_f": self.m_f}
        return constants | {"m_f": aan.m_f, "theta_0": aan.theta_0}

    def _at_precision(self, graph: fx.GraphModule, constants: dict[str, dict[str, Any]]) -> Tensor:
        """Return what the analog net computes at the precision that is deployed, on the first samples."""
        twin = copy.deepcopy(graph)
        for name, activation in self._activations.items():
            if activation.adaptive is not None:
                given = {k: v for k, v in constants[name].items() if k not in ("v_threshold", "spike_height")}
                aan = AAN(**given)
                aan._watched = False  # the ceiling is warned of with the name of the layer
                assign(twin, name, aan)
        result: Tensor = twin(self._first[:_REPORT_SAMPLES])
        return result

    def _warn_above_ceiling(self, net: ConvertedNet) -> None:
        for name, largest in self._largest.items():
            node: Any = net.get_submodule(name)
            m_f, theta_0 = float(node.m_f), float(node.theta_0)
            times = {t: getattr(node, t) for t in ("tau_gamma", "tau_eta", "tau_beta", "dt")}
            ceiling = asn_ceiling(m_f, theta_0, **times, spike_height=node.spike_height) * float(node.v_threshold)
            if largest > ceiling:
                warnings.warn(
                    f"calibration: {name} has an activation of {largest:.3g}, and one spike every {self.dt:g} ms of "
                    f"neurons with m_f = {m_f:g} can not carry more than {ceiling:.3g}; take a larger m_f or a smaller "
                    "dt",
                    stacklevel=2,
                )

    def _layer_report(self, net: ConvertedNet, name: str) -> LayerReport:
        node: Any = net.get_submodule(name)
        rule = "AAN" if self.spike_height == "fixed" else f"ReLU, unit: percentile {self.percentile:g}"
        layer = LayerReport(name, 0.0, 0.0, 0.0, None, rule)
        layer.describe(node)
        return layer

    def _measure_rates(self, net: ConvertedNet) -> None:
        """Run a few samples and compare rates with those that the activations stand for."""
        x, steps = self._first[:_REPORT_SAMPLES], max(1, round(_REPORT_MS / self.dt))
        before = steps  # the volley at the onset, which is no rate, is left out
        wanted = AnalogTwin(net).rates(x)
        counts: dict[str, Any] = {}
        seen: dict[str, int] = {}

        def count(name: str, module: nn.Module, spikes: Tensor) -> None:
            t = seen.get(name, 0)
            counts[name] = counts.get(name, 0) + spikes[max(0, before - t) :].sum(0)
            seen[name] = t + len(spikes)

        for _ in Simulation(net, memory=self.memory).run(x, before + steps, count):
            pass
        for layer in net.report:
            error = counts[layer.name] / steps - wanted[layer.name]
            layer.rate_error, layer.steps = float(error.square().mean().sqrt()), steps


@torch.no_grad()
def _largest_activations(net: nn.Module, names: list[str], batches: Batches) -> dict[str, float]:
    largest = dict.fromkeys(names, 0.0)

    def keep(name: str) -> Any:
        return lambda module, inputs, output: largest.update({name: max(largest[name], float(output.max()))})

    hooks = [net.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        for x in batches:
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def _distance(result: Tensor, wanted: Tensor) -> float:
    return float((result - wanted).abs().max()) / (1.0 + float(wanted.abs().max()))


def _kind(activation: Activation) -> str:
    if activation.quantized is not None:
        return "QuantizedReLU"
    if activation.adaptive is not None:
        return "AAN"
    return "ReLU" if activation.clip is None else f"ReLU with a clip at {activation.clip:g},"
