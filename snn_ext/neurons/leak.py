"""The leak of an integrate-and-fire neuron: SpikingJelly's time constant, and snnTorch's decay of a step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._errors import bad_type, bad_value, check_bool, check_real
from ..functional import state_dtype
from ..functional.integrate_and_fire import Charge
from ..hosts import kind_of
from .base import Admits, known, per_channel, show

__all__ = ["BetaLeak", "Leak", "TauLeak"]


class Leak(NamedTuple):
    """What the operator has to know of a leak; no decay where there is none."""

    decay: Tensor | float | None = None
    charge: Charge = "add"


class TauLeak(nn.Module):
    """A time constant ``tau`` as in ``LIFNode``, or 1 / sigmoid(w) with a parameter ``w`` as in its PLIF.

    It is one or one per channel: a number, or a buffer ``[C]``; ``w`` has the shape ``[1]`` or ``[C]``.
    """

    tau: float | Tensor | None
    decay_input: bool
    w: nn.Parameter
    admits_leak: Admits = {
        "tau": lambda node, value: _tau(node, value),
        "decay_input": lambda node, value: check_bool("decay_input", value),
    }

    def _init_leak(self, tau: Any, decay_input: Any, learn_tau: Any) -> None:
        if check_bool("learn_tau", learn_tau) and tau is None:
            bad_value("learn_tau", learn_tau, "tau=... with it, the time constant to start from")
        self.decay_input = decay_input
        start = _as_tau(tau)
        if learn_tau:
            taus: list[Any] = start.tolist() if isinstance(start, Tensor) else [start]
            w = torch.tensor([-math.log(each - 1.0) for each in taus], dtype=torch.float32, device="cpu")
            self._hold("w", w, trainable=True)  # type: ignore[operator]
            start = None
        self.__dict__.pop("tau", None)
        if isinstance(start, Tensor):
            self._hold("tau", start)  # type: ignore[operator]
        else:
            self.__dict__["tau"] = start

    @property
    def leaks(self) -> bool:
        """Whether there is a leak."""
        return self.tau is not None or "w" in self._parameters

    def takes_leak_of(self, old: nn.Module) -> bool:
        """Return True for a neuron whose leak :meth:`take_leak` can copy."""
        return isinstance(old, TauLeak) or kind_of(old).__name__ in ("LIFNode", "ParametricLIFNode")

    def take_leak(self, old: Any) -> None:
        """Leak as another neuron does, of the host or of this package."""
        learned = "w" in old._parameters
        self._init_leak(2.0 if learned else old.tau, old.decay_input, learned)
        if learned:
            self._hold("w", nn.Parameter(old.w.detach().clone().reshape(-1)))  # type: ignore[operator]

    def leak(self, x_seq: Tensor) -> Leak:
        """Return the leak for an input ``[T, N, ...]``."""
        if "w" in self._parameters:
            return Leak(_of_step("w", self.w.sigmoid(), x_seq), "rate_input" if self.decay_input else "rate")
        if self.tau is None:
            return Leak()
        tau = _of_step("tau", self.tau, x_seq) if isinstance(self.tau, Tensor) else self.tau
        return Leak(tau, "tau_input" if self.decay_input else "tau")

    def _describe_leak(self) -> str:
        if "w" in self._parameters:
            tau = "?" if self.w.is_meta else show(1.0 / self.w.sigmoid())
            return f"tau={tau}, decay_input={self.decay_input}, learn_tau=True"
        if self.tau is None:
            return ""
        tau = show(self.tau) if isinstance(self.tau, Tensor) else f"{self.tau:.4g}"
        return f"tau={tau}, decay_input={self.decay_input}"


def _of_step(name: str, value: Tensor, x_seq: Tensor) -> Tensor:
    """Return a constant of the leak as the operator takes it: one, or one per channel of a step."""
    wide = value.to(device=x_seq.device, dtype=state_dtype(x_seq.dtype))
    return per_channel(name, wide, x_seq.shape[1:])


def _tau(node: nn.Module, value: Any) -> float | Tensor | None:
    """Let the time constant be set to a number, which is an attribute, or to a vector, which is a buffer."""
    if "w" in node._parameters:
        bad_value("tau", value, "no change: it is trained, and w holds it, tau = 1 / sigmoid(w)")
    tau = _as_tau(value)
    if isinstance(tau, Tensor):
        own = node._buffers.get("tau")
        node.__dict__.pop("tau", None)
        node._buffers.setdefault("tau", None)
        return tau if own is None else tau.to(own)
    node._buffers.pop("tau", None)
    return tau


def _as_tau(value: Any) -> float | Tensor | None:
    """Return a time constant as a number, or as a ``[C]`` float32 tensor; it has to be above 1."""
    want = "None (no leak), a number > 1, or a vector with one per channel"
    if value is None:
        return None
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            bad_type("tau", value, want)
        if value.ndim > 1 or value.numel() < 1:
            bad_value("tau", value, want)
        if not bool(((known("tau", value) > 1) & value.isfinite()).all()):
            bad_value("tau", value.tolist(), want)
        return float(value) if value.numel() == 1 else value.detach().to("cpu", torch.float32, copy=True)
    if check_real("tau", value, want) <= 1:
        bad_value("tau", value, want)
    return float(value)


class BetaLeak(nn.Module):
    """A decay ``beta`` in [0, 1] of the potential in each step, one or one per channel; trained as a parameter.

    Without ``learn_beta`` and with ``beta=1`` there is no leak.
    """

    beta: Tensor
    admits_leak: Admits = {
        "beta": lambda neuron, value: _new_beta(neuron, value),
        "learn_beta": lambda neuron, value: check_bool("learn_beta", value),
    }

    @property
    def leaks(self) -> bool:
        """Whether there is a leak; ``beta`` is then a vector, and the host's own 1 without a dimension if not."""
        return bool(self.beta.ndim)

    def takes_leak_of(self, old: nn.Module) -> bool:
        """Return True for a neuron whose leak :meth:`take_leak` can copy."""
        return isinstance(old, BetaLeak) or kind_of(old).__name__ == "Leaky"

    def take_leak(self, old: Any) -> None:
        """Leak as another neuron does, of the host or of this package."""
        beta = old.beta.detach().clamp(0.0, 1.0)
        if beta.ndim > 1 and beta.numel() == len(beta):  # [C, 1, 1], as the host broadcasts it over an image
            beta = beta.reshape(-1)
        self._init_leak(beta, isinstance(old.beta, nn.Parameter))

    def _init_leak(self, beta: Any, learn_beta: bool) -> None:
        start = as_beta(beta)
        if learn_beta or bool((start != 1.0).any()):
            del self.beta  # the host's
            self._hold("beta", start, trainable=learn_beta)  # type: ignore[operator]

    def leak(self, x_seq: Tensor) -> Leak:
        """Return the leak for an input ``[T, N, ...]``."""
        if not self.leaks:
            return Leak()
        return Leak(_of_step("beta", self.beta.clamp(0.0, 1.0), x_seq), "beta")

    def _describe_leak(self) -> str:
        return f"beta={show(self.beta)}" if self.leaks else ""


def as_beta(value: Any) -> Tensor:
    """Return a decay as a ``[1]`` or ``[C]`` float32 tensor; it has to be in [0, 1]."""
    want = "a number in [0, 1], or a vector with one per channel (one per neuron is for snn.Leaky alone)"
    if not isinstance(value, Tensor):
        return torch.tensor([check_real("beta", value, want, 0.0, 1.0)], dtype=torch.float32, device="cpu")
    if not value.is_floating_point():
        bad_type("beta", value, want)
    if value.ndim > 1 or value.numel() < 1:
        bad_value("beta", value, want)
    if not bool(((known("beta", value) >= 0) & (value <= 1)).all()):
        bad_value("beta", value.tolist(), want)
    return value.detach().float().clone().reshape(-1)


def _new_beta(neuron: nn.Module, value: Any) -> Any:
    """Let the decay be set to a number or a tensor, or to a parameter that is to be trained."""
    held = {**neuron.__dict__.get("_buffers", {}), **neuron.__dict__.get("_parameters", {})}
    own = held.get("beta")
    if isinstance(value, nn.Parameter):
        return value if value.ndim == 1 else bad_value("beta", value, "a parameter of shape [1] or [C]")
    new = as_beta(value)
    if own is None:
        return value  # the host's constructor
    new = new.to(own)
    if not isinstance(own, nn.Parameter):
        return new
    with torch.no_grad():
        return own.copy_(new.expand_as(own))
