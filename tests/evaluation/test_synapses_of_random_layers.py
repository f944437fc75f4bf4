"""Synapses behind randomly drawn operations and layers, against one spike after the other."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("spikingjelly")

from snn_ext import evaluate  # noqa: E402
from snn_ext.evaluation import count_synapses  # noqa: E402
from snn_ext.simulation.graph import as_graph  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402

CHANNELS = 4


def reference(between: nn.Module, layer: Any, shape: tuple[int, ...]) -> Tensor:
    """Send the spike of each neuron alone through the operations, and each value that changes alone through a layer of
    ones, which adds up as many as the weights that it meets; a rounding of a coordinate is no change."""
    between, ones = copy.deepcopy(between).double().eval(), copy.deepcopy(layer).double()
    with torch.no_grad():
        change = between(one_hot(shape)) - between(torch.zeros(1, *shape, dtype=torch.float64))
        ones.weight.fill_(1.0)
        if ones.bias is not None:
            ones.bias.zero_()
        met = ones(one_hot(change.shape[1:])).flatten(1).sum(1)
    return ((change.flatten(1).abs() > 1e-6).double() @ met).reshape(shape)


def one_hot(shape: Sequence[int]) -> Tensor:
    return torch.eye(math.prod(shape), dtype=torch.float64).unflatten(1, tuple(shape))


def operation(draw: random.Random, dims: int) -> nn.Module:
    """Return one operation without weights; not all of them fit every shape."""
    kernel = tuple(draw.randint(1, 4) for _ in range(dims))
    padding = tuple(draw.randint(0, k // 2) for k in kernel)
    size = tuple(draw.randint(1, 7) for _ in range(dims))
    sides = [draw.randint(-1, 2) for _ in range(2 * dims)]
    linear = {1: "linear", 2: draw.choice(["bilinear", "bicubic"]), 3: "trilinear"}[dims]
    interpolated: dict[str, Any] = draw.choice([
        {"size": size}, {"scale_factor": tuple(draw.choice([0.5, 1.5, 2.0, 2.3]) for _ in range(dims)),
                         "recompute_scale_factor": draw.choice([None, True])},
    ])  # fmt: skip
    average = {"ceil_mode": draw.random() < 0.5, "count_include_pad": draw.random() < 0.5}
    if dims > 1:
        average["divisor_override"] = draw.choice([None, 3])
    stride = draw.choice([None, *range(1, 4)])
    kinds: list[Callable[[], nn.Module]] = [
        lambda: (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](kernel, stride, padding, **average),
        lambda: (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1](size),
        lambda: nn.Upsample(mode=draw.choice(["nearest", "nearest-exact", "area"]), **interpolated),
        lambda: nn.Upsample(mode=linear, align_corners=draw.choice([False, True]), **interpolated),
        lambda: (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)[dims - 1](tuple(sides), draw.choice([0.0, 1.0])),
        lambda: (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)[dims - 1](1),
        lambda: (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)[dims - 1](draw.randint(1, 3)),
        lambda: (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)[dims - 1](draw.randint(1, 2)),
        lambda: (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)[dims - 1](1, 2, draw.choice([None, 1])),
        lambda: nn.ChannelShuffle(2),
        lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, -1)), nn.Flatten(), nn.Unflatten(1, (CHANNELS, -1))),
    ]
    if dims == 2:
        kinds += [
            lambda: nn.PixelShuffle(2), lambda: nn.PixelUnshuffle(2), lambda: nn.BatchNorm2d(CHANNELS),
            lambda: nn.Sequential(nn.Unfold(2, padding=1, stride=draw.randint(1, 2)), nn.Unflatten(1, (CHANNELS, 4))),
            lambda: nn.Sequential(nn.Flatten(2), nn.Fold((3, 3), 2)),
        ]  # fmt: skip
    return draw.choice(kinds)()


def weighted(draw: random.Random, shape: torch.Size) -> nn.Module:
    channels, dims = shape[0], len(shape) - 1
    groups = draw.choice([g for g in (1, 2, 4) if channels % g == 0])

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randint(low, high) for _ in range(dims))

    stride, dilation, kernel = each(1, 3), each(1, 2), each(1, 4)
    if dims == 0 or draw.random() < 0.2:
        return nn.Linear(shape[-1], 3)
    if draw.random() < 0.3:
        kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        extra = tuple(draw.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        return kind(channels, groups, kernel, stride, each(0, 1), extra, groups, True, dilation)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    mode, padding = draw.choice(["zeros", "zeros", "circular", "reflect", "replicate"]), each(0, 2)
    if draw.random() < 0.2:
        return kind(channels, groups, kernel, 1, "same", dilation, groups, padding_mode=mode)
    return kind(channels, groups, kernel, stride, padding, dilation, groups, padding_mode=mode)


def random_net(seed: int) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Return operations, a layer behind them, and the shape of what comes before; drawn until they fit together."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    while True:
        dims = draw.choice([1, 2, 2, 2, 3])
        shape = (CHANNELS, *(draw.randint(2, (6, 5, 3)[dims - 1]) for _ in range(dims)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                between = nn.Sequential(*(operation(draw, dims) for _ in range(draw.randint(0, 2)))).eval()
                middle = between(torch.rand(1, *shape))
                layer = weighted(draw, middle.shape[1:])
                y = layer(middle)
            except (RuntimeError, ValueError):
                continue
        small = middle.numel() <= 700 and y.numel() * layer.weight.numel() <= 1 << 18 and y.numel() > 0
        if small and middle.numel() > 0:
            return between, layer, shape


def node() -> nn.Module:
    return PCMPIFNode(0.5, precharge=0.5)


@pytest.mark.parametrize("seed", range(80))
def test_fan_out_is_the_number_of_weights_that_a_spike_meets(seed: int) -> None:
    between, layer, shape = random_net(seed)
    expected = reference(between, layer, shape)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
    net = nn.Sequential(convolution(1, CHANNELS, 1), node(), *between, layer)
    found = count_synapses(as_graph(net), torch.rand(2, 1, *shape[1:]))
    assert torch.equal(found.fan_out["1"], expected), (between, layer, shape)


class Net(nn.Module):
    """conv - IF - a function without weights - convolution."""

    def __init__(self, function: Callable[..., Tensor], channels: int = 4, two: bool = False) -> None:
        super().__init__()
        self.stem, self.node, self.head = nn.Conv2d(1, 4, 1), node(), nn.Conv2d(channels, 3, 2)
        self.other = node() if two else None
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        current = self.stem(x)
        spikes = self.node(current)
        if self.other is not None:
            return self.head(self.function(spikes, self.other(current)))
        return self.head(self.function(spikes))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), 4),
    "corners": (lambda x: F.interpolate(x, (7, 9), mode="bilinear", align_corners=True), 4),
    "avg": (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 4),
    "keywords": (lambda x: F.avg_pool2d(input=x, kernel_size=3, stride=1, padding=1), 4),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, (3, 4)), 4),
    "twice": (lambda x: F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 3, 1, 1), 4),
    "with its pool": (lambda x: x + F.avg_pool2d(x, 3, 1, 1), 4),
    "beside its pool": (lambda x: torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1), 8),
    "doubled": (lambda x: x + x, 4),
    "gone": (lambda x: x - x, 4),
    "neighbours": (lambda x: x[..., 1:] - x[..., :-1], 4),
    "shuffled": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 4),
    "one part": (lambda x: torch.split(x, (1, 3), 1)[1], 3),
    "by its size": (lambda x: x.view(x.size(0), -1).reshape(x.shape), 4),
    "flipped": (lambda x: x.flip(2).transpose(2, 3), 4),
    "in place": (lambda x: x.mul_(2.0).add_(1.0), 4),
    "mean": (lambda x: x.mean(1, keepdim=True), 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_branches_are_counted_spike_by_spike(name: str) -> None:
    function, channels = FUNCTIONS[name]
    net = Net(function, channels)

    class Between(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x.clone())

    expected = reference(Between(), net.head, (4, 5, 6))
    with torch.inference_mode():
        found = count_synapses(as_graph(net), torch.rand(1, 1, 5, 6))
    assert torch.equal(found.fan_out["node"], expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a * b, lambda a, b: torch.maximum(a, b), lambda a, b: a / (1 + b),
        lambda a, b: torch.where(a > 0, a, b), lambda a, b: a * b.mean((2, 3), keepdim=True),
    ],
)  # fmt: skip
def test_two_trains_that_do_not_add_up_are_refused_by_name(function: Callable[..., Tensor]) -> None:
    """With the other train silent a product is 0, which is not to be taken for a spike without synapses."""
    with pytest.raises(ValueError, match="snn: got 'call_(function|method) .*, want pooling"):
        count_synapses(as_graph(Net(function, two=True)), torch.rand(1, 1, 5, 6))


def test_two_trains_that_add_up_are_counted_for_each() -> None:
    found = count_synapses(as_graph(Net(lambda a, b: a + 2 * b, two=True)), torch.rand(1, 1, 5, 6))
    assert torch.equal(found.fan_out["node"], found.fan_out["other"]) and found.fan_out["node"].max() == 12


def test_a_gate_of_the_image_scales_a_spike_and_does_not_silence_it() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.node, self.head = nn.Linear(3, 4), node(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.node(self.stem(x)) * x.sum(1, keepdim=True))

    found = count_synapses(as_graph(Gated()), torch.zeros(1, 3))  # of a black image, too
    assert torch.equal(found.fan_out["node"], torch.full((4,), 2.0).double())


def test_an_operation_that_torch_refuses_in_the_test_is_named_and_left_out() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise RuntimeError("float32 alone")
            return x

    net = nn.Sequential(nn.Linear(3, 4), node(), Picky(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"snn: got 'call_module 2 on spikes \(float32 alone\)', want pooling"):
        count_synapses(as_graph(net), torch.rand(1, 3))
    with pytest.warns(UserWarning, match="synaptic operations are left out"):
        assert evaluate(net, [torch.rand(2, 3)], 4, progress=False).synops.isnan().all()


def test_spikes_without_a_way_to_a_weight_have_no_synapses_whatever_they_meet() -> None:
    net = nn.Sequential(nn.Linear(3, 4), node(), nn.Softmax(1))
    assert torch.equal(count_synapses(as_graph(net), torch.rand(1, 3)).fan_out["1"], torch.zeros(4).double())


def test_a_pooling_that_is_called_twice_counts_as_two() -> None:
    pool = nn.MaxPool2d(2)
    first, second = nn.Sequential(nn.Conv2d(1, 4, 1), node()), nn.Sequential(nn.Conv2d(4, 3, 1), node())
    net = nn.Sequential(*first, pool, *second, pool, nn.Flatten(), nn.Linear(12, 2))
    apart = nn.Sequential(*net[:5], nn.MaxPool2d(2), *net[6:])
    x = torch.rand(3, 1, 8, 8)
    found, expected = (evaluate(n, [x], 6, progress=False) for n in (net, apart))
    assert [layer.name for layer in found.layers] == ["1", "2", "4", "2 (2)"]
    assert torch.equal(found.synops, expected.synops) and not found.synops.isnan().any()
    assert [layer.spikes.tolist() for layer in found.layers] == [layer.spikes.tolist() for layer in expected.layers]
