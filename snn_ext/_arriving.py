"""Threshold, pre-charge, bias and weights of swapped neurons, by the current that really arrives in the spiking net."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ._before import Before
from ._channel_search import START, ChannelSearch, least_squares_threshold
from ._progress import bar
from ._regression import ROWS, correction_of_layer
from ._samples import Samples, places_of, values_at
from .hosts import reset_neurons
from .neurons import IntegrateAndFireNeuron, NonUniformIntegrateAndFireNeuron
from .neurons.quantized import QuantizedActivation
from .simulation.graph import in_step_mode, not_training
from .training import ConstantInputNet

__all__ = ["analog_samples", "can_be_searched", "ceiling_of", "fit_to_spikes"]


def can_be_searched(neuron: nn.Module) -> bool:
    """Return True for neurons whose spikes have the value of their threshold, which resets them by subtraction."""
    return (
        isinstance(neuron, IntegrateAndFireNeuron)
        and neuron.scale_output
        and (neuron._reset_kind() == "subtract" or isinstance(neuron, NonUniformIntegrateAndFireNeuron))
        and not getattr(neuron, "leaks", False)
    )


def ceiling_of(relu: nn.Module) -> float:
    """Return the largest value of a rectifier."""
    if isinstance(relu, QuantizedActivation):
        return float(relu.clip_level().detach())
    return 6.0 if isinstance(relu, nn.ReLU6) else math.inf


@torch.no_grad()
def analog_samples(
    net: nn.Module, relus: Iterable[nn.Module], inputs: Sequence[Tensor], memory: int = 1 << 28
) -> dict[nn.Module, Samples]:
    """Return input and output of the rectifiers of a net at random positions, in the order in which they are called.

    Those that one forward pass calls several times, or whose inputs have no channels, are left out. The output of the
    net comes last, under ``net``, if it has the form ``[N, F]``. ``memory`` bounds the bytes of all samples but these.
    """
    if not inputs:
        return {}
    sizes, generator = [len(x) for x in inputs], torch.Generator()
    shapes: dict[nn.Module, list[torch.Size]] = {}
    with _one_step(net) as step:
        with _hooked(relus, lambda module, x: shapes.setdefault(module, []).append(x.shape)):
            step(inputs[0][:1])
        found = {relu: seen[0] for relu, seen in shapes.items() if len(seen) == 1 and len(seen[0]) > 1}
        bytes_a_position = 2 * inputs[0].element_size() * sum(shape[1] for shape in found.values())
        positions = max(1, min(ROWS, memory // max(1, bytes_a_position)))
        places = {
            relu: places_of(sizes, math.prod(shape[2:]), positions, generator.manual_seed(0), inputs[0].device)
            for relu, shape in found.items()
        }
        kept: dict[nn.Module, list[Tensor]] = {relu: [] for relu in found}
        outputs: list[Tensor | None] = []

        def keep(relu: nn.Module, x: Tensor) -> None:
            kept[relu].append(values_at(x.unsqueeze(0), *places[relu][len(outputs)])[0])

        with _hooked(found, keep):
            for x in inputs:
                y = step(x)
                outputs.append(y if isinstance(y, Tensor) and y.ndim == 2 and len(y) == len(x) else None)
    samples = {
        relu: Samples(found[relu], places[relu], torch.cat(parts, 1), relu(torch.cat(parts, 1)))
        for relu, parts in kept.items()
        if len(parts) == len(inputs)  # a net that looks at values may call one for some batches only
    }
    whole = [y for y in outputs if y is not None]
    if len(whole) == len(inputs):
        every = places_of(sizes, 1, sum(sizes), generator, whole[0].device)
        samples[net] = Samples(whole[0].shape, every, torch.cat(whole).T, torch.cat(whole).T)
    return samples


@torch.no_grad()
def fit_to_spikes(
    net: nn.Module,
    new: Mapping[nn.Module, nn.Module],
    samples: Mapping[nn.Module, Samples],
    before: Mapping[nn.Module, Before],
    inputs: Sequence[Tensor],
    time_steps: int,
    *,
    correct_weights: bool,
    channel_wise: bool = False,
    memory: int = 1 << 28,
    progress: bool = True,
) -> None:
    """Fit one layer of neurons after the other, in the net as it is so far; parameters are restored if that fails.

    Parameters
    ----------
    net : nn.Module
        With the neurons in it.
    new : dict of nn.Module to nn.Module
        The neuron for each rectifier.
    samples, before : dict
        Of the rectifiers and of the net, from :func:`analog_samples` and :func:`snn_ext._before.find_before`.
    inputs : sequence of Tensor
        Those of the samples.
    time_steps : int
        T.
    correct_weights : bool
        Correct the weights before each layer, where that is better on inputs that are held out.
    channel_wise : bool
        A threshold for each channel, also where the neuron has one.
    memory : int
        Bytes for the current into one layer.
    progress : bool
        Show a progress bar on a terminal.
    """
    kept = [(p, p.detach().clone()) for one in before.values() for p in one.parameters]
    layers = [relu for relu in samples if relu in new and can_be_searched(new[relu])]
    arriving = _Arriving(net, inputs, time_steps)
    try:
        for relu in bar("calibrate", "layer", layers, progress=progress):
            if not bool(samples[relu].target.any()):
                continue
            if correct_weights and relu in before:
                _correct(arriving, new[relu], before[relu], samples[relu], memory)
            values = samples[relu].current
            few = samples[relu].fewer(memory // (time_steps * len(values) * values.element_size()))
            neuron: Any = new[relu]
            shared = isinstance(relu, QuantizedActivation) or not neuron.threshold_per_channel
            shared = shared or (not channel_wise and neuron._raw_threshold().numel() == 1)
            search = _search(relu, neuron, few, arriving.at(neuron, few), biased=relu in before, shared=shared)
            _set(neuron, before.get(relu), search, shared)
        if correct_weights and layers and net in samples and net in before:
            _correct(arriving, net, before[net], samples[net], memory)
    except BaseException:
        for parameter, value in kept:
            parameter.copy_(value)
        raise
    finally:
        reset_neurons(net)


def _correct(arriving: _Arriving, module: nn.Module, before: Before, samples: Samples, memory: int) -> None:
    """Correct the weights before a layer of neurons, or the output, by what the mean over time lacks."""
    if before.layer is None:
        return
    fit = correction_of_layer(before.layer, samples, arriving.means(module, before.layer), memory)
    if fit is not None:
        before.correct(*fit)


def _search(
    relu: nn.Module, neuron: Any, samples: Samples, current: Tensor, *, biased: bool, shared: bool
) -> ChannelSearch:
    """Search from where a quantised activation is already, or from the best staircase."""
    profile = None
    if isinstance(neuron, NonUniformIntegrateAndFireNeuron):  # its points keep their shape
        threshold, precharge = neuron.thresholds().clip_level, float(neuron.v_init.mean())
        profile = neuron.thresholds().of_steps / threshold
    elif isinstance(relu, QuantizedActivation):
        threshold, precharge = relu.clip_level(), relu.v_init
    else:
        threshold = least_squares_threshold(samples.current, samples.target, len(current), shared=shared)
        precharge = START
    ceiling = ceiling_of(relu)
    search = ChannelSearch(
        current, samples.target, threshold, precharge,
        limit=ceiling if ceiling < math.inf else None, shared=shared, fire_at_threshold=neuron.fire_at_threshold,
        biased=biased, profile=profile, resets=neuron._reset_kind() == "subtract",
    )  # fmt: skip
    search.run()
    return search


def _set(neuron: Any, before: Before | None, search: ChannelSearch, shared: bool) -> None:
    threshold = (search.threshold[:1] if shared else search.threshold).to(neuron.v_init)
    if isinstance(neuron, NonUniformIntegrateAndFireNeuron):
        neuron.p.mul_(threshold.to(neuron.p) / neuron.thresholds().clip_level)
    else:
        neuron._take_threshold(threshold)
    neuron.v_init = search.precharge.to(neuron.v_init)
    if before is not None:
        before.shift(search.bias)


class _Arriving:
    """The current into a layer of neurons, or the output, in T steps of the net as it is."""

    def __init__(self, net: nn.Module, inputs: Sequence[Tensor], time_steps: int) -> None:
        self._net, self._inputs, self._time_steps = net, inputs, time_steps

    def at(self, module: nn.Module, samples: Samples) -> Tensor:
        """Return the current at the positions of samples, ``[T, C, M]``."""
        parts = []
        for batch in range(len(self._inputs)):
            steps = self._steps(module, batch)
            parts.append(torch.cat([samples.of(current.unsqueeze(0), batch) for current in steps]))
        return torch.cat(parts, dim=2)

    def means(self, module: nn.Module, layer: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each batch the means over time of the current, ``[N, C, ...]``, and of the input of a layer."""
        return (self._mean(module, layer, batch) for batch in range(len(self._inputs)))

    def _mean(self, module: nn.Module, layer: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
        fed: list[Tensor] = []

        def add(layer: nn.Module, x: Tensor) -> None:
            fed[:] = [x + fed[0] if fed else x]

        with _hooked([layer], add):
            current = functools.reduce(torch.add, self._steps(module, batch))
        return current / self._time_steps, fed[0] / self._time_steps

    def _steps(self, module: nn.Module, batch: int) -> Iterator[Tensor]:
        """Yield the input of a layer at each step, or the output of the net; layers behind it do not run."""
        found: list[Tensor] = []

        def keep(module: nn.Module, x: Tensor) -> None:
            found.append(x)
            raise _ArrivedError

        reset_neurons(self._net)
        with _one_step(self._net) as step, _hooked([] if module is self._net else [module], keep):
            for _ in range(self._time_steps):
                with suppress(_ArrivedError):
                    found.append(step(self._inputs[batch]))
                yield found.pop()


class _ArrivedError(Exception):
    """Ends a forward pass at the layer that is looked at."""


@contextmanager
def _hooked(modules: Iterable[nn.Module], see: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Show the input of some modules as ``see(module, x)``."""

    def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        see(module, (*args, *named.values())[0])

    hooks = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _one_step(net: nn.Module) -> Iterator[nn.Module]:
    """Return a net of one step, with the modules of a net in evaluation mode."""
    modules = list(net.modules())
    with not_training(modules), in_step_mode("s", modules):
        yield net.one_step() if isinstance(net, ConstantInputNet) else net
