"""A fused twin of ``snn.Leaky``: the host's class in all but how a whole sequence is computed.

Step by step a twin is the host's neuron. Where :func:`snn_ext.snntorch.run_steps` or ``bptt`` runs a net on a whole
sequence, it is computed by the operator, and what the operator cannot do step by step.
"""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from .._errors import describe
from ..functional import Surrogate, as_surrogate
from ..functional.integrate_and_fire import Reset, broadcasts, charged
from ..ops import integrate_and_fire
from .sequence import step_by_step

__all__ = ["TWINS", "why_not"]

_RESETS: dict[str, Reset] = {"_base_sub": "delayed", "_base_zero": "zero", "_base_int": "none"}
"""By the host's method that carries it out: another ``reset_mechanism`` changes only the name."""


def why_not(neuron: Any) -> str | None:
    """Return why the operator cannot stand in for an ``snn.Leaky``; ``None`` if it can."""
    if not neuron.init_hidden:
        return "init_hidden=False: mem is handed from step to step, so that no call sees a sequence"
    if neuron.output:
        return "output=True: the operator does not hand out mem of every step"
    for name, only in (("inhibition", False), ("state_quant", False), ("reset_delay", True)):
        if getattr(neuron, name) is not only:
            return f"{name}={describe(getattr(neuron, name))}: the operator has no such thing"
    for name in ("threshold", "graded_spikes_factor"):
        if getattr(neuron, name).numel() != 1:
            return f"{name} is {describe(getattr(neuron, name))}: the operator takes one for all neurons"
    if getattr(neuron.state_function, "__name__", "") not in _RESETS:
        return "a state_function of its own"
    if not isinstance(as_surrogate(neuron.spike_grad), Surrogate):
        name = getattr(neuron.spike_grad, "__qualname__", type(neuron.spike_grad).__name__)
        return f"spike_grad {name}: its gradient is none of the operator's curves"
    return None


class FusedLeaky(snn.Leaky):
    """``snn.Leaky`` by the fused operator."""

    twin_of = snn.Leaky
    mem: Tensor
    _time_in_batch: int | None = None  # T while a net runs on [T * N, ...]

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """Advance by one step, as the host; by T of them while ``run_steps`` or ``bptt`` runs the net."""
        time_steps = self._time_in_batch
        if time_steps is None:
            return super().forward(input_, mem)
        x_seq = input_.unflatten(0, (time_steps, -1))
        if time_steps == 1 or why_not(self) is not None or not self._fits(x_seq):
            return step_by_step(super().forward, time_steps, input_)
        spk = self._sequence(x_seq, _RESETS[self.state_function.__name__])
        return spk.float().flatten(0, 1)  # the host's spikes are float32, whatever comes

    def _fits(self, x_seq: Tensor) -> bool:
        """Return True where the operator rounds as the host does."""
        if x_seq.dtype not in (torch.float32, torch.float64):
            return False
        for value in (self.beta, self.threshold):
            if value.ndim and value.dtype != x_seq.dtype:
                return False
        shape = x_seq.shape[1:]
        if not broadcasts(self.beta.shape, shape) or not broadcasts(self.threshold.shape, shape):
            return False
        if self.mem.shape == shape and self.mem.dtype != x_seq.dtype:
            return False
        # Of a threshold without a dimension the host subtracts what is left of it in its float32 spikes.
        narrow = self.threshold.ndim == 0 and self.threshold.dtype == torch.float64
        return not narrow or bool(self.threshold.float() == self.threshold)

    def _sequence(self, x_seq: Tensor, reset: Reset) -> Tensor:
        """Return spikes ``[T, N, ...]``; ``mem`` is that of the last step, before its reset."""
        threshold, beta = self.threshold.reshape(1).to(x_seq.dtype), self.beta.clamp(0, 1).to(x_seq.dtype)
        v: Tensor | float = self.mem if self.mem.shape == x_seq.shape[1:] else 0.0
        options: dict[str, Any] = {
            "surrogate": self.spike_grad, "detach_reset": True, "fire_at_threshold": False, "scale": self._scale(),
            "decay": beta, "charge": "beta",
        }  # fmt: skip
        if reset != "zero":
            spk, self.mem = integrate_and_fire(x_seq, v, threshold, reset=reset, **options)
            return spk
        # The operator resets at once, the host at the next step: the last step leaves mem as it charges it.
        if isinstance(v, Tensor):
            v = v * (v.detach() <= threshold.detach())
        before, v = integrate_and_fire(x_seq[:-1], v, threshold, reset="zero", **options)
        last, _ = integrate_and_fire(x_seq[-1:], v, threshold, reset="none", **options)
        self.mem = charged(v, x_seq[-1], beta, "beta")
        return torch.cat((before, last))

    def _scale(self) -> Tensor | None:
        """Return the value of a spike, or ``None`` where it is known to be 1."""
        factor = self.graded_spikes_factor
        plain = not isinstance(factor, nn.Parameter) and factor.is_cpu and bool(factor == 1)
        return None if plain else factor


TWINS: dict[type, type] = {snn.Leaky: FusedLeaky}
"""The twin of each class of the host that has one."""
