"""The neurons that are compared: each starts from rest and maps ``x_seq`` to spikes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import snntorch
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn

from snn_ext import ops
from snn_ext.functional import Sigmoid
from snn_ext.ops import implementation, use_implementation
from snn_ext.spikingjelly import ATIFuNode

__all__ = ["BASELINE", "Contender", "available", "compiled_loop", "hosts", "ours"]

BASELINE = "SpikingJelly IFNode"


@dataclass(frozen=True)
class Contender:
    """A neuron, and the implementation of ours that it is to run on."""

    forward: Callable[[Tensor], Tensor]
    implementation: str | None = None

    def infer(self, x_seq: Tensor) -> Tensor:
        """Run the forward pass without gradients."""
        with torch.no_grad(), self.forced():
            return self.forward(x_seq)

    def train(self, x_seq: Tensor, gradient: Tensor) -> None:
        """Run forward and backward; gradients go to ``x_seq`` and to the neuron's parameters."""
        x_seq.grad = None
        with self.forced():
            self.forward(x_seq).backward(gradient)

    def forced(self) -> AbstractContextManager[None]:
        """Force the implementation, if there is one."""
        return nullcontext() if self.implementation is None else use_implementation(self.implementation)


def available(device: torch.device | str = "cpu") -> list[str]:
    """Return our implementations that run on a device, the preferred first."""
    unavailable = implementation("integrate_and_fire", device).unavailable
    return [name for name in ("cuda-cupy", "cuda-nvrtc", "cpu", "torch") if name not in unavailable]


def ours(device: torch.device | str = "cpu") -> dict[str, Contender]:
    """Return operator and node, with a trained threshold, by every implementation that runs on a device."""
    threshold = nn.Parameter(torch.ones(1, device=device))
    node = ATIFuNode(1.0, step_mode="m").to(device)

    def run_node(x_seq: Tensor) -> Tensor:
        node.reset()
        return node(x_seq)

    found = {}
    for name in available(device):
        found[f"operator, {name}"] = Contender(lambda x_seq: ops.integrate_and_fire(x_seq, 0.0, threshold)[0], name)
        found[f"ATIFuNode, {name}"] = Contender(run_node, name)
    return found


def hosts(device: torch.device | str = "cpu") -> dict[str, Contender]:
    """Return the hosts' neurons. IFNode is the baseline, though its threshold cannot be trained."""
    if_node = neuron.IFNode(v_reset=None, step_mode="m").to(device)
    flex = neuron.FlexSN(_flex_core, 1, (nn.Parameter(torch.ones(1, device=device)),))
    leaky = snntorch.Leaky(beta=1.0, learn_threshold=True, reset_mechanism="subtract").to(device)

    def run_if_node(x_seq: Tensor) -> Tensor:
        if_node.reset()
        return if_node(x_seq)

    def run_flex(x_seq: Tensor) -> Tensor:
        flex.reset()
        return flex(x_seq)

    def run_leaky(x_seq: Tensor) -> Tensor:
        mem, spikes = leaky.init_leaky(), []
        for x in x_seq:
            spike, mem = leaky(x, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    return {
        BASELINE: Contender(run_if_node),
        "SpikingJelly FlexSN": Contender(run_flex),
        "snnTorch Leaky": Contender(run_leaky),
    }


def plain_loop(x_seq: Tensor, threshold: Tensor) -> Tensor:
    """Integrate and fire in plain torch: what a user would write, and hand to torch.compile."""
    v, spikes = torch.zeros_like(x_seq[0]), []
    for x in x_seq:
        h = v + x
        s = Sigmoid(4.0)(h - threshold)
        v = h - s * threshold
        spikes.append(s)
    return torch.stack(spikes)


def compiled_loop(device: torch.device | str = "cpu") -> Contender:
    """Return the plain loop under torch.compile; the first call of a shape waits for the compiler."""
    threshold = nn.Parameter(torch.ones(1, device=device))
    compiled = torch.compile(plain_loop, dynamic=False)
    return Contender(lambda x_seq: compiled(x_seq, threshold))


def _flex_core(x: Tensor, v: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    h = v + x
    s = surrogate.sigmoid.apply(h - threshold, 4.0)
    return s, h - s * threshold
