"""Conversion in one line."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from spikingjelly.activation_based.ann2snn import Converter
from torch import fx, nn

from .._errors import bad_type, bad_value, check_choice
from .adsnn import AdSNNRecipe
from .methods import ConversionRecipe, DataNormRecipe, SpikeNormRecipe
from .net import ConvertedNet

__all__ = ["convert"]

_RECIPES: dict[str, type[ConversionRecipe | AdSNNRecipe]] = {
    "spike-norm": SpikeNormRecipe,
    "data-norm": DataNormRecipe,
    "adsnn": AdSNNRecipe,
}


def convert(
    ann: nn.Module,
    calibration: Any,
    *,
    method: Literal["spike-norm", "data-norm", "adsnn"] = "spike-norm",
    percentile: float = 100.0,
    time_steps: int | None = None,
    encoder: Literal["direct", "if", "poisson"] = "direct",
    seed: int = 0,
    precharge: float | Literal["optimize"] = 0.0,
    reset: Literal["subtract", "zero"] = "subtract",
    readout: Literal["linear", "spikes"] = "linear",
    schedule: Literal["streaming", "phased"] = "streaming",
    fold_scales: bool = True,
    residual: Literal["junction", "unit-threshold"] = "junction",
    channel_wise: bool = False,
    m_f: float | None = None,
    spike_height: Literal["fixed", "adaptive"] = "fixed",
    tau_phi: float = 5.0,
    tau_readout: float = 50.0,
    dt: float = 1.0,
    memory: int = 1 << 30,
) -> ConvertedNet:
    """Convert a trained net to a spiking one: a ReLU net to integrate-and-fire neurons, a net of AANs to adaptive ones.

    Convolutions, linear layers and transposed convolutions with batch norm behind them; ReLU, ReLU6 and clamp as
    modules or functions, and :class:`snn_ext.conversion.QuantizedReLU`; average and maximum pooling, addition,
    concatenation, flattening, dropout. Anything else is refused by name. The net itself is not changed.

    The converted net takes the input at every step, or a sequence ``[T, N, ...]`` in step mode "m". With the linear
    read-out the mean of its output over time is the output of the analog net, in that net's own units.

    Parameters
    ----------
    ann : nn.Module
        A trained net of one input and one output that ``torch.fx`` can trace.
    calibration : Tensor, iterable or callable
        Inputs, from which thresholds are found: one batch, a loader (of inputs, or tuples that begin with them), or a
        function that returns one.
    method : {"spike-norm", "data-norm", "adsnn"}
        Thresholds from the largest weighted spike input (Sengupta et al. 2019), or from the largest activation of the
        analog net (Diehl et al. 2015); or adaptive spiking neurons, see :class:`snn_ext.conversion.AdSNNRecipe`: for
        them are ``m_f`` to ``dt`` and ``fold_scales``, and nothing else below but ``memory``.
    percentile : float
        With "data-norm": of the activations, in place of their maximum. With "adsnn" and adaptive height: the unit.
    time_steps : int, optional
        T of the simulations during conversion (256 for Spike-Norm, 255 for the search of pre-charges by default), and
        the length of a phase, which has no default.
    encoder : {"direct", "if", "poisson"}
        The input as a constant current into the first layer; through integrate-and-fire neurons of threshold 1, for
        inputs in [0, 1]; or as events with probability ``|x|`` and the sign of ``x``.
    seed : int
        Of the Poisson events.
    precharge : float or "optimize"
        Membrane potential before the first step in units of the threshold, for all layers; or one for each layer,
        found by :func:`snn_ext.conversion.optimize_precharge` on the calibration data.
    reset : {"subtract", "zero"}
        What a spike does to the potential.
    readout : {"linear", "spikes"}
        The output is that of the last layer, or one more layer of neurons fires on it, and its spikes are counted.
    schedule : {"streaming", "phased"}
        All layers run at the same time; or each waits for the one before and is then exact: the quantised analog net
        of ``time_steps`` levels at any depth, after ``net.latency`` steps.
    fold_scales : bool
        Move what a spike is worth into the weights that follow, so that spikes are 0 and 1. Without it neurons emit
        their threshold, or a scale stands behind them.
    residual : {"junction", "unit-threshold"}
        A threshold for each junction, whose branches share its scale (Hu et al. 2018); or one threshold for all
        neurons inside residual units, that of what enters them (Sengupta et al. 2019, constraint 2).
    channel_wise : bool
        A threshold for each channel in place of one for each layer.
    m_f : float, optional
        With "adsnn": the precision to deploy, that of the AANs by default, 0.1 for a ReLU net.
    spike_height : {"fixed", "adaptive"}
        With "adsnn": "fixed" for a net trained with :class:`snn_ext.AAN`, "adaptive" for a ReLU net as it is.
    tau_phi, tau_readout, dt : float
        With "adsnn": membrane filter of the neurons and of the read-out, and length of a step, in ms.
    memory : int
        Bytes that the simulations during conversion may take.

    Returns
    -------
    ConvertedNet
        A ``torch.fx`` graph module; ``net.report`` tells what was done to each layer.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, or the layer that can not be converted, what came and what is wanted.

    Notes
    -----
    Source: Sengupta et al. 2019, algorithm 1; Hwang et al. 2021, equations 1-6 and algorithm 1; Hu et al. 2018.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import snn_ext
    >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> snn = snn_ext.convert(ann, torch.rand(64, 4), time_steps=64, precharge=0.5)
    >>> snn.step_mode = "m"
    >>> x = torch.rand(3, 4)
    >>> bool((snn(x.expand(64, 3, 4)).mean(0) - ann(x)).abs().max() < 0.05)
    True
    """
    if not isinstance(ann, nn.Module):
        bad_type("ann", ann, "an nn.Module")
    check_choice("method", method, tuple(_RECIPES))
    given: dict[str, Any] = {
        "percentile": percentile, "time_steps": time_steps, "encoder": encoder, "seed": seed, "precharge": precharge,
        "reset": reset, "readout": readout, "schedule": schedule, "fold_scales": fold_scales, "residual": residual,
        "channel_wise": channel_wise, "m_f": m_f, "spike_height": spike_height, "tau_phi": tau_phi,
        "tau_readout": tau_readout, "dt": dt, "memory": memory,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if _applies(name, method)}
    defaults = inspect.signature(convert).parameters
    for name, value in given.items():
        if name not in options and value != defaults[name].default:
            bad_value(name, value, f"{defaults[name].default!r} with method={method!r}, which does not use it")
    return _converted(_RECIPES[method](calibration, **options), ann)


@torch.no_grad()
def _converted(recipe: Any, ann: nn.Module) -> ConvertedNet:
    """Go through the hooks of a recipe as the host's ``Converter`` does, with a copy in the place of its trace.

    The recipe has traced the net, so there is nothing left to find; and while the host's tracer is at work, no other
    thread can call a module.
    """
    converter = Converter(recipe, next((p.device for p in ann.parameters()), torch.device("cpu")))
    recipe.validate(converter)
    net: Any = _with_fresh_names(recipe.before_trace(converter, ann))
    for hook in (recipe.after_trace, recipe.insert_observers, recipe.calibrate, recipe.replace, recipe.finalize):
        net = hook(converter, net)
    return net


def _with_fresh_names(net: fx.GraphModule) -> fx.GraphModule:
    """Return a graph whose nodes have the names that a trace of it gives them."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in net.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), made.__getitem__)
        made[node] = graph.create_node(node.op, node.target, args, kwargs)
    return fx.GraphModule(net, graph)


def _applies(name: str, method: str) -> bool:
    """Whether the recipe of a method has an option."""
    if method == "adsnn":
        return name in _ADAPTIVE or name in ("percentile", "fold_scales", "memory")
    return name not in _ADAPTIVE and (name != "percentile" or method == "data-norm")


_ADAPTIVE = ("m_f", "spike_height", "tau_phi", "tau_readout", "dt")
