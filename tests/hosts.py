"""All eight neurons, for the tests of what both hosts and PyTorch's own tools expect of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snn_ext.snntorch import ASN, PCMPIF, ATIFnu, ATIFu
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode

POINTS = [1.0, 0.6, 0.3, 0.1]

NODES: dict[str, Callable[..., Any]] = {
    "ATIFuNode": lambda **options: ATIFuNode(0.75, v_init=0.25, **options),
    "ATIFnuNode": lambda **options: ATIFnuNode(torch.tensor(POINTS), T=4, v_init=0.25, **options),
    "PCMPIFNode": lambda **options: PCMPIFNode(0.75, precharge=0.25, **options),
    "ASNNode": lambda **options: ASNNode(m_f=0.2, **options),
}
NEURONS: dict[str, Callable[..., Any]] = {
    "ATIFu": lambda **options: ATIFu(0.75, init_hidden=True, v_init=0.25, **options),
    "ATIFnu": lambda **options: ATIFnu(torch.tensor(POINTS), T=4, init_hidden=True, v_init=0.25, **options),
    "PCMPIF": lambda **options: PCMPIF(0.75, init_hidden=True, precharge=0.25, learn_threshold=True, **options),
    "ASN": lambda **options: ASN(m_f=0.2, **options),
}


def grid(time_steps: int = 4, shape: tuple[int, ...] = (2, 3), seed: int = 0) -> Tensor:
    """Return input on a 1/16 grid, where charges meet the threshold of 0.75 exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 20, (time_steps, *shape), generator=generator) / 16


def steps(neuron: Any, x_seq: Tensor) -> Tensor:
    """Run step by step."""
    return torch.stack([neuron(x) for x in x_seq])


def reset(neuron: Any) -> None:
    """Start a fresh sequence, in either host."""
    (neuron.reset_mem if hasattr(neuron, "reset_mem") else neuron.reset)()
