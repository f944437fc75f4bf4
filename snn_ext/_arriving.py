"""Threshold, pre-charge and bias of swapped neurons, by the current that really arrives in the spiking net."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._channel_search import START, ChannelSearch, least_squares_threshold
from ._progress import bar
from ._samples import POSITIONS, Samples, places_of, values_at
from ._tracing import traced_graph
from .hosts import LeafTracer, reset_neurons
from .neurons import IntegrateAndFireNeuron, NonUniformIntegrateAndFireNeuron
from .neurons.quantized import QuantizedActivation
from .simulation.graph import in_step_mode, not_training
from .training import ConstantInputNet

__all__ = ["analog_samples", "biases_before", "can_be_searched", "ceiling_of", "fit_to_spikes"]

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


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
def analog_samples(net: nn.Module, relus: Iterable[nn.Module], inputs: Sequence[Tensor]) -> dict[nn.Module, Samples]:
    """Return input and output of the rectifiers of a net at random positions, in the order in which they are called.

    Those that one forward pass calls several times, or whose inputs have no channels, are left out.
    """
    found: dict[nn.Module, list[Tensor]] = {}
    places: dict[nn.Module, Any] = {}
    sizes = [len(x) for x in inputs]

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, parts = args[0], found.setdefault(module, [])
        if module not in places and x.ndim > 1:
            generator = torch.Generator().manual_seed(0)
            places[module] = places_of(sizes, math.prod(x.shape[2:]), POSITIONS, generator, x.device)
        if module in places and len(parts) < len(sizes):
            parts.append(values_at(x.unsqueeze(0), *places[module][len(parts)])[0])
        else:
            places.pop(module, None)

    with _hooked(relus, keep), _one_step(net) as step:
        for x in inputs:
            step(x)
    return {
        relu: Samples(places[relu], torch.cat(parts, 1), relu(torch.cat(parts, 1)))
        for relu, parts in found.items()
        if relu in places
    }


def biases_before(net: nn.Module, relus: Iterable[nn.Module]) -> dict[nn.Module, nn.Module]:
    """Return for each rectifier the module whose bias adds to its input and to nothing else, as far as there is one."""
    try:
        graph = traced_graph(net.one_step() if isinstance(net, ConstantInputNet) else net, LeafTracer(), "net")
    except Exception:  # control flow on values: such a net cannot be traced, so that nothing is known
        return {}
    wanted, modules = set(relus), dict(net.named_modules(remove_duplicate=False))
    calls = Counter(modules[str(node.target)] for node in graph.nodes if node.op == "call_module")

    def source_of(node: Any) -> nn.Module | None:
        if not isinstance(node, fx.Node) or len(node.users) > 1:
            return None
        if node.op == "call_module":
            module = modules[str(node.target)]
            bias = getattr(module, "bias", None)
            own = isinstance(bias, nn.Parameter) and bias.ndim == 1 and calls[module] == 1
            return module if own else None
        sources = node.args if node.target in _ADDITIONS else ()
        return next((module for source in sources if (module := source_of(source)) is not None), None)

    found = {
        modules[str(node.target)]: source_of(node.args[0])
        for node in graph.nodes
        if node.op == "call_module" and modules[str(node.target)] in wanted and node.args
    }
    return {relu: module for relu, module in found.items() if module is not None}


@torch.no_grad()
def fit_to_spikes(
    net: nn.Module,
    new: Mapping[nn.Module, nn.Module],
    samples: Mapping[nn.Module, Samples],
    biases: Mapping[nn.Module, nn.Module],
    inputs: Sequence[Tensor],
    time_steps: int,
    *,
    channel_wise: bool = False,
    memory: int = 1 << 28,
    progress: bool = True,
) -> None:
    """Fit one layer of neurons after the other, in the net as it is so far; biases are restored if that fails.

    Parameters
    ----------
    net : nn.Module
        With the neurons in it.
    new : dict of nn.Module to nn.Module
        The neuron for each rectifier.
    samples, biases : dict
        Of the rectifiers, from :func:`analog_samples` and :func:`biases_before`.
    inputs : sequence of Tensor
        Those of the samples.
    time_steps : int
        T.
    channel_wise : bool
        A threshold for each channel, also where the neuron has one.
    memory : int
        Bytes for the current into one layer.
    progress : bool
        Show a progress bar on a terminal.
    """
    kept = {module: module.bias.detach().clone() for module in biases.values() if isinstance(module.bias, Tensor)}
    layers = [relu for relu in samples if relu in new and can_be_searched(new[relu])]
    try:
        for relu in bar("calibrate", "layer", layers, progress=progress):
            neuron: Any = new[relu]
            values = samples[relu].current
            few = samples[relu].fewer(memory // (time_steps * len(values) * values.element_size()))
            if not bool(few.target.any()):
                continue
            current = _arriving(net, neuron, few, inputs, time_steps)
            shared = isinstance(relu, QuantizedActivation) or not neuron.threshold_per_channel
            shared = shared or (not channel_wise and neuron._raw_threshold().numel() == 1)
            at_points, profile = isinstance(neuron, NonUniformIntegrateAndFireNeuron), None
            if at_points:  # fitted, or those of a quantised activation: they keep their shape
                threshold, precharge = neuron.thresholds().clip_level, float(neuron.v_init.mean())
                profile = neuron.thresholds().of_steps / threshold
            elif isinstance(relu, QuantizedActivation):
                threshold, precharge = relu.clip_level(), relu.v_init
            else:
                threshold = least_squares_threshold(few.current, few.target, time_steps, shared=shared)
                precharge = START
            ceiling = ceiling_of(relu)
            search = ChannelSearch(
                current, few.target, threshold, precharge,
                limit=ceiling if ceiling < math.inf else None, shared=shared,
                fire_at_threshold=neuron.fire_at_threshold, biased=relu in biases,
                profile=profile, resets=neuron._reset_kind() == "subtract",
            )  # fmt: skip
            search.run()
            if at_points:
                neuron.p.mul_(search.threshold[:1].to(neuron.p) / threshold)
            else:
                neuron._take_threshold(search.threshold[:1] if shared else search.threshold)
            neuron.v_init = search.precharge.to(neuron.v_init)
            if relu in biases:
                bias: Any = biases[relu].bias
                bias.add_(search.bias.to(bias))
    except BaseException:
        for module, bias in kept.items():
            module.bias.copy_(bias)  # type: ignore[operator]
        raise
    finally:
        reset_neurons(net)


def _arriving(net: nn.Module, neuron: Any, samples: Samples, inputs: Sequence[Tensor], time_steps: int) -> Tensor:
    """Return the current into a neuron at the positions of samples, ``[T, C, M]``; layers behind it do not run."""
    found: list[list[Tensor]] = [[] for _ in inputs]

    with _one_step(net) as step:
        for batch, x in enumerate(inputs):

            def keep(module: nn.Module, args: tuple[Tensor, ...], batch: int = batch) -> None:
                found[batch].append(samples.of(args[0].unsqueeze(0), batch))
                raise _ArrivedError

            reset_neurons(net)
            with _hooked([neuron], keep):
                for _ in range(time_steps):
                    with suppress(_ArrivedError):
                        step(x)
    return torch.cat([torch.cat(parts) for parts in found], dim=2)


class _ArrivedError(Exception):
    """Ends a forward pass at the layer that is looked at."""


@contextmanager
def _hooked(modules: Iterable[nn.Module], hook: Any) -> Iterator[None]:
    hooks = [module.register_forward_pre_hook(hook) for module in modules]
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
