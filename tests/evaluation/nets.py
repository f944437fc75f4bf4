"""A small net on a grid and its data, for the tests of evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402

from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402

T = 12


def small_net(precharge: float = 0.25, readout: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(1, 4, 3), PCMPIFNode(0.5, precharge=precharge), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8),
        PCMPIFNode(0.25, precharge=precharge), nn.Linear(8, 5),
    ]  # fmt: skip
    net = nn.Sequential(*layers, *[PCMPIFNode(0.125, precharge=precharge)] * readout)
    with torch.no_grad():  # a grid, where ties are frequent
        for parameter in net.parameters():
            parameter.copy_((4 * parameter).mul(16).round() / 16)
    return net


def batches(sizes: tuple[int, ...] = (6, 4)) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(4)
    return [(torch.randint(0, 17, (n, 1, 8, 8)) / 16, torch.randint(5, (n,))) for n in sizes]


def plain_loop(net: nn.Module, x: Tensor, time_steps: int = T) -> Tensor:
    functional.reset_net(net)
    with torch.no_grad():
        output = torch.stack([net(x) for _ in range(time_steps)])
    functional.reset_net(net)
    return output.double()
