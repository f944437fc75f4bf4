"""The calibrated conversion: better than where it starts, on every kind of net, and as safe as the other methods."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import convert  # noqa: E402
from snn_ext.conversion import (  # noqa: E402
    CalibratedRecipe,
    ConvertedNet,
    QuantizedReLU,
    Report,
    tuning,  # noqa: E402
)
from snn_ext.evaluation import evaluate  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from tests.conversion.nets import ResNet, images, loop, trained, vgg  # noqa: E402
from tests.reference import assert_unchanged, snapshot  # noqa: E402

T = 8
QUIET: dict[str, Any] = {"time_steps": T, "progress": False}


class Branches(nn.Module):
    """A concatenation of two branches, one of them pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(2, 4, 3, padding=1), nn.Linear(112, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x).relu(), nn.functional.max_pool2d(self.b(x).relu(), 2)], 1).flatten(1))


class NormBehindSum(nn.Module):
    """A batch norm that stands behind a sum, where no layer takes it up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x) + x).relu().flatten(1))


class Sums(nn.Module):
    """A value that is added to itself, and a mean over space that is repeated in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        x = (y + y).relu()
        return self.head((self.c(x.mean((2, 3), keepdim=True)) + x).relu().flatten(1))


def grouped() -> nn.Module:
    convolutions = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3, padding="same", groups=2)
    return nn.Sequential(convolutions[0], nn.ReLU6(), convolutions[1], nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "maximum pooling": lambda: vgg(pool=lambda: nn.MaxPool2d(2)),
    "residual": ResNet,
    "concatenation": Branches,
    "norm behind a sum": NormBehindSum,
    "sums": Sums,
    "clips and groups": grouped,
    "quantised": lambda: vgg(lambda: QuantizedReLU(8, 0.5)),
    "one dimension": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(2, 5, 3, dilation=2), nn.ReLU(), nn.Conv1d(5, 4, 3, stride=2), nn.ReLU(),
        nn.ConvTranspose1d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3),
    ),
}  # fmt: skip


def built(name: str, x: Tensor) -> nn.Module:
    net = NETS[name]()
    with torch.no_grad():
        net(x)
    return trained(net)


def error(snn: nn.Module, ann: nn.Module, x: Tensor, time_steps: int = T) -> float:
    output = torch.cat(list(Simulation(snn).run(x, time_steps))).mean(0)
    with torch.no_grad():
        return float((output - ann(x)).square().mean().sqrt())


@pytest.mark.parametrize("correct", [False, True], ids=["search", "weights too"])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_net_gets_nearer_to_the_analog_one(name: str, correct: bool) -> None:
    x = images(24)
    ann = built(name, x)
    before = snapshot(ann)
    snn = convert(ann, [x[:10], x[10:]], correct_weights=correct, **QUIET)
    assert_unchanged(ann, before)
    plain = convert(ann, x, method="data-norm", channel_wise=True)
    # Thresholds of quantised activations are right as they are.
    assert error(snn, ann, x) < (1.1 if name == "quantised" else 0.7) * error(plain, ann, x)
    found = [(layer.start_error, layer.found_error) for layer in snn.report]
    assert all(after <= start for start, after in found) and any(after < start for start, after in found)
    assert [layer.name for layer in snn.report] == [layer.name for layer in plain.report]
    assert all(0.0 <= v < 1.0 for layer in snn.report for v in layer.precharge)


@pytest.mark.parametrize("options", [
    {"encoder": "if"}, {"encoder": "poisson", "time_steps": 64, "seed": 3}, {"fold_scales": False},
], ids=str)  # fmt: skip
def test_encoders_and_unfolded_scales(options: dict[str, Any]) -> None:
    ann, x = trained(ResNet()), images(16)
    snn = convert(ann, x, **QUIET | options)
    steps = snn.time_steps or T
    plain = convert(ann, x, method="data-norm", **options)
    assert error(snn, ann, x, steps) < error(plain, ann, x, steps)


def test_counted_output_has_one_threshold_so_that_counts_compare() -> None:
    ann, x = trained(vgg()), images(16)
    snn = convert(ann, x, readout="spikes", **QUIET)
    output = torch.cat(list(Simulation(snn).run(x, T)))
    assert ((output == 0) | (output == 1)).all() and isinstance(snn.report[-1].scale, float)
    with torch.no_grad():
        assert (output.mean(0) * snn.report[-1].scale - ann(x).relu()).abs().mean() < 0.1


def test_the_phased_schedule_has_the_thresholds_of_the_staircase() -> None:
    ann, x = trained(vgg()), images(16)
    found = {
        method: convert(ann, x, schedule="phased", time_steps=4, **options)
        for method, options in (
            ("calibrated", {"progress": False}),
            ("maximum", {"method": "data-norm", "channel_wise": True, "precharge": 0.5}),
        )
    }
    errors = {method: error(snn, ann, x, snn.latency or 0) for method, snn in found.items()}
    assert errors["calibrated"] < errors["maximum"]
    quantised = trained(vgg(lambda: QuantizedReLU(4, 0.5)))
    exact = convert(quantised, x, schedule="phased", time_steps=4, progress=False)
    assert error(exact, quantised, x, exact.latency or 0) < 1e-5


@pytest.mark.parametrize("wait", [1, 3])
@pytest.mark.parametrize("name", ["residual", "concatenation", "clips and groups", "quantised"])
def test_a_net_that_waits_is_calibrated_for_its_decisions(name: str, wait: int) -> None:
    x = images(24)
    ann = built(name, x)
    snn, plain = (
        convert(ann, x, time_steps=4, wait=wait, progress=False, **options)
        for options in ({}, {"method": "data-norm", "channel_wise": True})
    )
    # quantised activations of eight levels are no better off with thresholds for four
    assert error(snn, ann, x, snn.latency or 0) < (1.1 if name == "quantised" else 0.7) * error(
        plain, ann, x, plain.latency or 0
    )


@pytest.mark.parametrize("wait", [0, 1, 2, 3])
@pytest.mark.parametrize("grid", [False, True], ids=["any numbers", "many ties"])
def test_layers_decode_in_the_net_what_the_search_says(grid: bool, wait: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    ann, x = nn.Sequential(*layers), torch.rand(64, 6, generator=generator)
    for layer in layers[::2]:
        assert isinstance(layer, nn.Linear)
        nn.init.uniform_(layer.weight, -0.5, 0.7, generator=generator)
        layer.weight.data = (layer.weight.data * 8).round() / 8 if grid else layer.weight.data
    ann, x = ann.double(), ((x * 4).round() / 4 if grid else x).double()
    snn = convert(ann, x, time_steps=4, wait=wait, progress=False, correct_weights=False)
    steps, counts = snn.latency or 4, {}
    for layer in snn.report:
        module = snn.get_submodule(layer.name)
        module.register_forward_hook(lambda m, a, y, n=layer.name: counts.__setitem__(n, counts.get(n, 0.0) + y))
    with torch.no_grad():
        for _ in range(steps):
            snn(x)
    for layer, depth in zip(snn.report, (1, 3, 5), strict=True):
        activation = ann[: depth + 1](x).detach()
        decoded = counts[layer.name].detach() / 4 * torch.tensor(layer.scale, dtype=torch.float64)
        found = float((decoded - activation).norm() / activation.norm())
        assert layer.found_error == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("wait", [0, 2])
def test_the_same_data_in_other_batches_and_little_memory_give_the_same_net(wait: int) -> None:
    ann, x, options = trained(ResNet()), images(24), QUIET | {"wait": wait}
    wanted = convert(ann, x, memory=1 << 22, **options)
    for batches in (x, [x[:5], x[5:6], x[6:]]):
        snn = convert(ann, batches, memory=1 << 22, **options)
        for layer, other in zip(snn.report, wanted.report, strict=True):
            torch.testing.assert_close(torch.tensor(layer.threshold), torch.tensor(other.threshold))
    assert convert(ann, x, memory=1 << 22, **options).report == wanted.report


def test_samples_bound_what_is_used_of_an_endless_loader() -> None:
    ann, x = trained(vgg()), images(12)

    def endless() -> Any:
        while True:
            yield x[:5], None
            yield x[5:], None

    few = convert(ann, endless, samples=12, **QUIET)
    assert few.report == convert(ann, [x[:5], x[5:]], **QUIET).report


def test_a_calibrated_net_keeps_the_promises_of_a_converted_one() -> None:
    pytest.importorskip("snntorch")
    from snn_ext.snntorch import reset

    ann, x = trained(ResNet()), images(16)
    snn = convert(ann, x, **QUIET)
    wanted = loop(snn, x, T)
    for twin in (pickle.loads(pickle.dumps(snn)), copy.deepcopy(snn)):
        assert isinstance(twin, ConvertedNet) and twin.report == snn.report
        assert torch.equal(loop(twin, x, T), wanted)
    assert Report.from_json(snn.report.to_json()) == snn.report and "calibrated" in str(snn.report)
    other = convert(ann, x.flip(-1), **QUIET)
    other.load_state_dict(snn.state_dict())
    assert torch.equal(loop(other, x, T), wanted)
    theirs = snn.to_snntorch()
    reset(theirs)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack([theirs(x) for _ in range(T)]), wanted)
    labels = torch.zeros(16, dtype=torch.long)
    assert evaluate(snn, [(x, labels)], T, ann=ann, progress=False).time_steps == T
    kinds = {type(m).__module__.split(".")[0] for m in snn.modules()}
    assert kinds <= {"torch", "snn_ext", "spikingjelly"}


def test_a_silent_layer_and_a_dead_channel_convert() -> None:
    ann, x = trained(vgg()), images(8)
    with torch.no_grad():
        ann[0].weight[0], ann[0].bias[0] = 0.0, -1.0
        ann[4].weight.zero_()
        ann[4].bias.fill_(-1.0)
    with pytest.warns(UserWarning, match="calibration: 5 was never active; its threshold is 1"):
        snn = convert(ann, x, **QUIET)
    assert error(snn, ann, x) < 1e-4


def test_the_search_beats_its_start_on_a_current_that_varies() -> None:
    from snn_ext._channel_search import ChannelSearch, least_squares_threshold

    current = torch.randn(4, 3, 200) + torch.tensor([-1.0, 0.0, 2.0])[:, None]
    target = current.mean(0).relu()
    search = ChannelSearch(current, target, least_squares_threshold(current.mean(0), target, 4))
    start = search.error
    search.run()
    assert (search.error <= start).all() and search.error.sum() < 0.9 * start.sum()
    v, count = search.precharge[:, None] * search.threshold[:, None], 0.0
    for x in current:  # the neuron, written out
        v = v + x + search.bias[:, None]
        spike = (v >= search.threshold[:, None]).float()
        v, count = v - spike * search.threshold[:, None], count + spike
    found = (count * search.threshold[:, None] / 4 - target).square().mean(1)
    torch.testing.assert_close(found, search.error)


@pytest.mark.parametrize("rows", [20, 60])
def test_a_regression_of_more_columns_than_rows_is_that_of_its_definition(rows: int) -> None:
    from snn_ext._regression import _Ridge

    torch.manual_seed(0)
    x, r = torch.rand(2, rows, 40, dtype=torch.float64), torch.rand(2, rows, 3, dtype=torch.float64)
    ridge, centred = _Ridge(x, r), x - x.mean(1, keepdim=True)
    gram = centred.mT @ centred
    for penalty in (1e-3, 1.0):
        system = gram + torch.diag_embed(penalty * gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(2, 40))
        wanted = torch.linalg.solve(system, centred.mT @ (r - r.mean(1, keepdim=True)))
        torch.testing.assert_close(ridge.slope(penalty), wanted)
        torch.testing.assert_close(ridge.predict(x, penalty).mean(1), r.mean(1))


@pytest.mark.parametrize("layer", [
    nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Conv1d(4, 6, 3, dilation=2, padding=(1,)),
    nn.Conv3d(4, 6, 2, padding=1),
], ids=str)  # fmt: skip
def test_a_correction_of_weights_finds_the_weights(layer: Any) -> None:
    from snn_ext._regression import correction, inputs_of
    from snn_ext.conversion.refit import refit

    x = torch.randn(20, 4, *[5] * (layer.weight.ndim - 2))
    wanted = copy.deepcopy(layer)
    for parameter in wanted.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        residual = wanted(x) - layer(x)
    places = residual[0, 0].numel()
    every = torch.arange(20 * places)
    inputs = inputs_of(layer, x, every // places, every % places, residual.shape)
    fit = correction(inputs, residual.flatten(2).movedim(1, 2).flatten(0, 1), layer.groups)
    assert fit is not None
    refit(layer, *fit)
    torch.testing.assert_close(layer.weight, wanted.weight, atol=0.02, rtol=0.02)
    torch.testing.assert_close(layer.bias, wanted.bias, atol=0.02, rtol=0.02)
    noise = torch.randn(len(inputs), 6) * 1e-6 * torch.arange(len(inputs))[:, None].eq(0)
    assert correction(inputs, noise, layer.groups) is None


def test_options_of_the_other_methods_are_refused_by_name() -> None:
    for name in ("precharge", "reset", "channel_wise", "residual"):
        with pytest.raises(TypeError, match=f"{name}: got .* want an option of CalibratedRecipe"):
            convert(vgg(), images(), **{name: True})
    with pytest.raises(TypeError, match="correct_weights"):
        CalibratedRecipe(correct_weights="residual")  # type: ignore[arg-type]


@pytest.mark.parametrize("tune", ["channels", "weights"])
@pytest.mark.parametrize(
    ("name", "wait"),
    [("maximum pooling", 0), ("quantised", 0), ("maximum pooling", 1), ("residual", 1), ("residual", 2)],
)
def test_tuning_never_leaves_the_inputs_that_it_holds_out_worse(name: str, wait: int, tune: Any) -> None:
    x = images(32)
    ann = built(name, x)
    options = QUIET | {"time_steps": 3, "correct_weights": False, "wait": wait}
    before, after = convert(ann, x[:-8], **options), convert(ann, x, tune=tune, epochs=3, **options)
    held, steps = x[-8:], before.latency or 3
    assert error(after, ann, held, steps) <= error(before, ann, held, steps) * (1 + 1e-5)
    assert after.report == convert(ann, x, tune=tune, epochs=3, **options).report
    assert after.report[0].rule.endswith("tuned") and after.step_mode == "s"
    assert not any(p.grad is not None for p in ann.parameters())


def test_inputs_that_decide_on_the_tuning_are_not_calibrated_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # On its own inputs a calibrated net is so near to the analog one that any change makes it worse.
    ann, x = trained(ResNet()), images(32)
    monkeypatch.setattr("snn_ext.conversion.methods.calibrated.tune", lambda *args, **options: None)
    tuned = convert(ann, [x[:10], x[10:]], tune="weights", **QUIET)
    calibrated = convert(ann, [x[:10], x[10:20], x[20:24]], **QUIET)
    assert [layer.threshold for layer in tuned.report] == [layer.threshold for layer in calibrated.report]


def test_exact_quantised_net_is_not_tuned() -> None:
    x = images(8)
    with pytest.raises(ValueError, match="tune: got 'weights', want 'nothing' for quantised activations"):
        convert(built("quantised", x), x, tune="weights", schedule="phased", progress=False)


@pytest.mark.parametrize("wait", [0, 1, 3])
@pytest.mark.parametrize("name", ["maximum pooling", "residual", "concatenation"])
def test_tuning_starts_from_what_the_net_computes(name: str, wait: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, losses = images(32), list[float]()
    ann, x = built(name, x).double(), x.double()  # or a rounding decides on a spike here and there

    def only_measured(thresholds: Any, inputs: Any, targets: Any, time_steps: int, **options: Any) -> None:
        trial = tuning._Trial(thresholds, time_steps, False, options["wait"])
        with trial.running(), torch.no_grad():
            losses.append(float(trial.loss(inputs, targets)))

    monkeypatch.setattr("snn_ext.conversion.methods.calibrated.tune", only_measured)
    snn = convert(ann, x, time_steps=4, wait=wait, tune="channels", progress=False)
    assert losses[0] == pytest.approx(error(snn, ann, x, snn.latency or 4) ** 2, rel=1e-6)
