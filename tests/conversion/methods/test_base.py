"""What all conversion methods share: options, the host's converter, and how often a net is copied and run."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based.ann2snn import Converter  # noqa: E402

from snn_ext import AAN, convert  # noqa: E402
from snn_ext.conversion import (  # noqa: E402
    AdSNNRecipe,
    CalibratedRecipe,
    ConvertedNet,
    DataNormRecipe,
    QuantizedReLU,
    RateRecipe,
    SpikeNormRecipe,
)
from snn_ext.conversion.batches import Batches  # noqa: E402
from snn_ext.conversion.canonicalize import AnalogNet  # noqa: E402
from snn_ext.conversion.methods import METHODS  # noqa: E402
from snn_ext.conversion.spiking import ThresholdSetter  # noqa: E402
from tests.conversion.nets import ResNet, images, loop, trained, vgg  # noqa: E402

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {"adsnn": "adsnn.md", "calibrated": "calibration.md"}


def options_of(method: str) -> dict[str, Any]:
    return {f.name: f.default for f in fields(METHODS[method]) if f.init and f.name != "calibration"}


@pytest.mark.parametrize("method", METHODS)
def test_every_option_is_documented_with_its_default_where_a_user_looks(method: str) -> None:
    page = (DOCS / PAGES.get(method, "conversion.md")).read_text(encoding="utf-8")
    cells = [[cell.strip(" `") for cell in line.split("|")] for line in page.splitlines() if line.startswith("| `")]
    rows = {row[1]: row[2] for row in cells}
    recipes = "\n".join(kind.__doc__ or "" for kind in METHODS[method].__mro__)
    for name, default in options_of(method).items():
        assert f"``{name}``" in str(convert.__doc__) and f"{name} :" in recipes.replace(", ", " :\n")
        assert rows[name] == repr(default).replace("'", '"')
    documented = {name for name in str(convert.__doc__).split("``")[1::2] if name.isidentifier()}
    assert documented <= {name for other in METHODS for name in options_of(other)}


@pytest.mark.parametrize(
    ("recipe", "method", "options"),
    [
        (DataNormRecipe, "data-norm", {"percentile": 99.0, "precharge": 0.5}),
        (SpikeNormRecipe, "spike-norm", {"time_steps": 9, "channel_wise": True}),
        (CalibratedRecipe, "calibrated", {"time_steps": 4, "progress": False}),
        (AdSNNRecipe, "adsnn", {"spike_height": "adaptive"}),
    ],
)
def test_a_recipe_converts_by_name_as_an_argument_and_in_the_hosts_converter(
    recipe: Any, method: str, options: dict[str, Any]
) -> None:
    ann, x = trained(vgg()), images(4)
    wanted = convert(ann, x, method=method, **options)
    for snn in (convert(ann, x, method=recipe(**options)), Converter(recipe(x, **options)).convert(ann)):
        assert isinstance(snn, ConvertedNet) and snn.report == wanted.report and snn.code == wanted.code
        assert torch.equal(loop(snn, x, 6), loop(wanted, x, 6))


def test_options_are_refused_when_a_recipe_is_made() -> None:
    with pytest.raises(ValueError, match="percentile: got 0, want a number in"):
        DataNormRecipe(percentile=0)
    with pytest.raises(TypeError, match="percentile"):
        SpikeNormRecipe(percentile=99.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        AdSNNRecipe(images(), 0.1)  # type: ignore[misc]
    recipe = DataNormRecipe(images())
    with pytest.raises(ValueError, match="method: got 'a DataNormRecipe with calibration data', want one without"):
        convert(vgg(), images(), method=recipe)
    with pytest.raises(TypeError, match="m_f: got 0.1, want an option of DataNormRecipe"):
        convert(vgg(), images(), method=DataNormRecipe(), m_f=0.1)
    recipe.reset = "soft"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="reset: got 'soft'"):
        Converter(recipe).convert(vgg())
    with pytest.raises(TypeError, match="calibration: got None"):
        Converter(DataNormRecipe()).convert(trained(vgg()))


@dataclass(eq=False, kw_only=True)
class ConstantRecipe(RateRecipe):
    """A method of somebody else: one threshold for all layers."""

    threshold: float = 2.0

    def set_thresholds(self, thresholds: ThresholdSetter, analog: AnalogNet, batches: Batches) -> None:
        for name in analog.activations:
            thresholds.set(name, torch.tensor([self.threshold]), "constant")


def test_a_new_method_is_a_class_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ann, x = trained(ResNet()), images(4)
    monkeypatch.setitem(METHODS, "constant", ConstantRecipe)
    snn = convert(ann, x, method="constant", threshold=3.0, precharge=0.5, readout="spikes")
    assert {(layer.threshold, layer.rule) for layer in snn.report} == {(3.0, "constant")}
    assert convert(ann, x, method=ConstantRecipe()).report[0].threshold == 2.0


def quantized() -> nn.Module:
    return vgg(lambda: QuantizedReLU(4))


# Runs of the first layer: the net itself, its sizes (twice), other sizes (five), the copy, the result, a chunk, and the
# measurement of rates; beside them one a batch for the maxima, and where it is needed: a percentile, the search,
# another output.
RUNS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "data-norm": (vgg, {"method": "data-norm"}, 12 + 2),
    "percentile": (vgg, {"method": "data-norm", "percentile": 99.0}, 12 + 4),
    "phased": (vgg, {"method": "data-norm", "schedule": "phased", "time_steps": 3}, 12 + 2),
    "spike-norm": (vgg, {"method": "spike-norm", "time_steps": 9}, 12 + 1 + 2),
    "quantised": (quantized, {"method": "data-norm"}, 12 + 2 + 1),
    # Two runs of the analog net, each batch; the current for the search, the spikes; the check before the fold.
    "calibrated": (vgg, {"time_steps": 3, "progress": False}, 12 + 7),
    "adsnn": (lambda: vgg(AAN), {"method": "adsnn"}, 12 + 2 + 1),
    "adsnn, another precision": (lambda: vgg(AAN), {"method": "adsnn", "m_f": 0.3}, 12 + 2 + 2),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_net_is_copied_twice_and_not_run_without_need(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, options, most = RUNS[name]
    ann, x = trained(make()), images(6)
    copies, runs = 0, 0
    deepcopy, convolve = copy.deepcopy, nn.Conv2d._conv_forward

    def counted_copy(value: Any, *memo: Any) -> Any:
        nonlocal copies
        copies += isinstance(value, nn.Module) and len(list(value.modules())) > 10
        return deepcopy(value, *memo)

    def counted_run(self: nn.Conv2d, *arguments: Any) -> Tensor:
        nonlocal runs
        runs += self.in_channels == 2
        return convolve(self, *arguments)

    monkeypatch.setattr(copy, "deepcopy", counted_copy)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", counted_run)
    convert(ann, [x[:3], x[3:]], **options)
    assert copies == 2 and runs <= most
