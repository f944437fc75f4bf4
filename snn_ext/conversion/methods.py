"""Conversion as recipes for SpikingJelly's own ``Converter``."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from spikingjelly.activation_based.ann2snn import FXConversionRecipe
from torch import Tensor, fx, nn

from .._errors import bad_type, bad_value, check_bool, check_choice, check_count, check_real
from ..simulation.analog import AnalogTwin
from ..simulation.engine import Simulation
from ..simulation.graph import WEIGHTED
from .batches import Batches
from .canonicalize import Activation, assign, check_copy, finite_output, plain_copy, prepare, refuse
from .modules import per_channel
from .net import ConvertedNet
from .phased import phased
from .precharge import optimize_precharge
from .report import LayerReport, Numbers, Report
from .scales import fold
from .spike_norm import spike_norm
from .spiking import INPUT, OUTPUT, Thresholds, neurons, residual_units, spiking_net
from .thresholds import activation_thresholds

__all__ = ["ConversionRecipe", "DataNormRecipe", "SpikeNormRecipe"]

_REPORT_SAMPLES, _REPORT_STEPS = 16, 64


class ConversionRecipe(FXConversionRecipe):
    """What the conversions have in common; a subclass says where the thresholds come from.

    The host's ``Converter`` calls the hooks in this order: ``before_trace`` copies the net and finds its activations,
    ``after_trace`` checks that the copy computes the same, ``calibrate`` finds thresholds, ``replace`` puts neurons in
    the place of activations, ``finalize`` folds scales, finds pre-charges, applies the schedule and writes the report.

    Parameters
    ----------
    calibration : Tensor, iterable or callable
        A batch of inputs, a loader, or a function that returns a loader.
    time_steps : int, optional
        T: of the simulations during conversion, and the length of a phase.
    encoder : {"direct", "if", "poisson"}
        The input as a constant current, through integrate-and-fire neurons, or as Bernoulli events with its sign.
    seed : int
        Of the events.
    precharge : float or "optimize"
        Potential of all neurons before the first step in units of the threshold, or the search for it.
    reset : {"subtract", "zero"}
        What a spike does to the potential.
    readout : {"linear", "spikes"}
        The output of the net's last layer, or of one more layer of neurons on it.
    schedule : {"streaming", "phased"}
        All layers at once, or one after the other.
    fold_scales : bool
        Move the value of a spike into the weights that follow, so that spikes are 0 and 1.
    residual : {"junction", "unit-threshold"}
        In residual nets, a threshold for each junction from its own activations (Hu et al. 2018), or the threshold of
        what enters the first unit for all neurons inside residual units (Sengupta et al. 2019, constraint 2).
    channel_wise : bool
        Thresholds for each channel.
    memory : int
        Bytes that the simulations during conversion may take.
    """

    rule: str

    def __init__(
        self,
        calibration: Any,
        *,
        time_steps: int | None = None,
        encoder: str = "direct",
        seed: int = 0,
        precharge: float | str = 0.0,
        reset: str = "subtract",
        readout: str = "linear",
        schedule: str = "streaming",
        fold_scales: bool = True,
        residual: str = "junction",
        channel_wise: bool = False,
        memory: int = 1 << 30,
    ) -> None:
        self.calibration, self.time_steps, self.encoder, self.seed = calibration, time_steps, encoder, seed
        self.precharge, self.reset, self.readout, self.schedule = precharge, reset, readout, schedule
        self.fold_scales, self.residual, self.channel_wise, self.memory = fold_scales, residual, channel_wise, memory

    # -- what a subclass decides ------------------------------------------------------------------------------------

    def find_thresholds(self, ann: fx.GraphModule, activations: dict[str, Activation]) -> dict[str, Tensor]:
        """Return a threshold ``[1]`` or ``[C]`` for each activation, in the units of the analog net."""
        raise NotImplementedError

    # -- the host's hooks -------------------------------------------------------------------------------------------

    def validate(self, converter: Any) -> None:
        """Check the arguments."""
        if self.time_steps is not None:
            check_count("time_steps", self.time_steps)
        check_count("memory", self.memory)
        check_choice("encoder", self.encoder, ("direct", "if", "poisson"))
        check_choice("reset", self.reset, ("subtract", "zero"))
        check_choice("readout", self.readout, ("linear", "spikes"))
        check_choice("schedule", self.schedule, ("streaming", "phased"))
        check_choice("residual", self.residual, ("junction", "unit-threshold"))
        for name in ("fold_scales", "channel_wise"):
            check_bool(name, getattr(self, name))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            bad_type("seed", self.seed, "an int")
        if self.seed and self.encoder != "poisson":
            bad_value("seed", self.seed, "0 without encoder='poisson': nothing else is random")
        if self.precharge != "optimize":
            check_real("precharge", self.precharge, "a number in [0, 1], or 'optimize'", 0.0, 1.0)
        if self.schedule == "phased":
            self._validate_phased()
        if self.channel_wise and self.residual == "unit-threshold":
            bad_value("channel_wise", True, "False with residual='unit-threshold', which is one threshold for all")

    def _validate_phased(self) -> None:
        if self.time_steps is None:
            bad_value("time_steps", None, "the number of steps of a phase with schedule='phased'")
        for name, want in (("encoder", ("direct", "if")), ("reset", ("subtract",)), ("fold_scales", (True,))):
            if getattr(self, name) not in want:
                bad_value(name, getattr(self, name), f"{' or '.join(map(repr, want))} with schedule='phased'")
        if self.precharge == "optimize":
            bad_value("precharge", "optimize", "a number with schedule='phased', which is exact as it is")

    def before_trace(self, converter: Any, ann: nn.Module) -> nn.Module:
        """Copy the net and find its activations; they travel as plain ReLUs through the host's tracer."""
        self._batches = Batches(self.calibration, converter.device)
        self._first = self._batches.first()
        self._check_inputs()
        ann = plain_copy(ann).to(converter.device)
        graph, self._activations = prepare(ann, self._first)
        self._check_quantized()
        self._reference = finite_output(ann, self._first[:_REPORT_SAMPLES])
        if self.readout == "spikes":
            self._append_readout(graph)
        for name in self._activations:
            assign(graph, name, nn.ReLU())
        return graph

    def after_trace(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Put the activations back, and check that the copy computes what the net does."""
        for name, activation in self._activations.items():
            assign(fx_model, name, activation.module())
        result = fx_model(self._first[:_REPORT_SAMPLES])
        reference = self._reference.relu() if OUTPUT in self._activations else self._reference
        check_copy(result, reference)
        self._rectified = self._without_quantisation(fx_model)
        return fx_model

    def calibrate(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Find the thresholds."""
        self._thresholds = self.find_thresholds(fx_model, self._activations)
        return fx_model

    def replace(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Put neurons in the place of activations."""
        net = self._spiking(fx_model)
        setter = Thresholds(net, self._activations)
        self._thresholds = {name: setter.set(name, value) for name, value in self._thresholds.items()}
        return net

    def finalize(self, converter: Any, fx_model: fx.GraphModule) -> nn.Module:
        """Fold scales, find pre-charges, apply the schedule, write the report."""
        net: Any = fx_model
        arriving = _arriving(net, self._thresholds)
        if self.fold_scales:
            fold(net, keep_output=self.readout == "linear")
        elif OUTPUT in self._activations:
            _emit_ones(net)
        net.time_steps = self.time_steps
        for name, activation in self._activations.items():
            if activation.quantized is not None:
                net.clips[name] = 1.0
            elif activation.clip is not None:
                net.clips[name] = _numbers(activation.clip / self._thresholds[name])
        self._check_analog(net)
        net.report = Report(self._layer_report(net, name, arriving) for name in neurons(net))
        if self.precharge == "optimize":
            optimize_precharge(net, None, self._batches, time_steps=self.time_steps or 255, memory=self.memory)
        if self.schedule == "phased":
            phased(net, self.time_steps or 1)
        self._measure_rates(net)
        net.to(memory_format=torch.channels_last)  # the weights of 2d convolutions, whose fast layout on a CPU it is
        return net.eval()

    # -- what they call ---------------------------------------------------------------------------------------------

    def _without_quantisation(self, graph: fx.GraphModule) -> Tensor:
        """Return the output on the first samples with quantised activations clipped only."""
        twin = copy.deepcopy(graph)
        for name, activation in self._activations.items():
            if activation.quantized is not None:
                assign(twin, name, nn.Hardtanh(0.0, float(activation.quantized.threshold)))
        x = self._first[:_REPORT_SAMPLES]
        result: Tensor = twin(x.clamp(-1.0, 1.0) if self.encoder == "poisson" else x)
        return result

    def _check_analog(self, net: ConvertedNet) -> None:
        """Check that rectifiers in the place of the neurons give the analog net, in its units."""
        result, wanted = AnalogTwin(net, keep=False)(self._first[:_REPORT_SAMPLES]), self._rectified
        if self.readout == "spikes":
            if OUTPUT not in self._activations:  # an output of spikes, in the units of each channel
                return
            result = result * per_channel(self._thresholds[OUTPUT].to(result), result.ndim)
        error = float((result - wanted).abs().max())
        if not error <= 1e-3 * (1.0 + float(wanted.abs().max())):
            raise RuntimeError(
                f"conversion: the spiking net stands for another analog net, which differs by {error:.3g} in its "
                "output; this is a defect of snn_ext"
            )

    def _spiking(self, graph: fx.GraphModule) -> ConvertedNet:
        return spiking_net(
            graph,
            self._activations,
            self._first,
            encoder=self.encoder,
            seed=self.seed,
            v_reset=None if self.reset == "subtract" else 0.0,
            precharge=0.0 if self.precharge == "optimize" else float(self.precharge),
            channel_wise=self.channel_wise,
        )

    def _check_inputs(self) -> None:
        low, high = float(self._first.min()), float(self._first.max())
        if self.encoder == "if" and not (low >= 0.0 and high <= 1.0):
            bad_value("calibration", f"inputs in [{low:.4g}, {high:.4g}]", "inputs in [0, 1] with encoder='if'")
        if self.encoder == "poisson" and max(-low, high) > 1.0:
            share = float((self._first.abs() > 1.0).double().mean())
            warnings.warn(
                f"calibration: {share:.2%} of the inputs are beyond [-1, 1], where a Poisson train saturates at one "
                "event a step",
                stacklevel=2,
            )

    def _check_quantized(self) -> None:
        for name, activation in self._activations.items():
            if activation.adaptive is not None:
                refuse(f"AAN {name}", "method='adsnn', or a net of ReLUs: these neurons integrate and fire")
        plain = [name for name, activation in self._activations.items() if activation.quantized is None]
        if len(plain) < len(self._activations) and self.reset == "zero":
            bad_value("reset", "zero", "'subtract' for quantised activations")
        if not plain and self.precharge not in (0.0, "optimize") and self.readout == "linear":
            bad_value("precharge", self.precharge, "0.0 for a net of quantised activations: their rounding is theirs")

    def _append_readout(self, graph: fx.GraphModule) -> None:
        """Add an activation on the output, unless it consists of spikes already."""
        output = next(node for node in graph.graph.nodes if node.op == "output")
        if _is_fed_by_activations(graph, output.args[0], self._activations):
            return
        graph.add_submodule(OUTPUT, nn.ReLU())
        with graph.graph.inserting_before(output):
            node = graph.graph.call_module(OUTPUT, output.args)
        output.args = (node,)
        graph.recompile()
        self._activations[OUTPUT] = Activation()

    def _with_residual_rule(self, ann: fx.GraphModule, find: Any) -> dict[str, Tensor]:
        """Take the threshold of what enters a residual unit for all neurons inside."""
        inside = residual_units(ann, self._activations) if self.residual == "unit-threshold" else {}
        if self.residual == "unit-threshold" and not inside:
            bad_value("residual", "unit-threshold", "'junction' for a net without residual units")
        self._inside = inside
        return find(inside)

    def _layer_report(self, net: ConvertedNet, name: str, arriving: dict[str, float | None]) -> LayerReport:
        neuron: Any = net.get_submodule(name)
        value = self._thresholds.get(name, torch.ones(1))
        activation = self._activations.get(name, Activation())
        rule = self.rule
        if name not in self._activations:
            rule = "input"
        elif activation.quantized is not None:
            rule = f"quantised, {activation.quantized.rounding}"
        elif name in getattr(self, "_inside", {}):
            rule = "unit threshold"
        elif activation.clip is not None and bool((value == activation.clip).all()):
            rule = f"{rule}, clip"
        of_channels = self.channel_wise and name in self._activations and activation.quantized is None
        threshold = _numbers(value if of_channels else neuron.v_threshold)  # per channel, the neuron's own is 1
        unit = arriving.get(name)
        return LayerReport(
            name=name, threshold=threshold, precharge=_numbers(neuron.v_init), scale=_numbers(value), rate_error=None,
            rule=rule, relative_threshold=None if unit is None or len(value) > 1 else float(value) / unit,
        )  # fmt: skip

    def _measure_rates(self, net: ConvertedNet) -> None:
        """Run a few samples and compare rates with activations."""
        x = self._first[:_REPORT_SAMPLES]
        steps = net.latency or min(self.time_steps or _REPORT_STEPS, 256)
        wanted = AnalogTwin(net).rates(x)
        counts: dict[str, Any] = {}

        def count(name: str, module: nn.Module, spikes: Tensor) -> None:
            counts[name] = counts.get(name, 0) + spikes.sum(0)

        for _ in Simulation(net, memory=self.memory).run(x, steps, count):
            pass
        window = steps if net.latency is None else self.time_steps
        for layer in net.report:
            error = counts[layer.name] / window - wanted[layer.name]
            layer.rate_error, layer.steps = float(error.square().mean().sqrt()), steps


class DataNormRecipe(ConversionRecipe):
    """Data-based normalisation: the threshold of a layer is the maximum, or a percentile, of its analog activations.

    Parameters
    ----------
    calibration, time_steps, encoder, seed, precharge, reset, readout, schedule, fold_scales, residual, channel_wise, memory
        As in :class:`ConversionRecipe`.
    percentile : float
        In (0, 100]; 100 is the true maximum over all batches.

    Notes
    -----
    Source: Diehl et al. 2015; Hwang et al. 2021. Percentiles: Rueckauer et al. 2017.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from spikingjelly.activation_based.ann2snn import Converter
    >>> from snn_ext.conversion import DataNormRecipe
    >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> snn = Converter(DataNormRecipe(torch.rand(64, 4), precharge=0.5)).convert(ann)
    >>> [layer.rule for layer in snn.report]
    ['maximum']
    """  # noqa: E501

    def __init__(self, calibration: Any, *, percentile: float = 100.0, **options: Any) -> None:
        super().__init__(calibration, **options)
        self.percentile = percentile

    @property
    def rule(self) -> str:  # type: ignore[override]
        """Where the thresholds come from."""
        what = "maximum" if self.percentile == 100.0 else f"percentile {self.percentile:g}"
        return f"{what} per channel" if self.channel_wise else what

    def validate(self, converter: Any) -> None:
        """Check the arguments."""
        super().validate(converter)
        if check_real("percentile", self.percentile, "a number in (0, 100]", 0.0, 100.0) <= 0:
            bad_value("percentile", self.percentile, "a number in (0, 100]")

    def find_thresholds(self, ann: fx.GraphModule, activations: dict[str, Activation]) -> dict[str, Tensor]:
        """Go through the calibration data with the analog net."""

        def find(inside: dict[str, str | None]) -> dict[str, Tensor]:
            found = activation_thresholds(
                ann, activations, self._batches, percentile=self.percentile, channel_wise=self.channel_wise
            )
            one = self._first.new_ones(1)
            return {name: found.get(inside[name] or "", one) if name in inside else found[name] for name in found}

        return self._with_residual_rule(ann, find)


class SpikeNormRecipe(ConversionRecipe):
    """Spike-Norm: the threshold of a layer is the largest current that it gets, with the spiking net in the loop.

    Parameters
    ----------
    calibration, encoder, seed, precharge, reset, readout, schedule, fold_scales, residual, channel_wise, memory
        As in :class:`ConversionRecipe`; all batches of the calibration are simulated, and kept in memory.
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

    STEPS = 256

    @property
    def rule(self) -> str:  # type: ignore[override]
        """Where the thresholds come from."""
        return "Spike-Norm per channel" if self.channel_wise else "Spike-Norm"

    def find_thresholds(self, ann: fx.GraphModule, activations: dict[str, Activation]) -> dict[str, Tensor]:
        """Simulate the spiking net, one layer after the other."""

        def find(inside: dict[str, str | None]) -> dict[str, Tensor]:
            net = self._spiking(ann)
            setter, found = Thresholds(net, activations), dict[str, Tensor]()

            def set_threshold(name: str, maximum: Tensor) -> Tensor:
                if name not in activations:  # the encoder keeps its own
                    return maximum.new_ones(1)
                if activations[name].quantized is not None:
                    found[name] = setter.set(name, maximum)
                    return found[name]
                if name in inside:
                    maximum = found.get(inside[name] or "", maximum.new_ones(1))
                elif self.channel_wise:
                    maximum = torch.where(maximum > 0, maximum, maximum.amax())
                if not bool((maximum > 0).all()):
                    warnings.warn(f"calibration: {name} gets no positive current; its threshold is 1", stacklevel=2)
                    maximum = torch.ones_like(maximum)
                found[name] = setter.set(name, maximum)
                return found[name]

            batches = list(self._batches)
            spike_norm(
                net, batches, self.time_steps or self.STEPS, set_threshold, channel_wise=self.channel_wise,
                memory=self.memory,
            )  # fmt: skip
            return found

        return self._with_residual_rule(ann, find)


def _emit_ones(net: ConvertedNet) -> None:
    """Let the neurons on the output emit 0 and 1 in a net whose other neurons scale their output."""
    net.get_submodule(OUTPUT).scale_output = False  # type: ignore[assignment]
    for node in list(net.graph.nodes):
        if node.target == f"{OUTPUT}_after":
            node.replace_all_uses_with(node.args[0])
            net.graph.erase_node(node)
    net.delete_all_unused_submodules()
    net.recompile()


def _is_fed_by_activations(graph: fx.GraphModule, node: Any, activations: dict[str, Activation]) -> bool:
    """Whether a value consists of spikes: it is reached from activations without weights."""
    if node.op == "call_module":
        if str(node.target) in activations:
            return True
        if isinstance(graph.get_submodule(str(node.target)), WEIGHTED):
            return False
    return bool(node.all_input_nodes) and all(
        _is_fed_by_activations(graph, n, activations) for n in node.all_input_nodes
    )


def _arriving(net: ConvertedNet, thresholds: dict[str, Tensor]) -> dict[str, float | None]:
    """Return for each layer what one spike that arrives stands for; None for a current or spikes of several values."""
    values: dict[fx.Node, set[float]] = {}
    found: dict[str, float | None] = {}
    names = set(neurons(net))
    for node in net.graph.nodes:
        arriving = set().union(*(values[n] for n in node.all_input_nodes)) or {math.nan}
        if str(node.target) in names:
            found[str(node.target)] = next(iter(arriving)) if len(arriving) == 1 else None
            value = thresholds.get(str(node.target), torch.ones(1))
            values[node] = {float(value) if len(value) == 1 else math.nan}
        else:
            values[node] = {1.0} if str(node.target) == INPUT else arriving
    return {name: None if value is None or math.isnan(value) else value for name, value in found.items()}


def _numbers(value: Tensor) -> Numbers:
    values = [float(v) for v in value.detach().reshape(-1)]
    return values[0] if len(values) == 1 else values
