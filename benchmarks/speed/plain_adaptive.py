"""The adaptive neuron as one writes it from the paper, a millisecond at a time: the baseline of fast simulations."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from snn_ext.spikingjelly import ASNNode

__all__ = ["PlainASN", "plain", "plain_loop"]


class PlainASN(nn.Module):
    """One step a call, in plain torch; ``clear`` puts it at rest."""

    def __init__(self, node: ASNNode) -> None:
        super().__init__()
        self.node = node
        self.d_beta, self.d_eta = math.exp(-node.dt / node.tau_beta), math.exp(-node.dt / node.tau_eta)
        self.d_gamma = math.exp(-node.dt / node.tau_gamma)
        self.d_phi = math.exp(-node.dt / node.tau_phi) if node.tau_phi else 0.0
        self.m_f, self.theta_0 = float(node.m_f), float(node.theta_0)
        self.clear()

    def clear(self) -> None:
        self.i = self.s = self.s_hat = self.adaptation = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.i = x if self.node.analog_input else self.i * self.d_beta + x
        self.s = (1.0 - self.d_phi) * self.i + self.d_phi * self.s
        bias = self.node.bias
        s = self.s if bias is None else self.s + (bias if bias.ndim > 1 else bias.reshape(-1, *[1] * (x.ndim - 2)))
        if self.node.readout:
            return s
        theta = self.theta_0 + self.adaptation
        self.s_hat = self.s_hat * self.d_eta
        z = (s - self.s_hat > 0.5 * theta).to(x.dtype)
        self.s_hat = self.s_hat + theta * z
        self.adaptation = (self.adaptation + self.m_f * theta * z) * self.d_gamma
        return z


def plain(net: nn.Module) -> nn.Module:
    """Return a copy of a converted net with plain neurons."""
    twin = copy.deepcopy(net)
    for name, module in list(twin.named_modules()):
        if isinstance(module, ASNNode):
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, PlainASN(module))
    return twin


@torch.no_grad()
def plain_loop(net: nn.Module, x: Tensor, steps: int) -> list[Tensor]:
    """Run ``for t in range(steps): net(x)`` from rest."""
    for module in net.modules():
        if isinstance(module, PlainASN):
            module.clear()
    return [net(x) for _ in range(steps)]
