"""``adaptive_spiking`` in pure torch: for any device and floating dtype; chunked and in place on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import flat, is_one
from ..machine.torch_parts import AlwaysRuns, chunk_size, surrogate_in_place
from ..sequence import SEGMENT, checkpoint_count
from .operator import Inputs, Outputs, Settings

__all__ = ["TorchImplementation"]


class TorchImplementation(AlwaysRuns):
    """A dozen in-place torch operations a step, on one chunk of neurons after the other."""

    def forward(self, inputs: Inputs, settings: Settings, checkpoints: Tensor | None, outputs: Outputs) -> None:
        """Filter, adapt and fire."""
        current_seq, bias, *start, constants = inputs
        out_seq, *end = outputs
        used = 2 if settings.output == "potential" else 4
        time_steps, size = len(current_seq), end[0].numel()
        current_seq, out_seq = flat(current_seq, time_steps, size), flat(out_seq, time_steps, size)
        end = [flat(part.copy_(first), size) for part, first in zip(end[:used], start, strict=False)]
        bias, constants = _row(bias, size), _columns(constants, size)
        chunks = chunk_size(end[0])
        for first in range(0, size, chunks):
            chunk = slice(first, first + chunks)
            step = _Step([part[chunk] for part in end], bias[chunk], _constants(constants, chunk), settings)
            rows = zip(current_seq[:, chunk].unbind(), out_seq[:, chunk].unbind(), strict=True)
            for t, (current, out) in enumerate(rows):
                if checkpoints is not None and t and t % SEGMENT == 0:
                    for kept, part in zip(checkpoints[t // SEGMENT - 1], step.state, strict=True):
                        kept[chunk] = part
                out.copy_(step.advance(current))

    def backward(
        self, inputs: Inputs, settings: Settings, checkpoints: Tensor | None, incoming: Outputs, gradients: Inputs
    ) -> None:
        """Recompute one segment after the other, the last first, and walk back through it."""
        current_seq, bias, *start, constants = inputs
        grad_out_seq, *grad_end = incoming
        grad_current_seq, grad_bias, *grad_start, _ = gradients
        spikes = settings.output != "potential"
        time_steps, size = len(current_seq), current_seq.numel() // len(current_seq)
        current_seq, bias = flat(current_seq, time_steps, size), _row(bias, size)
        constants = _columns(constants, size)
        grad_out_seq = None if grad_out_seq is None else flat(grad_out_seq, time_steps, size)
        grad_current_seq = None if grad_current_seq is None else flat(grad_current_seq, time_steps, size)
        start = [_row(part, size) for part in start] if spikes else []
        chunks = chunk_size(bias)
        for first in range(0, size, chunks):
            chunk = slice(first, min(first + chunks, size))
            g = [
                bias.new_zeros(chunk.stop - first) if part is None else flat(part, size)[chunk].clone()
                for part in grad_end
            ]
            c = _constants(constants, chunk)
            g_bias = torch.zeros_like(g[0])
            for segment in range(checkpoint_count(time_steps), -1, -1):
                entry = start if segment == 0 or checkpoints is None else checkpoints[segment - 1].unbind()
                steps = range(segment * SEGMENT, min((segment + 1) * SEGMENT, time_steps))
                rows: dict[int, tuple[Tensor, Tensor]] = {}
                if spikes:  # without them it is linear
                    step = _Step([part[chunk].clone() for part in entry], bias[chunk], c, settings)
                    for t in steps:
                        step.advance(current_seq[t, chunk])
                        rows[t] = step.u.clone(), step.theta.clone()
                for t in reversed(steps):
                    g_out = torch.zeros_like(g[0]) if grad_out_seq is None else grad_out_seq[t, chunk].to(g[0].dtype)
                    g_bias.add_(_retreat(g, g_out, *rows.get(t, (g_out, g_out)), c, settings))
                    if grad_current_seq is not None:
                        grad_current_seq[t, chunk] = g[0]
                    g[0] = torch.zeros_like(g[0]) if settings.analog_input else g[0].mul_(c[2])
            if grad_bias is not None:
                flat(grad_bias, size)[chunk] = g_bias
            for target, part in zip(grad_start, g, strict=False):
                if target is not None:
                    flat(target, size)[chunk] = part


class _Step:
    """States of one chunk, advanced in place; no operation here may be contracted, so none is addcmul."""

    def __init__(self, state: list[Tensor], bias: Tensor, constants: list[Tensor], settings: Settings) -> None:
        self.state, self.bias, self.settings = state, bias, settings
        self.m_f, self.theta_0, self.decay_beta, self.decay_eta, self.decay_gamma, self.decay_phi = constants
        self.gain = 1.0 - self.decay_phi
        self.u, self.theta, self.buffer, self.z = torch.empty(4, len(bias), dtype=bias.dtype, device=bias.device)

    def advance(self, current: Tensor) -> Tensor:
        """Take one step and return what is put out, in a buffer of the next step's."""
        psc, s = self.state[:2]
        if self.settings.analog_input:
            psc.copy_(current)
        else:
            psc.mul_(self.decay_beta).add_(current)
        s.mul_(self.decay_phi).add_(torch.mul(psc, self.gain, out=self.buffer))
        activation = torch.add(s, self.bias, out=self.u)
        if self.settings.output == "potential":
            return activation
        s_hat, adaptation = self.state[2:]
        theta = torch.add(adaptation, self.theta_0, out=self.theta)
        difference = activation.sub_(s_hat.mul_(self.decay_eta))
        half = torch.mul(theta, 0.5, out=self.buffer)
        z = torch.gt(difference, half, out=self.z)
        difference.sub_(half)
        jump = torch.mul(theta, z, out=self.buffer)
        s_hat.add_(jump)
        if self.settings.output == "heights":
            z.copy_(jump)
        adaptation.add_(jump.mul_(self.m_f)).mul_(self.decay_gamma)
        return z


def _retreat(g: list[Tensor], g_out: Tensor, u: Tensor, theta: Tensor, c: list[Tensor], settings: Settings) -> Tensor:
    """Take the gradients of the states before the step, but for the decay of the current; return that of S."""
    m_f, _, _, decay_eta, decay_gamma, decay_phi = c
    psc, s, s_hat, adaptation = g
    g_s = g_out
    if settings.output != "potential":
        z = (u > 0).to(u.dtype)
        adaptation.mul_(decay_gamma)
        g_jump = s_hat + m_f * adaptation
        g_z = g_out * theta if settings.output == "heights" else g_out
        if not settings.detach_adaptation:
            g_z = g_z + theta * g_jump
        if settings.output == "heights":
            g_jump = g_jump + g_out
        g_s = surrogate_in_place(u.clone(), settings.surrogate, settings.alpha, settings.gain).mul_(g_z)
        s_hat.sub_(g_s).mul_(decay_eta)
        adaptation.add_(z.mul_(g_jump)).sub_(0.5 * g_s)
    s.add_(g_s)
    psc.add_((1.0 - decay_phi) * s)
    s.mul_(decay_phi)
    return g_s


def _row(array: Tensor, size: int) -> Tensor:
    return flat(array, 1).expand(size) if is_one(array) else flat(array, size)


def _columns(constants: Tensor, size: int) -> Tensor:
    return flat(constants, len(constants), size) if constants.dim() > 1 else constants


def _constants(constants: Tensor, chunk: slice) -> list[Tensor]:
    return list((constants[:, chunk] if constants.dim() > 1 else constants).unbind())
