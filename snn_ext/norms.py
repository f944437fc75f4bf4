"""Batch norms whose output is not kept for the backward pass: :func:`recompute_norms`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ._errors import bad_type, bad_value, check_bool
from ._kept import whole
from ._repeats import MARK, Norm
from .ops.recomputed import record
from .packing import PackedSpikes, is_packed, reads_back_for_free, set_repeats

__all__ = ["LeaveRecipe", "RecomputedNorms", "keep_outputs", "norms_of", "recompute_norms", "why_not"]


def recompute_norms(net: nn.Module, *, convolutions: bool = False) -> RecomputedNorms:
    r"""Let a neuron behind a batch norm keep what the norm has kept already, the convolution's output, in place.

    A batch norm keeps its input for the backward pass and a neuron its own, the norm's output. The latter is a function
    of the former and of one mean and deviation a channel, so it is computed again in the backward pass:

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    It is computed by the norm's own kernel and has the same bits, so spikes, running statistics and gradients are the
    same to the last bit. The training loop stays as it is.

    In a packed net (:func:`pack_spikes`) two more tensors are not kept. A neuron behind the sum of a norm's output and
    a shortcut, as at the end of a block of a ResNet, keeps neither: the sum is computed again from the norm's input and
    the shortcut's spikes. With ``convolutions=True`` norms do not keep their inputs: the convolution in front of a norm
    is repeated in the backward pass, once, from its own input, spikes as bits. This takes the time of another forward
    pass of these layers.

    Parameters
    ----------
    net : nn.Module
        Has batch norms of torch or SpikingJelly, at any depth, in front of neurons of snn_ext or of those that
        :func:`accelerate` has swapped; other neurons keep what they have kept.
    convolutions : bool
        Repeat convolutions; the net is packed for that. Another call with False takes it back.

    Returns
    -------
    RecomputedNorms
        The norms whose output was not kept in the last call, the others with the reason, and ``undo()``.

    Raises
    ------
    TypeError
        If ``net`` is no module, or ``convolutions`` no bool.
    ValueError
        If the net has no batch norm.

    Notes
    -----
    Each norm gets a forward hook and nothing else; copies and pickles carry it. What else reads the norm's output gets
    it as before. The forward pass runs norm and neuron one after the other, as without: it takes no less time. Compiled
    code decides itself what it computes again. Under hooks of others on saved tensors around the net, sums and
    convolutions' outputs are kept.

    Examples
    --------
    >>> from spikingjelly.activation_based import functional, layer
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(layer.Linear(8, 512), layer.BatchNorm1d(512), ATIFuNode(), layer.Linear(512, 10))
    >>> functional.set_step_mode(net, "m")
    >>> done = recompute_norms(net)
    >>> net(torch.rand(4, 2, 8)).sum().backward()
    >>> done.recomputed, done.left
    (['1'], {})
    >>> done.undo()
    """
    norms = norms_of(net)
    check_bool("convolutions", convolutions)
    done = RecomputedNorms(net, set_repeats(net, convolutions))
    for name, norm in norms.items():
        reason = why_not(norm)
        if reason is None:
            done._norms[name] = norm
            if _hook(norm) is None:
                norm.register_forward_hook(LeaveRecipe(), prepend=True)
        else:
            done._refused[name] = f"{type(norm).__name__}: {reason}"
    return done


@dataclass(frozen=True)
class RecomputedNorms:
    """Result of :func:`recompute_norms` on a net."""

    _net: nn.Module
    _packed: PackedSpikes | None = None
    _norms: dict[str, _BatchNorm] = field(default_factory=dict)
    _refused: dict[str, str] = field(default_factory=dict)

    @property
    def recomputed(self) -> list[str]:
        """Names of the norms whose output a neuron did not keep in the last call."""
        return [name for name, norm in self._norms.items() if _why_unused(norm) is None]

    @property
    def left(self) -> dict[str, str]:
        """Name of a norm to the reason why its output is not computed again."""
        reasons = {name: _why_unused(norm) for name, norm in self._norms.items()}
        return self._refused | {name: reason for name, reason in reasons.items() if reason is not None}

    def undo(self) -> None:
        """Take the hooks off again; what is kept of earlier calls can still be computed again."""
        keep_outputs(self._norms.values())
        set_repeats(self._net, False)
        if self._packed is not None and is_packed(self._net):
            self._packed.undo()

    def __str__(self) -> str:
        lines = [f"norms computed again: {len(self.recomputed)}, left: {len(self.left)}"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.left.items()])


def keep_outputs(modules: Iterable[nn.Module]) -> None:
    """Take off the hooks of :func:`recompute_norms`."""
    for module in modules:
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, LeaveRecipe):
                del module._forward_hooks[key]


_HOMES = "torch.nn.modules.batchnorm", "spikingjelly.activation_based.layer.bn"
_KINDS = "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"
_NO_EPSILON = 1e-30  # nothing beside 1; torch 2.11 takes no 0


def norms_of(net: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of a net by name, or raise if there is none."""
    if not isinstance(net, nn.Module):
        bad_type("net", net, "an nn.Module")
    norms = {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        bad_value("net", type(net).__name__, "a net with at least one batch norm")
    return norms


def why_not(norm: _BatchNorm) -> str | None:
    """Return why a norm has to run by itself, whatever its input; ``None`` if it has not."""
    if isinstance(norm, nn.SyncBatchNorm):
        return "its statistics are those of all processes, which would have to meet again in the backward pass"
    if any(map(is_lazy, norm.parameters())):
        return "not initialised yet: run the net once before"
    if type(norm).__module__ not in _HOMES or type(norm).__name__ not in _KINDS:
        return "a class of its own, whose forward pass may be another"
    return None


def _why_unused(norm: _BatchNorm) -> str | None:
    hook = _hook(norm)
    if hook is None:
        return "undone"
    if hook.is_used is None:
        return "not called yet"
    return None if hook.is_used else "no neuron of the fused operators got its output, unchanged and with gradients"


def _hook(norm: _BatchNorm) -> LeaveRecipe | None:
    return next((hook for hook in norm._forward_hooks.values() if isinstance(hook, LeaveRecipe)), None)


# -- one call of a norm ------------------------------------------------------------------------------------------------


class LeaveRecipe:
    """Forward hook of one norm: leaves with its output how to compute it again."""

    is_used: bool | None = None  # by a neuron, in the last call

    def __call__(self, norm: _BatchNorm, args: tuple[Any, ...], y: Any) -> None:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return
        self.is_used = False
        if len(args) != 1 or type(y) is not Tensor or type(args[0]) is not Tensor or not torch.is_grad_enabled():
            return
        x = args[0].detach()
        folded = x.flatten(0, 1) if getattr(norm, "step_mode", "s") == "m" else x
        node = _source(y)
        if node is None or folded.data_ptr() != x.data_ptr():  # other hooks changed it; a copy that nobody else keeps
            return
        tensors, compute = _recipe(norm, folded, node)
        record(y, tensors, compute, self._note_use)
        node.metadata[MARK] = Norm(compute, tuple(map(whole, tensors[1:])), self._note_use)

    def _note_use(self) -> None:
        self.is_used = True


def _source(y: Tensor) -> Any:
    """Return the node of autograd of the batch norm that a tensor is the output of, or a view of it."""
    node = y.grad_fn
    while node is not None and "View" in node.name():
        node = node.next_functions[0][0]
    return node if node is not None and "BatchNorm" in node.name() else None


def _recipe(norm: _BatchNorm, x: Tensor, node: Any) -> tuple[tuple[Tensor | None, ...], Callable[..., Tensor]]:
    weight, bias = (None if p is None else p.detach() for p in (norm.weight, norm.bias))
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        # Copies: torch does not notice that training changes them.
        running = norm.running_mean.clone(), norm.running_var.clone()
        return (x, *running, weight, bias), partial(_by_running, norm.eps)
    if x.is_cpu and _is_dense(x) and reads_back_for_free():
        mean, deviation = node._saved_result1, node._saved_result2
        if mean.dtype in (torch.float32, torch.float64) and (weight is None or weight.dtype == mean.dtype):
            return (x, mean, deviation, weight, bias), _by_statistics
    return (x, weight, bias), partial(_by_batch, norm.eps)


def _by_running(eps: float, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def _by_statistics(x: Tensor, mean: Tensor, deviation: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Apply statistics of a batch by the kernel for running ones, which multiplies weight and 1 / deviation first."""
    factor = deviation if weight is None else deviation * weight
    return nn.functional.batch_norm(x, mean, torch.ones_like(mean), factor, bias, False, 0.0, _NO_EPSILON)


def _by_batch(eps: float, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


def _is_dense(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.is_contiguous() or (x.ndim in formats and x.is_contiguous(memory_format=formats[x.ndim]))
