"""The neurons that recipes train, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any, Literal

from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from snn_ext import calibrate, replace_neurons
from snn_ext.hosts import Host
from snn_ext.neurons import NEURONS as TABLE
from snn_ext.neurons import IntegrateAndFireNeuron

from .cli import Argument, Count, Positive, Rate
from .options import Options
from .ranges import number

__all__ = ["NEURONS", "NeuronOptions", "make_spiking", "replace_activations", "spikingjelly_neuron", "table_neuron"]

OURS = [name for name, neuron in TABLE.items() if issubclass(neuron.of("spikingjelly"), IntegrateAndFireNeuron)]
"""The neurons of the table that are trained over a few steps; an adaptive neuron takes hundreds, by conversion."""
NEURONS = ("relu", "if", *OURS)


@dataclass(kw_only=True)
class NeuronOptions(Options):
    """Neuron."""

    neuron: Annotated[str, NEURONS, "neuron of all layers; if: the host's, of fixed threshold"] = "atif-u"
    time_steps: Annotated[Count, Argument(metavar="T"), "steps that an input is shown"] = 4
    v_init: Annotated[float | None, number(), "V(0) in thresholds; not of if (default: 0, pcmp: 0.5)"] = None
    v_threshold: Annotated[float, number(1e-6), "threshold at the start; for atif-nu the clip level p_1"] = 1.0
    recursion: Annotated[Literal["min", "paper", "cumulative"], "how atif-nu takes its points"] = "min"
    output: Annotated[Literal["scaled", "binary"], "a spike is a threshold, or 1"] = "scaled"
    alpha: Annotated[Positive, "slope of the sigmoid surrogate"] = 4.0
    detach_reset: Annotated[bool, "no gradient through the spike in the reset"] = False
    grad_scale: Annotated[Literal["none", "lsq"], "of the thresholds' gradient"] = "none"
    threshold_lr: Annotated[Rate | None, "of the thresholds (default: --lr)"] = None

    def __post_init__(self) -> None:
        """Refuse options that the chosen neuron has no use for."""
        if self.v_init is not None and self.neuron in ("relu", "if"):
            raise ValueError(f"--v-init: got {self.v_init} with --neuron {self.neuron}, want {', '.join(OURS)}")
        if self.grad_scale == "lsq" and not (self.neuron in OURS and "grad_scale" in _arguments(self.neuron)):
            raise ValueError(f"--grad-scale: got lsq with --neuron {self.neuron}, want a trainable threshold")
        if self.neuron == "if" and self.output == "scaled" and self.v_threshold != 1:
            raise ValueError(
                f"--v-threshold: got {self.v_threshold} with --neuron if, whose spikes are 1, want 1, "
                f"--output binary, or --neuron pcmp --v-init 0"
            )
        if self.output == "binary" and self.neuron == "relu":
            raise ValueError("--output: got binary with --neuron relu, want a spiking neuron")
        if self.neuron not in NEURONS:  # one that the recipe makes itself
            for name in ("v_init", "v_threshold", "recursion", "output", "alpha", "detach_reset", "grad_scale"):
                if (value := getattr(self, name)) != getattr(NeuronOptions, name):
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option}: got {value} with --neuron {self.neuron}, want it left out")
        super().__post_init__()


def spikingjelly_neuron(options: NeuronOptions) -> nn.Module:
    """Make one neuron for SpikingJelly."""
    common: dict[str, Any] = {
        "surrogate_function": surrogate.Sigmoid(alpha=options.alpha), "detach_reset": options.detach_reset,
        "step_mode": "m",
    }  # fmt: skip
    if options.neuron == "if":
        return neuron.IFNode(options.v_threshold, v_reset=None, **common)
    return table_neuron("spikingjelly", options, scale_output=options.output == "scaled", **common)


def table_neuron(host: Host, options: NeuronOptions, **common: Any) -> nn.Module:
    """Make the neuron of the table that the options name, with those of the options that its class takes."""
    given = {
        "v_init": options.v_init, "precharge": options.v_init, "T": options.time_steps, "recursion": options.recursion,
        "grad_scale": None if options.grad_scale == "none" else options.grad_scale,
    }  # fmt: skip
    taken = _arguments(options.neuron, host)
    chosen = {name: value for name, value in given.items() if name in taken and value is not None}
    return TABLE[options.neuron].of(host)(options.v_threshold, **chosen, **common)


def _arguments(neuron: str, host: Host = "spikingjelly") -> Iterable[str]:
    return signature(TABLE[neuron].of(host)).parameters


def replace_activations(
    net: nn.Module, make: Callable[[Any], nn.Module], options: Any, calibration: Sequence[Any] | None = None
) -> list[nn.Module]:
    """Replace the activations of an analog net by ``make(options)``, in place, and return the neurons in order.

    With calibration batches they are fitted to the net as ``options.swap`` says; but the fixed threshold of the
    baseline is part of what it is.
    """
    if calibration is not None and options.neuron != "if":
        samples = sum(map(len, calibration))
        return calibrate(
            net, calibration, lambda relu: make(options), options.time_steps, method=options.swap, samples=samples
        )
    neurons: list[nn.Module] = []
    replace_neurons(net, lambda relu: neurons.append(make(options)) or neurons[-1])
    return neurons


def make_spiking(net: nn.Module, options: Any, calibration: Sequence[Any] | None = None) -> list[nn.Module]:
    """Turn an analog net into a multi-step net of SpikingJelly, in place, and return its neurons in order."""
    neurons = replace_activations(net, spikingjelly_neuron, options, calibration)
    functional.set_step_mode(net, "m")
    net.time_steps = options.time_steps
    return neurons
