"""``integrate_and_fire`` in pure torch: for any device and floating dtype; chunked and in place on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...functional.integrate_and_fire import multiply_add
from ..layout import flat, is_one
from ..machine.torch_parts import AlwaysRuns, chunk_size, surrogate_in_place
from ..sequence import SEGMENT, checkpoint_count
from .operator import Inputs, Outputs, Settings

__all__ = ["TorchImplementation"]


class TorchImplementation(AlwaysRuns):
    """A few in-place torch operations a step, on one chunk of neurons after the other."""

    def forward(self, inputs: Inputs, settings: Settings, checkpoints: Tensor | None, outputs: Outputs) -> None:
        """Integrate and fire."""
        x_seq, v, thresholds, scale, decay = inputs[:5]
        spike_seq, v_end = outputs
        time_steps, size = len(x_seq), v_end.numel()
        constants = _constants(decay, v_end)
        x_seq, spike_seq = flat(x_seq, time_steps, size), flat(spike_seq, time_steps, size)
        v_end = flat(v_end.copy_(v), size)
        in_place = scale is None and spike_seq.dtype == v_end.dtype
        thetas = _of_steps(thresholds, time_steps, size)
        step = chunk_size(v_end)
        for start in range(0, size, step):
            chunk = slice(start, start + step)
            h = v_end[chunk]
            buffer = None if in_place else torch.empty_like(h)
            norm = _norm_of(inputs, chunk)
            rows = zip(thetas, _normalised(x_seq[:, chunk], norm).unbind(), spike_seq[:, chunk].unbind(), strict=True)
            for t, (level, x, out) in enumerate(rows):
                theta = _part(level, chunk)
                if checkpoints is not None and t and t % SEGMENT == 0:
                    checkpoints[t // SEGMENT - 1, 0, chunk] = h
                s = out if buffer is None else buffer
                _fire(_charge(h, x, _part(constants, chunk), theta, settings, s), theta, settings, s)
                _reset(h, s, theta, settings, h)
                if buffer is not None:
                    out.copy_(s if scale is None else s.mul_(scale))

    def backward(
        self, inputs: Inputs, settings: Settings, checkpoints: Tensor | None, incoming: Outputs, gradients: Inputs
    ) -> None:
        """Recompute one segment after the other, the last first, and walk back through it."""
        x_seq, v, thresholds, scale, decay = inputs[:5]
        grad_spike_seq, grad_v_end = incoming
        grad_x_seq, grad_v, grad_thresholds, grad_scale, grad_decay, *grad_norm = gradients[:7]
        time_steps, size = len(x_seq), x_seq.numel() // len(x_seq)
        one_v = v.dim() == 0
        v = flat(v, 1).expand(size) if is_one(v) else flat(v, size)
        x_seq = flat(x_seq, time_steps, size)
        grad_spike_seq = None if grad_spike_seq is None else flat(grad_spike_seq, time_steps, size)
        grad_v_end = None if grad_v_end is None else flat(grad_v_end, size)
        grad_x_seq = None if grad_x_seq is None else flat(grad_x_seq, time_steps, size)
        levels, each = _of_steps(thresholds, time_steps, size), thresholds.dim() > 1
        theta_sums = v.new_zeros(time_steps, dtype=torch.float64)
        scale_sum, v_sum, decay_sum = v.new_zeros(3, dtype=torch.float64)
        constants, leaks, delayed = _constants(decay, v), decay is not None, settings.reset == "delayed"
        chunk_sums = v.new_empty(time_steps)
        step = chunk_size(v)
        rows = min(time_steps, SEGMENT)
        buffers = v.new_empty((1 + leaks) * rows + 6, step)  # once: fresh memory costs page faults
        for start in range(0, size, step):
            chunk = slice(start, start + step)
            norm = _norm_of(inputs, chunk)
            raw, x = x_seq[:, chunk].unbind(), _normalised(x_seq[:, chunk], norm).unbind()
            norm_sums = v.new_zeros(2, len(x[0])) if norm is not None else None
            grad_x = None if grad_x_seq is None else grad_x_seq[:, chunk].unbind()
            grad_spikes = None if grad_spike_seq is None else grad_spike_seq[:, chunk].unbind()
            s, d, g, c, g_decay, g_theta, *h_rows = buffers[:, : len(x[0])].unbind()
            before, constant = h_rows[rows:], _part(constants, chunk)
            thetas = [_part(level, chunk) for level in levels]
            if leaks:
                g_decay.zero_()
            if each:
                g_theta.zero_()
            c.zero_() if grad_v_end is None else c.copy_(grad_v_end[chunk])
            for segment in range(checkpoint_count(time_steps), -1, -1):
                entry = v if segment == 0 or checkpoints is None else checkpoints[segment - 1, 0]
                steps = range(segment * SEGMENT, min((segment + 1) * SEGMENT, time_steps))
                d.copy_(entry[chunk])
                for t in steps:
                    h = h_rows[t % SEGMENT]
                    if leaks:
                        _charge(h.copy_(before[t % SEGMENT].copy_(d)), x[t], constant, thetas[t], settings, s)
                    else:
                        torch.add(d, x[t], out=h)
                    _fire(h, thetas[t], settings, s)
                    _reset(h, s, thetas[t], settings, d)
                for t in reversed(steps):
                    h, theta = h_rows[t % SEGMENT], thetas[t]
                    _fire(h, theta, settings, s)
                    g_out = g.zero_() if grad_spikes is None else grad_spikes[t]
                    if scale is not None:
                        scale_sum += torch.mul(s, g_out, out=d).sum()
                        g_out = g.copy_(g_out).mul_(scale)
                    if settings.detach_reset or settings.reset in ("none", "delayed"):
                        g.copy_(g_out)
                    else:
                        torch.addcmul(g_out, c, theta if settings.reset == "subtract" else h, value=-1.0, out=g)
                    u = torch.sub(h, theta, out=d)
                    g_u = surrogate_in_place(u, settings.surrogate, settings.alpha, settings.gain).mul_(g)
                    if settings.reset == "subtract":
                        term = s.mul_(c).add_(g_u)
                    elif not delayed:
                        term = g_u
                    if settings.reset == "zero":
                        c.mul_(s.neg_().add_(1.0))
                    c.add_(g_u)
                    if delayed:
                        _fire(before[t % SEGMENT], theta, settings, s)
                        term = s.mul_(c).add_(g_u)
                    if each:
                        g_theta.sub_(term)
                    else:
                        torch.sum(term, 0, out=chunk_sums[t])
                    if leaks:
                        _charge_backward(c, before[t % SEGMENT], x[t], constant, settings, s, g, g_decay)
                    g_x = g if leaks else g.copy_(c)
                    if norm is not None and norm_sums is not None:
                        norm_sums[0].addcmul_(g_x, raw[t] - norm.center)
                        norm_sums[1].add_(g_x)
                        g_x.mul_(norm.gain)
                    if grad_x is not None:
                        grad_x[t].copy_(g_x)
            if not each:
                theta_sums -= chunk_sums
            elif grad_thresholds is not None:
                flat(grad_thresholds, size)[chunk] = g_theta
            for grad, total in zip(grad_norm, () if norm_sums is None else norm_sums, strict=False):
                if grad is not None:
                    flat(grad, size)[chunk] = total
            if grad_decay is not None and grad_decay.dim():
                flat(grad_decay, size)[chunk] = g_decay
            elif grad_decay is not None:
                decay_sum += g_decay.sum()
            if one_v:
                v_sum += c.sum()
            elif grad_v is not None:
                flat(grad_v, size)[chunk] = c
        if grad_thresholds is not None and not each:
            grad_thresholds.copy_(theta_sums if len(thresholds) == len(theta_sums) else theta_sums.sum())
        if grad_scale is not None:
            grad_scale.fill_(scale_sum)
        if one_v and grad_v is not None:
            grad_v.fill_(v_sum)
        if grad_decay is not None and not grad_decay.dim():
            grad_decay.fill_(decay_sum)


class _Norm(NamedTuple):
    """The norm of each neuron of a chunk."""

    center: Tensor
    gain: Tensor
    offset: Tensor


def _norm_of(inputs: Inputs, chunk: slice) -> _Norm | None:
    center, gain, shift = inputs.norm_center, inputs.norm_gain, inputs.norm_shift
    if center is None or gain is None or shift is None:
        return None
    places = torch.arange(chunk.start, min(chunk.stop, inputs.x_seq[0].numel()), device=center.device)
    own = places // inputs.x_seq.stride(2) % len(center)
    return _Norm(center[own], gain[own], multiply_add(-center, gain, shift)[own])


def _normalised(x: Tensor, norm: _Norm | None) -> Tensor:
    return x if norm is None else multiply_add(x.to(norm.gain.dtype), norm.gain, norm.offset)


def _constants(decay: Tensor | None, v: Tensor) -> Tensor:
    """Return one decay without a dimension, or one for each neuron in their order of memory; 1, unused, for no leak."""
    if decay is None:
        return v.new_ones(())
    return flat(decay, 1)[0] if is_one(decay) else flat(decay, decay.numel())


def _of_steps(thresholds: Tensor, time_steps: int, size: int) -> Sequence[Tensor]:
    """Return the threshold of each step, without a dimension, or those of the neurons in their order of memory."""
    if thresholds.dim() > 1:
        return [flat(thresholds, size)] * time_steps
    return thresholds.expand(time_steps).unbind()


def _part(constants: Tensor, chunk: slice) -> Tensor:
    return constants[chunk] if constants.dim() else constants


def _charge(v: Tensor, x: Tensor, d: Tensor, theta: Tensor, settings: Settings, buffer: Tensor) -> Tensor:
    """Charge v in place, in the order of the definition; no operation may be contracted, so none is addcmul."""
    match settings.charge:
        case "tau":
            return v.sub_(torch.div(v, d, out=buffer)).add_(x)
        case "tau_input":
            return v.add_(torch.sub(x, v, out=buffer).div_(d))
        case "rate":
            return v.sub_(torch.mul(v, d, out=buffer)).add_(x)
        case "rate_input":
            return v.add_(torch.sub(x, v, out=buffer).mul_(d))
        case "beta":
            if settings.reset != "delayed":
                return v.mul_(d).add_(x)
            _fire(v, theta, settings, buffer)
            return v.mul_(d).add_(x).addcmul_(buffer, theta, value=-1.0)  # exact: the factor is 0 or 1
        case _:
            return v.add_(x)


def _charge_backward(
    c: Tensor, v: Tensor, x: Tensor, d: Tensor, settings: Settings, buffer: Tensor, g_x: Tensor, g_decay: Tensor
) -> None:
    """Take c from the gradient of h to that of the potential before the step; fill g_x, and add to g_decay."""
    kind, _, of_input = settings.charge.partition("_")
    g_x.copy_(c)
    torch.neg(v, out=buffer) if kind != "beta" else buffer.copy_(v)
    if of_input:
        buffer.add_(x)
    buffer.mul_(c)
    if kind == "tau":
        buffer.div_(-d * d)
    g_decay.add_(buffer)
    if of_input:
        g_x.div_(d) if kind == "tau" else g_x.mul_(d)
    if kind == "beta":
        c.mul_(d)
    else:
        c.sub_(torch.div(c, d, out=buffer) if kind == "tau" else torch.mul(c, d, out=buffer))


def _fire(h: Tensor, theta: Tensor, settings: Settings, out: Tensor) -> None:
    (torch.ge if settings.fire_at_threshold else torch.gt)(h, theta, out=out)


def _reset(h: Tensor, s: Tensor, theta: Tensor, settings: Settings, out: Tensor) -> None:
    if settings.reset == "subtract":
        torch.addcmul(h, s, theta, value=-1.0, out=out)  # exact with or without FMA: s is 0 or 1
        return
    if out is not h:
        out.copy_(h)
    if settings.reset == "zero":
        out.masked_fill_(s != 0, 0.0)
