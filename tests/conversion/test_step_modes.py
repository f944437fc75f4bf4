"""A converted net of a sequence: whatever reads its graph sees the function that a call computes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402

from snn_ext import AAN, BNAAN, convert, evaluate  # noqa: E402
from snn_ext.conversion import diagnose, optimize_precharge  # noqa: E402
from snn_ext.hosts import LeafTracer  # noqa: E402
from tests.conversion.nets import ResNet, dyadic, images, loop, trained, vgg  # noqa: E402

T = 6


class Heads(nn.Module):
    """Layers that take a sequence for a batch without complaint: only the shape of the output tells."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(128, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.view(x.size(0), -1)).relu()
        return torch.cat([self.b(h), self.c(h)], 1)


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "heads": (Heads, {"method": "data-norm"}),
    "pooled": (pooled, {"method": "data-norm", "fold_scales": False, "channel_wise": True}),
    "residual": (ResNet, {"method": "data-norm", "encoder": "if"}),
    "phased": (pooled, {"method": "data-norm", "schedule": "phased", "time_steps": 2}),
    "events": (pooled, {"method": "data-norm", "encoder": "poisson"}),
    "adaptive": (
        lambda: nn.Sequential(BNAAN(2), nn.Conv2d(2, 3, 3), AAN(), nn.Flatten(), nn.Linear(108, 3)), {"method": "adsnn"}
    ),
}  # fmt: skip


def of_a_sequence(name: str) -> tuple[Any, Tensor, Tensor]:
    make, options = NETS[name]
    ann, x = dyadic(trained(make())), images(3)  # the largest activation is at its threshold: no rounding may decide
    snn = convert(ann, x, **options)
    steps, x_seq = loop(snn, x, T), x.expand(T, *x.shape).contiguous()
    functional.set_step_mode(snn, "m")
    with torch.no_grad():
        wanted = snn(x_seq)
    torch.testing.assert_close(wanted, steps)  # layers round otherwise in a larger batch
    functional.reset_net(snn)
    return snn, x_seq, wanted


READERS: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "interpreter": lambda snn: fx.Interpreter(snn).run,
    "trace": lambda snn: fx.GraphModule(snn, LeafTracer().trace(snn)),
    "graph module": lambda snn: fx.GraphModule(snn, snn.graph),
    "deepcopy": copy.deepcopy,
    "pickle": lambda snn: pickle.loads(pickle.dumps(snn)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NETS)
def test_what_reads_the_graph_computes_what_a_call_does(name: str, reader: str) -> None:
    snn, x_seq, wanted = of_a_sequence(name)
    with torch.no_grad():
        assert torch.equal(READERS[reader](snn)(x_seq), wanted)


@pytest.mark.parametrize("name", ["heads", "pooled"])
def test_exported_and_compiled_nets_compute_what_a_call_does(name: str) -> None:
    snn, x_seq, wanted = of_a_sequence(name)
    with torch.no_grad():
        assert torch.equal(torch.export.export(snn, (x_seq,)).module()(x_seq), wanted)
        functional.reset_net(snn)
        assert torch.equal(torch.compile(snn, backend="eager")(x_seq), wanted)


def test_a_trace_into_neurons_is_refused() -> None:
    with pytest.raises(TypeError, match="x: got .* of type Proxy, want a tensor"):
        fx.symbolic_trace(of_a_sequence("heads")[0])


@pytest.mark.parametrize("name", NETS)
def test_step_modes_change_there_and_back(name: str) -> None:
    snn, x_seq, wanted = of_a_sequence(name)
    code = snn.code
    for twin in (pickle.loads(pickle.dumps(snn)), copy.deepcopy(snn), snn):
        functional.set_step_mode(twin, "s")
        torch.testing.assert_close(loop(twin, x_seq[0], T), wanted)
        twin.step_mode = "m"
        assert twin.code == code
        with torch.no_grad():
            assert torch.equal(twin(x_seq), wanted)
        functional.reset_net(twin)


@pytest.mark.filterwarnings("ignore")
def test_results_do_not_depend_on_the_step_mode() -> None:
    x, labels = images(), torch.arange(8) % 5
    found = []
    for mode in ("s", "m"):
        torch.manual_seed(0)
        snn = convert(trained(vgg(pool=lambda: nn.MaxPool2d(2))), x, method="data-norm")
        functional.set_step_mode(snn, mode)
        evaluation = evaluate(snn, [(x, labels)], T, progress=False)
        spikes = [layer.spikes_per_neuron for layer in evaluation.layers]
        found.append((diagnose(snn, x, T), spikes, optimize_precharge(snn, None, x, time_steps=T, candidates=3)))
        assert snn.step_mode == mode and all(getattr(m, "step_mode", mode) == mode for m in snn.modules())
    assert found[0] == found[1]
