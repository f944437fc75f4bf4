"""Phased nets by counts against their simulation step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from snn_ext import NonUniformQuantizedReLU, QuantizedReLU, convert  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.simulation.counts import PhasedSimulation  # noqa: E402
from tests.conversion.nets import ResNet, dyadic, images, trained, vgg  # noqa: E402

MAKES: dict[str, Any] = {
    "vgg": vgg,
    "vgg with maximum pooling": lambda relu: vgg(relu, lambda: nn.MaxPool2d(2)),
    "resnet": ResNet,
}
PHASED: dict[str, Any] = {"method": "data-norm", "schedule": "phased"}


def stepwise(simulation: Simulation, x: Tensor, time_steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output at every step, and the spikes of every layer."""
    found: dict[str, list[Tensor]] = {}
    output = torch.cat(list(simulation.run(x, time_steps, lambda n, m, s: found.setdefault(n, []).append(s))))
    return output, {name: torch.cat(parts) for name, parts in found.items()}


def assert_same(snn: Any, x: Tensor, exact: bool = True) -> None:
    simulation = Simulation(snn)
    assert PhasedSimulation.admits(simulation, snn.latency)
    output, spikes = stepwise(simulation, x, snn.latency)
    counts: dict[str, tuple[int, Tensor]] = {}
    by_counts = PhasedSimulation(simulation).run(x, snn.latency, lambda n, start, c: counts.update({n: (start, c)}))
    torch.testing.assert_close(torch.cat(list(by_counts)), output, rtol=0.0, atol=0.0 if exact else 1e-5)
    assert counts.keys() == spikes.keys() and list(counts) == list(spikes)
    for name, (start, count) in counts.items():
        steps = torch.arange(snn.latency).reshape(-1, *[1] * count.ndim) - start
        assert torch.equal(spikes[name], ((steps >= 0) & (steps < count)).float()), name
    assert sum(float(count.sum()) for _, count in counts.values()) > 0


@pytest.mark.parametrize("time_steps", [1, 3, 8])
@pytest.mark.parametrize("name", MAKES)
def test_every_spike_and_output_is_that_of_the_steps_on_exact_arithmetic(name: str, time_steps: int) -> None:
    ann, x = dyadic(MAKES[name](lambda: QuantizedReLU(time_steps, 0.5, "round"))), images()
    assert_same(convert(ann, x, time_steps=time_steps, **PHASED), x)


@pytest.mark.parametrize("name", MAKES)
def test_every_spike_and_output_at_points_is_that_of_the_steps(name: str) -> None:
    points = torch.tensor([0.75, 0.5, 0.4375, 0.0625])
    ann, x = dyadic(MAKES[name](lambda: NonUniformQuantizedReLU(4, points))), images()
    assert_same(convert(ann, x, time_steps=4, **PHASED), x)


@pytest.mark.parametrize(
    "options",
    [{"precharge": 0.5}, {"channel_wise": True}, {"encoder": "if", "readout": "spikes"}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("name", MAKES)
def test_spikes_of_a_trained_net_are_those_of_the_steps(name: str, options: dict[str, Any]) -> None:
    # Images of the calibration would have a tie at the largest activation, that rounding decides.
    assert_same(
        convert(trained(MAKES[name](nn.ReLU)), images(), time_steps=4, **PHASED, **options), images(), exact=False
    )


def test_other_nets_and_other_times_run_step_by_step() -> None:
    x = images()
    snn = convert(vgg().eval(), x, time_steps=4, **PHASED)
    assert not PhasedSimulation.admits(Simulation(snn), snn.latency - 1)
    streaming = convert(vgg().eval(), x, method="data-norm")
    assert not PhasedSimulation.admits(Simulation(streaming), 4)
    snn.add_module("strange", nn.Softplus())
    source = next(node for node in snn.graph.nodes if node.op == "call_module")
    with snn.graph.inserting_after(source):
        bent = snn.graph.call_module("strange", (source,))
    source.replace_all_uses_with(bent, delete_user_cb=lambda user: user is not bent)
    snn.recompile()
    assert not PhasedSimulation.admits(Simulation(snn), snn.latency)
