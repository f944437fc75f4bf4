"""``integrate_and_fire`` in pure torch: for any device and floating dtype; chunked and in place on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import flat, is_one
from ..machine.torch_parts import AlwaysRuns, chunk_size, surrogate_in_place
from ..sequence import SEGMENT, checkpoint_count
from .operator import Inputs, Outputs, Settings

__all__ = ["TorchImplementation"]


class TorchImplementation(AlwaysRuns):
    """A few in-place torch operations a step, on one chunk of neurons after the other."""

    def forward(self, inputs: Inputs, settings: Settings, checkpoints: Tensor | None, outputs: Outputs) -> None:
        """Integrate and fire."""
        x_seq, v, thresholds, scale = inputs
        spike_seq, v_end = outputs
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
                    checkpoints[t // SEGMENT - 1, 0, chunk] = h
                s = out if buffer is None else buffer
                _fire(h.add_(x), theta, settings, s)
                _reset(h, s, theta, settings, h)
                if buffer is not None:
                    out.copy_(s if scale is None else s.mul_(scale))

    def backward(
        self, inputs: Inputs, settings: Settings, checkpoints: Tensor | None, incoming: Outputs, gradients: Inputs
    ) -> None:
        """Recompute one segment after the other, the last first, and walk back through it."""
        x_seq, v, thresholds, scale = inputs
        grad_spike_seq, grad_v_end = incoming
        grad_x_seq, grad_v, grad_thresholds, grad_scale = gradients
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
                entry = v if segment == 0 or checkpoints is None else checkpoints[segment - 1, 0]
                steps = range(segment * SEGMENT, min((segment + 1) * SEGMENT, time_steps))
                d.copy_(entry[chunk])
                for t in steps:
                    h = torch.add(d, x[t], out=h_rows[t % SEGMENT])
                    _fire(h, thetas[t], settings, s)
                    _reset(h, s, thetas[t], settings, d)
                for t in reversed(steps):
                    h, theta = h_rows[t % SEGMENT], thetas[t]
                    _fire(h, theta, settings, s)
                    g_out = g.zero_() if grad_spikes is None else grad_spikes[t]
                    if scale is not None:
                        scale_sum += torch.mul(s, g_out, out=d).sum()
                        g_out = g.copy_(g_out).mul_(scale)
                    if settings.detach_reset or settings.reset == "none":
                        g.copy_(g_out)
                    else:
                        torch.addcmul(g_out, c, theta if settings.reset == "subtract" else h, value=-1.0, out=g)
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
