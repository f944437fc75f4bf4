"""Batch norm and neuron as one operator: :func:`fuse_norms`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ._counting import counted
from ._errors import bad_type
from .hosts import fresh_copy, host_of
from .norms import norms_of, why_not
from .ops.deferred import Deferred
from .ops.norm_statistics import add_norm_gradient, batch_statistics
from .ops.registry import select

__all__ = ["FusedNorms", "fuse_norms"]


def fuse_norms(net: nn.Module, x: Tensor) -> FusedNorms:
    r"""Let a batch norm and the neuron behind it run as one operator, in place, in training and in evaluation.

    The norm computes its statistics, one mean :math:`\mu` and deviation a channel, and hands its input on. The neuron
    reads that input and multiplies on the way:

    .. math:: y = x a + (\beta - \mu a), \qquad a = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}

    So the norm's output is never in memory: not written, not read, not kept for the backward pass, which keeps the
    convolution's output alone. Statistics are over time and batch, and running statistics advance, as in the host.

    Parameters
    ----------
    net : nn.Module
        Has batch norms of SpikingJelly in step mode "m" in front of neurons of snn_ext or of those that
        :func:`accelerate` has swapped.
    x : Tensor
        Input of a call. A copy of the net runs it, and shows who reads the output of which norm.

    Returns
    -------
    FusedNorms
        The pairs, the norms that are left with the reason, and ``undo()``.

    Raises
    ------
    TypeError
        If ``net`` is no module, or ``x`` no tensor.
    ValueError
        If the net has no batch norm. It is unchanged then, as after any error of the call of its copy.

    Notes
    -----
    State dict, parameters and classes stay; copies and pickles are fused as well. Should anything but a fused operator
    read the output of such a norm at a later call, it gets the norm's output, computed then: only time is lost.
    Compiled nets, other dtypes than float32, single steps and the host's operation counters run the norm by itself.

    On a CPU with FMA the product above is rounded as in torch, so spikes are those of the net as it was; elsewhere the
    norm's last bit may differ, and with it a spike whose potential is that close to the threshold. Gradients differ in
    the order of sums.

    Examples
    --------
    >>> from spikingjelly.activation_based import functional, layer
    >>> from snn_ext.spikingjelly import ATIFuNode
    >>> net = nn.Sequential(layer.Conv2d(2, 8, 3), layer.BatchNorm2d(8), ATIFuNode(), layer.AvgPool2d(2))
    >>> functional.set_step_mode(net, "m")
    >>> done = fuse_norms(net, torch.rand(4, 2, 2, 8, 8))
    >>> done.fused, done.left
    ({'1': '2'}, {})
    >>> net(torch.rand(4, 2, 2, 8, 8)).sum().backward()
    >>> done.undo()
    """
    norms = norms_of(net)
    if not isinstance(x, Tensor):
        bad_type("x", x, "a tensor: the input of a call")
    trials = _try(net, x)
    done = FusedNorms()
    for name, norm in norms.items():
        reason = trials[name].reason()
        if reason is None:
            done.fused[name], done._norms[name] = trials[name].neuron, norm
            norm.__dict__["forward"] = _Forward(norm)
        else:
            done.left[name] = f"{type(norm).__name__}: {reason}"
    return done


@dataclass(frozen=True)
class FusedNorms:
    """Result of :func:`fuse_norms` on a net.

    Attributes
    ----------
    fused : dict
        Name of a norm to the name of the neuron that it is one operator with.
    left : dict
        Name of a norm to its class and the reason.
    """

    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _norms: dict[str, _BatchNorm] = field(default_factory=dict, repr=False)

    def undo(self) -> None:
        """Let the norms run by themselves again."""
        for norm in self._norms.values():
            norm.__dict__.pop("forward", None)

    def __str__(self) -> str:
        lines = [f"norms fused: {len(self.fused)}, left: {len(self.left)}"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.left.items()])


# -- who reads the output of a norm ------------------------------------------------------------------------------------


class _Trial:
    """Forward pass of a norm in the copy of a net, which notes what becomes of the outputs."""

    def __init__(self, norm: Any, refusal: str | None) -> None:
        self.forward, self.refusal = _Forward(norm), refusal
        self.outputs: list[Deferred] = []
        self.neuron = ""

    def __call__(self, x: Tensor) -> Tensor:
        reason = self.refusal or _why_alone(self.forward.norm, x)
        if reason is not None:
            self.refusal = reason
            return self.forward.alone(x)
        found = self.forward(x)
        if isinstance(found, Deferred):
            self.outputs.append(found)
        return found

    def reason(self) -> str | None:
        """Return why the norm is left; ``None`` if a neuron alone has read each output, by the operator."""
        if self.refusal is not None:
            return self.refusal
        if not self.outputs:
            return "not called"
        readers = [reader for output in self.outputs for reader in output.readers]
        if readers and self.neuron:
            return f"the neuron {self.neuron} does not run by the fused operator, or {readers[0]} reads the output too"
        if readers:
            return f"{readers[0]} reads its output, not a neuron"
        if any(output.takers != 1 for output in self.outputs):
            return "its output is read by no neuron, or by several"
        return None


def _try(net: nn.Module, x: Tensor) -> dict[str, _Trial]:
    twin = fresh_copy(net)
    norms = norms_of(twin)
    trials = {name: _Trial(norm, _refusal(norm)) for name, norm in norms.items()}
    for name, norm in norms.items():
        norm.__dict__["forward"] = trials[name]

    def note(name: str, neuron: nn.Module, args: tuple[Any, ...]) -> None:
        for trial in trials.values():
            if any(output is arg for output in trial.outputs for arg in args):
                trial.neuron = name

    for name, module in twin.named_modules():
        if host_of(module) is not None:
            module.register_forward_pre_hook(partial(note, name))
    devices = [x.device] if x.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        twin(x)
    return trials


def _refusal(norm: Any) -> str | None:
    forward = vars(norm).get("forward")
    if forward is not None and not isinstance(forward, _Forward):
        return "a forward pass of its own"
    if any(map(_is_of_others, norm._forward_hooks.values())):
        return "hooks of others, which would read its output"
    reason = why_not(norm)
    if reason is None and not hasattr(norm, "step_mode"):
        return "a norm of torch, which a container folds time for: use the layer of SpikingJelly"
    return reason


def _is_of_others(hook: Any) -> bool:
    """Return True for a hook that is not of this package."""
    return not type(hook).__module__.startswith("snn_ext.")


# -- a call of a norm --------------------------------------------------------------------------------------------------


class _Forward:
    """Forward pass of one norm: its statistics now, its output when somebody reads it."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm

    def alone(self, x: Tensor) -> Any:
        return type(self.norm).forward(self.norm, x)

    def __call__(self, x: Tensor) -> Any:
        norm = self.norm
        if _why_alone(norm, x) is not None:
            return self.alone(x)
        weight, bias = norm.weight, norm.bias
        if not norm.training and norm.running_mean is not None:
            mean = norm.running_mean
            inverse = torch.rsqrt(norm.running_var + norm.eps)
            gain = inverse if weight is None else inverse * weight
            shift = torch.zeros_like(mean) if bias is None else bias
            statistics: tuple[Tensor | None, ...] = (mean, norm.running_var, weight, bias)
            return Deferred(x, (mean, gain, shift), partial(_output, x, statistics, norm.eps))
        mean, inverse = _advance(norm, x.detach())
        found, gain, shift = _OfBatch.apply(x, weight, bias, mean, inverse)
        return Deferred(found, (mean, gain, shift), partial(_output, x, (None, None, weight, bias), norm.eps))


_DIMENSIONS = {"BatchNorm1d": (3, 4), "BatchNorm2d": (5,), "BatchNorm3d": (6,)}


def _why_alone(norm: Any, x: Any) -> str | None:
    """Return why a norm runs by itself on an input; ``None`` if its output can wait for the neuron."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or counted():
        return "compiled, transformed or counted"
    if getattr(norm, "step_mode", "s") != "m":
        return "step mode 's': a step is a call of its own"
    if type(x) is not Tensor or x.dtype != torch.float32:
        return "another dtype than float32, which it would round to on its way"
    if x.ndim not in _DIMENSIONS[type(norm).__name__] or x.shape[2] != norm.num_features:
        return "an input of another shape"
    if norm.weight is not None and (norm.weight.dtype, norm.weight.device) != (x.dtype, x.device):
        return "parameters of another dtype or device"
    if x.numel() <= x.shape[2]:
        return "one value a channel"
    if torch.autograd.forward_ad._current_level >= 0:
        return "a forward-mode derivative"
    if select("integrate_and_fire", x.device, x.dtype).name == "torch":
        return "no compiled operator runs here"
    return None


def _advance(norm: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and inverse deviation of a batch; running statistics advance as in torch's norm."""
    mean, var = batch_statistics(x)
    if norm.training and norm.track_running_stats:
        weight = 0.0 if norm.momentum is None else norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:
                weight = 1.0 / float(norm.num_batches_tracked)
        count = x.numel() // len(mean)
        unbiased = var.double() * (count / (count - 1))
        for running, new in ((norm.running_mean, mean.double()), (norm.running_var, unbiased)):
            running.copy_(new.mul_(weight).add_(running.double(), alpha=1.0 - weight))
    return mean, var.double().add_(norm.eps).rsqrt_().to(var.dtype)  # as torch: one rounding at the end


def _output(x: Tensor, statistics: tuple[Tensor | None, ...], eps: float) -> Tensor:
    mean, var, weight, bias = statistics
    y = nn.functional.batch_norm(x.flatten(0, 1), mean, var, weight, bias, mean is None, 0.0, eps)
    return y.unflatten(0, x.shape[:2])


class _OfBatch(torch.autograd.Function):
    r"""Input, gains and shifts of a norm by statistics of the batch: the gradient goes through these, too.

    With :math:`g` the gradient of the norm's output, the operator hands back :math:`g a`, :math:`s_0 = \sum g` and
    :math:`s_1 = \sum g (x - \mu)`. Of n values a channel the input's gradient is
    :math:`g a - a s_0 / n - (x - \mu)\, a s_1 / (n \sigma^2)`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.set_materialize_grads(False)
        gain = inverse.clone() if weight is None else inverse * weight
        return x.view_as(x), gain, torch.zeros_like(mean) if bias is None else bias.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, of_gain: Tensor | None, of_shift: Tensor | None) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        if of_gain is None or of_shift is None:
            return None, None, None, None, None
        if grad is not None and ctx.needs_input_grad[0]:
            per_value = (inverse if weight is None else inverse * weight) * (mean.numel() / x.numel())
            add_norm_gradient(grad, x, mean, -per_value * inverse.square() * of_gain, -per_value * of_shift)
        of_weight, of_bias = ctx.needs_input_grad[1:3]
        return grad, of_gain * inverse if of_weight else None, of_shift if of_bias else None, None, None
