"""A file in onnxruntime fires as torch does, and a file that does not is never written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="nothing else runs the files")

from snn_ext import convert, export_onnx  # noqa: E402
from snn_ext.conversion import ConvertedNet  # noqa: E402
from snn_ext.deployment import onnx as module  # noqa: E402
from snn_ext.deployment.function import function_of  # noqa: E402
from snn_ext.hosts import is_neuron  # noqa: E402
from snn_ext.spikingjelly import ATIFnuNode, ATIFuNode  # noqa: E402
from tests.conversion.nets import ResNet, images, trained  # noqa: E402
from tests.deployment.nets import T, all_neurons, inputs, loop, on_grid  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_registry")


def ran(path: Path, x: Tensor, **more: Any) -> list[Any]:
    found: list[Any] = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy(), **more})
    return found


def test_a_thousand_inputs_give_the_same_spikes_for_every_neuron(tmp_path: Path) -> None:
    net, x_seq = on_grid(all_neurons("spikingjelly", options=False)), inputs(T, 1000)
    path = tmp_path / "net.onnx"
    file = export_onnx(net, x_seq[:, :1], path)
    assert (file.inputs, file.outputs, file.differing, file.size) == (("x",), ("y",), 0, path.stat().st_size)
    assert torch.equal(torch.from_numpy(ran(path, x_seq)[0]), loop(net, x_seq))
    assert str(Path(module.__file__).parent.parent).encode() not in path.read_bytes(), "no paths of this machine"
    with pytest.raises(Exception, match="Got invalid dimensions|Non-zero status"):
        ran(path, x_seq[:3])


def test_a_stream_carries_all_states_of_every_neuron(tmp_path: Path) -> None:
    net, x_seq = on_grid(all_neurons("snntorch", options=False)), inputs(T, 3)
    path = tmp_path / "step.onnx"
    file = export_onnx(net, x_seq[0, :1], path, streaming=True)
    assert file.outputs == ("y", *(f"{name}.next" for name in file.inputs[2:]))
    function: Any = function_of(net, x_seq[0], None, True, False)
    before = {name: torch.full_like(part, 5).numpy() for name, part in function.initial_states(x_seq[0]).items()}
    states, outputs = before, []
    for t, x in enumerate(x_seq):
        y, *after = ran(path, x, reset=torch.tensor(t == 0).numpy(), **states)
        states = dict(zip(states, after, strict=True))
        outputs.append(torch.from_numpy(y))
    assert torch.equal(torch.stack(outputs), loop(net, x_seq))
    with pytest.raises(Exception, match="invalid index|out of data bounds"):  # a step more than ATIF-nu has points
        ran(path, x_seq[0], reset=torch.tensor(False).numpy(), **states)
    ran(path, x_seq[0], reset=torch.tensor(True).numpy(), **states)


def all_spikes(snn: ConvertedNet) -> ConvertedNet:
    """Return a converted net whose output are the spikes of all its layers."""
    net = copy.deepcopy(snn)
    layers = [n for n in net.graph.nodes if n.op == "call_module" and is_neuron(net.get_submodule(str(n.target)))]
    output = next(n for n in net.graph.nodes if n.op == "output")
    with net.graph.inserting_before(output):
        spikes = [net.graph.call_method("flatten", (node, 1)) for node in layers]
        output.args = (net.graph.call_function(torch.cat, (spikes, 1)),)
    net.recompile()
    return net


def test_a_converted_residual_net_fires_the_same_for_a_thousand_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    snn = on_grid(convert(trained(ResNet()), images(), method="data-norm", precharge=0.5), 10)
    net, x = all_spikes(snn), images(1000)
    export_onnx(net, x[:2], tmp_path / "net.onnx", time_steps=T)
    want = loop(net, x.expand(T, *x.shape))
    assert 0.01 < float((want != 0).float().mean()) < 0.99
    assert torch.equal(torch.from_numpy(ran(tmp_path / "net.onnx", x)[0]), want)


def test_the_exporter_of_torch_takes_our_neurons_as_they_are(tmp_path: Path) -> None:
    net = on_grid(nn.Sequential(nn.Linear(5, 6), ATIFuNode(0.5), ATIFnuNode(1.0, T=2))).eval()
    for layer in net[1:]:
        layer.step_mode = "m"
    x_seq = inputs(2, 3)
    torch.onnx.export(net, (x_seq,), tmp_path / "net.onnx", verbose=False, input_names=["x"])
    for layer in net[1:]:
        layer.step_mode = "s"
    assert torch.equal(torch.from_numpy(ran(tmp_path / "net.onnx", x_seq)[0]), loop(net, x_seq))


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x_seq = on_grid(nn.Sequential(nn.Linear(5, 6), ATIFuNode(0.5))), inputs(2, 3)
    path = tmp_path / "net.onnx"
    path.write_text("an older file")
    right = module.lowered

    def wrong(graph: Any) -> Any:
        for value in (*graph.parameters(), *graph.buffers()):
            value.data.mul_(-1.0)
        return right(graph)

    monkeypatch.setattr(module, "lowered", wrong)
    with pytest.raises(ValueError, match=r"net: got a file in which \d+ of 36 values differ, want those of torch"):
        export_onnx(net, x_seq, path)
    assert path.read_text() == "an older file" and [*tmp_path.iterdir()] == [path]


def test_what_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(5, 6), ATIFuNode(0.5))
    with pytest.raises(ValueError, match=r"x: got a torch.float64 .* want float32: .*net.float\(\)"):
        export_onnx(net.double(), torch.ones(2, 5, dtype=torch.float64), tmp_path / "net.onnx", time_steps=2)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"export_onnx needs onnx and onnxscript: pip install 'snn_ext\[onnx\]'"):
        export_onnx(net.float(), torch.ones(2, 5), tmp_path / "net.onnx", time_steps=2)
    assert not [*tmp_path.iterdir()]
