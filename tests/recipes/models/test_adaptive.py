"""Nets of AANs from layouts in the notation of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from recipes.lib.aan_training import DATA_SETS  # noqa: E402
from recipes.models.adaptive import layout_net  # noqa: E402


def test_layouts_have_the_neurons_of_the_papers_nets() -> None:
    for name, thousands, inputs in (("mnist", 100.7, (1, 28, 28)), ("cifar10", 270.8, (3, 32, 32))):
        net, found = layout_net(DATA_SETS[name]["paper"]["layout"], inputs, 10), list[int]()
        layers = [module for module in net if isinstance(module, nn.Conv2d | nn.Linear)]
        for module in layers[:-1]:  # later work counts them without input and read-out
            module.register_forward_hook(lambda m, i, o, found=found: found.append(o[0].numel()))
        net.eval()(torch.rand(1, *inputs))
        assert round(sum(found) / 1e3, 1) == thousands
    with pytest.raises(ValueError, match="layout: got 'x3' in 'd4-x3'"):
        layout_net("d4-x3", (4,), 2)
    pooled = [type(m).__name__ for m in layout_net("4c3-m2-d8", (1, 8, 8), 2)]
    assert pooled[2:6] == ["Conv2d", "BatchNorm2d", "MaxPool2d", "AAN"]
