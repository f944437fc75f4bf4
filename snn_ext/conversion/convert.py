"""Conversion in one line."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from .._errors import bad_type, bad_value, check_choice, describe
from .methods import METHODS, ConversionRecipe
from .net import ConvertedNet

__all__ = ["convert"]


def convert(
    ann: nn.Module, calibration: Any, *, method: str | ConversionRecipe = "calibrated", **options: Any
) -> ConvertedNet:
    """Convert a trained net to a spiking one: a ReLU net to integrate-and-fire neurons, a net of AANs to adaptive ones.

    Convolutions, linear layers and transposed convolutions, batch norm; ReLU, ReLU6, LeakyReLU, PReLU and clamp as
    modules or functions, :class:`snn_ext.QuantizedReLU` and :class:`snn_ext.NonUniformQuantizedReLU`; average and
    maximum pooling; sums, differences and constant factors; whatever moves elements within a sample, as concatenation,
    slices and permutations. Anything else is refused by name. The net itself is not changed.

    The converted net takes the input at every step, or a sequence ``[T, N, ...]`` in step mode "m". With the linear
    read-out the mean of its output over time is the output of the analog net, in that net's own units.

    Parameters
    ----------
    ann : nn.Module
        A trained net of one input that ``torch.fx`` can trace. Of several outputs ``output`` names one.
    calibration : Tensor, iterable or callable
        Inputs, from which thresholds are found: one batch, a loader (of inputs, or tuples that begin with them), or a
        function that returns one.
    method : {"calibrated", "spike-norm", "data-norm", "adsnn"} or ConversionRecipe
        How thresholds are found. A recipe brings its options with it: the same with completion and type checks in an
        editor.

        - "calibrated" (:class:`snn_ext.conversion.CalibratedRecipe`) for few steps, some 2 to 32: thresholds,
          pre-charges and biases of every channel for just ``time_steps`` steps, 8 by default. It is the answer to
          "which settings are best for at most T steps": ``time_steps=T``, and no search over other options.
        - "data-norm" (Diehl et al. 2015, :class:`snn_ext.conversion.DataNormRecipe`) for one net at any number of
          steps, in a single pass over the data: thresholds are the largest activations of the analog net.
        - "spike-norm" (Sengupta et al. 2019, :class:`snn_ext.conversion.SpikeNormRecipe`) for Poisson input and many
          steps, as in the paper: thresholds are the largest weighted spike inputs.
        - "adsnn" (Zambrano et al. 2017, :class:`snn_ext.conversion.AdSNNRecipe`) for adaptive spiking neurons.
    **options
        Options of the method, as the class documents them; it refuses others.

        - "calibrated": ``time_steps``, ``encoder``, ``seed``, ``readout``, ``schedule``, ``wait``, ``fold_scales``,
          ``samples``, ``correct_weights``, ``tune``, ``epochs``.
        - "spike-norm" and "data-norm": ``time_steps``, ``encoder``, ``seed``, ``precharge``, ``reset``, ``readout``,
          ``schedule``, ``wait``, ``fold_scales``, ``residual``, ``channel_wise``; "data-norm" has ``percentile``.
        - "adsnn": ``m_f``, ``spike_height``, ``percentile``, ``tau_phi``, ``tau_readout``, ``dt``, ``fold_scales``.
        - all: ``memory``, ``output``, ``progress``.

    Returns
    -------
    ConvertedNet
        A ``torch.fx`` graph module; ``net.report`` tells what was done to each layer.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or a layer cannot be converted.

    Notes
    -----
    Source: Hwang et al. 2021, equations 1-6 and algorithm 1; Sengupta et al. 2019, algorithm 1; Hu et al. 2018.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import snn_ext
    >>> from snn_ext.conversion import SpikeNormRecipe
    >>> ann, loader = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.rand(64, 4)]
    >>> snn = snn_ext.convert(ann, loader, time_steps=32, progress=False)
    >>> snn.step_mode = "m"
    >>> x = torch.rand(3, 4)
    >>> bool((snn(x.expand(32, 3, 4)).mean(0) - ann(x)).abs().max() < 0.1)
    True
    >>> snn = snn_ext.convert(ann, loader, method="spike-norm", time_steps=64, precharge=0.5)
    >>> snn = snn_ext.convert(ann, loader, method=SpikeNormRecipe(time_steps=64, precharge=0.5))
    """
    if not isinstance(ann, nn.Module):
        bad_type("ann", ann, "an nn.Module")
    if not isinstance(method, ConversionRecipe):
        check_choice("method", method, tuple(METHODS))
    elif method.calibration is not None:
        bad_value("method", f"a {type(method).__name__} with calibration data", "one without: they are an argument")
    kind = type(method) if isinstance(method, ConversionRecipe) else METHODS[method]
    has = [field.name for field in fields(kind) if field.init and field.name != "calibration"]
    for name, value in options.items():
        if name not in has:
            raise TypeError(f"{name}: got {describe(value)}, want an option of {kind.__name__}: {', '.join(has)}")
    if isinstance(method, ConversionRecipe):
        recipe = replace(method, calibration=calibration, **options)
    else:
        recipe = kind(calibration, **options)
    device = next((p.device for p in ann.parameters()), torch.device("cpu"))
    return recipe.converted(ann, device)
