"""A net comes back from NIR to the bit, through a file, and what NIR cannot say is refused in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

nir = pytest.importorskip("nir")
pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from snn_ext import convert, from_nir, to_nir  # noqa: E402
from snn_ext.conversion import ConvertedNet  # noqa: E402
from snn_ext.deployment import nir as module  # noqa: E402
from snn_ext.hosts import Host  # noqa: E402
from snn_ext.neurons import NEURONS  # noqa: E402
from snn_ext.snntorch import ATIFu  # noqa: E402
from snn_ext.spikingjelly import ASNNode, ATIFnuNode, ATIFuNode, PCMPIFNode  # noqa: E402
from tests.deployment.nets import T, inputs, loop  # noqa: E402
from tests.hosts import make  # noqa: E402


def through_a_file(net: nn.Module, x: Tensor, tmp_path: Path) -> Any:
    nir.write(tmp_path / "net.nir", to_nir(net, x))
    return from_nir(nir.read(tmp_path / "net.nir"))


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize("name", NEURONS)
def test_every_neuron_comes_back_with_all_that_it_has(name: str, host: Host, tmp_path: Path) -> None:
    leak: dict[str, Any] = {"beta": torch.rand(6)} if host == "snntorch" else {"tau": 3.0, "learn_tau": True}
    options: dict[str, Any] = leak if name in ("atif-u", "pcmp") else {}
    options |= {"grad_scale": 0.5} if name in ("atif-u", "atif-nu") else {}
    neurons = [make(getattr(NEURONS[name], host)), make(getattr(NEURONS[name], host), scale_output=True, **options)]
    net = nn.Sequential(nn.Linear(5, 6), neurons[0], nn.Linear(6, 6, bias=False), neurons[1])
    x_seq = inputs(4, 3)
    again = through_a_file(net, x_seq[0], tmp_path)
    assert torch.equal(loop(again, x_seq), loop(net, x_seq))
    found, want = again.state_dict(), net.state_dict()
    assert found.keys() == want.keys() and all(torch.equal(found[key], want[key]) for key in want)
    assert [m.extra_repr() for m in again.modules()][1:] == [m.extra_repr() for m in net.modules()][1:]
    trained = [p.requires_grad for p in net.parameters()]
    assert [p.requires_grad for p in again.parameters()] == trained


class Residual(nn.Module):
    """Sums of sums, in an order that rounding tells, one term that is there twice, and a pooling of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = nn.Conv2d(2, 4, 3), nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(5))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relus[0](self.stem(x))
        a, b, c, d = (layer(h) for layer in self.layers)
        s = self.relus[1](a + b + (c + d))
        s = self.relus[2](a + (b + s))
        s = self.relus[3](s + s)
        return self.head(torch.flatten(self.pool(self.relus[4](s + (s + d))), 1))


OPTIONS: list[dict[str, Any]] = [{"channel_wise": True}, {"fold_scales": False}, {"reset": "zero", "precharge": 0.0}]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_converted_net_comes_back_as_one(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 2, 8, 8)
    snn = convert(Residual().eval(), x, method="data-norm", **{"precharge": 0.5} | options)
    x_seq = x.expand(T, *x.shape)
    for net in (snn, snn.to_snntorch()):
        again = through_a_file(net, x, tmp_path)
        assert torch.equal(loop(again, x_seq), loop(net, x_seq))
        assert isinstance(again, ConvertedNet) and again.report == net.report
        assert (again.schedule, again.clips) == (net.schedule, net.clips)


def test_the_net_stays_in_its_mode_and_state() -> None:
    net, x = nn.Sequential(nn.Linear(5, 6), ATIFuNode(0.5)), inputs(2, 3)
    first = net(x[0])
    to_nir(net, x[0])
    assert net.training and torch.equal(torch.stack((first, net(x[1]))), loop(net, x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "max pooling": (lambda: nn.Sequential(nn.MaxPool2d(2)), "0, a MaxPool2d, .*average pooling"),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm2d(2)), "0, a BatchNorm2d, .*fuse_conv_bn_eval"),
    "groups": (lambda: nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), "0 with groups=2', want 1"),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 1)), "0, a ConvTranspose2d, .*linear layers"),
    "linear on images": (lambda: nn.Sequential(nn.Linear(4, 2)), "0, a linear layer on samples"),
    "a neuron of the host": (
        lambda: nn.Sequential(pytest.importorskip("spikingjelly.activation_based.neuron").IFNode()),
        "0, a IFNode', want neurons of snn_ext .*replace_neurons",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nir_has_no_word_for_is_refused_by_name(case: str) -> None:
    make_net, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"net: got '?{message}"):
        to_nir(make_net(), torch.rand(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("neuron", "unsaid"),
    [
        (ATIFuNode(), "a reset by subtraction"),
        (ATIFuNode(v_reset=0.0, scale_output=True), "scale_output=True"),
        (PCMPIFNode(v_reset=0.0), "a pre-charge"),
        (ATIFnuNode(T=4), "a threshold for each step"),
        (ASNNode(), "a threshold that adapts"),
        (ATIFu(reset_mechanism="none", init_hidden=True), "no reset"),
    ],
)
def test_without_metadata_a_neuron_that_nir_cannot_describe_is_refused(neuron: Any, unsaid: str) -> None:
    kind = type(neuron).__name__
    with pytest.raises(ValueError, match=f"net: got '0, a {kind} with .*{unsaid}', want metadata=True"):
        to_nir(nn.Sequential(neuron), torch.rand(1, 4), metadata=False)


@pytest.mark.parametrize("leak", [{}, {"tau": 2.0}, {"tau": 4.0, "decay_input": False}])
def test_without_metadata_the_numbers_of_nir_alone_give_the_neuron(leak: dict[str, Any]) -> None:
    neuron = PCMPIFNode(0.75, 0.0, precharge=0.0, fire_at_threshold=False, **leak)
    net, x_seq = nn.Sequential(nn.Conv1d(1, 3, 2, stride=2), nn.Flatten(), nn.Linear(6, 6, bias=False), neuron), None
    x_seq = inputs(T, 3)[:, :, None]
    graph = to_nir(net, x_seq[0], metadata=False, dt=1e-3)
    assert not graph.metadata and not any(node.metadata for node in graph.nodes.values())
    assert torch.equal(loop(from_nir(graph, dt=1e-3), x_seq), loop(net, x_seq))
    with pytest.raises(ValueError, match="graph: got '3 with "):
        from_nir(graph, dt=2e-3 if leak else 1e-4) if not leak or leak["tau"] > 2 else from_nir(graph, dt=1.0)


def test_a_graph_of_another_tool_is_read(tmp_path: Path) -> None:
    jelly = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    from spikingjelly.activation_based import neuron

    pytest.importorskip("nirtorch")
    layers = nn.Conv2d(1, 2, 2), neuron.IFNode(0.7), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3), neuron.LIFNode()
    net = nn.Sequential(*layers)
    x = torch.rand(2, 1, 4, 4)
    read = from_nir(jelly.export_to_nir(net, x))
    assert torch.equal(loop(read, x.expand(T, *x.shape)), loop(net, x.expand(T, *x.shape)))


@pytest.mark.parametrize("name", ["if", "a.b", 'x", print("executed")) #', "1); print('executed'"])
def test_the_name_of_a_node_is_no_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    layer = nir.Linear(torch.eye(3).numpy())
    nodes = {"input": nir.Input(torch.tensor([3]).numpy()), name: layer, f"{name}_": layer}
    nodes["output"] = nir.Output(torch.tensor([3]).numpy())
    edges = [("input", name), (name, f"{name}_"), (f"{name}_", "output")]
    x = torch.rand(2, 3)
    for metadata in ({}, {"net": '{"training": false, "step_mode": null}'}):
        assert torch.equal(from_nir(nir.NIRGraph(nodes, edges, metadata=metadata))(x), x)
    assert not capsys.readouterr().out


def damaged(change: Callable[[Any], None]) -> Any:
    graph = to_nir(nn.Sequential(nn.Linear(5, 6), ATIFuNode(0.5)), inputs(1, 2)[0])
    graph = copy.deepcopy(graph)
    change(graph)
    return graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: graph.nodes["1"].metadata.update(layer="{"), "1 with damaged metadata"),
        (lambda graph: graph.nodes["1"].metadata.pop("state_v_threshold"), "1 with damaged metadata"),
        (
            lambda graph: graph.nodes["1"].metadata.update(
                layer=graph.nodes["1"].metadata["layer"].replace("snn_ext.spikingjelly.ATIFuNode", "os.system")
            ),
            "1 with damaged metadata .*the class os.system",
        ),
        (lambda graph: graph.metadata.update(net="["), "damaged metadata"),
        (lambda graph: graph.edges.append(("1", "0")), "a cycle"),
        (lambda graph: graph.edges.clear(), "0 without an edge to it"),
        (lambda graph: graph.nodes.pop("input"), "0 nodes of Input"),
        (lambda graph: graph.edges.append(("1", "2")), "an edge from 1 to 2"),
        (lambda graph: graph.nodes.update({"0": nir.Delay(torch.ones(6).numpy())}), "0, a Delay', want nodes of Aff"),
    ],
)
def test_a_graph_that_means_no_net_is_refused_by_name(change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(ValueError, match=f"graph: got '?{message}"):
        from_nir(damaged(change))


def test_the_hosts_exporters_say_what_to_call() -> None:
    pytest.importorskip("nirtorch")
    from snntorch.export_nir import export_to_nir
    from spikingjelly.activation_based import nir_exchange

    x = torch.rand(2, 5)
    with pytest.raises(TypeError, match="snn_ext.to_nir"):
        nir_exchange.export_to_nir(nn.Sequential(nn.Linear(5, 6), ATIFuNode()), x)
    net = nn.Sequential(nn.Linear(5, 6), ATIFu(init_hidden=True))
    with pytest.raises(ValueError, match="module: got 'ATIFu', want .*snn_ext.to_nir"):
        export_to_nir(net, x, ignore_dims=[0])
    assert net(x).shape == (2, 6)


def test_wrong_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Sequential(nn.Linear(5, 6)), torch.rand(1, 5)
    for arguments, options, name in (((3, x), {}, "net"), ((net, x[0]), {}, "x"), ((net, x), {"dt": 0.0}, "dt")):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: got"):
            to_nir(*arguments, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="graph: got 3"):
        from_nir(3)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'snn_ext\[nir\]'"):
        to_nir(net, x)
