"""What people hand over: wrapped nets, optional arguments, small values, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import convert  # noqa: E402
from snn_ext.conversion import ConvertedNet  # noqa: E402

X = torch.linspace(0, 1, 32).reshape(8, 4)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def data_norm(net: nn.Module, **options: Any) -> ConvertedNet:
    return convert(net, X, method="data-norm", precharge=0.5, **options)


WRAPPERS: dict[str, Any] = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "both": lambda net: torch.compile(nn.DataParallel(net)),
    "inside": lambda net: nn.Sequential(torch.compile(net[0]), net[1], nn.DataParallel(net[2])),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_looked_through(name: str) -> None:
    net, wanted = WRAPPERS[name](mlp()), data_norm(mlp())
    snn = data_norm(net)
    assert snn.code == wanted.code and snn.report == wanted.report


def test_a_scripted_net_and_one_without_values_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="a scripted module.*that was scripted"):
        data_norm(torch.jit.trace(mlp(), X))
    with pytest.raises(ValueError, match="meta device"):
        data_norm(mlp().to("meta"))


def test_optional_arguments_have_their_defaults() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor, mask: Any = None, *, features: bool = False) -> Tensor:
            x = self.net[1](self.net[0](x if mask is None else x * mask))
            return x if features else self.net[2](x)

    assert [layer.threshold for layer in data_norm(Net()).report] == [data_norm(mlp()).report[0].threshold]


@pytest.mark.parametrize("method", ["data-norm", "spike-norm", "adsnn"])
def test_activations_below_the_smallest_threshold_are_refused(method: str) -> None:
    net = mlp()
    with torch.no_grad():
        for parameter in net[0].parameters():
            parameter *= 1e-9
        net[2].weight *= 1e9
    options = {"spike_height": "adaptive"} if method == "adsnn" else {}
    with pytest.raises(ValueError, match="calibration: got activations of .* in 1, want at least the smallest thresh"):
        convert(net, X, method=method, **options)  # type: ignore[arg-type]


ADAPTIVE = {"method": "adsnn", "spike_height": "adaptive", "m_f": 0.02}


def test_adaptive_spikes_are_not_made_ten_times_as_coarse() -> None:
    net = mlp()
    with torch.no_grad():
        net[0].weight *= 1e-7 / float(net[:2](X).amax())
        net[0].bias *= 0.0
    with pytest.raises(ValueError, match="calibration: got activations of"):
        convert(net, X, **ADAPTIVE)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"method": "data-norm"}, ADAPTIVE], ids=["data-norm", "adsnn"])
def test_a_little_too_small_activations_get_the_smallest_threshold_and_are_noted(options: dict[str, Any]) -> None:
    net = mlp()
    with torch.no_grad():
        size = float(net[:2](X).amax())
        for parameter in net[0].parameters():
            parameter *= 4e-7 / size
        net[2].weight *= size / 4e-7
    with pytest.warns(UserWarning, match="has activations of 4e-07 only"):
        snn = convert(net, X, **options)
    assert "4e-07" in snn.report[0].notes[0]
    with torch.no_grad():
        steps = torch.stack([snn(X) for _ in range(1024)])
        found = steps[-100:] if options["method"] == "adsnn" else steps  # the one smooths its output itself
        assert (found.mean(0) - net(X)).norm() < 0.05 * net(X).norm()


def test_a_fraction_is_no_percentile() -> None:
    for value, meant in ((0.999, ": 99.9 for the fraction 0.999"), (0.0, ""), (101.0, "")):
        with pytest.raises(ValueError, match=rf"want a number in \[1, 100\], in percent{meant}$"):
            data_norm(mlp(), percentile=value)
    assert data_norm(mlp(), percentile=99.9).report[0].rule == "percentile 99.9"


def test_silent_layers_and_percentiles_of_zero_are_warned_of_and_in_the_report() -> None:
    silent, seldom = mlp(), mlp()
    with torch.no_grad():
        silent[0].bias.fill_(-9.0)
        seldom[0].weight.zero_()
        seldom[0].bias.fill_(-1.0)
        seldom[0].bias[0] = 1.0
    for net, options, text in (
        (silent, {}, "was never active; its threshold is 1"),
        (seldom, {"percentile": 50.0}, "is active too seldom for percentile 50; the maximum is taken"),
    ):
        with pytest.warns(UserWarning, match=f"calibration: 1 {text}"):
            report = data_norm(net, **options).report
        assert report[0].notes == [text] and f"1: {text}" in str(report)


def test_the_error_of_the_report_orders_methods_whatever_their_thresholds_are() -> None:
    net = mlp()
    good = data_norm(net, time_steps=64).report[0]
    few = data_norm(net, time_steps=4).report[0]
    assert good.value_error < 0.05 < few.value_error and (good.steps, few.steps) == (64, 4)
    wide = convert(torch.nn.Sequential(net[0], nn.ReLU6(), net[2]), X, method="data-norm", precharge=0.5, time_steps=64)
    assert wide.report[0].value_error == pytest.approx(good.value_error, rel=0.5)
