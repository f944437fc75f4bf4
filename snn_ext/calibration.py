"""Thresholds from data: the inputs of a net's neurons are recorded, and thresholds fitted to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ._arriving import analog_samples, ceiling_of, fit_to_spikes
from ._before import find_before
from ._calls import is_activation
from ._errors import bad_type, bad_value, check_bool, check_choice, check_count
from ._own_modules import module_for_each_call
from .hosts import is_neuron, reset_neurons
from .neurons import IntegrateAndFireNeuron, NonUniformIntegrateAndFireNeuron
from .neurons.quantized import QuantizedActivation
from .replacement import Factory, check_factory, replace_neurons, swap_neurons, takes_over

__all__ = ["calibrate", "record_inputs"]

Method = Literal["calibrated", "inputs"]


def calibrate(
    net: nn.Module,
    batches: Tensor | Iterable[Any],
    factory: Factory,
    time_steps: int,
    *,
    limit: int = 20_000,
    functional: bool = False,
    method: Method = "calibrated",
    samples: int = 256,
    correct_weights: bool = True,
    channel_wise: bool = False,
    progress: bool = True,
) -> list[nn.Module]:
    r"""Replace every ReLU of a trained net, in place, by a spiking neuron that is fitted to it.

    A :class:`snn_ext.QuantizedReLU` is fitted already: its neuron starts from its threshold and its rounding, that of a
    :class:`snn_ext.NonUniformQuantizedReLU` has its points. The factory may also return one of these for a ReLU; it is
    then fitted as a neuron is, and the net is to be trained with it.

    The inputs of each ReLU are recorded, those of a ReLU6 cut off at 6, its ceiling, which no threshold of its neuron
    exceeds. The threshold of a neuron, or the points of ATIF-nu, are those that quantise these inputs with the best
    SQNR in ``time_steps`` steps at the neuron's initial potential (:func:`snn_ext.functional.best_threshold`,
    :func:`~snn_ext.functional.best_points`).

    With ``method="calibrated"`` these three with ``scale_output=True`` and soft reset are then fitted once more, layer
    by layer, to the current I that really arrives in the spiking net: spikes come late, and rounded. The threshold of a
    layer (of ATIF-nu a factor of its points), and for each channel the pre-charge ``v_init`` and a bias b, are searched
    for the least

    .. math:: E = \left\langle \left[\frac{\theta}{T}\, n(I + b; \theta, v) - a\right]^2 \right\rangle

    with the count n of T steps and the activation a of the ReLU. The bias is added to that of the layer or batch norm
    before the neurons, where the net can be traced and there is one; so is a correction of the weights of the layer, by
    ridge regression on what the current lacks on average, where it is better on inputs that are held out. The output
    layer is corrected last. ``v_init`` of the factory is not kept. It is the search of
    ``convert(method="calibrated")``, with one threshold for a layer.

    A layer that no positive input reaches keeps the threshold that the factory has given its neuron; so does one that
    evaluation never calls, as of an auxiliary output for training. So do neurons that are not ATIF-u, ATIF-nu or PCMP
    IF. Step mode and number of steps of the net are left to the caller.

    Parameters
    ----------
    net : nn.Module
        Holds ReLUs, ReLU6s or quantised ReLUs as modules, at any depth.
    batches : Tensor or iterable
        One batch of inputs, or inputs, or tuples that begin with the input, such as a ``DataLoader`` yields.
    factory : callable
        ``factory(relu) -> neuron``, as for :func:`snn_ext.replace_neurons`.
    time_steps : int
        T of the spiking net.
    limit : int
        Number of inputs recorded for a layer and batch.
    functional : bool
        Also replace functional ReLUs, and give every call of a shared ReLU a neuron and a threshold of its own, as in
        :func:`snn_ext.replace_neurons`.
    method : {"calibrated", "inputs"}
        "inputs" fits to the inputs of the ReLUs alone.
    samples : int
        Inputs for the second fit, the first of ``batches``.
    correct_weights : bool
        Let the second fit correct weights; else thresholds, pre-charges and biases alone.
    channel_wise : bool
        Search for a threshold of each channel of ATIF-u and PCMP IF; with ``method="calibrated"``. Neurons that the
        factory gives a threshold per channel keep one per channel without it.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    list of nn.Module
        The new neurons, in the order of ``net.modules()``.

    Raises
    ------
    TypeError, ValueError
        As :func:`snn_ext.record_inputs` and :func:`snn_ext.replace_neurons` do; the net is unchanged then.

    Warns
    -----
    UserWarning
        Names the ReLUs that no batch reaches; others as of :func:`snn_ext.replace_neurons`.

    Notes
    -----
    Source: Castagnetti et al. 2023, on the optimal quantiser; the uniform one is found by a search over a grid. For the
    second fit: Hwang et al. 2021, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> batches = [torch.rand(16, 8) for _ in range(4)]
    >>> (neuron,) = calibrate(net, batches, lambda relu: ATIFuNode(step_mode="m", scale_output=True), time_steps=4)
    >>> net(torch.rand(4, 16, 8)).mean(0).shape        # T = 4 steps, mean over time
    torch.Size([16, 2])
    """
    check_factory(factory)
    batches = _as_batches(batches)
    check_count("time_steps", time_steps)
    check_bool("functional", functional)
    check_choice("method", method, get_args(Method))
    check_count("samples", samples)
    check_bool("correct_weights", correct_weights)
    if check_bool("channel_wise", channel_wise) and method != "calibrated":
        bad_value("channel_wise", True, "False with method='inputs', whose records do not tell channels apart")
    new: dict[nn.Module, nn.Module] = {}

    def fitted(old: nn.Module) -> nn.Module:
        if old not in inputs:
            return old
        neuron = factory(old)
        _fit_to_inputs(neuron, old, inputs[old], time_steps)
        if neuron is not old:
            new[old] = neuron
        return neuron

    with module_for_each_call(net) if functional else nullcontext():
        seen = _First(batches, samples if method == "calibrated" else 0)
        inputs, silent = _records(net, seen, is_activation, limit, all_run=False)
        if silent:
            warnings.warn(
                f"net: got {len(silent)} ReLU{'s' * (len(silent) > 1)} that no batch reaches: {', '.join(silent)}, "
                "want batches that run the whole net, or to know that their neurons keep the factory's threshold",
                stacklevel=2,
            )
        activations = analog_samples(net, inputs, seen.inputs)
        before = find_before(net, {module: samples.shape for module, samples in activations.items()})
        replace_neurons(net, fitted, drop=("dynamics", "initial potential"))  # it is fitted, not kept
        try:
            fit_to_spikes(
                net, new, activations, before, seen.inputs, time_steps,
                correct_weights=correct_weights, channel_wise=channel_wise, progress=progress,
            )  # fmt: skip
        except BaseException:
            swap_neurons(net, {neuron: old for old, neuron in new.items()})
            raise
    return [new[old] for old in inputs if old in new]


def _fit_to_inputs(neuron: nn.Module, old: nn.Module, x: Tensor, time_steps: int) -> None:
    """Fit a neuron to the inputs of its rectifier; where this is quantised and the neuron can be its twin, it will."""
    taken_over = isinstance(old, QuantizedActivation) and takes_over(old, neuron)
    if taken_over and isinstance(neuron, NonUniformIntegrateAndFireNeuron) and neuron.T != time_steps:
        bad_value("time_steps", time_steps, f"{neuron.T}, the number of points")
    if isinstance(neuron, IntegrateAndFireNeuron | QuantizedActivation) and not taken_over and bool((x > 0).any()):
        ceiling = ceiling_of(old)
        neuron.fit(x.clamp_max(ceiling), time_steps)
        neuron._raw_threshold().data.clamp_(max=ceiling)


class _First:
    """Batches that are gone through once, the first inputs of which are kept."""

    def __init__(self, batches: Iterable[Any], samples: int) -> None:
        self.batches, self.left = batches, samples
        self.inputs: list[Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            if self.left and isinstance(x, Tensor) and len(x):
                self.inputs.append(x[: self.left].detach().clone())
                self.left -= len(self.inputs[-1])
            yield batch


def record_inputs(
    net: nn.Module,
    batches: Tensor | Iterable[Any],
    *,
    modules: Callable[[nn.Module], bool] = is_neuron,
    limit: int = 100_000,
) -> dict[nn.Module, Tensor]:
    """Run a net over some batches and return a sample of the inputs of each of its neurons.

    The net runs in eval mode and without gradient, reset before every batch and at the end; the training flag of every
    module is restored. :func:`snn_ext.calibrate` chooses thresholds from these records. The keys are modules: to copy a
    net with its records, copy both at once, ``copy.deepcopy((net, records))``.

    Parameters
    ----------
    net : nn.Module
        Any net; its neurons, ``nn.ReLU`` included, are found at any depth.
    batches : Tensor or iterable
        One batch of inputs, or inputs, or tuples that begin with the input, such as a ``DataLoader`` yields.
    modules : callable
        Returns True for a module to record; every neuron by default.
    limit : int
        Number of values kept for a module and batch, evenly spaced over the flattened input.

    Returns
    -------
    dict of nn.Module to Tensor
        One flat float32 tensor on the CPU for each recorded module, in the order of ``net.modules()``.

    Raises
    ------
    ValueError
        If the net has no such module, if one of them never ran, or if an input of one is not finite.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from snn_ext import record_inputs
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> record_inputs(net, [torch.rand(2, 4)])[net[1]].shape
    torch.Size([6])
    """
    return _records(net, _as_batches(batches), modules, limit, all_run=True)[0]


def _as_batches(batches: Tensor | Iterable[Any]) -> Iterable[Any]:
    """Return a tensor as one batch: its rows are samples."""
    return [batches] if isinstance(batches, Tensor) else batches


def _records(
    net: nn.Module, batches: Iterable[Any], modules: Callable[[nn.Module], bool], limit: int, *, all_run: bool
) -> tuple[dict[nn.Module, Tensor], list[str]]:
    """Return the records of :func:`record_inputs`, and the names of modules that never ran, whose records are empty.

    At least one has to run, or all of them.
    """
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    check_count("limit", limit)
    found = [m for m in net.modules() if modules(m)]
    if not found:
        bad_value("net", type(net).__name__, "a net with at least one module to record (nn.ReLU or a spiking neuron)")
    records: dict[nn.Module, list[Tensor]] = {m: [] for m in found}

    def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = (*inputs, *named.values())[0].detach().flatten()
        stride = max(1, -(-x.numel() // limit))
        # A copy: an in-place ReLU is about to write to the input, and a view would keep all of it in memory.
        records[module].append(x[::stride].to("cpu", torch.float32, copy=True))

    modes = {m: m.training for m in net.modules()}
    hooks: list[Any] = []
    try:
        hooks += (m.register_forward_pre_hook(keep, with_kwargs=True) for m in found)
        net.eval()
        with torch.no_grad():
            for batch in batches:
                reset_neurons(net)
                net(batch[0] if isinstance(batch, tuple | list) else batch)
    finally:
        for hook in hooks:
            hook.remove()
        for m, training in modes.items():
            m.training = training
        reset_neurons(net)
    silent = [name for name, m in net.named_modules() if m in records and not any(map(len, records[m]))]
    if silent and (all_run or len(silent) == len(records)):
        bad_value("batches", f"nothing that reaches {', '.join(silent)}", "at least one batch that runs the whole net")
    joined = {m: torch.cat(parts) if parts else torch.empty(0) for m, parts in records.items()}
    for name, m in net.named_modules():
        if m in joined and not bool(joined[m].isfinite().all()):
            bad_value("batches", f"NaN or infinite values that reach {name}", "finite numbers")
    return joined, silent
