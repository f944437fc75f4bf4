"""The neurons that recipes train, by name: from options, and from recorded inputs where there are some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from snn_ext import record_inputs, replace_neurons
from snn_ext.functional import best_points, best_threshold
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode

from .cli import Argument, Count, Positive, Rate
from .options import Options
from .ranges import number

__all__ = [
    "NEURONS", "NeuronOptions", "calibrated_threshold", "initial_potential", "make_spiking", "replace_activations",
    "spikingjelly_neuron",
]  # fmt: skip

NEURONS = ("relu", "if", "atif-u", "atif-nu", "pcmp")


@dataclass(kw_only=True)
class NeuronOptions(Options):
    """Neuron."""

    neuron: Annotated[str, NEURONS, "if: the host's, of fixed threshold"] = "atif-u"
    time_steps: Annotated[Count, Argument(metavar="T")] = 4
    v_init: Annotated[float | None, number(), "V(0) in thresholds, for atif-u, atif-nu (default: 0), pcmp (0.5)"] = None
    v_threshold: Annotated[float, number(1e-6), "at the start; for atif-nu the clip level p_1"] = 1.0
    recursion: Annotated[Literal["min", "paper", "cumulative"], "of atif-nu"] = "min"
    output: Annotated[Literal["scaled", "binary"], "a spike is a threshold, or 1"] = "scaled"
    alpha: Annotated[Positive, "slope of the sigmoid surrogate"] = 4.0
    detach_reset: Annotated[bool, "no gradient through the spike in the reset"] = False
    grad_scale: Annotated[Literal["none", "lsq"], "of the thresholds' gradient"] = "none"
    threshold_lr: Annotated[Rate | None, "of the thresholds (default: --lr)"] = None

    def __post_init__(self) -> None:
        """Refuse options that the chosen neuron has no use for."""
        if self.v_init is not None and self.neuron in ("relu", "if"):
            raise ValueError(f"--v-init: got {self.v_init} with --neuron {self.neuron}, want atif-u, atif-nu or pcmp")
        if self.grad_scale == "lsq" and not self.neuron.startswith("atif"):
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


def spikingjelly_neuron(args: NeuronOptions, inputs: Tensor | None = None) -> nn.Module:
    """Make one spiking neuron for SpikingJelly, calibrated on the inputs of its layer if they are given."""
    threshold, v_init = calibrated_threshold(args, inputs), initial_potential(args)
    common: dict[str, Any] = {
        "surrogate_function": surrogate.Sigmoid(alpha=args.alpha), "detach_reset": args.detach_reset, "step_mode": "m",
    }  # fmt: skip
    if args.neuron == "if":
        return neuron.IFNode(threshold, v_reset=None, **common)
    common["scale_output"] = args.output == "scaled"
    if args.neuron == "pcmp":
        return PCMPIFNode(threshold, precharge=v_init, **common)
    common["grad_scale"] = None if args.grad_scale == "none" else args.grad_scale
    if args.neuron == "atif-u":
        return ATIFuNode(threshold, v_init=v_init, **common)
    return ATIFnuNode(threshold, T=args.time_steps, recursion=args.recursion, v_init=v_init, **common)


def replace_activations(
    net: nn.Module, factory: Callable[[Tensor | None], nn.Module], calibration: Any = None
) -> list[nn.Module]:
    """Replace the activations of an analog net in place.

    Parameters
    ----------
    net : nn.Module
        With ``nn.ReLU`` modules.
    factory : callable
        ``factory(inputs)`` makes one neuron; inputs are those of the activation, or ``None`` without calibration.
    calibration : iterable, optional
        Batches for the trained net.

    Returns
    -------
    list of nn.Module
        The new neurons, in the order of the net.
    """
    inputs: Mapping[nn.Module, Tensor] = {} if calibration is None else record_inputs(net, calibration, limit=20_000)
    neurons: list[nn.Module] = []

    def make(relu: nn.Module) -> nn.Module:
        neurons.append(factory(inputs.get(relu)))
        return neurons[-1]

    replace_neurons(net, make)
    return neurons


def make_spiking(net: nn.Module, args: NeuronOptions, calibration: Any = None) -> list[nn.Module]:
    """Turn an analog net into a multi-step net of SpikingJelly, in place, and return its neurons in order."""
    neurons = replace_activations(net, lambda inputs: spikingjelly_neuron(args, inputs), calibration)
    functional.set_step_mode(net, "m")
    net.time_steps = args.time_steps
    return neurons


def calibrated_threshold(args: NeuronOptions, inputs: Tensor | None) -> Any:
    """Return the threshold, or the points of ATIF-nu, that fit recorded inputs best; without any ``v_threshold``."""
    v_init = initial_potential(args)
    if inputs is None or args.neuron == "if":  # the fixed threshold of the baseline is part of what it is
        return args.v_threshold
    if not (inputs > 0).any():  # a silent layer: nothing fits better than anything else
        return args.v_threshold
    if args.neuron == "atif-nu" and v_init == 0:
        return best_points(inputs, args.time_steps)
    return best_threshold(inputs, args.time_steps, v_init=v_init)


def initial_potential(args: NeuronOptions) -> float:
    """Return V(0) in thresholds."""
    if args.v_init is not None:
        return float(args.v_init)
    return 0.5 if args.neuron == "pcmp" else 0.0
