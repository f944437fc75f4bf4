"""The neurons that recipes train, by name: from options, and from recorded inputs where there are some."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from snn_ext import record_inputs, replace_neurons
from snn_ext.functional import best_points, best_threshold
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode, PCMPIFNode

from .options import integer, number

__all__ = [
    "NEURONS", "add_neuron_arguments", "calibrated_threshold", "check_neuron_arguments", "initial_potential",
    "make_spiking", "replace_activations", "spikingjelly_neuron",
]  # fmt: skip

NEURONS = ("relu", "if", "atif-u", "atif-nu", "pcmp")


def add_neuron_arguments(parser: argparse.ArgumentParser, more: tuple[str, ...] = ()) -> None:
    """Add the options that :func:`spikingjelly_neuron` reads; ``more`` names neurons that a recipe makes itself."""
    group = parser.add_argument_group("neuron")
    names = (*NEURONS, *more)
    group.add_argument("--neuron", choices=names, default="atif-u", help="if: the host's, of fixed threshold")
    group.add_argument("--time-steps", type=integer(), default=4, metavar="T")
    group.add_argument(
        "--v-init", type=number(), help="V(0) in thresholds, for atif-u, atif-nu (default 0), pcmp (0.5)"
    )
    group.add_argument(
        "--v-threshold", type=number(1e-6), default=1.0, help="at the start; for atif-nu the clip level p_1"
    )
    group.add_argument("--recursion", choices=("min", "paper", "cumulative"), default="min", help="of atif-nu")
    group.add_argument("--output", choices=("scaled", "binary"), default="scaled", help="a spike is a threshold, or 1")
    group.add_argument("--alpha", type=number(above=0.0), default=4.0, help="slope of the sigmoid surrogate")
    group.add_argument("--detach-reset", action="store_true", help="no gradient through the spike in the reset")
    group.add_argument("--grad-scale", choices=("none", "lsq"), default="none", help="of the thresholds' gradient")


def check_neuron_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that the chosen neuron has no use for."""
    if args.v_init is not None and args.neuron in ("relu", "if"):
        parser.error(f"argument --v-init: got {args.v_init} with --neuron {args.neuron}, want atif-u, atif-nu or pcmp")
    if args.grad_scale == "lsq" and not args.neuron.startswith("atif"):
        parser.error(f"argument --grad-scale: got lsq with --neuron {args.neuron}, want a trainable threshold")
    if args.neuron == "if" and args.output == "scaled" and args.v_threshold != 1:
        parser.error(
            f"argument --v-threshold: got {args.v_threshold} with --neuron if, whose spikes are 1, want 1, "
            f"--output binary, or --neuron pcmp --v-init 0"
        )
    if args.output == "binary" and args.neuron == "relu":
        parser.error("argument --output: got binary with --neuron relu, want a spiking neuron")
    if args.neuron not in NEURONS:
        for name in ("v_init", "v_threshold", "recursion", "output", "alpha", "detach_reset", "grad_scale"):
            if getattr(args, name) != parser.get_default(name):
                got = f"argument --{name.replace('_', '-')}: got {getattr(args, name)} with --neuron {args.neuron}"
                parser.error(f"{got}, want it left out")


def spikingjelly_neuron(args: argparse.Namespace, inputs: Tensor | None = None) -> nn.Module:
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


def make_spiking(net: nn.Module, args: argparse.Namespace, calibration: Any = None) -> list[nn.Module]:
    """Turn an analog net into a multi-step net of SpikingJelly, in place, and return its neurons in order."""
    neurons = replace_activations(net, lambda inputs: spikingjelly_neuron(args, inputs), calibration)
    functional.set_step_mode(net, "m")
    net.time_steps = args.time_steps
    return neurons


def calibrated_threshold(args: argparse.Namespace, inputs: Tensor | None) -> Any:
    """Return the threshold, or the points of ATIF-nu, that fit recorded inputs best; without any ``v_threshold``."""
    v_init = initial_potential(args)
    if inputs is None or args.neuron == "if":  # the fixed threshold of the baseline is part of what it is
        return args.v_threshold
    if not (inputs > 0).any():  # a silent layer: nothing fits better than anything else
        return args.v_threshold
    if args.neuron == "atif-nu" and v_init == 0:
        return best_points(inputs, args.time_steps)
    return best_threshold(inputs, args.time_steps, v_init=v_init)


def initial_potential(args: argparse.Namespace) -> float:
    """Return V(0) in thresholds."""
    if args.v_init is not None:
        return float(args.v_init)
    return 0.5 if args.neuron == "pcmp" else 0.0
