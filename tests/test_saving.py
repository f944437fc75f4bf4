"""A saved net computes the same to the last bit, and opening a file of a stranger executes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

import snntorch  # noqa: E402
from spikingjelly.activation_based import functional, layer, neuron, surrogate  # noqa: E402

import snn_ext  # noqa: E402
import snn_ext.snntorch as ours  # noqa: E402
from snn_ext import AAN, ConstantInputNet, NonUniformQuantizedReLU, convert, load, save  # noqa: E402
from snn_ext._files import DamagedFileError, load_tensors, save_tensors  # noqa: E402
from snn_ext.conversion import ConvertedNet, QuantizedReLU  # noqa: E402
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode  # noqa: E402
from tests.conversion.nets import ResNet, images, vgg  # noqa: E402

T = 6


def outputs(net: Any, x: Tensor) -> Tensor:
    ours.reset(net)
    functional.reset_net(net)
    with torch.no_grad():
        return torch.stack([net(x) for _ in range(T)])


def saved(net: nn.Module, tmp_path: Path, **options: Any) -> Any:
    save(net, tmp_path / "net.pt", **options)
    return load(tmp_path / "net.pt")


def assert_same(net: Any, again: Any, x: Tensor) -> None:
    assert torch.equal(outputs(again, x), outputs(net, x))
    found, want = dict(again.named_parameters()), dict(net.named_parameters())
    trained = sorted((tuple(value.shape), value.requires_grad) for value in want.values())
    assert sorted((tuple(value.shape), value.requires_grad) for value in found.values()) == trained


CONVERSIONS: dict[str, dict[str, Any]] = {
    "data-norm": {"method": "data-norm", "precharge": 0.5},
    "by channel": {"method": "data-norm", "channel_wise": True},
    "Spike-Norm, Poisson": {"method": "spike-norm", "encoder": "poisson"},
    "spikes in and out": {"method": "data-norm", "encoder": "if", "readout": "spikes"},
    "phased": {"method": "data-norm", "schedule": "phased", "time_steps": 3},
}


@pytest.mark.parametrize("make", [vgg, lambda: vgg(pool=lambda: nn.MaxPool2d(2)), ResNet], ids=["vgg", "max", "resnet"])
@pytest.mark.parametrize("options", CONVERSIONS.values(), ids=CONVERSIONS)
def test_converted_net_is_the_same_in_either_host(
    make: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    x = images()
    net = convert(make().eval(), x, **options)
    again = saved(net, tmp_path, notes={"images": 8})
    assert_same(net, again, x)
    assert again.notes == {"images": 8} and not again.training
    assert (again.report, again.schedule, again.time_steps) == (net.report, net.schedule, net.time_steps)
    assert isinstance(again, ConvertedNet) and again.latency == net.latency
    functional.set_step_mode(net, "m")
    assert saved(net, tmp_path).step_mode == "m"
    if net.schedule == "streaming" and "encoder" not in options:
        assert_same(net.to_snntorch(), saved(net.to_snntorch(), tmp_path), x)


def test_a_net_of_points_that_were_trained_is_the_same_again(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), NonUniformQuantizedReLU(4), NonUniformQuantizedReLU(2, 0.25, trainable=False)
    )
    net[1].p.data.copy_(torch.tensor([0.5, 0.125, 0.25, 0.0625]))
    x, again = images(), saved(net, tmp_path)
    assert torch.equal(net(x), again(x)) and net(x).any()
    trained, fixed = (list(again.get_submodule(name).parameters()) for name in ("1", "2"))
    assert [p.requires_grad for p in trained] == [True] and not fixed


@pytest.mark.parametrize("activation", [lambda: QuantizedReLU(4, 0.7), lambda: AAN(m_f=0.2)], ids=["quantized", "AAN"])
def test_net_of_other_activations_is_the_same_before_and_after_conversion(
    activation: Callable[[], nn.Module], tmp_path: Path
) -> None:
    x, net = images(), nn.Sequential(nn.Conv2d(2, 4, 3), activation(), nn.Flatten(), nn.LazyLinear(3)).eval()
    net(x)
    again = saved(net, tmp_path)
    assert torch.equal(net(x), again(x))
    method = "adsnn" if isinstance(net[1], AAN) else "data-norm"
    snn = convert(net, x, method=method)
    assert_same(snn, saved(snn, tmp_path), x)


NEURONS: dict[str, Callable[[], nn.Module]] = {
    "ATIF-u": lambda: ATIFuNode(0.6, scale_output=True, v_init=torch.full((5,), 0.5), grad_scale=0.3),
    "ATIF-u, hard reset": lambda: ATIFuNode(
        0.6, v_reset=0.0, surrogate_function=surrogate.ATan(3.0), detach_reset=True
    ),
    "ATIF-u, trained V(0)": lambda: ATIFuNode(0.6, v_init=nn.Parameter(torch.full((1,), 0.25))),
    "ATIF-nu": lambda: ATIFnuNode(torch.tensor([0.9, 0.7, 0.4, 0.3, 0.2, 0.1]), T=T, recursion="cumulative"),
    "PCMP IF": lambda: PCMPIFNode(0.4, precharge=0.25, fire_at_threshold=False),
    "ASN": lambda: ASNNode(m_f=0.2, theta_0=0.3, bias=nn.Parameter(torch.zeros(5)), tau_phi=0.0, analog_input=True),
    "LIF of the host": lambda: neuron.LIFNode(3.0, decay_input=False, v_reset=None),
    "PLIF of the host": lambda: neuron.ParametricLIFNode(3.0),
    "ATIFu of snnTorch": lambda: ours.ATIFu(0.6, spike_grad=snntorch.surrogate.fast_sigmoid(25), init_hidden=True),
    "Leaky of the host": lambda: snntorch.Leaky(0.7, learn_beta=True, learn_threshold=True, init_hidden=True),
}


@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_swapped_net_keeps_neurons_gradients_and_what_is_trained(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    x, net = torch.rand(3, 4), nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), make(), nn.Dropout(), nn.Linear(5, 2))
    net[0].weight.requires_grad_(False)
    again = saved(net, tmp_path)
    assert again.training and again.get_submodule("3").training
    assert_same(net.eval(), again.eval(), x)
    gradients = []
    for one in (net, again):
        outputs(one, x)  # resets
        ours.reset(one)
        functional.reset_net(one)
        sum(one(x).sum() for _ in range(T)).backward()
        gradients.append([parameter.grad for parameter in one.parameters() if parameter.requires_grad])
    for want, found in zip(*gradients, strict=True):
        assert (want is None) == (found is None) and (want is None or torch.equal(want, found))


def test_net_of_a_constant_input_keeps_stem_steps_and_step_mode(tmp_path: Path) -> None:
    body = nn.Sequential(ATIFuNode(0.5), layer.Conv2d(4, 3, 3), ATIFuNode(0.5), layer.Flatten(), layer.Linear(48, 2))
    net, x = ConstantInputNet(body, 4, stem=nn.Conv2d(2, 4, 3)), images()
    functional.set_step_mode(net, "m")
    again = saved(net, tmp_path, notes={"seed": 0})
    assert again.time_steps == 4 and again.notes == {"seed": 0}
    functional.reset_net(net)
    assert torch.equal(net(x), again(x))


class _Untold(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(_Untold(2, 2)), "_Untold"),
        (
            nn.Sequential(nn.Linear(2, 2), ATIFuNode(surrogate_function=lambda u: u.sigmoid())),
            "surrogate_function of 1",
        ),
        ({"a": 1}, "want an nn.Module"),
    ],
    ids=["class", "surrogate", "no module"],
)
def test_what_no_file_can_hold_is_refused_by_name_and_nothing_is_written(
    net: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        save(net, tmp_path / "net.pt")
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="0 with a forward hook"):
        save(hooked, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "attack",
    [
        lambda d: d["modules"]["0"].update({"class": "os.system"}),
        lambda d: d["modules"]["0"].update({"class": "torch.nn.Module.__class__"}),
        lambda d: d["modules"]["0"].update({"class": "torch.nn.functional"}),
        lambda d: d["nodes"][1].update(op="call_function", target="operator.attrgetter"),
        lambda d: d["nodes"][1].update(op="call_method", target="numpy"),
        lambda d: d["nodes"][1].update(op="root"),
        lambda d: d["modules"]["0"]["arguments"].update(in_features=10**12, out_features=10**12),
        lambda d: d["modules"]["0"]["arguments"].update(in_features={"dtype": "load"}),
        lambda d: d["nodes"].pop(0),
    ],
)
def test_opening_a_hostile_file_executes_nothing_and_takes_no_room(attack: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    save(nn.Sequential(nn.Linear(2, 2), ATIFuNode()), path)
    content = load_tensors(path)
    description = json.loads(content["description"])
    attack(description)
    save_tensors({**content, "description": json.dumps(description)}, path)
    with pytest.raises(DamagedFileError, match="net.pt: damaged or not a net of snn_ext.save"):
        load(path)


def test_file_of_another_kind_or_of_a_later_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(DamagedFileError, match="not a net of snn_ext.save"):
        snn_ext.load(path)
    torch.save({"format": "snn_ext net, format 2"}, path)
    with pytest.raises(ValueError, match="install the version of snn_ext that wrote it"):
        snn_ext.load(path)


INJECTED = 'x", print("executed")) #'


def _as_module(node: dict[str, Any]) -> None:
    node["target"] = INJECTED


def _as_keyword(node: dict[str, Any]) -> None:
    node["kwargs"] = {"dict": {'a=print("executed"), b': 1}}


@pytest.mark.parametrize("change", [_as_module, _as_keyword])
def test_a_word_of_a_graph_is_no_code(
    change: Callable[[dict[str, Any]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.pt"
    save(nn.Sequential(nn.Linear(2, 2)), path)
    content = load_tensors(path, "a net", "restore it")
    description = json.loads(content["description"])
    change(next(node for node in description["nodes"] if node["op"] == "call_module"))
    for parts in (description["modules"], content["states"]):
        parts[INJECTED] = parts["0"]
    content["description"] = json.dumps(description)
    save_tensors(content, path)
    with pytest.raises(DamagedFileError):
        load(path)(torch.ones(1, 2))
    assert not capsys.readouterr().out
