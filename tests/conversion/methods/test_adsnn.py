"""Nets of AANs, and of ReLUs, as adaptive spiking neurons."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402
from spikingjelly.activation_based.ann2snn import Converter  # noqa: E402

from recipes.models.adaptive import layout_net, preact_resnet18  # noqa: E402
from snn_ext import AAN, BNAAN, convert, set_precision  # noqa: E402
from snn_ext.conversion import AdSNNRecipe, QuantizedReLU  # noqa: E402
from snn_ext.evaluation import evaluate  # noqa: E402
from snn_ext.functional import asn_spike_height  # noqa: E402
from snn_ext.neurons.precision import fold_height  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.spikingjelly import ASNNode  # noqa: E402
from tests.conversion.nets import ResNet, images, loop, trained, vgg  # noqa: E402
from tests.reference import assert_unchanged, snapshot  # noqa: E402


class Branches(nn.Module):
    """A pooling whose activation is used unpooled too, a concatenation, a shortcut of spikes, spikes as output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = BNAAN(2), nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.join, self.last = AAN(), AAN(m_f=0.05), AAN()
        self.pool = nn.MaxPool2d(2)
        self.c = nn.Linear(8 * 16, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.a(self.first(x)))
        pooled, shortcut = self.pool(y), F.avg_pool2d(y, 2)
        z = self.join(self.b(shortcut) + pooled)
        return self.last(self.c(torch.cat((z, pooled), 1).flatten(1)))


def of_aans(pool: Any = nn.MaxPool2d) -> nn.Module:
    return nn.Sequential(BNAAN(2), *list(vgg(AAN, lambda: pool(2))))


NETS: dict[str, Any] = {
    "max pooling": of_aans,
    "average pooling": lambda: of_aans(nn.AvgPool2d),
    "merged average pooling": lambda: layout_net("6c3-a2-8c3-m2-d12", (2, 8, 8), 5),
    "residual": lambda: nn.Sequential(BNAAN(2), ResNet(AAN)),
    "identity mappings": lambda: preact_resnet18(5, 2, width=0.0625, size=8),
    "branches": Branches,
    "analog convolution": lambda: vgg(AAN, lambda: nn.MaxPool2d(2)),
}


def mean_output(snn: nn.Module, x: Tensor, first: int = 150, last: int = 400) -> Tensor:
    return torch.cat(list(Simulation(snn).run(x, last)))[first:].mean(0)


@pytest.mark.parametrize("name", NETS)
def test_the_output_is_that_of_the_analog_net(name: str) -> None:
    ann, x = trained(NETS[name]()), images(2)
    before = snapshot(ann)
    snn = convert(ann, x, method="adsnn", m_f=0.05)
    assert_unchanged(ann, before)
    with torch.no_grad():
        wanted = ann(x)
    error = (mean_output(snn, x) - wanted).abs().max() / wanted.abs().max()
    assert error < 0.15  # f at 0.05 is not f at 0.1, at which these nets are made
    kinds = {type(m).__name__ for m in snn.modules()}
    assert not kinds & {"AAN", "ReLU", "BatchNorm2d", "BatchNorm1d", "Dropout"}
    assert all(m.bias is None for m in snn.modules() if isinstance(m, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize("make", [ResNet, lambda: vgg(pool=lambda: nn.MaxPool2d(2))], ids=["resnet", "vgg"])
def test_a_trained_relu_net_converts_with_adaptive_heights(make: Any) -> None:
    ann, x = trained(make()), images(4)
    snn = convert(ann, x, method="adsnn", spike_height="adaptive", percentile=99.0, m_f=0.03)
    with torch.no_grad():
        wanted = ann(x)
    assert (mean_output(snn, x) - wanted).abs().max() / wanted.abs().max() < 0.02
    evaluation = evaluate(snn, [x], 50, ann=ann, progress=False)
    assert all(0 < layer.spikes_per_neuron < 50 for layer in evaluation.layers)


def test_spikes_between_layers_are_zero_and_one_and_weights_carry_the_height() -> None:
    ann, x = trained(of_aans()), images(4)
    snn = convert(ann, x, method="adsnn")
    found = {
        name: module.register_forward_hook(
            lambda m, i, o: None if m.readout or ((o == 0) | (o == 1)).all() else pytest.fail("not 0/1")
        )
        for name, module in snn.named_modules()
        if isinstance(module, ASNNode)
    }
    loop(snn, x, 20)
    assert {name for name, m in snn.named_modules() if isinstance(m, ASNNode) and m.readout} >= {"readout"} and found
    last = snn.get_submodule("16")
    torch.testing.assert_close(last.weight, ann[-1].weight * asn_spike_height(0.1), rtol=1e-4, atol=1e-7)
    assert torch.equal(snn.readout.bias, ann[-1].bias) and snn.readout.tau_phi == 50.0
    emitting = convert(ann, x, method="adsnn", fold_scales=False)
    assert emitting.get_submodule("0.1").scale_output
    assert torch.equal(emitting.get_submodule("16").weight, ann[-1].weight)
    torch.testing.assert_close(mean_output(emitting, x), mean_output(snn, x), rtol=0.05, atol=0.05)


def test_the_net_is_the_papers_loop_in_float64() -> None:
    ann, x = trained(layout_net("4c3-m2-6c3-d8", (2, 8, 8), 3)), images(2).double()
    snn = convert(ann, x.float(), method="adsnn").double()
    modules = [snn.get_submodule(str(n.target)) for n in snn.graph.nodes if n.op == "call_module"]  # in their order
    convs = [m for m in modules if isinstance(m, nn.Conv2d)]
    linears = [m for m in modules if isinstance(m, nn.Linear)]
    scale, offset = snn.get_submodule("0").weight, snn.get_submodule("1").bias
    biases = [m.bias for m in modules if isinstance(m, ASNNode) and m.bias is not None][1:]
    decay = {name: torch.tensor(-1.0 / tau, dtype=torch.float64).exp() for name, tau in
             (("gamma", 15.0), ("eta", 50.0), ("beta", 50.0), ("phi", 5.0), ("readout", 50.0))}  # fmt: skip
    m_f = snn.get_submodule("1").m_f

    def shape(b: Tensor, like: Tensor) -> Tensor:
        return b if like.ndim == 2 else b.reshape(-1, 1, 1)

    class Layer:
        def __init__(self, bias: Tensor, pool: Any = None, analog: bool = False, phi: str = "phi") -> None:
            self.bias, self.pool, self.analog, self.phi = bias, pool, analog, phi
            self.i = self.s = self.s_hat = self.adaptation = torch.zeros((), dtype=torch.float64)

        def potential(self, current: Tensor) -> Tensor:
            self.i = current if self.analog else self.i * decay["beta"] + current
            self.s = (1 - decay[self.phi]) * self.i + decay[self.phi] * self.s
            pooled = self.s if self.pool is None else self.pool(self.s)
            return shape(self.bias, pooled) + pooled

        def step(self, current: Tensor) -> Tensor:
            s, theta = self.potential(current), m_f + self.adaptation
            self.s_hat = self.s_hat * decay["eta"]
            z = (s - self.s_hat > 0.5 * theta).double()
            self.s_hat = self.s_hat + theta * z
            self.adaptation = (self.adaptation + m_f * theta * z) * decay["gamma"]
            return z

    layers = [Layer(offset, analog=True), Layer(biases[0], lambda v: F.max_pool2d(v, 2)), *map(Layer, biases[1:-1])]
    readout = Layer(biases[-1], phi="readout")
    output, spikes = [], []
    for _ in range(200):
        z = layers[0].step(x * shape(scale, x))
        z = layers[1].step(F.conv2d(z, convs[0].weight, padding=1))
        z = layers[2].step(F.conv2d(z, convs[1].weight, padding=1))
        z = layers[3].step(F.linear(z.flatten(1), linears[0].weight))
        spikes.append(z)
        output.append(readout.potential(F.linear(z, linears[1].weight)))
    found: list[Tensor] = []
    result = torch.cat(
        list(Simulation(snn).run(x, 200, lambda n, m, s: found.append(s) if s.shape[2:] == (8,) else None))
    )
    assert torch.equal(torch.cat(found), torch.stack(spikes)) and torch.stack(spikes).any()
    torch.testing.assert_close(result, torch.stack(output), rtol=0, atol=1e-12)


def test_step_by_step_and_as_a_sequence_in_chunks_and_in_any_batch_are_the_same() -> None:
    ann, x = trained(of_aans()), images(5)
    snn = convert(ann, x, method="adsnn")
    wanted = loop(snn, x, 30)
    for chunk in (1, 7, 30):
        assert torch.equal(torch.cat(list(Simulation(snn, chunk=chunk).run(x, 30))), wanted)
    assert torch.equal(torch.cat(list(Simulation(snn).run(x[2:3], 30)))[:, 0], wanted[:, 2])
    functional.set_step_mode(snn, "m")
    with torch.no_grad():
        assert torch.equal(snn(x.expand(30, *x.shape)), wanted)


def test_precision_changes_there_and_back_without_a_trace() -> None:
    ann, x = trained(of_aans()), images(3)
    snn = convert(ann, x, method="adsnn")
    before = snapshot(snn)
    set_precision(snn, 0.3)
    assert snn.get_submodule("3").theta_0 == torch.tensor([0.3]) and snn.report[1].threshold == pytest.approx(0.3)
    torch.testing.assert_close(
        snn.get_submodule("16").weight, ann[-1].weight * asn_spike_height(0.3), rtol=1e-4, atol=1e-7
    )
    other = convert(ann, x, method="adsnn", m_f=0.3)
    assert torch.equal(loop(snn, x, 16), loop(other, x, 16))
    with pytest.raises(ValueError, match="theta_0: got 2.5, want < 2"):
        set_precision(snn, 2.5)
    assert torch.equal(loop(snn, x, 16), loop(other, x, 16))
    set_precision(snn, 0.1)
    assert_unchanged(snn, before)


def is_exact_in_float32(layer: nn.Linear, inputs: Tensor) -> bool:
    """Whether every partial sum of what arrives fits into float32, in this order."""
    sums = (inputs.double().unsqueeze(1) * layer.weight.detach().double()).cumsum(-1)
    return bool((sums == sums.float()).all())


@pytest.mark.parametrize("bits", [0, 3])
def test_sums_of_spikes_are_exact_at_the_edge_of_the_grid(bits: int) -> None:
    """The sum of the weights is just below a power of two, and rounding takes it beyond: a grid twice as fine fails."""
    layer = nn.Linear(64, 1, bias=False)
    steps = torch.tensor([2**18 + 0.53125] * 29 + [2**18 - 0.46875] * 35)
    assert 2**24 - 4 < steps.double().sum() < 2**24
    for weight in (steps / 2.0**23, steps, torch.rand(64), torch.full((64,), 0.25)):
        layer.register_buffer("analog_weight", weight.reshape(1, -1))
        layer.spike_bits = bits
        fold_height(layer, torch.ones(1))
        step = 2.0 ** (bits - 22) * float(weight.sum())
        torch.testing.assert_close(layer.weight[0], weight, rtol=0, atol=step)
        fractions = torch.randint(0, 2**bits + 1, (50, 64)) / 2**bits
        assert is_exact_in_float32(layer, torch.cat((torch.ones(1, 64), torch.ones(1, 64) - 2.0**-bits, fractions)))


class Sums(nn.Module):
    """Four layers of neurons whose spikes are added up: what arrives is an integer of at most 4."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 64), AAN()) for _ in range(4))
        self.first, self.head = BNAAN(4, dims=0), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = (branch(self.first(x)) for branch in self.branches)
        return self.head((a + b) + (c + d))


def test_sums_of_added_spikes_are_exact() -> None:
    ann = trained(Sums())
    with torch.no_grad():
        ann.head.weight.uniform_(0.5, 1.0)
        ann.head.weight *= 0.9999 / asn_spike_height(0.1) / ann.head.weight.sum(1).max()
    snn = convert(ann, torch.rand(4, 4), method="adsnn")
    assert is_exact_in_float32(snn.get_submodule("head"), torch.randint(0, 5, (200, 64)))


def test_tied_weights_take_up_the_heights_of_their_own_spikes() -> None:
    layers = [m for _ in range(3) for m in (nn.Linear(4, 4), AAN(m_f=0.1))]
    ann, x = trained(nn.Sequential(BNAAN(4, dims=0), *layers)), torch.rand(8, 4)
    ann[1].weight = ann[3].weight = ann[5].weight
    snn = convert(ann, x, method="adsnn")
    for m_f in (0.1, 0.3, 0.1):
        set_precision(snn, m_f)
        for name in ("1", "3", "5"):
            weight = snn.get_submodule(name).weight
            torch.testing.assert_close(weight, ann[1].weight * asn_spike_height(m_f), rtol=1e-4, atol=1e-6)


def test_pickle_deepcopy_state_dict_and_the_hosts_converter() -> None:
    ann, x = trained(of_aans()), images(3)
    snn = Converter(AdSNNRecipe(x)).convert(ann)
    wanted = loop(snn, x, 16)
    for twin in (pickle.loads(pickle.dumps(snn)), copy.deepcopy(snn)):
        assert torch.equal(loop(twin, x, 16), wanted) and twin.report == snn.report
        set_precision(twin, 0.2)
    torch.manual_seed(1)
    other = convert(trained(of_aans()), x, method="adsnn")
    other.load_state_dict(snn.state_dict())
    assert torch.equal(loop(other, x, 16), wanted)


def test_to_snntorch() -> None:
    pytest.importorskip("snntorch")
    from snn_ext.snntorch import ASN, reset

    snn, x = convert(trained(of_aans()), images(3), method="adsnn"), images(3)
    wanted = loop(snn, x, 12)
    theirs = snn.to_snntorch()
    assert sum(isinstance(m, ASN) for m in theirs.modules()) == sum(isinstance(m, ASNNode) for m in snn.modules())
    reset(theirs)
    with torch.no_grad():
        assert torch.equal(torch.stack([theirs(x) for _ in range(12)]), wanted)


def test_what_one_spike_a_step_can_not_carry_is_warned_of_by_name() -> None:
    ann = trained(of_aans())
    ann[1].bias.data[0] = 20.0
    message = "calibration: 3 has an activation of .* m_f = 0.03 cannot carry more than 1.94"
    with pytest.warns(UserWarning, match=message):
        convert(ann, images(3), method="adsnn", m_f=0.03)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(ann, images(3), method="adsnn")


REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "ann: got ReLU 2, .* want AANs in its place": (vgg, {}),
    "ann: got AAN 0.1, .* want spike_height='fixed'": (of_aans, {"spike_height": "adaptive"}),
    "ann: got ReLU with a clip at 6, 2": (lambda: vgg(nn.ReLU6), {"spike_height": "adaptive"}),
    "ann: got QuantizedReLU 2": (lambda: vgg(lambda: QuantizedReLU(4)), {"spike_height": "adaptive"}),
    "ann: got MaxPool2d 1 without an activation": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2), AAN()), {}
    ),
    "where the input meets spikes": (lambda: Meeting(), {}),
    "ann: got AANs with tau_beta of 50, 100 ms": (
        lambda: nn.Sequential(BNAAN(2), nn.Conv2d(2, 2, 3), AAN(tau_beta=100.0)), {}
    ),
    "ELU, 4 times": (lambda: vgg(nn.ELU), {}),
}  # fmt: skip


class Meeting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = BNAAN(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + x


@pytest.mark.parametrize("message", REFUSED)
def test_what_can_not_be_converted_is_refused_by_name(message: str) -> None:
    make, options = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        convert(trained(make()), images(2), method="adsnn", **options)


BAD: dict[str, dict[str, Any]] = {
    "time_steps: got 4, want an option of AdSNNRecipe: memory, output, progress, m_f, spike_height": {"time_steps": 4},
    "precharge: got 0.5": {"precharge": 0.5},
    "encoder: got 'if'": {"encoder": "if"},
    "readout: got 'spikes'": {"readout": "spikes"},
    "schedule: got 'phased'": {"schedule": "phased"},
    "reset: got 'zero'": {"reset": "zero"},
    "percentile: got 99.0, want 100.0 with spike_height='fixed'": {"percentile": 99.0},
    "m_f: got 0, want a finite number > 0: each spike has to raise": {"m_f": 0},
    "tau_phi: got -1": {"tau_phi": -1.0},
    "dt: got 2.0, want that of the AANs": {"dt": 2.0},
    "spike_height: got 'x'": {"spike_height": "x"},
    "fold_scales: got False": {"spike_height": "adaptive", "fold_scales": False},
    "m_f: got 0.2, want an option of DataNormRecipe: memory, output, progress": {"method": "data-norm", "m_f": 0.2},
    "ann: got AAN 0.1, .* want method='adsnn'": {"method": "data-norm"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        convert(trained(of_aans()), images(2), **{"method": "adsnn", **BAD[message]})
