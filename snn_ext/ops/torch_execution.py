"""The execution in pure torch: always there, for any device and floating dtype; chunked and in place on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .execution import SEGMENT, Settings, checkpoint_count
from .layout import flat, is_one

__all__ = ["TorchExecution", "chunk_size", "surrogate_in_place"]

# Neurons at a time: fewer than those for which torch forks threads (32768), as beside a busy neighbour every fork and
# join may wait for it. Where there are very many, large chunks make forks rare, and two threads are worth them.
_CHUNK, _LARGE_CHUNK = 32704, 262144
_LOG2_E = 1.4426950408889634


class TorchExecution:
    """A few in-place torch operations a step, on one chunk of neurons after the other."""

    name = "torch"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return None: it always runs."""
        return None

    def forward(
        self,
        x_seq: Tensor,
        v: Tensor,
        thresholds: Tensor,
        scale: Tensor | None,
        settings: Settings,
        *,
        spike_seq: Tensor,
        v_end: Tensor,
        checkpoints: Tensor | None,
    ) -> None:
        """Integrate and fire."""
        time_steps, size = len(x_seq), v_end.numel()
        x_seq, spike_seq = flat(x_seq, time_steps, size), flat(spike_seq, time_steps, size)
        v_end = flat(v_end.copy_(v), size)
        in_place = scale is None and spike_seq.dtype == v_end.dtype
        thetas = thresholds.expand(time_steps).unbind()
        step = chunk_size(v_end)
        for start in range(0, size, step):
            chunk = slice(start, start + step)
            h = v_end[chunk]
            buffer = None if in_place else torch.empty_like(h)
            rows = zip(thetas, x_seq[:, chunk].unbind(), spike_seq[:, chunk].unbind(), strict=True)
            for t, (theta, x, out) in enumerate(rows):
                if checkpoints is not None and t and t % SEGMENT == 0:
                    checkpoints[t // SEGMENT - 1, chunk] = h
                s = out if buffer is None else buffer
                _fire(h.add_(x), theta, settings, s)
                _reset(h, s, theta, settings, h)
                if buffer is not None:
                    out.copy_(s if scale is None else s.mul_(scale))

    def backward(
        self,
        grad_spike_seq: Tensor | None,
        grad_v_end: Tensor | None,
        x_seq: Tensor,
        v: Tensor,
        thresholds: Tensor,
        scale: Tensor | None,
        checkpoints: Tensor | None,
        settings: Settings,
        *,
        grad_x_seq: Tensor | None,
        grad_v: Tensor | None,
        grad_thresholds: Tensor | None,
        grad_scale: Tensor | None,
    ) -> None:
        """Recompute one segment after the other, the last first, and walk back through it."""
        time_steps, size = len(x_seq), x_seq.numel() // len(x_seq)
        one_v = v.dim() == 0
        v = flat(v, 1).expand(size) if is_one(v) else flat(v, size)
        x_seq = flat(x_seq, time_steps, size)
        grad_spike_seq = None if grad_spike_seq is None else flat(grad_spike_seq, time_steps, size)
        grad_v_end = None if grad_v_end is None else flat(grad_v_end, size)
        grad_x_seq = None if grad_x_seq is None else flat(grad_x_seq, time_steps, size)
        thetas = thresholds.expand(time_steps).unbind()
        theta_sums = v.new_zeros(time_steps, dtype=torch.float64)
        scale_sum, v_sum = v.new_zeros(2, dtype=torch.float64)
        chunk_sums = v.new_empty(time_steps)
        step = chunk_size(v)
        buffers = v.new_empty(min(time_steps, SEGMENT) + 4, step)  # once: fresh memory costs page faults
        for start in range(0, size, step):
            chunk = slice(start, start + step)
            x = x_seq[:, chunk].unbind()
            grad_x = None if grad_x_seq is None else grad_x_seq[:, chunk].unbind()
            grad_spikes = None if grad_spike_seq is None else grad_spike_seq[:, chunk].unbind()
            s, d, g, c, *h_rows = buffers[:, : len(x[0])].unbind()
            c.zero_() if grad_v_end is None else c.copy_(grad_v_end[chunk])
            for segment in range(checkpoint_count(time_steps), -1, -1):
                entry = v if segment == 0 or checkpoints is None else checkpoints[segment - 1]
                steps = range(segment * SEGMENT, min((segment + 1) * SEGMENT, time_steps))
                d.copy_(entry[chunk])
                for t in steps:
                    h = torch.add(d, x[t], out=h_rows[t % SEGMENT])
                    _fire(h, thetas[t], settings, s)
                    _reset(h, s, thetas[t], settings, d)
                for t in reversed(steps):
                    h, theta = h_rows[t % SEGMENT], thetas[t]
                    _fire(h, theta, settings, s)
                    incoming = g.zero_() if grad_spikes is None else grad_spikes[t]
                    if scale is not None:
                        scale_sum += torch.mul(s, incoming, out=d).sum()
                        incoming = g.copy_(incoming).mul_(scale)
                    if settings.detach_reset or settings.reset == "none":
                        g.copy_(incoming)
                    else:
                        torch.addcmul(incoming, c, theta if settings.reset == "subtract" else h, value=-1.0, out=g)
                    u = torch.sub(h, theta, out=d)
                    g_u = surrogate_in_place(u, settings.surrogate, settings.alpha, settings.gain).mul_(g)
                    if settings.reset == "subtract":
                        torch.sum(s.mul_(c).add_(g_u), 0, out=chunk_sums[t])
                    else:
                        torch.sum(g_u, 0, out=chunk_sums[t])
                    if settings.reset == "zero":
                        c.mul_(s.neg_().add_(1.0))
                    c.add_(g_u)
                    if grad_x is not None:
                        grad_x[t].copy_(c)
            theta_sums -= chunk_sums
            if one_v:
                v_sum += c.sum()
            elif grad_v is not None:
                flat(grad_v, size)[chunk] = c
        if grad_thresholds is not None:
            grad_thresholds.copy_(theta_sums if len(thresholds) == len(theta_sums) else theta_sums.sum())
        if grad_scale is not None:
            grad_scale.fill_(scale_sum)
        if one_v and grad_v is not None:
            grad_v.fill_(v_sum)


def chunk_size(v: Tensor) -> int:
    """Return the number of neurons at a time; other devices than the CPU get them in one piece."""
    if v.device.type != "cpu":
        return len(v)
    return min(len(v), _CHUNK if len(v) < 4 * _LARGE_CHUNK else _LARGE_CHUNK)


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


def surrogate_in_place(u: Tensor, curve: int, alpha: float, gain: float) -> Tensor:
    """Replace u by the surrogate's derivative: :mod:`snn_ext.functional.surrogates`, in place."""
    # exp2 and sigmoid in place of exp: torch forks threads for an exp of more than 2048 elements.
    match curve:
        case 0:  # s (1 - s) = q - q^2 with q the smaller of s and 1 - s
            u.abs_().mul_(-alpha).sigmoid_().addcmul_(u, u, value=-1.0)
            factor = alpha
        case 1:
            u.mul_(math.pi / 2 * alpha).square_().add_(1.0).reciprocal_()
            factor = alpha / 2
        case 2:
            u.abs_().mul_(-alpha).add_(1.0).clamp_min_(0.0)
            factor = alpha
        case 3:
            u.abs_().mul_(-alpha * _LOG2_E).exp2_()
            factor = alpha / 2
        case 4:
            u.abs_().mul_(alpha).add_(1.0).square_().reciprocal_()
            factor = alpha / 2
        case 5:
            u.abs_().add_(1.0).square_().reciprocal_()
            factor = alpha
        case _:
            u.square_().mul_(-alpha * alpha * _LOG2_E).exp2_()
            factor = alpha / math.sqrt(math.pi)
    return u.mul_(factor * gain)
