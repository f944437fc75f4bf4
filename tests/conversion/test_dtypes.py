"""Nets of float64, a default dtype of float64, and 16-bit nets, which are converted in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import AAN, BNAAN, convert  # noqa: E402
from snn_ext.conversion import QuantizedReLU  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.simulation.analog import AnalogTwin  # noqa: E402
from tests.conversion.nets import ResNet, images, loop, trained, vgg  # noqa: E402


class NormFirst(nn.Module):
    """A batch norm that no layer takes up."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.head = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Linear(108, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.norm(x)).relu().flatten(1))


NETS: dict[str, Callable[[], nn.Module]] = {"vgg": vgg, "resnet": ResNet, "norm first": NormFirst}
OPTIONS: list[dict[str, Any]] = [
    {"method": "data-norm"},
    {"method": "data-norm", "channel_wise": True},
    {"method": "data-norm", "channel_wise": True, "fold_scales": False},
    {"method": "spike-norm", "time_steps": 4, "channel_wise": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_a_net_of_float64_stands_for_the_analog_net_to_its_last_digits(name: str, options: dict[str, Any]) -> None:
    ann, x = trained(NETS[name]()).double(), images(4).double()
    with torch.no_grad():
        for parameter in ann.parameters():
            parameter += 1e-9 * torch.rand_like(parameter)  # what float32 cannot hold
        wanted = ann(x)
    snn = convert(ann, x, **options)
    torch.testing.assert_close(AnalogTwin(snn)(x), wanted, rtol=1e-12, atol=1e-13)
    output = torch.cat(list(Simulation(snn).run(x, 4)))
    assert output.dtype == torch.float64 and torch.equal(output, loop(snn, x, 4))


def test_a_net_of_adaptive_neurons_converts_in_float64() -> None:
    ann, x = trained(nn.Sequential(BNAAN(2), *list(vgg(AAN)))).double(), images(4).double()
    snn = convert(ann, x, method="adsnn")
    with torch.no_grad():  # the height of a spike is float32
        torch.testing.assert_close(AnalogTwin(snn)(x), ann(x), rtol=1e-5, atol=1e-6)


def test_a_quantised_activation_keeps_its_threshold_of_float64() -> None:
    ann, x = trained(vgg(lambda: QuantizedReLU(8, 0.3))).double(), images(4).double()
    with torch.no_grad():
        for module in ann.modules():
            if isinstance(module, QuantizedReLU):
                module.threshold += 1e-10
    snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=8)
    assert snn.get_submodule("2").v_threshold == ann[2].threshold != ann[2].threshold.float()


@pytest.fixture
def default_of_float64() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", [*NETS, "adaptive"])
def test_the_default_dtype_changes_nothing(name: str, default_of_float64: None) -> None:
    if name == "adaptive":
        make: Any = lambda: nn.Sequential(BNAAN(2), *list(vgg(AAN, lambda: nn.MaxPool2d(2))))  # noqa: E731
        options: list[dict[str, Any]] = [{"method": "adsnn"}]
    else:
        make, options = NETS[name], [*OPTIONS, {"method": "data-norm", "precharge": "optimize", "time_steps": 4}]
    ann, x = trained(make()), images(4)
    wanted = [convert(ann, x, **given) for given in options]
    torch.set_default_dtype(torch.float64)
    for given, other in zip(options, wanted, strict=True):
        snn = convert(ann, x, **given)
        assert {t.dtype for t in (*snn.parameters(), *snn.buffers())} == {torch.float32}
        assert snn.report == other.report and torch.equal(loop(snn, x, 4), loop(other, x, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["data-norm", "spike-norm", "adsnn"])
def test_16_bit_nets_are_converted_in_float32_and_mixed_ones_are_refused(method: str, dtype: torch.dtype) -> None:
    make = (lambda: vgg(AAN)) if method == "adsnn" else vgg
    ann, x = trained(make()), images(2)
    half = trained(make()).to(dtype)
    with pytest.warns(UserWarning, match=f"ann: weights of {dtype}, converted in float32"):
        snn = convert(half, x.to(dtype), method=method)  # type: ignore[arg-type]
    assert next(half.parameters()).dtype == dtype
    assert all(layer.notes[0] == f"weights of {dtype}, converted in float32" for layer in snn.report)
    wanted = convert(copy.deepcopy(half).float(), x, method=method)  # type: ignore[arg-type]
    assert torch.equal(loop(snn, x.to(dtype), 3), loop(wanted, x, 3))
    mixed = trained(vgg())
    mixed[4].double()
    with pytest.raises(ValueError, match="ann: got 'weights of torch.float32 and torch.float64'"):
        convert(mixed, x, method=method)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="calibration: got a torch.float64 tensor .* want inputs of torch.float32"):
        convert(ann, x.double(), method=method)  # type: ignore[arg-type]
