"""Layers behind spikes, spike by spike or whole windows: exact on a grid, both with the same bits; else the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_ext.ops import implementation, spike_convolution, use_implementation
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
    "no padding, many outputs": (nn.Conv2d(11, 330, 3), (5, 11, 6, 5)),
    "one pixel": (nn.Conv2d(70, 5, 1), (4, 70, 1, 1)),
    "linear": (nn.Linear(300, 65), (9, 300)),
}


SPARSE, DENSE = 1.0, -1.0  # the largest share of spikes that are added one by one


@pytest.mark.parametrize("way", [SPARSE, DENSE])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", GEOMETRIES)
@torch.no_grad()
def test_sums_are_exact_on_a_grid(name: str, density: float, way: float) -> None:
    layer, shape = GEOMETRIES[name]
    x = spikes(*shape, density=density, values=4)
    found = packed(dyadic(layer)).convolve(x, way)
    assert torch.equal(found, layer(x))
    assert found.ndim == 2 or found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("density", [0.03, 0.5])
@pytest.mark.parametrize("name", GEOMETRIES)
@torch.no_grad()
def test_both_ways_give_the_same_bits(name: str, density: float) -> None:
    """The choice is a matter of time alone: on numbers whose sums round, zeros of either sign among them."""
    layer, shape = GEOMETRIES[name]
    run, x = packed(layer), spikes(*shape, density=density)
    run._weight.mul_(torch.rand_like(run._weight))
    for values in (x, x * torch.randn_like(x), x * 1e30 * torch.randn_like(x)):
        assert torch.equal(run.convolve(values, SPARSE), run.convolve(values, DENSE))
    some = run.convolve(torch.cat([x, torch.ones_like(x)]).contiguous(memory_format=_layout(x)), 0.6)
    assert torch.equal(some[: len(x)], run.convolve(x, DENSE))


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format


@torch.no_grad()
def test_both_ways_take_numbers_that_are_not_finite() -> None:
    layer = nn.Conv2d(40, 20, 3, padding=1)
    x = spikes(2, 40, 6, 6)
    x[0, 3, 2, 2], x[1, 30, 4, 4] = torch.nan, torch.inf
    sparse, dense = (packed(layer).convolve(x, way) for way in (SPARSE, DENSE))
    torch.testing.assert_close(sparse, dense, rtol=0, atol=0, equal_nan=True)
    assert sparse[0, :, 1:4, 1:4].isnan().all() and not sparse[1, :, 3:6, 3:6].isfinite().any()


@pytest.mark.parametrize("way", [SPARSE, DENSE])
@torch.no_grad()
def test_a_sum_does_not_depend_on_the_batch_or_the_threads(way: float) -> None:
    layer, x = nn.Conv2d(32, 48, 3, padding=1), spikes(12, 32, 16, 16)
    run, threads = packed(layer), torch.get_num_threads()
    whole = run.convolve(x, way)
    torch.testing.assert_close(whole.double(), layer.double()(x.double()), rtol=1e-5, atol=1e-5)
    assert torch.equal(whole[5:7], run.convolve(x[5:7], way))
    torch.set_num_threads(3)
    try:
        assert torch.equal(whole, run.convolve(x, way))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_another_layout_and_another_size_are_left_to_the_layer() -> None:
    layer = nn.Conv2d(32, 32, 3)
    run = packed(layer)
    for x in (spikes(2, 32, 8, 8).contiguous(), spikes(0, 32, 8, 8)):
        assert run.convolve(x) is None
        assert torch.equal(run(x), layer(x))
    with pytest.raises(RuntimeError, match="to have 32 channels"):
        run(spikes(2, 16, 8, 8))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        run(spikes(2, 32, 2, 2))


@pytest.mark.parametrize("name", GEOMETRIES)
@torch.no_grad()
def test_the_better_way_is_measured_once_for_a_kind_of_layer_and_draws_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spike_convolution, "_best_densities", {})
    layer, shape = GEOMETRIES[name]
    run, x, before = packed(layer), spikes(*shape), torch.get_rng_state()
    run(x)
    assert torch.equal(torch.get_rng_state(), before)
    (found,) = spike_convolution._best_densities.values()
    assert 0.0 <= found <= 1.0
    monkeypatch.setattr(_PackedLayer, "_measured", None)
    packed(layer)(x)


@pytest.mark.parametrize(("dense", "sparse", "wanted"), [(4, 2, 0.375), (9, 2, 1.0), (0.5, 2, 0.0), (1, 1, 1.0)])
def test_the_share_is_where_both_ways_take_as_long(
    dense: float, sparse: float, wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of single spikes is a line in their number: 1 s without any, so 4 s is reached at three times 1/8."""
    run, clock = packed(nn.Conv2d(32, 32, 3, padding=1)), [0.0]

    def convolve(x: Tensor, density: float) -> None:
        clock[0] += dense if density < 0 else sparse if x.any() else 1.0

    monkeypatch.setattr(run, "convolve", convolve)
    monkeypatch.setattr(spike_convolution.time, "perf_counter", lambda: clock[0])
    assert run._measured((16, 16)) == wanted


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3),  # too little work
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
