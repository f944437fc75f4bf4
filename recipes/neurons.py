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

__all__ = ["NEURONS", "add_neuron_arguments", "check_neuron_arguments", "make_spiking", "spikingjelly_neuron"]

NEURONS = ("relu", "if", "atif-u", "atif-nu", "pcmp")


def add_neuron_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`spikingjelly_neuron` reads."""
    group = parser.add_argument_group("neuron")
    group.add_argument("--neuron", choices=NEURONS, default="atif-u", help="if: the host's, of fixed threshold")
    group.add_argument("--time-steps", type=int, default=4, metavar="T")
    group.add_argument("--v-init", type=float, help="V(0) in thresholds, for atif-u, atif-nu (default 0), pcmp (0.5)")
    group.add_argument("--v-threshold", type=float, default=1.0, help="at the start; for atif-nu the clip level p_1")
    group.add_argument("--recursion", choices=("min", "paper", "cumulative"), default="min", help="of atif-nu")
    group.add_argument("--output", choices=("scaled", "binary"), default="scaled", help="a spike is a threshold, or 1")
    group.add_argument("--alpha", type=float, default=4.0, help="slope of the sigmoid surrogate")
    group.add_argument("--detach-reset", action="store_true", help="no gradient through the spike in the reset")
    group.add_argument("--grad-scale", choices=("none", "lsq"), default="none", help="of the thresholds' gradient")


def check_neuron_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that the chosen neuron has no use for."""
    if args.time_steps < 1:
        parser.error(f"argument --time-steps: got {args.time_steps}, want an int >= 1")
    if args.v_init is not None and args.neuron in ("relu", "if"):
        parser.error(f"argument --v-init: got {args.v_init} with --neuron {args.neuron}, want atif-u, atif-nu or pcmp")
    if args.grad_scale == "lsq" and not args.neuron.startswith("atif"):
        parser.error(f"argument --grad-scale: got lsq with --neuron {args.neuron}, want a trainable threshold")
    if args.output == "binary" and args.neuron == "relu":
        parser.error("argument --output: got binary with --neuron relu, want a spiking neuron")


def spikingjelly_neuron(args: argparse.Namespace, inputs: Tensor | None = None) -> nn.Module:
    """Make one spiking neuron for SpikingJelly.

    Parameters
    ----------
    args : argparse.Namespace
        The options of :func:`add_neuron_arguments`.
    inputs : Tensor, optional
        What the neuron's layer has received in a trained net: the threshold is calibrated on it, but for "if", whose
        threshold is ``v_threshold`` in any case.
    """
    v_init = _v_init(args)
    common: dict[str, Any] = {
        "surrogate_function": surrogate.Sigmoid(alpha=args.alpha), "detach_reset": args.detach_reset, "step_mode": "m",
    }  # fmt: skip
    if args.neuron == "if":
        return neuron.IFNode(args.v_threshold, v_reset=None, **common)
    common["scale_output"] = args.output == "scaled"
    threshold: Any = args.v_threshold
    if inputs is not None:
        calibrate = best_points if args.neuron == "atif-nu" and v_init == 0 else best_threshold
        threshold = calibrate(inputs, args.time_steps, **({} if calibrate is best_points else {"v_init": v_init}))
    if args.neuron == "pcmp":
        return PCMPIFNode(threshold, precharge=v_init, **common)
    common["grad_scale"] = None if args.grad_scale == "none" else args.grad_scale
    if args.neuron == "atif-u":
        return ATIFuNode(threshold, v_init=v_init, **common)
    return ATIFnuNode(threshold, T=args.time_steps, recursion=args.recursion, v_init=v_init, **common)


def make_spiking(
    net: nn.Module,
    args: argparse.Namespace,
    calibration: Any = None,
    factory: Callable[[argparse.Namespace, Tensor | None], nn.Module] = spikingjelly_neuron,
) -> list[nn.Module]:
    """Replace the activations of an analog net in place.

    Parameters
    ----------
    net : nn.Module
        With ``nn.ReLU`` modules, and with ``time_steps``.
    args : argparse.Namespace
        The options of :func:`add_neuron_arguments`.
    calibration : iterable, optional
        Batches for the trained net, from which thresholds are calibrated.
    factory : callable
        ``factory(args, inputs)`` makes one neuron.

    Returns
    -------
    list of nn.Module
        The new neurons, in the order of the net.
    """
    inputs: Mapping[nn.Module, Tensor] = {} if calibration is None else record_inputs(net, calibration, limit=20_000)
    neurons: list[nn.Module] = []

    def make(relu: nn.Module) -> nn.Module:
        neurons.append(factory(args, inputs.get(relu)))
        return neurons[-1]

    replace_neurons(net, make)
    functional.set_step_mode(net, "m")
    net.time_steps = args.time_steps
    return neurons


def _v_init(args: argparse.Namespace) -> float:
    if args.v_init is not None:
        return float(args.v_init)
    return 0.5 if args.neuron == "pcmp" else 0.0
