"""Synapses are counted as they are: against brute force, and against the host's counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter  # noqa: E402

from snn_ext import evaluate  # noqa: E402
from snn_ext.evaluation import count_synapses  # noqa: E402
from snn_ext.evaluation.connections import _identify, _marks  # noqa: E402
from snn_ext.simulation.graph import as_graph  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402


def node() -> nn.Module:
    return PCMPIFNode(1.0, precharge=0.5)


def brute_force(behind: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Count for every neuron the outputs that change with its spike, all weights positive: one synapse each."""
    for module in behind.modules():
        if getattr(module, "weight", None) is not None:
            nn.init.constant_(module.weight, 0.5)
    fan_out = torch.zeros(shape)
    silent = behind(torch.zeros(1, *shape))
    for index in range(fan_out.numel()):
        x = torch.zeros(1, *shape)
        x.flatten()[index] = 1.0
        fan_out.flatten()[index] = (behind(x) != silent).sum()
    return fan_out


@pytest.mark.parametrize(
    "behind",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 3), padding=(0, 1), dilation=(2, 1)),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, padding=1)),
        nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(64, 5)),
        nn.Sequential(nn.AvgPool2d(1, stride=2), nn.ZeroPad3d((0, 0, 0, 0, 1, 2)), nn.Conv2d(7, 3, 3)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
        nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 49, 5)),
    ],
    ids=str,
)
def test_fan_out_is_the_number_of_synapses_of_each_neuron(behind: nn.Module) -> None:
    behind.eval()
    expected = brute_force(behind, (4, 7, 7))
    found = count_synapses(as_graph(nn.Sequential(nn.Conv2d(1, 4, 1), node(), behind)), torch.rand(2, 1, 7, 7))
    assert torch.equal(found.fan_out["1"].float(), expected)


def test_pooling_of_unequal_windows_reaches_what_it_covers() -> None:
    behind = nn.Sequential(nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(24, 1))
    # Each of 3x2 windows has one synapse; a neuron in two overlapping windows of 7 -> 3, 7 -> 2 has as many.
    rows, columns = torch.tensor([1, 1, 2, 1, 2, 1, 1]), torch.tensor([1, 1, 1, 2, 1, 1, 1])
    found = count_synapses(as_graph(nn.Sequential(nn.Conv2d(1, 4, 1), node(), behind)), torch.rand(2, 1, 7, 7))
    assert torch.equal(found.fan_out["1"][0].long(), rows[:, None] * columns)


class Residual(nn.Module):
    """conv - IF - (conv - IF - conv + identity) - IF - linear, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 4, 3, padding=1), node()
        self.conv1, self.inner, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), node(), nn.Conv2d(4, 4, 3, padding=1)
        self.junction, self.head = node(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        y = self.junction(self.conv2(self.inner(self.conv1(x))) + x)
        return self.head(torch.cat([y, x], 1).mean((2, 3)))


def test_identity_shortcut_is_one_synapse_and_a_branch_adds_its_own() -> None:
    found = count_synapses(as_graph(Residual()), torch.rand(1, 1, 5, 5))
    inside = torch.full((4, 5, 5), 36.0)
    border = brute_force(nn.Conv2d(4, 4, 3, padding=1), (4, 5, 5))
    assert border.max() == inside.max() and border.min() == 16
    assert torch.equal(found.fan_out["first"].float(), border + 1 + 3)  # conv1, junction, three classes
    assert torch.equal(found.fan_out["inner"].float(), border)
    assert torch.equal(found.fan_out["junction"].float(), torch.full((4, 5, 5), 3.0))
    assert found.macs == 25 * 4 * 9 + 2 * 25 * 4 * 36 + 24 and found.input_macs == 25 * 4 * 9
    assert found.fed_macs == {"first": 25 * 4 * 36 + 24, "inner": 25 * 4 * 36, "junction": 24}


@pytest.mark.parametrize("scale", [3.7, 2.0])
def test_scales_between_neuron_and_weight_are_part_of_the_synapse(scale: float) -> None:
    from spikingjelly.activation_based.ann2snn.modules import VoltageScaler

    net = nn.Sequential(nn.Conv2d(1, 4, 1), VoltageScaler(0.3), node(), VoltageScaler(scale), nn.Conv2d(4, 6, 3))
    plain = nn.Sequential(nn.Conv2d(1, 4, 1), node(), nn.Conv2d(4, 6, 3))
    scaled, expected = (count_synapses(as_graph(n), torch.rand(1, 1, 7, 7)) for n in (net, plain))
    assert torch.equal(scaled.fan_out["2"], expected.fan_out["1"])


def test_a_layer_behind_another_one_multiplies_at_every_step() -> None:
    """Two layers without neurons between: spikes add up weights of the first alone."""
    inner = nn.Linear(5, 2), nn.Linear(2, 6)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), node(), *inner, node(), nn.Linear(6, 2))
    found = count_synapses(as_graph(net), torch.rand(2, 3))
    assert found.input_macs == 12 + 20  # a constant current passes both
    assert found.step_macs == 12 and found.macs == 12 + 20 + 10 + 12 + 12
    assert found.fan_out["2"].eq(2).all() and found.fan_out["5"].eq(2).all()
    assert found.fed_macs == {"2": 10, "5": 12}
    measured = evaluate(net, [torch.rand(4, 3)], 6, progress=False)
    spikes = [layer.spikes for layer in measured.layers]
    torch.testing.assert_close(measured.synops, 2 * spikes[0] + 2 * spikes[1])
    steps = torch.arange(1, 7, dtype=torch.float64)
    torch.testing.assert_close(measured.multiply_accumulates, 32 + 12 * steps)
    torch.testing.assert_close(measured.energy(), 0.9 * measured.synops + 4.6 * (32 + 12 * steps))
    fed = spikes[0] / 5 * 10 + spikes[1] / 6 * 12
    torch.testing.assert_close(measured.ac_mac_ratio, (fed + 12 * steps) / measured.macs)
    assert type(measured).from_json(measured.to_json()).step_macs == 12


class LowRank(nn.Module):
    """A layer with an update of rank 1 beside it (LoRA), behind a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.node, self.layer = nn.Linear(3, 8), node(), nn.Linear(8, 8)
        self.down, self.up, self.out, self.head = nn.Linear(8, 1), nn.Linear(1, 8), node(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        s = self.node(self.stem(x))
        return self.head(self.out(self.layer(s) + 0.5 * self.up(self.down(s)) + s))


def test_an_update_of_low_rank_is_counted_beside_its_layer() -> None:
    found = count_synapses(as_graph(LowRank()), torch.rand(1, 3))
    assert found.fan_out["node"].tolist() == [8.0 + 1 + 1] * 8 and found.step_macs == 8
    assert found.fed_macs == {"node": 64 + 8, "out": 16}


class Inverted(nn.Module):
    """Two blocks of MobileNet v2: expand, depthwise, project without an activation; the second with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 4, 3, padding=1), node()
        self.project = nn.Conv2d(4, 2, 1)
        self.expand, self.wide = nn.Conv2d(2, 8, 1), node()
        self.depth, self.deep, self.back = nn.Conv2d(8, 8, 3, padding=1, groups=8), node(), nn.Conv2d(8, 2, 1)
        self.last, self.end, self.head = nn.Conv2d(2, 6, 1), node(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        low = self.project(self.first(self.stem(x)))
        low = low + self.back(self.deep(self.depth(self.wide(self.expand(low)))))
        return self.head(self.end(self.last(low)).mean((2, 3)))


def test_linear_bottlenecks_have_numbers() -> None:
    found = count_synapses(as_graph(Inverted()), torch.rand(1, 1, 5, 5))
    assert found.step_macs == 25 * 2 * 8 + 25 * 2 * 6  # expand and last get sums of spikes times weights
    assert found.fan_out["first"].eq(2).all() and found.fan_out["deep"].eq(2).all()
    assert found.fan_out["wide"][:, 2, 2].eq(9).all() and found.fan_out["end"].eq(3).all()
    assert not evaluate(Inverted(), [torch.rand(2, 1, 5, 5)], 4, progress=False).energy().isnan().any()


def test_interpolated_currents_multiply_and_interpolated_spikes_add() -> None:
    up = nn.Upsample(scale_factor=2, mode="bilinear")
    behind = nn.Sequential(nn.Conv2d(1, 2, 1), node(), nn.Conv2d(2, 3, 1), up, nn.Conv2d(3, 4, 1), node())
    found = count_synapses(as_graph(behind), torch.rand(1, 1, 4, 4))
    assert found.step_macs == 64 * 3 * 4 and found.fan_out["1"].eq(3).all()
    before = nn.Sequential(nn.Conv2d(1, 2, 1), node(), up, nn.Conv2d(2, 4, 1), node())
    found = count_synapses(as_graph(before), torch.rand(1, 1, 4, 4))
    assert found.step_macs == 0 and found.fan_out["1"].min() >= 4 * 9


class Preactivated(nn.Module):
    """A layer that gets spikes and a sum of spikes times weights at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.node, self.layer, self.head = nn.Linear(3, 6), node(), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        s = self.node(self.stem(x))
        return self.head(s + self.layer(s))


def test_spikes_added_to_a_current_are_multiplied_with_it() -> None:
    found = count_synapses(as_graph(Preactivated()), torch.rand(1, 3))
    assert found.fan_out["node"].eq(6).all() and found.step_macs == 12 and found.fed_macs == {"node": 36}


def test_weights_that_the_table_does_not_know_are_named_also_behind_other_weights() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    net = nn.Sequential(nn.Linear(3, 4), node(), nn.Linear(4, 4), Odd(), node(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="snn: got '3 with weights, a Odd', want its type to have an entry"):
        count_synapses(as_graph(net), torch.rand(2, 3))


def test_a_phased_net_with_a_linear_bottleneck_has_no_operations() -> None:
    from snn_ext import convert

    ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(16, 4)
    snn = convert(ann, x, method="data-norm", schedule="phased", time_steps=4)
    with pytest.warns(UserWarning, match="layers with weights behind each other in a phased net.*left out"):
        assert evaluate(snn, [x], progress=False).synops.isnan().all()


def test_operation_without_known_synapses_is_named_and_the_rest_still_measured() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.node, self.head = nn.Linear(3, 4), node(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sin(self.node(self.layer(x))))

    with pytest.raises(ValueError, match="snn: got 'call_function .*sin.* on spikes', want pooling"):
        count_synapses(as_graph(Squared()), torch.rand(2, 3))
    with pytest.warns(UserWarning, match="synaptic operations are left out"):
        evaluation = evaluate(Squared(), [torch.rand(2, 3)], 4, progress=False)
    assert evaluation.synops.isnan().all() and evaluation.spikes[-1] > 0


@pytest.mark.parametrize("kind", ["plain", "grouped"])
def test_synops_agree_with_the_counter_of_the_host(kind: str) -> None:
    torch.manual_seed(1)
    groups = 2 if kind == "grouped" else 1
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), node(), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups), node(),
        nn.ConvTranspose2d(6, 4, 3, stride=2), node(), nn.Flatten(), nn.Linear(4 * 81, 5),
    )  # fmt: skip
    x, time_steps = torch.rand(3, 2, 8, 8), 6
    evaluation = evaluate(net, [x], time_steps, progress=False)
    host = []
    with torch.no_grad():
        for _ in range(time_steps):
            counter = SynOpCounter()
            with DispatchCounterMode([counter]):
                net(x)
            host.append(counter.get_total())
    functional.reset_net(net)
    assert torch.equal(3 * evaluation.synops, torch.tensor(host).double().cumsum(0)) and host[-1] > 0


def test_max_pooling_passes_fewer_spikes_on_than_it_gets() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), neuron.IFNode(v_reset=None), layer.MaxPool2d(2), nn.Conv2d(4, 6, 3)
    )
    x = 3 * torch.rand(2, 1, 8, 8)
    evaluation = evaluate(net, [x], 8, progress=False)
    neurons, pool = evaluation.layers
    assert (neurons.kind, pool.kind) == ("neuron", "pool")
    assert neurons.synops[-1] == 0 and pool.synops[-1] > 0 and pool.spikes[-1] < neurons.spikes[-1]
    assert torch.equal(evaluation.spikes, neurons.spikes)
    before = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), neuron.IFNode(v_reset=None), nn.Conv2d(4, 6, 3)
    )
    assert [layer.name for layer in evaluate(before, [x], 2, progress=False).layers] == ["2"]


def test_a_value_between_two_marks_is_taken_for_neither() -> None:
    marks = _marks(torch.zeros(50, dtype=torch.float64))
    plain = torch.linspace(0.5, 2.0, 50, dtype=torch.float64)
    index, all_known = _identify(marks * plain, plain, marks)
    assert all_known and index.tolist() == list(range(50))
    off = marks.clone()
    off[7] += 1e-4  # far above rounding, far below the distance of two marks
    assert not _identify(off * plain, plain, marks)[1]
