"""What converts, in all its spellings, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import prune

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import layer, neuron  # noqa: E402

from snn_ext import convert  # noqa: E402
from snn_ext.conversion import QuantizedReLU  # noqa: E402
from snn_ext.conversion.canonicalize import canonicalize  # noqa: E402
from snn_ext.simulation import RULES, Rule, Simulation  # noqa: E402
from tests.conversion.nets import Block, ResNet, images, trained, vgg  # noqa: E402


class Around(nn.Module):
    """A convolution, some function, and a linear layer on what comes out of it."""

    def __init__(self, function: Callable[[Tensor], Tensor], size: int = 256) -> None:
        super().__init__()
        self.conv, self.function, self.head = nn.Conv2d(2, 4, 3, padding=1), function, nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.conv(x)).flatten(1))


class First(nn.Module):
    """Drops indices."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


class Transposed(nn.Module):
    """Swaps samples and channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float | None]] = {
    "torch.relu": (torch.relu, None),
    "F.relu": (lambda x: F.relu(x, inplace=True), None),
    "x.relu": (lambda x: x.relu(), None),
    "x.relu_": (lambda x: x.relu_(), None),
    "F.relu6": (F.relu6, 6.0),
    "clamp": (lambda x: x.clamp(0, 0.5), 0.5),
    "clamp min": (lambda x: torch.clamp(x, min=0.0), None),
    "clamp_min": (lambda x: x.clamp_min(0.0), None),
    "clip": (lambda x: torch.clip(x, min=0.0, max=0.25), 0.25),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 0.75), 0.75),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_spelling_of_an_activation_is_found(name: str) -> None:
    function, clip = ACTIVATIONS[name]
    ann, x = Around(function), images()
    analog = canonicalize(ann, x)
    assert [activation.clip for activation in analog.activations.values()] == [clip]
    assert torch.equal(analog.graph(x), ann(x)) and torch.equal(analog.output, ann(x))


ROUTES: dict[str, Any] = {
    "max pool function": (lambda x: F.max_pool2d(x.relu(), 2), 64),
    "max pool before": (lambda x: F.relu(F.max_pool2d(x, 2, ceil_mode=True)), 64),
    "average pool function": (lambda x: F.avg_pool2d(x.relu(), 2), 64),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x.relu(), 1).squeeze(-1).squeeze(-1), 4),
    "mean": (lambda x: x.relu().mean(dim=(2, 3)), 4),
    "view": (lambda x: x.relu().view(x.size(0), -1), 256),
    "reshape": (lambda x: x.relu().reshape(x.shape[0], 4 * 8 * 8), 256),
    "concatenation": (lambda x: torch.cat([x.relu(), F.relu6(x)], dim=1), 512),
    "addition": (lambda x: torch.add(x.relu(), x.clamp(0, 0.1)), 256),
    "type A shortcut": (lambda x: F.pad(x.relu()[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), 128),
    "upsampling": (lambda x: F.interpolate(x.relu(), scale_factor=2.0), 1024),
    "size of the input as kernel": (lambda x: F.avg_pool2d(x.relu(), x.size()[3] // 2), 16),
    "linear on the last dimension": (lambda x: F.relu(x.flatten(2)[:, :, :8] + x.relu().flatten(2)[:, :, 8:16]), 32),
    "dropout": (lambda x: F.dropout(x.relu(), 0.5, training=False), 256),
}


@pytest.mark.parametrize("channel_wise", [False, True], ids=["layer", "channel"])
@pytest.mark.parametrize("name", ROUTES)
def test_routes_between_layers_keep_the_output(name: str, channel_wise: bool) -> None:
    function, size = ROUTES[name]
    ann, x = Around(function, size=size).eval(), images(4)
    snn = convert(ann, x, method="data-norm", precharge=0.5, channel_wise=channel_wise)
    output = torch.cat(list(Simulation(snn).run(x, 300))).mean(0)
    with torch.no_grad():
        wanted = ann(x)
    assert (output - wanted).abs().max() < 0.02 * (1 + wanted.abs().max())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_batch_norm_folds_into_every_layer(dims: int, transposed: bool) -> None:
    conv = {(1, 0): nn.Conv1d, (2, 0): nn.Conv2d, (3, 0): nn.Conv3d, (1, 1): nn.ConvTranspose1d}
    conv |= {(2, 1): nn.ConvTranspose2d, (3, 1): nn.ConvTranspose3d}
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    layers = conv[dims, int(transposed)](4, 6, 3, groups=2)
    ann = trained(
        nn.Sequential(layers, norm(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5), nn.ReLU())
    )
    x = torch.rand(4, 4, *[5] * dims)
    ann(x)
    graph = canonicalize(ann, x).graph
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in graph.modules())
    torch.testing.assert_close(graph(x), ann(x))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_scales_per_channel_fold_through_groups(kind: Any, groups: int) -> None:
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), kind(4, 6, 3, groups=groups), nn.ReLU(), nn.Conv2d(6, 1, 3))
    x = images(4)
    snn = convert(ann, x, method="data-norm", precharge=0.5, channel_wise=True)
    with torch.no_grad():
        wanted = ann(x)
    assert (torch.cat(list(Simulation(snn).run(x, 300))).mean(0) - wanted).abs().max() < 0.02


def test_batch_norm_without_a_layer_before_it_stays_a_layer() -> None:
    ann, x = trained(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())), images()
    snn = convert(ann, x, method="data-norm", precharge=0.5)
    with torch.no_grad():
        wanted = ann(x)
    assert (torch.cat(list(Simulation(snn).run(x, 300))).mean(0) - wanted).abs().max() < 0.02


def test_each_call_of_a_shared_activation_gets_a_neuron_of_its_own() -> None:
    ann = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), Block(4, 4, 1, nn.ReLU), nn.Flatten(), nn.Linear(256, 2))
    snn = convert(trained(ann), images(), method="data-norm")
    assert [layer.name for layer in snn.report] == ["1.relu", "1.relu_2"]
    assert snn.report[0].threshold != snn.report[1].threshold


def test_layers_of_the_host_convert_and_keep_their_class() -> None:
    ann = nn.Sequential(layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), nn.ReLU(), layer.Flatten(), layer.Linear(144, 2))
    snn = convert(ann.eval(), images(), method="data-norm")
    assert type(snn.get_submodule("0")) is nn.Conv2d and type(ann[0]) is layer.Conv2d


REFUSED: dict[str, Any] = {
    "ELU 1, which cannot": nn.Sequential(nn.Conv2d(2, 4, 3), nn.ELU(), nn.Flatten(), nn.Linear(144, 2)),
    "GELU": nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU()),
    "the call of tanh": Around(torch.tanh),
    "mul of two values": Around(lambda x: x.relu() * x),
    "Softmax 2.*logits": nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Softmax(1)),
    "LayerNorm 1.*batch norm": nn.Sequential(nn.Flatten(), nn.LayerNorm(128), nn.ReLU()),
    "lower bound of -1": nn.Sequential(nn.Conv2d(2, 4, 3), nn.Hardtanh()),
    "clamp.*lower bound of None": Around(lambda x: x.clamp(max=1.0)),
    "return_indices": nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True), First()),
    "values that no activation made": nn.Sequential(nn.ReLU(), nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten()),
    "AdaptiveMaxPool2d.*fixed size": nn.Sequential(nn.ReLU(), nn.AdaptiveMaxPool2d(3)),
    "IFNode 1, a spiking neuron already": nn.Sequential(nn.Flatten(), neuron.IFNode()),
    "no activation at all": nn.Sequential(nn.Flatten(), nn.Linear(128, 2)),
    "padding_mode='circular'": nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU()),
    "track_running_stats": nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU()),
    "cat, which mixes samples": Around(lambda x: torch.cat([x.relu(), x.relu()])),
    "mean, which mixes samples": Around(lambda x: x.relu().mean(0), size=64),
    "transpose, which mixes samples": nn.Sequential(nn.ReLU(), Transposed()),
    "reshape, which mixes samples": Around(lambda x: x.relu().reshape(-1, 64), size=64),
    "getitem, which mixes samples": Around(lambda x: x.relu()[0], size=64),
    "add with such a constant": Around(lambda x: x.relu() + torch.rand(8)),
    "truediv with such a constant": Around(lambda x: 1.0 / x.relu()),
    "cannot be traced": Around(lambda x: x.relu() if x.sum() > 0 else x),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_can_not_be_converted_is_refused_by_name(message: str) -> None:
    with pytest.raises(ValueError, match=f"ann: got .*{message}"):
        canonicalize(REFUSED[message].eval(), images())


def test_weights_that_are_computed_become_parameters() -> None:
    x = images()
    ann = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.ReLU(), nn.Conv2d(3, 2, 3))
    nn.utils.parametrizations.spectral_norm(ann[2])
    graph = canonicalize(ann.eval(), x).graph
    torch.testing.assert_close(graph(x), ann(x))
    assert isinstance(graph.get_submodule("2").weight, nn.Parameter)
    assert torch.nn.utils.parametrize.is_parametrized(ann[0], "weight") and ann[0].weight.requires_grad
    with pytest.warns(FutureWarning):
        old = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(2, 3, 3)), nn.ReLU())
    old.append(nn.Conv2d(3, 2, 3))
    prune.l1_unstructured(old[2], "weight", 0.5)
    graph = canonicalize(old.eval(), x).graph
    torch.testing.assert_close(graph(x), old(x))
    assert all(len(layer._forward_pre_hooks) == 1 for layer in (old[0], old[2]))


def test_a_subclass_that_keeps_the_forward_of_its_layer_is_that_layer() -> None:
    class Named(nn.Conv2d):
        pass

    graph = canonicalize(nn.Sequential(Named(2, 3, 3), nn.ReLU()), images()).graph
    assert type(graph.get_submodule("0")) is nn.Conv2d


def test_linear_layers_on_the_last_of_three_dimensions_convert_per_channel() -> None:
    ann, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Flatten()), torch.rand(8, 3, 6)
    snn = convert(ann, x, method="data-norm", precharge=0.5, channel_wise=True)
    with torch.no_grad():
        wanted = ann(x)
    assert (torch.cat(list(Simulation(snn).run(x, 300))).mean(0) - wanted).abs().max() < 0.02


def test_several_inputs_and_unnamed_outputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(x) + y

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.relu(x), x

    for net, message in (
        (Two(), r"2 inputs \(x, y\).*a net of one input"),
        (Pair(), "an output that is a tuple.*output=0, output=1"),
    ):
        with pytest.raises(ValueError, match=message):
            canonicalize(net, images())


def test_a_layer_that_is_not_what_its_base_class_is_is_noticed() -> None:
    class Odd(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
            return super()._conv_forward(x, weight, bias) + 1.0

    for scale in (1.0, 1e-6):
        for net, why in (
            (Around(lambda x: F.relu(x, inplace=True) + x), "no operation in place on a value used again"),
            (nn.Sequential(Odd(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)), "torch.nn base class"),
        ):
            last = list(net.modules())[-1]
            last.weight.data *= scale
            last.bias.data *= scale
            with pytest.raises(ValueError, match=f"copy of known layers differs.*{why}"):
                convert(net.eval(), images(), method="data-norm")


def test_what_the_output_does_not_depend_on_is_not_asked_for() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.spare = nn.Conv2d(2, 3, 3), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            self.spare(x)
            return x.relu()

    analog = canonicalize(Spare(), images())
    assert list(analog.activations) == ["relu"] and not any(isinstance(m, nn.GELU) for m in analog.graph.modules())


def test_inputs_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"calibration: got inputs \[3, 8, 8\]"):
        convert(vgg(), torch.rand(2, 3, 8, 8))


def test_a_quantised_activation_is_found_as_it_is() -> None:
    ann = nn.Sequential(nn.Flatten(), nn.Linear(128, 4), QuantizedReLU(8, 0.75, "ceil"))
    snn = convert(ann, images(), method="data-norm")
    node = snn.get_submodule("2")
    assert float(node.v_threshold) == 0.75 and float(node.v_init) == 1.0 and not node.fire_at_threshold
    assert snn.report[0].rule == "quantised, ceil"


MAX_POOLED: dict[str, Any] = {
    "resnet": ResNet,
    "behind": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)),
    "before": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 1), nn.MaxPool2d(2), nn.ReLU()),
}


@pytest.mark.parametrize("pools", ["behind", "before"])
@pytest.mark.parametrize("name", MAX_POOLED)
def test_every_value_of_the_graph_has_the_shape_that_it_says(name: str, pools: Any) -> None:
    graph = canonicalize(trained(MAX_POOLED[name]()), images(), pools=pools).graph
    run = fx.Interpreter(graph, garbage_collect_values=False)
    run.run(images(2))
    values = {node: value for node, value in run.env.items() if isinstance(value, Tensor)}
    assert len(values) > 3 and all(node.meta["shape"] == value.shape for node, value in values.items())


class Halves(nn.Module):
    """Weights in a class that torch does not have, and a branch that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(5, 64) / 32), nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x if x.sum() > -1e6 else x / 2, self.weight, self.bias)


NEW: dict[str, tuple[nn.Module, Rule, int]] = {
    "shuffle": (nn.Unfold(2, stride=2), Rule(passes_unit=True), 256),
    "weights": (nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), Halves()), Rule(
        apply=lambda layer, x, weight: F.linear(x, weight), feature_dim=-1
    ), 5),
}  # fmt: skip


@pytest.mark.parametrize("channel_wise", [False, True], ids=["layer", "channel"])
@pytest.mark.parametrize("name", NEW)
def test_one_entry_makes_a_layer_type_convertible(
    name: str, channel_wise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, rule, size = NEW[name]
    ann = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), layer, nn.Flatten(), nn.Linear(size, 2)).eval()
    x, kind = images(4), type(layer[-1] if isinstance(layer, nn.Sequential) else layer)
    options: dict[str, Any] = {"method": "data-norm", "precharge": 0.5, "channel_wise": channel_wise}
    with pytest.raises(ValueError, match="ann: got (Unfold 2|Halves 2.2, which cannot be traced)"):
        convert(ann, x, **options)
    monkeypatch.setitem(RULES, kind, rule)
    output = torch.cat(list(Simulation(convert(ann, x, **options)).run(x, 300))).mean(0)
    with torch.no_grad():
        assert (output - ann(x)).abs().max() < 0.02
