"""Conversion to integrate-and-fire neurons, whose rates stand for activations."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ..._errors import bad_type, bad_value, check_count, check_real
from ...neurons.quantized import NonUniformQuantizedReLU
from ...simulation.layers import rule_of_node
from ..activations import Activation
from ..batches import Batches
from ..canonicalize import AnalogNet
from ..gates import gates
from ..graph_tools import assign, calls, insert_behind, refuse
from ..modules import over_channels
from ..net import ConvertedNet
from ..phased import phased
from ..precharge import optimize_precharge
from ..report import LayerReport, Numbers, Report
from ..scales import arriving_spikes, fold
from ..spiking import INPUT, OUTPUT, ThresholdSetter, emit_ones, neurons, residual_units, spiking_net
from .base import ConversionRecipe, check_result, measure_rates

__all__ = ["RateRecipe"]

_REPORT_STEPS = 64


@dataclass(eq=False, kw_only=True)
class RateRecipe(ConversionRecipe):
    """Base of the conversions to integrate-and-fire neurons; a method implements :meth:`set_thresholds`.

    Parameters
    ----------
    calibration, memory
        As in :class:`ConversionRecipe`.
    time_steps : int, optional
        T of the simulations during conversion (256 for Spike-Norm, 255 for the search of pre-charges by default). A
        net that waits is made for this T, which has no default there. That of a net with quantisation points is their
        number.
    encoder : {"direct", "if", "poisson"}
        The input as a constant current into the first layer; through integrate-and-fire neurons of threshold 1, for
        inputs in [0, 1]; or as events with probability ``|x|`` and the sign of ``x``.
    seed : int
        Seed of the Poisson events.
    precharge : float or "optimize"
        Membrane potential before the first step in units of the threshold, for all layers; or one for each layer,
        found by :func:`snn_ext.conversion.optimize_precharge` on the calibration data.
    reset : {"subtract", "zero"}
        Effect of a spike on the potential.
    readout : {"linear", "spikes"}
        The output is that of the last layer, or one more layer of neurons fires on it, and its spikes are counted.
    schedule : {"streaming", "phased"}
        All layers run at the same time; or each waits for all spikes of the one before (``wait = time_steps - 1``) and
        is then exact: the quantised analog net of ``time_steps`` levels at any depth.
    wait : int
        Each layer takes in ``wait + 1`` inputs before its first decision, of ``time_steps`` in all. The answer is
        there after ``net.latency`` = T + ``wait`` L steps, for L layers: the larger, the later and the better.
    fold_scales : bool
        Move the value of a spike into the weights that follow, so that spikes are 0 and 1. Without it the weights stay
        as they are, and neurons have their thresholds, one or one per channel, and emit them.
    residual : {"junction", "unit-threshold"}
        A threshold for each junction, whose branches share its scale (Hu et al. 2018); or one threshold for all
        neurons inside residual units, that of the neurons that feed them (Sengupta et al. 2019, constraint 2).
    channel_wise : bool
        A threshold for each channel instead of one for each layer.
    """

    time_steps: int | None = None
    encoder: Literal["direct", "if", "poisson"] = "direct"
    seed: int = 0
    precharge: float | Literal["optimize"] = 0.0
    reset: Literal["subtract", "zero"] = "subtract"
    readout: Literal["linear", "spikes"] = "linear"
    schedule: Literal["streaming", "phased"] = "streaming"
    wait: int = 0
    fold_scales: bool = True
    residual: Literal["junction", "unit-threshold"] = "junction"
    channel_wise: bool = False

    def set_thresholds(self, thresholds: ThresholdSetter, analog: AnalogNet, batches: Batches) -> None:
        """Set a threshold ``[1]`` or ``[C]`` for each activation, in the units of the analog net."""
        raise NotImplementedError

    def check(self) -> None:
        """Check the options, one by one and together."""
        super().check()
        if self.time_steps is not None:
            check_count("time_steps", self.time_steps)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            bad_type("seed", self.seed, "an int")
        if self.seed and self.encoder != "poisson":
            bad_value("seed", self.seed, "0 without encoder='poisson': nothing else is random")
        if self.precharge != "optimize":
            check_real("precharge", self.precharge, "a number in [0, 1], or 'optimize'", 0.0, 1.0)
        self._check_waiting()
        if self.channel_wise and self.residual == "unit-threshold":
            bad_value("channel_wise", True, "False with residual='unit-threshold', which is one threshold for all")

    @property
    def _between_scales(self) -> bool:
        """True if thresholds per channel are scales around a neuron, not its own."""
        return self.fold_scales

    @property
    def waits(self) -> bool:
        """True if layers wait for inputs, so that the answer belongs to one number of steps."""
        return self.schedule == "phased" or self.wait > 0

    @property
    def exact(self) -> bool:
        """True if layers wait for all inputs."""
        return self.schedule == "phased" or (self.wait > 0 and self.wait + 1 == self.time_steps)

    @property
    def inputs_before(self) -> int:
        """Inputs that a layer takes in before the one at whose step it decides first."""
        return self.time_steps - 1 if self.exact and self.time_steps is not None else self.wait

    def _check_waiting(self) -> None:
        check_count("wait", self.wait, least=0)
        if not self.waits:
            return
        given = f"schedule={self.schedule!r}" if self.schedule == "phased" else f"wait={self.wait}"
        if self.time_steps is None:
            bad_value("time_steps", None, f"the T of the net, with {given}")
        if self.wait >= self.time_steps:
            bad_value("wait", self.wait, f"at most time_steps - 1 = {self.time_steps - 1}, which is exact")
        if self.schedule == "phased" and self.wait not in (0, self.time_steps - 1):
            bad_value("wait", self.wait, f"time_steps - 1 = {self.time_steps - 1} with schedule='phased', or none")
        for name, want in (("encoder", ("direct", "if")), ("reset", ("subtract",)), ("fold_scales", (True,))):
            if getattr(self, name) not in want:
                bad_value(name, getattr(self, name), f"{' or '.join(map(repr, want))} with {given}")
        if self.precharge == "optimize":
            bad_value("precharge", "optimize", f"a number with {given}: 0.5 leaves the least error")

    def check_inputs(self, x: Tensor) -> None:
        """Check that the encoder can carry the inputs."""
        low, high = float(x.min()), float(x.max())
        if self.encoder == "if" and not (low >= 0.0 and high <= 1.0):
            bad_value("calibration", f"inputs in [{low:.4g}, {high:.4g}]", "inputs in [0, 1] with encoder='if'")
        if self.encoder == "poisson" and max(-low, high) > 1.0:
            share = float((x.abs() > 1.0).double().mean())
            warnings.warn(
                f"calibration: {share:.2%} of the inputs are beyond [-1, 1], where a Poisson train saturates at one "
                "event a step",
                stacklevel=2,
            )

    def build(self, analog: AnalogNet, batches: Batches) -> ConvertedNet:
        """Put neurons in, set thresholds, fold scales, check; then find pre-charges and apply the schedule."""
        self._check_activations(analog)
        self._check_gates(gates(analog.graph))
        steps = self._steps(analog)
        if self.readout == "spikes":
            _append_readout(analog)
        net = spiking_net(
            analog,
            encoder=self.encoder,
            seed=self.seed,
            v_reset=None if self.reset == "subtract" else 0.0,
            precharge=0.0 if self.precharge == "optimize" else float(self.precharge),
            scales=self.channel_wise and self._between_scales,
        )
        net.time_steps = steps
        thresholds = ThresholdSetter(net, analog.activations, self._units(analog))
        self.set_thresholds(thresholds, analog, batches)
        net.clips = _clips(thresholds)
        wanted, x = self._wanted(analog, thresholds), analog.x
        arriving = arriving_spikes(net, thresholds.values, INPUT)
        if self.fold_scales:
            fold(net, keep_output=self.readout == "linear")
        elif OUTPUT in analog.activations:
            emit_ones(net, OUTPUT)
        rates = check_result(net, x, wanted) | self._rates(analog, thresholds)
        net.report = Report(self._layer_report(net, name, thresholds, arriving.get(name)) for name in neurons(net))
        if self.precharge == "optimize":
            optimize_precharge(
                net, None, batches, time_steps=self.time_steps or 255, memory=self.memory, progress=self.progress
            )
        if self.waits:
            assert self.time_steps is not None
            phased(net, self.time_steps, self.inputs_before)
        window = net.latency and steps
        steps = net.latency or steps or _REPORT_STEPS
        measure_rates(net, x, rates, steps, window=window, memory=self.memory, progress=self.progress)
        return net

    def _check_gates(self, found: list[str]) -> None:
        if found and self.waits:
            name, want = ("schedule", "'streaming'") if self.schedule == "phased" else ("wait", "0")
            bad_value(name, getattr(self, name), f"{want} for a net with gates ({', '.join(found)})")
        if found:
            warnings.warn(
                f"ann: {len(found)} gate{'s' * (len(found) > 1)} ({', '.join(found[:3])}{', ...' * (len(found) > 3)}) "
                "follow the mean of their current so far, an approximation that improves with time",
                stacklevel=2,
            )

    def _check_activations(self, analog: AnalogNet) -> None:
        for name, activation in analog.activations.items():
            if activation.adaptive is not None:
                refuse(f"AAN {name}", "method='adsnn', or a net of ReLUs: these neurons integrate and fire")
        quantized = [activation.quantized is not None for activation in analog.activations.values()]
        if any(quantized) and self.reset == "zero":
            bad_value("reset", "zero", "'subtract' for quantised activations")
        if all(quantized):
            self._check_precharge()

    def _steps(self, analog: AnalogNet) -> int | None:
        """Return T, which is the number of points where activations have points."""
        steps = self.time_steps
        for name, activation in analog.activations.items():
            if isinstance(activation.quantized, NonUniformQuantizedReLU):
                levels = activation.quantized.levels
                if steps not in (None, levels):
                    bad_value("time_steps", steps, f"{levels}, the number of points of {name}")
                if self.precharge == "optimize":
                    bad_value("precharge", "optimize", f"0.0 for a net with quantisation points ({name})")
                steps = levels
        return steps

    def _check_precharge(self) -> None:
        """Raise if a pre-charge is given for a net of quantised activations."""
        if self.precharge not in (0.0, "optimize") and self.readout == "linear":
            bad_value("precharge", self.precharge, "0.0 for a net of quantised activations: their rounding is theirs")

    def _units(self, analog: AnalogNet) -> dict[str, str | None]:
        """Return the layers that take over the threshold of another one."""
        if self.residual == "junction":
            return {}
        units = residual_units(analog)
        if not units:
            bad_value("residual", "unit-threshold", "'junction' for a net without residual units")
        return units

    def _wanted(self, analog: AnalogNet, thresholds: ThresholdSetter) -> Tensor | None:
        """Return the output that rates stand for in the end.

        None for an output that consists of spikes as it is, in the units of each channel.
        """
        output = self._stands_for(analog, thresholds)
        if self.readout == "linear":
            return output
        scale = thresholds.values.get(OUTPUT)
        return None if scale is None else output / over_channels(scale.to(output), output.ndim)

    def _stands_for(self, analog: AnalogNet, thresholds: ThresholdSetter) -> Tensor:
        """Return the output of the analog net, its quantised activations clipped only; the analog net is changed."""
        clips = {name: a.quantized.clip_level() for name, a in analog.activations.items() if a.quantized is not None}
        for name, clip in clips.items():
            assign(analog.graph, name, nn.Hardtanh(0.0, float(clip)))
        x = self._seen(analog.x)
        output: Tensor = analog.graph(x) if clips or not torch.equal(x, analog.x) else analog.output
        return output

    def _seen(self, x: Tensor) -> Tensor:
        """Return what the encoder can carry of an input."""
        return x.clamp(-1.0, 1.0) if self.encoder == "poisson" else x

    def _rates(self, analog: AnalogNet, thresholds: ThresholdSetter) -> dict[str, Tensor]:
        """Return the rates that layers are to approach, where these are not those of what the net stands for."""
        return {}

    def _layer_report(
        self, net: ConvertedNet, name: str, thresholds: ThresholdSetter, arriving: float | None
    ) -> LayerReport:
        neuron: Any = net.get_submodule(name)
        value, activation = thresholds.values.get(name, torch.ones(1)), thresholds.activations.get(name)
        start_error, found_error = thresholds.errors.get(name, (None, None))
        per_channel = self.channel_wise and activation is not None and activation.quantized is None
        return LayerReport(
            name=name,
            threshold=_numbers(value if per_channel else neuron._raw_threshold()),  # per channel, the neuron's own is 1
            precharge=_numbers(neuron.v_init),
            scale=_numbers(value),
            rate_error=None,
            rule=thresholds.rules.get(name, "input"),
            notes=thresholds.notes.get(name, []),
            relative_threshold=None if arriving is None or len(value) > 1 else float(value) / arriving,
            start_error=start_error,
            found_error=found_error,
        )


def _append_readout(analog: AnalogNet) -> None:
    """Add an activation on the output, unless it consists of spikes already."""
    graph = analog.graph
    output = next(node for node in graph.graph.nodes if node.op == "output")
    if _consists_of_spikes(analog, output.args[0]):
        return
    insert_behind(graph, output.args[0], OUTPUT, nn.ReLU(), [output])
    graph.recompile()
    analog.activations[OUTPUT], analog.output = Activation(), analog.output.relu()


def _consists_of_spikes(analog: AnalogNet, node: fx.Node) -> bool:
    """Return True for a value that is reached from activations without weights."""
    if calls(node, analog.activations):
        return True
    inputs = [] if rule_of_node(analog.graph, node).weighted else node.all_input_nodes
    return bool(inputs) and all(_consists_of_spikes(analog, source) for source in inputs)


def _clips(thresholds: ThresholdSetter) -> dict[str, Numbers]:
    """Return the largest value of each clipped activation, in units of the threshold."""
    found: dict[str, Numbers] = {}
    for name, activation in thresholds.activations.items():
        if activation.quantized is not None:
            found[name] = 1.0
        elif activation.clip is not None:
            found[name] = _numbers(activation.clip / thresholds.values[name])
    return found


def _numbers(value: Tensor) -> Numbers:
    values = [float(v) for v in value.detach().reshape(-1)]
    return values[0] if len(values) == 1 else values
