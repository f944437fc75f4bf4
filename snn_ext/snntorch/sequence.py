"""Whole sequences through a net that is written for one step: time is folded into the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_count
from ..hosts import host_of
from .host import HostNeuron

__all__ = ["check_steps", "run_steps", "step_by_step", "whole_sequence"]


def run_steps(net: nn.Module, x: Tensor, num_steps: int | None = None) -> Any:
    """Run a net of one step on a whole sequence, as the loop ``torch.stack([net(x) for x in x_seq])`` does.

    The net is called once: time is folded into the batch, ``[T * N, ...]``, for all layers but the neurons. Those of
    this package, and ``snn.Leaky`` after :func:`snn_ext.accelerate`, take the sequence by their fused operator; other
    neurons of the host run it step by step. Spikes are those of the loop, with the same state before and after;
    batch norm in training mode sees all steps of a batch at once, and dropout draws for all of them. The batch is T
    times as large: a net must not reshape to a size of batch that is written down. Where an input is presented at every
    step to an ``nn.Sequential``, the layers before its first neuron run once.

    Parameters
    ----------
    net : nn.Module
        Takes the input of one step. Its neurons have ``init_hidden=True``.
    x : Tensor
        A sequence ``[T, N, ...]``, or ``[N, ...]`` with ``num_steps``, which is presented at every step.
    num_steps : int, optional
        Number of steps.

    Returns
    -------
    Tensor or tuple of Tensor
        What the net returns, ``[T, N, ...]``: spikes, or ``(spk, mem)`` of a last neuron with ``output=True``.

    Examples
    --------
    >>> import snntorch as snn, torch
    >>> import snn_ext
    >>> from snn_ext.snntorch import reset, run_steps
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), snn.Leaky(0.9, init_hidden=True))
    >>> x_seq = torch.randn(25, 2, 4)
    >>> want = torch.stack([net(x) for x in x_seq])
    >>> _ = snn_ext.accelerate(net)
    >>> reset(net)
    >>> torch.equal(run_steps(net, x_seq), want)
    True
    """
    check_steps(net)
    if not isinstance(x, Tensor):
        bad_type("x", x, "a tensor [T, N, ...], or [N, ...] with num_steps")
    if num_steps is not None:
        check_count("num_steps", num_steps)
    if x.ndim < (1 if num_steps else 2) or not (num_steps or len(x)):
        bad_value("x", x, "[T, N, ...] with at least one time step, or [N, ...] with num_steps")
    return whole_sequence(net, x, num_steps)


def whole_sequence(net: nn.Module, x: Tensor, num_steps: int | None = None) -> Any:
    """Call a net once for ``[T, N, ...]``, or for ``[N, ...]`` that is presented at each of ``num_steps``."""
    if num_steps is not None:
        first, net = _split(net)
        for layer in first:
            x = layer(x)
        x = x.expand(num_steps, *x.shape)
    time_steps = len(x)
    with _time_in_batch(net, time_steps):
        out = net(x.flatten(0, 1))
    return _unfolded(out, time_steps)


def _split(net: nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """Split off the first layers of an ``nn.Sequential`` that give the same at every step for the same input."""
    layers = _chain(net)
    count = next((i for i, layer in enumerate(layers) if not _repeats(layer)), 0)
    return (layers[:count], nn.Sequential(*layers[count:])) if count else ([], net)


def _chain(net: nn.Module) -> list[nn.Module]:
    if type(net) is nn.Sequential and not _has_hooks(net):
        return [layer for part in net for layer in _chain(part)]
    return [net]


def _repeats(layer: nn.Module) -> bool:
    """Tell whether a layer is one of torch that neither draws nor keeps anything, nor tells anybody of its calls."""
    changing = nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd | nn.RReLU
    plain = type(layer).__module__.startswith("torch.nn.modules.") and not [*layer.children()]
    return plain and not (layer.training and isinstance(layer, changing)) and not _has_hooks(layer)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def check_steps(net: nn.Module) -> None:
    """Raise unless a net is one of one step that can take whole sequences."""
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    if not any(isinstance(m, snn.SpikingNeuron) for m in net.modules()):
        bad_value("net", type(net).__name__, "a net with at least one neuron of snn_ext.snntorch or snnTorch")
    for name, module in net.named_modules():
        kind = type(module).__name__
        if host_of(module) == "snntorch" and not hasattr(module, "reset_mem") and kind != "RecurrentOneToOne":
            bad_value(f"net ({name})", kind, "neurons of one step; this one takes whole sequences itself")
        if isinstance(module, snn.SpikingNeuron):
            if not module.init_hidden:
                bad_value(f"net ({name})", "init_hidden=False", "init_hidden=True: nothing passes mem along here")
        elif hasattr(module, "_memories"):
            bad_value(f"net ({name})", kind, "neurons of snnTorch or snn_ext.snntorch")


@contextmanager
def _time_in_batch(net: nn.Module, time_steps: int) -> Iterator[None]:
    """Let the neurons of a net take ``[T * N, ...]`` for ``[T, N, ...]``."""
    with ExitStack() as stack:
        for neuron in net.modules():
            if isinstance(neuron, HostNeuron) or hasattr(type(neuron), "_time_in_batch"):
                stack.enter_context(_attribute(neuron, "_time_in_batch", time_steps))
            elif isinstance(neuron, snn.SpikingNeuron):
                run = partial(step_by_step, neuron.forward, time_steps)
                stack.enter_context(_attribute(neuron, "forward", run))
        yield


def step_by_step(forward: Callable[[Tensor], Any], time_steps: int, input_: Tensor) -> Any:
    """Run a neuron of one step on ``[T * N, ...]``."""
    outs = [forward(x) for x in input_.unflatten(0, (time_steps, -1))]
    return tuple(map(torch.cat, zip(*outs, strict=True))) if isinstance(outs[0], tuple) else torch.cat(outs)


@contextmanager
def _attribute(owner: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Give an object an attribute for the time of a block."""
    held = owner.__dict__
    before = {name: held[name]} if name in held else {}
    held[name] = value
    try:
        yield
    finally:
        del held[name]
        held.update(before)


def _unfolded(out: Any, time_steps: int) -> Any:
    if isinstance(out, tuple | list):
        return type(out)(_unfolded(part, time_steps) for part in out)
    if isinstance(out, Tensor) and out.ndim and len(out) % time_steps == 0:
        return out.unflatten(0, (time_steps, -1))
    return bad_type("net", out, "a net that returns tensors [N, ...], one or several")
