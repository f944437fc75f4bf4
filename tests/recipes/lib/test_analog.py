"""Training of analog nets: the order of weights in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes.data.images import load_images
from recipes.lib.analog import AnalogOptions, AnalogTrainer


@pytest.mark.parametrize(("width", "channels_last"), [(0.125, False), (0.5, True)])
def test_strided_convolutions_of_few_channels_keep_the_order_that_no_processor_crashes_on(
    width: float, channels_last: bool, tmp_path: Path
) -> None:
    trainer = AnalogTrainer()
    trainer.data = load_images("fashion-mnist-subset")
    net = trainer.load_model(AnalogOptions(model="resnet20-bn", width=width, out=tmp_path), 10)
    weights = [module.weight for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    assert channels_last == all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert channels_last or all(w.is_contiguous() for w in weights)
    torch.nn.functional.cross_entropy(net(torch.rand(16, 1, 28, 28)), torch.arange(16) % 10).backward()
