"""Calibration layer by layer, on the spiking net as it is so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._channel_search import START, ChannelSearch, least_squares_threshold
from .._progress import bar
from .._regression import ROWS, correction_of_layer
from .._samples import POSITIONS, Samples, places_of, values_at
from ..functional.quantization import Recursion
from ..neurons.quantized import QuantizedReLU
from ..simulation.layers import module_of
from ..spikingjelly import ATIFnuNode
from .canonicalize import AnalogNet
from .graph_tools import shape_of
from .layerwise import Layerwise
from .refit import feeder, refit
from .spiking import OUTPUT, ThresholdSetter

__all__ = ["AnalogSamples", "calibrate"]

_RECURSIONS: tuple[Recursion, ...] = ("min", "cumulative")
"""From points to thresholds: the better one at the start of a search is taken."""


def calibrate(
    thresholds: ThresholdSetter,
    analog: AnalogNet,
    batches: Sequence[Tensor],
    time_steps: int,
    *,
    correct_weights: bool,
    wait: int = 0,
    memory: int = 1 << 30,
    progress: bool = True,
) -> None:
    """Set threshold, pre-charge and bias of every channel of one layer after the other, as the layer is visited.

    Parameters
    ----------
    thresholds : ThresholdSetter
        Of a net with thresholds per channel; its weights are changed too.
    analog : AnalogNet
        The net that it stands for.
    batches : sequence of Tensor
        Calibration inputs.
    time_steps : int
        T.
    correct_weights : bool
        Correct the weights before each layer, where that is better on inputs that are held out.
    wait : int
        Each layer takes in one input and so many more before its first decision.
    memory : int
        Bytes for spike trains, as many for the current into one layer, and a quarter for the analog net.
    progress : bool
        Show a progress bar.

    Notes
    -----
    Source: Hwang et al. 2021, algorithm 1, taken to three parameters of each channel.
    """
    samples = AnalogSamples(analog, batches, ROWS if correct_weights else POSITIONS, memory // 4)
    layers = Layerwise(thresholds.net, batches, time_steps, memory, wait)
    for node in bar("calibrate", "layer", layers.layers(), progress=progress):
        name = str(node.target)
        if name in analog.activations:
            if correct_weights:
                _correct(layers, node.all_input_nodes[0].all_input_nodes[0], samples.layers[name], memory // 4)
            bytes_a_position = time_steps * len(samples.layers[name].current) * analog.x.element_size()
            few = samples.layers[name].fewer(memory // (4 * bytes_a_position))
            if not bool(few.target.any()):
                warnings.warn(f"calibration: {name} was never active; its threshold is 1", stacklevel=2)
            search = _search(layers, node, few, analog.activations[name].clip, analog.graph.get_submodule(name))
            _apply(thresholds, name, search, few)
        for _ in layers.finish(node):
            pass
    if correct_weights and samples.output is not None:
        _correct(layers, layers.output(), samples.output, memory // 4)


class AnalogSamples:
    """One pass of the analog net, of which some random positions are kept, in bounded memory.

    Attributes
    ----------
    layers : dict of str to Samples
        By the name of the activation.
    output : Samples or None
        All of an output ``[N, F]``.
    """

    def __init__(self, analog: AnalogNet, batches: Sequence[Tensor], positions: int, memory: int = 1 << 28) -> None:
        shapes = {str(n.target): shape_of(n) for n in analog.graph.graph.nodes if str(n.target) in analog.activations}
        bytes_a_position = 2 * analog.x.element_size() * sum(shape[1] for shape in shapes.values())
        positions = max(1, min(positions, memory // bytes_a_position))
        sizes, generator = [len(x) for x in batches], torch.Generator().manual_seed(0)
        places = {
            name: places_of(sizes, math.prod(shape[2:]), positions, generator, analog.x.device)
            for name, shape in shapes.items()
        }
        kept: dict[str, list[Tensor]] = {name: [] for name in shapes}

        def keep(name: str, current: Tensor) -> None:
            here = places[name][len(kept[name])]
            kept[name].append(values_at(current.unsqueeze(0), *here)[0])

        outputs = [y for x in batches if (y := analog.watched(x, keep)).ndim == 2]
        self.layers: dict[str, Samples] = {}
        for name in shapes:
            current = torch.cat(kept[name], 1)
            target = analog.graph.get_submodule(name)(current.T).T.contiguous()
            self.layers[name] = Samples(shapes[name], places[name], current, target)
        self.output: Samples | None = None
        if outputs:
            every = places_of(sizes, 1, sum(sizes), generator, analog.x.device)
            self.output = Samples(outputs[0].shape, every, torch.cat(outputs).T, torch.cat(outputs).T)


def _correct(layers: Layerwise, node: fx.Node, samples: Samples, memory: int) -> None:
    """Correct the weights before a sum by what its mean over time lacks."""
    fed = feeder(layers.net, node)
    if fed is None or layers.is_constant(fed):
        return
    layer: Any = module_of(layers.net, fed)
    fit = correction_of_layer(layer, samples, _means(layers, node, fed.all_input_nodes[0]), memory)
    if fit is not None:
        refit(layer, *fit)
        layers.forget()


def _means(layers: Layerwise, *nodes: fx.Node) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each batch the means over time of two values."""
    for batch in range(len(layers.batches)):
        total: dict[fx.Node, Tensor] = {}
        for values in layers.values(nodes, batch):
            total = {node: values[node].sum(0) + total.get(node, 0.0) for node in nodes}
        first, second = (total[node] / layers.time_steps for node in nodes)
        yield first, second


def _search(
    layers: Layerwise, node: fx.Node, samples: Samples, clip: float | None, activation: nn.Module
) -> ChannelSearch:
    """Return the search at its start: a quantised activation has threshold and pre-charge already."""
    shared = str(node.target) == OUTPUT
    neuron: Any = layers.net.get_submodule(str(node.target))
    current = torch.cat([
        torch.cat([samples.of(chunk, batch) for chunk in layers.current(node, batch)])
        for batch in range(len(layers.batches))
    ], dim=2)  # fmt: skip

    def starting(threshold: Tensor, precharge: float, **points: Any) -> ChannelSearch:
        return ChannelSearch(
            current, samples.target, threshold, precharge,
            limit=clip, shared=shared, fire_at_threshold=neuron.fire_at_threshold, wait=layers.wait, **points,
        )  # fmt: skip

    if isinstance(neuron, ATIFnuNode):
        searches: dict[Recursion, ChannelSearch] = {}
        for recursion in _RECURSIONS:
            neuron.recursion = recursion
            profile, resets = neuron.thresholds().of_steps.detach(), neuron._reset_kind() == "subtract"
            searches[recursion] = starting(_clip_level(activation), 0.0, profile=profile, resets=resets)
        neuron.recursion = min(searches, key=lambda recursion: float(searches[recursion].error.mean()))
        return searches[neuron.recursion]
    if isinstance(activation, QuantizedReLU):
        return starting(_clip_level(activation), activation.v_init)
    return starting(least_squares_threshold(samples.current, samples.target, layers.time_steps, shared=shared), START)


def _clip_level(activation: Any) -> Tensor:
    level: Tensor = activation.clip_level().detach().reshape(1)
    return level


def _apply(thresholds: ThresholdSetter, name: str, search: ChannelSearch, samples: Samples) -> None:
    before = search.error.mean()
    search.run()
    power = samples.target.square().mean().clamp_min(torch.finfo(samples.target.dtype).tiny)
    thresholds.errors[name] = float((before / power).sqrt()), float((search.error.mean() / power).sqrt())
    value = search.threshold[:1] if name == OUTPUT else search.threshold
    thresholds.set(name, value, "calibrated")
    modules: dict[str, Any] = dict(thresholds.net.named_modules())
    neuron, scale = modules[name], modules[f"{name}_before"]
    neuron.v_init = search.precharge.to(neuron.v_init)
    scale.bias = search.bias * scale.weight
