"""What is exact or linear converts, as people write it; the converted net is compared with the net itself."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("spikingjelly")

from snn_ext import convert, evaluate  # noqa: E402
from snn_ext.conversion.canonicalize import canonicalize  # noqa: E402
from snn_ext.conversion.modules import Gate, Scale  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from tests.conversion.nets import images, loop, trained  # noqa: E402


class Net(nn.Module):
    """A forward pass as a function of the net and its input, with layers and buffers by name."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def between(function: Callable[[Tensor], Tensor], size: int) -> Callable[[], nn.Module]:
    """A convolution with a ReLU, a function of spikes, and a linear layer."""
    return lambda: Net(
        lambda s, x: s.head(function(s.conv(x).relu()).flatten(1)),
        conv=nn.Conv2d(2, 4, 3, padding=1), head=nn.Linear(size, 3),
    )  # fmt: skip


def in_front(function: Callable[[Any, Tensor], Tensor], **parts: Any) -> Callable[[], nn.Module]:
    """A function of the image, a convolution, a ReLU, and a linear layer."""
    layers = {"conv": nn.Conv2d(2, 4, 3, padding=1), "head": nn.Linear(256, 3)}
    return lambda: Net(lambda s, x: s.head(s.conv(function(s, x)).relu().flatten(1)), **layers, **parts)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def halves(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return torch.cat([right, left.relu()], 1)


def stretched(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    return F.interpolate(F.avg_pool2d(x, 2), size=(h, w), mode="bilinear", align_corners=False)


def differences() -> nn.Module:
    layers = {"a": nn.Conv2d(2, 4, 3, padding=1), "b": nn.Conv2d(2, 4, 3, padding=1), "head": nn.Linear(256, 3)}
    return Net(lambda s, x: s.head((s.a(x).relu() - s.b(x).relu() * 0.5 - s.b(x)).relu().flatten(1)), **layers)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.head((self.trunk(one) - self.trunk(other)).abs())


NETS: dict[str, Callable[[], nn.Module]] = {
    "channel shuffle": between(shuffled, 256),
    "chunk": between(halves, 256),
    "split": between(lambda x: torch.split(x, [1, 3], 1)[1], 192),
    "tensor split": between(lambda x: torch.tensor_split(x, indices=[1, 3], dim=1)[1], 128),
    "pixel shuffle": between(lambda x: F.pixel_shuffle(x, 2), 256),
    "permute": between(lambda x: x.flatten(2).permute(0, 2, 1), 256),
    "unsqueeze": between(lambda x: x.unsqueeze(1).squeeze(1).unflatten(1, (2, 2)), 256),
    "stack": between(lambda x: torch.stack([x, 2 * x], 2).sum(2), 256),
    "expand to the batch": between(lambda x: x.mean((2, 3), keepdim=True).expand(len(x), 4, 2, 3), 24),
    "expand as": between(lambda x: x + x[:, :1].expand_as(x), 256),
    "same max pooling": between(lambda x: F.max_pool2d(F.pad(x, [0, 1, 0, 1], value=-math.inf), 3, 2), 64),
    "same max pooling, one side": between(lambda x: F.max_pool2d(F.pad(x, (1, 0, 0, 0), value=-math.inf), 3, 2), 48),
    "mean over channels": between(lambda x: x.mean(1), 64),
    "one row": between(lambda x: x[:, :, 0], 32),
    "size of a shape": between(stretched, 256),
    "adaptive max": between(lambda x: F.adaptive_max_pool2d(x, 2), 16),
    "types": between(lambda x: x.to(torch.float32).type_as(x).cpu().contiguous(), 256),
    "sum of a list": between(lambda x: sum([x, x[:, [1, 0, 3, 2]]]), 256),
    "factor and offset": between(lambda x: 1.0 - x / 4, 256),
    "leaky": between(lambda x: F.leaky_relu(x - 0.3, 0.25), 256),
    "absolute": between(lambda x: torch.abs(0.2 - x), 256),
    "signed max pooling": between(lambda x: F.max_pool2d(F.leaky_relu(x - 0.3, 0.25), 2), 64),
    "normalisation": in_front(
        lambda s, x: (x - s.mean) / s.std, mean=torch.rand(1, 2, 1, 1), std=torch.rand(2, 1, 1) + 0.5
    ),
    "255": in_front(lambda s, x: x.div(255).sub_(0.1)),
    "batch norm as a function": in_front(lambda s, x: F.batch_norm(x, s.m, s.v), m=torch.rand(2), v=torch.ones(2)),
    "pooled image": in_front(lambda s, x: F.max_pool2d(x, 3, 1, 1)),
    "computed weights": in_front(
        lambda s, x: F.conv2d(x, (s.w - s.w.mean()) / s.w.std(), s.b, padding=1),
        w=nn.Parameter(torch.rand(2, 2, 3, 3)), b=nn.Parameter(torch.rand(2)),
    ),
    "matrix": lambda: Net(
        lambda s, x: (x.flatten(1) @ s.w).relu() @ s.w.T + s.b,
        w=nn.Parameter(torch.randn(128, 16) / 8), b=torch.rand(128),
    ),
    "differences": differences,
    "tied": lambda: tied(
        nn.Sequential(nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    ),
    "prelu": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.PReLU(4, 0.5), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ),
    "same max pooling before the activation": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ConstantPad2d((0, 1, 1, 1), -math.inf), nn.MaxPool2d(3, 2), nn.ReLU(),
        nn.ConstantPad2d((1, 0, 2, 0), 0.0), nn.Flatten(), nn.Linear(80, 3),
    ),
    "norm behind": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten()
    ),
    "decoder": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 36), nn.ReLU(), nn.Unflatten(1, (4, 3, 3)), nn.ConvTranspose2d(4, 2, 2, 2)
    ),
    "siamese": lambda: Net(lambda s, x: s.net(x[:, :1], x[:, 1:]), net=Siamese()),
}  # fmt: skip


def tied(net: Any) -> nn.Module:
    net[3].weight = net[1].weight
    return net  # type: ignore[no-any-return]


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    net = trained(NETS[name]())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    return net, images(3)


@pytest.mark.parametrize("channel_wise", [False, True], ids=["layer", "channel"])
@pytest.mark.parametrize("name", NETS)
def test_rates_give_the_output_of_the_net(name: str, channel_wise: bool) -> None:
    net, x = prepared(name)
    snn = convert(net, x, method="data-norm", precharge=0.5, channel_wise=channel_wise, time_steps=1)
    with torch.no_grad():
        wanted = net(x)
    output = torch.cat(list(Simulation(snn).run(x, 300))).mean(0)
    assert output.shape == wanted.shape and (output - wanted).abs().max() < 0.03 * (1 + wanted.abs().max())


@pytest.mark.parametrize("name", ["channel shuffle", "leaky", "differences", "prelu", "siamese"])
def test_the_twin_in_snntorch_and_a_sequence_are_equal_and_spikes_are_counted(name: str) -> None:
    net, x = prepared(name)
    snn = convert(net, x, method="data-norm", precharge=0.5, time_steps=1)
    twin, steps = snn.to_snntorch(), loop(snn, x, 9)
    with torch.no_grad():
        assert torch.equal(torch.stack([twin(x) for _ in range(9)]), steps)
    assert evaluate(snn, [x], 3, progress=False).synops[-1] > 0
    snn.step_mode = "m"
    with torch.no_grad():
        torch.testing.assert_close(snn(x.expand(9, *x.shape)), steps)


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_every_rank_convert(dims: int) -> None:
    conv, pool = ((nn.Conv1d, nn.MaxPool1d), (nn.Conv3d, nn.MaxPool3d))[dims // 2]
    net, x = (
        nn.Sequential(conv(1, 3, 3), nn.ReLU(), pool(2), nn.Flatten(), nn.LazyLinear(2)),
        torch.rand(4, 1, *[6] * dims),
    )
    net(x)
    for options in ({"method": "data-norm"}, {"method": "adsnn", "spike_height": "adaptive"}):
        assert convert(net, x, **options).report


def squeezed(s: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(s.up(s.down(x.mean((2, 3), keepdim=True)).relu()))


def channel_gate(s: Any, x: Tensor) -> Tensor:
    """Efficient channel attention, with a convolution over channels."""
    y = s.up.weight.mean() * 4 * F.conv1d(x.mean((2, 3)).view(len(x), 1, -1), s.taps, padding=1)
    return x * y.sigmoid().view(len(x), -1, 1, 1).expand_as(x)


def split_attention(s: Any, x: Tensor) -> Tensor:
    """As in ResNeSt, for two parts of the channels."""
    n, c = x.shape[:2]
    weights = s.up(s.down(x.mean((2, 3), keepdim=True)).relu()).view(n, 1, 2, -1).transpose(1, 2)
    weights = F.softmax(weights, dim=1).reshape(n, -1).view(n, -1, 1, 1)
    parts = x.reshape(n, 2, c // 2, *x.shape[2:]) * weights.reshape(n, 2, c // 2, 1, 1)
    return F.pad(parts.sum(1), (0, 0, 0, 0, 0, 2))


def pooled_behind_gate(s: Any, x: Tensor) -> Tensor:
    return F.max_pool2d(squeezed(s, x), 3, 1, 1)


@pytest.mark.parametrize("gated", [squeezed, channel_gate, split_attention, pooled_behind_gate])
def test_a_gate_approaches_that_of_the_net_and_its_error_falls_with_time(
    gated: Callable[[Any, Tensor], Tensor],
) -> None:
    layers = {"conv": nn.Conv2d(2, 4, 3, padding=1), "down": nn.Conv2d(4, 2, 1), "up": nn.Conv2d(2, 4, 1)}
    layers |= {"taps": nn.Parameter(torch.rand(1, 1, 3)), "head": nn.Linear(256, 3)}
    net, x = Net(lambda s, x: s.head(gated(s, s.conv(x).relu()).flatten(1)), **layers).eval(), images(4)
    with torch.no_grad():
        net.up.weight.mul_(8.0)  # type: ignore[union-attr, operator]
    with pytest.warns(UserWarning, match="1 gate .* follow"):
        snn = convert(net, x, method="data-norm", precharge=0.5)
    assert sum(isinstance(m, Gate) for m in snn.modules()) == 1 and not any(isinstance(m, Scale) for m in snn.modules())
    with torch.no_grad():
        wanted = net(x)
    sums = torch.cat(list(Simulation(snn).run(x, 400))).cumsum(0)
    early, late = (float((sums[t - 1] / t - wanted).norm() / wanted.norm()) for t in (25, 400))
    assert late < early / 8 and late < 0.01
    assert evaluate(snn, [x], 3, progress=False).synops[-1] > 0
    with pytest.raises(ValueError, match="schedule: got 'phased', want 'streaming' for a net with gates"):
        convert(net, x, method="data-norm", schedule="phased", time_steps=4)
    with pytest.raises(ValueError, match="gate .*adaptive neurons have no gates"):
        convert(net, x, method="adsnn", spike_height="adaptive")


@dataclass
class Outputs:
    """As Hugging Face's nets return them."""

    logits: Tensor
    features: Tensor


OUTPUTS: dict[Any, Callable[[Tensor, Tensor], Any]] = {
    "out": lambda a, b: OrderedDict(aux=a, out=b),
    "features": lambda a, b: Outputs(a, features=b),
    1: lambda a, b: (a, b),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_one_of_several_outputs_is_converted_by_name(output: Any) -> None:
    make = OUTPUTS[output]
    net = Net(
        lambda s, x: make(F.gelu(x), s.b(s.a(x.flatten(1)).relu())), a=nn.Linear(128, 8), b=nn.Linear(8, 2)
    ).eval()
    x = images(4)
    snn = convert(net, x, method="data-norm", precharge=0.5, output=output)
    with torch.no_grad():
        wanted = net.b(net.a(x.flatten(1)).relu())  # type: ignore[operator]
    assert (torch.cat(list(Simulation(snn).run(x, 200))).mean(0) - wanted).abs().max() < 0.02
    with pytest.raises(ValueError, match=f"ann: got an output that is a .*output={output!r}"):
        convert(net, x, method="data-norm")
    with pytest.raises(ValueError, match=f"output: got 'missing', want .*output={output!r}"):
        convert(net, x, method="data-norm", output="missing")


def test_an_output_of_a_net_with_one_is_refused() -> None:
    with pytest.raises(ValueError, match="output: got 'out', want None"):
        canonicalize(nn.Sequential(nn.Flatten(), nn.ReLU()), images(), output="out")


def test_a_dropout_that_is_on_in_evaluation_is_no_layer() -> None:
    net = Net(lambda s, x: F.dropout(s.a(x.flatten(1)).relu(), 0.5), a=nn.Linear(128, 8)).eval()
    with pytest.raises(ValueError, match="dropout that is on in evaluation"):
        canonicalize(net, images())


def test_factors_fold_into_the_layer_before_them() -> None:
    net = Net(lambda s, x: -((s.a(x.flatten(1)) - 0.5) * s.f).relu() / 2, a=nn.Linear(128, 8), f=torch.rand(8)).eval()
    graph, x = canonicalize(net, images()).graph, images()
    assert [type(m) for m in graph.children()] == [nn.Flatten, nn.Linear, nn.ReLU, Scale]
    torch.testing.assert_close(graph(x), net(x))
