"""Layers behind spikes, of which only those that are there are added: exact on a grid, the layer itself elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_ext.ops import implementation, use_implementation
from snn_ext.ops.registry import select
from snn_ext.ops.spike_convolution import _PackedLayer

pytestmark = pytest.mark.skipif("cpu" in implementation("spike_convolution", "cpu").unavailable, reason="no C compiler")


def packed(layer: nn.Module) -> Any:
    return _PackedLayer(select("spike_convolution", torch.device("cpu"), torch.float32)._calls["convolve"], layer)


def spikes(*shape: int, density: float = 0.1, values: int = 1) -> Tensor:
    x = (torch.rand(shape) < density) * torch.randint(1, values + 1, shape) / values
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def dyadic(layer: Any) -> Any:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((16 * parameter).round() / 16)
    return layer


GEOMETRIES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "3x3": (nn.Conv2d(32, 32, 3, padding=1), (3, 32, 9, 7)),
    "several blocks and tiles": (nn.Conv2d(40, 150, 3, padding=1, bias=False), (17, 40, 13, 11)),
    "stride": (nn.Conv2d(24, 44, 3, stride=(2, 3), padding=(0, 2)), (2, 24, 10, 10)),
    "wide padding": (nn.Conv2d(8, 9, 5, padding=6), (2, 8, 4, 4)),
    "dilation of rows": (nn.Conv2d(16, 33, (3, 2), dilation=(2, 1)), (2, 16, 8, 5)),
    "one pixel": (nn.Conv2d(70, 5, 1), (4, 70, 1, 1)),
    "linear": (nn.Linear(300, 65), (9, 300)),
}


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", GEOMETRIES)
@torch.no_grad()
def test_sums_are_exact_on_a_grid(name: str, density: float) -> None:
    layer, shape = GEOMETRIES[name]
    x = spikes(*shape, density=density, values=4)
    found = packed(dyadic(layer)).sparse(x, 1.0)
    assert torch.equal(found, layer(x))
    assert found.ndim == 2 or found.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_a_sum_does_not_depend_on_the_batch_or_the_threads() -> None:
    layer, x = nn.Conv2d(32, 48, 3, padding=1), spikes(12, 32, 16, 16)
    run, threads = packed(layer), torch.get_num_threads()
    whole = run.sparse(x, 1.0)
    torch.testing.assert_close(whole.double(), layer.double()(x.double()), rtol=1e-5, atol=1e-5)
    assert torch.equal(whole[5:7], run.sparse(x[5:7], 1.0))
    torch.set_num_threads(3)
    try:
        assert torch.equal(whole, run.sparse(x, 1.0))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_dense_input_and_another_layout_are_left_to_the_layer() -> None:
    layer = nn.Conv2d(32, 32, 3)
    run = packed(layer)
    for x in (spikes(2, 32, 8, 8, density=0.6), spikes(2, 32, 8, 8).contiguous(), spikes(0, 32, 8, 8)):
        assert run.sparse(x, 0.35) is None
        assert torch.equal(run(x), layer(x))
    with pytest.raises(RuntimeError, match="to have 32 channels"):
        run(spikes(2, 16, 8, 8))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        run(spikes(2, 32, 2, 2))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3),  # too little work
        nn.Conv2d(64, 64, 3, groups=2),
        nn.Conv2d(64, 64, 3, dilation=2),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(64, 64, 3),
        nn.ConvTranspose2d(64, 64, 3),
        nn.Linear(100, 100).double(),
    ],
    ids=str,
)
def test_other_layers_are_used_as_they_are(layer: nn.Module) -> None:
    dtype = next(layer.parameters()).dtype
    assert select("spike_convolution", torch.device("cpu"), dtype).prepare(layer) is layer


def test_a_watched_layer_a_weight_that_is_not_finite_and_a_forced_implementation_use_the_layer() -> None:
    cpu = torch.device("cpu")
    watched, broken = nn.Linear(100, 100), nn.Linear(100, 100)
    watched.register_forward_hook(lambda *_: None)
    broken.weight.data[3, 4] = torch.inf
    for layer in (watched, broken):
        assert select("spike_convolution", cpu, torch.float32).prepare(layer) is layer
    with use_implementation("torch"):
        layer = nn.Linear(100, 100)
        assert select("spike_convolution", cpu, torch.float32).prepare(layer) is layer
