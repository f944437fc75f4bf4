"""Nets whose forward pass runs all steps are taken apart into one, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")
snn = pytest.importorskip("snntorch")

from spikingjelly.activation_based import encoding, functional, layer, neuron  # noqa: E402

from snn_ext import evaluate  # noqa: E402
from snn_ext.simulation.steps import steps_of  # noqa: E402
from snn_ext.snntorch import reset  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402

T = 9


def data(shape: tuple[int, ...] = (6,)) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(3 * torch.rand(n, *shape), torch.randint(3, (n,))) for n in (7, 12)]


def frames() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    return [(3 * torch.rand(T, n, 6), torch.randint(3, (n,))) for n in (7, 12)]


class Loop(nn.Module):
    """As in the tutorials of snnTorch: states are handed on, and records returned."""

    def __init__(self, read_out: str = "records", pick: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(6, 16), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(16, 3), snn.Leaky(beta=0.8)
        self.read_out, self.pick = read_out, pick

    def inputs(self, x: Tensor) -> Any:
        return {
            "": lambda: [x] * T,
            "TN": lambda: [x[t] for t in range(T)],
            "NT": lambda: [x[:, t] for t in range(T)],
            "size": lambda: [x[t] for t in range(x.size(0))],
            "shape": lambda: [x[:, t, :] for t in range(x.shape[1])],
            "len": lambda: [x[t] for t in range(len(x))],
            "iter": lambda: x,
        }[self.pick]()

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.reset_mem()
        spikes, potentials, total, zeros = [], [], 0, torch.zeros(3)
        for x_t in self.inputs(x):
            spk1, mem1 = self.lif1(self.fc1(x_t.view(x_t.size(0), -1)), mem1)
            current = self.fc2(spk1)
            spk2, mem2 = self.lif2(current, mem2)
            spikes.append(spk2)
            potentials.append(mem2)
            total += spk2
            zeros = zeros + spk2
        return {
            "records": lambda: (torch.stack(spikes, dim=0), torch.stack(potentials, dim=0)),
            "lists": lambda: (spikes, potentials),
            "list": lambda: spikes,
            "mean": lambda: torch.stack(spikes).mean(0),
            "mean of dim": lambda: torch.mean(torch.stack(spikes), dim=0) * 2,
            "sum": lambda: sum(spikes) / T,
            "total": lambda: total / T,
            "zeros": lambda: zeros,
            "last": lambda: current,
            "last spikes": lambda: spk2,
            "potentials": lambda: torch.stack(potentials),
            "last potential": lambda: mem2,
        }[self.read_out]()


class OneStep(nn.Module):
    """The same layers, one step at a time."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.fc1, self.lif1 = loop.fc1, snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2, self.lif2 = loop.fc2, snn.Leaky(beta=0.8, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


SUMS = ["records", "lists", "list", "mean", "mean of dim", "sum", "total", "zeros"]


@pytest.mark.parametrize("read_out", SUMS)
def test_a_loop_is_measured_as_its_step(read_out: str) -> None:
    net = Loop(read_out).train()
    before = {*vars(net)}
    found, want = evaluate(net, data(), progress=False), evaluate(OneStep(net), data(), T, progress=False)
    assert found.to_json() == want.to_json() and found.spikes[-1] > 0
    assert {*vars(net)} == before and net.training and not net.lif1.mem.any()
    longer = evaluate(net, data(), 2 * T, progress=False)  # the step may be run more often than the loop does
    assert torch.equal(longer.accuracy[:T], found.accuracy) and longer.time_steps == 2 * T
    if read_out in ("mean", "sum", "total", "zeros"):  # and the last step decides as the net itself
        right = torch.cat([net(x).argmax(1) == y for x, y in data()]).double().mean()
        assert float(found.accuracy[-1]) == float(right)


@pytest.mark.parametrize("read_out", ["last", "last spikes"])
def test_the_last_step_decides_alone_where_a_loop_returns_it(read_out: str) -> None:
    net = Loop(read_out)
    found = evaluate(net, data(), progress=False)
    for t in (1, 4, T):
        wanted = []
        for x, labels in data():
            one, outputs = OneStep(net), []
            for _ in range(t):
                with torch.no_grad():
                    outputs.append(one(x)[0] if read_out == "last spikes" else one.fc2(one.lif1(one.fc1(x))))
            wanted.append(outputs[-1].argmax(1) == labels)
        assert float(found.accuracy[t - 1]) == float(torch.cat(wanted).double().mean())
    with pytest.raises(ValueError, match="delay: got 1, want 0 for a read-out that is .* of the last step"):
        evaluate(net, data(), delay=1, progress=False)


@pytest.mark.parametrize("read_out", ["potentials", "last potential"])
def test_potentials_decide_where_a_loop_returns_them(read_out: str) -> None:
    net = Loop(read_out)
    found, wanted = evaluate(net, data(), progress=False), []
    for x, labels in data():
        one, outputs = OneStep(net), []
        for _ in range(T):
            with torch.no_grad():
                outputs.append(one(x)[1])
        mems = torch.stack(outputs).double()
        wanted.append((mems if read_out == "last potential" else mems.cumsum(0)).argmax(2) == labels)
    assert found.accuracy.tolist() == torch.cat(wanted, 1).double().mean(1).tolist()
    assert [layer.name for layer in found.layers] == ["lif1"]  # the spikes of the other go nowhere
    torch.testing.assert_close(found.synops, 3 * found.spikes)


@pytest.mark.parametrize("pick", ["TN", "NT", "size", "shape", "len", "iter"])
@pytest.mark.parametrize("read_out", ["records", "zeros"])
def test_a_loop_over_frames_is_measured_as_its_step(pick: str, read_out: str) -> None:
    net = Loop(read_out, pick)
    found = evaluate(net, frames(), frames="TN", progress=False)
    assert found.to_json() == evaluate(OneStep(net), frames(), frames="TN", progress=False).to_json()
    swapped = [(x.transpose(0, 1), y) for x, y in frames()]
    assert evaluate(net, swapped, frames="NT", progress=False).to_json() == found.to_json()


def mean_by_shape(x: Tensor, y: list[Tensor]) -> Tensor:
    time_steps, _ = x.shape[:2]
    return sum(y[t] for t in range(time_steps)) / time_steps  # type: ignore[return-value]


READ_OUTS: dict[str, Any] = {
    "shape": lambda x, y: sum(y) / x.shape[0],
    "size": lambda x, y: sum(y).div_(x.size(0)),  # type: ignore[union-attr]
    "len": lambda x, y: sum(y) / len(x),
    "inverse": lambda x, y: 1 / x.shape[0] * sum(y),
    "product": lambda x, y: 2 * (sum(y) * (1 / (x.shape[0] * 0.5))),
    "unpacked": mean_by_shape,
    "mean over 1": lambda x, y: torch.stack(y, 1).mean(1),
    "mean over the last": lambda x, y: torch.stack(y, dim=-1).mean(dim=-1),
    "sum over 2": lambda x, y: torch.stack(y, 2).sum((2,)) / x.shape[0],
    "stack over 1": lambda x, y: torch.stack(y, 1),
}


@pytest.mark.parametrize("read_out", [*READ_OUTS])
def test_a_sum_or_mean_over_steps_is_one_in_every_spelling(read_out: str) -> None:
    class Spelt(Loop):
        def forward(self, x: Tensor) -> Any:
            return READ_OUTS[read_out](x, super().forward(x))

    found = evaluate(Spelt("list", "len"), frames(), frames="TN", progress=False)
    assert found.to_json() == evaluate(Loop("list", "len"), frames(), frames="TN", progress=False).to_json()


def test_frames_and_loops_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="frames: got None, want 'TN' or 'NT': a step of snn shows one of 9 frames"):
        evaluate(Loop(pick="TN"), data(), progress=False)
    with pytest.raises(ValueError, match="frames: got 'TN', want None: snn shows one input at all of its steps"):
        evaluate(Loop(), frames(), frames="TN", progress=False)
    with pytest.raises(ValueError, match="loader: got '5 frames', want 9, the steps of the forward pass of snn"):
        evaluate(Loop(pick="TN"), [(x[:5], y) for x, y in frames()], frames="TN", progress=False)
    with pytest.raises(ValueError, match="snn: got Loop, which cannot be traced"):
        evaluate(Loop(pick="size"), data(), progress=False)


def test_a_loop_over_channels_is_no_loop_over_frames() -> None:
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node, self.head = PCMPIFNode(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.node(sum(x[:, c] for c in range(x.size(1)))))

    with pytest.raises(ValueError, match="a loop over a size of the input that is not the number of frames"):
        evaluate(Channels(), [torch.rand(T, 5, 4, 6)], frames="TN", progress=False)


class Jelly(nn.Module):
    """As in the tutorials of SpikingJelly: a net of one step in a loop, or a sequence in step mode "m"."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.mode = nn.Conv2d(1, 2, 3, padding=1), mode
        self.net = nn.Sequential(
            layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), neuron.IFNode(), layer.MaxPool2d(2), layer.Flatten(),
            layer.Linear(36, 8), PCMPIFNode(0.5, precharge=0.25), layer.Dropout(0.5), layer.Linear(8, 3),
        )  # fmt: skip
        functional.set_step_mode(self, "s" if mode == "loop" else "m")

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        if self.mode == "loop":
            functional.reset_net(self.net)
            total = self.net(x)
            for _ in range(T - 1):
                total += self.net(x)
            return total / T
        if self.mode == "repeat":
            return self.net(x.unsqueeze(0).repeat(T, 1, 1, 1, 1)).mean(0)
        if self.mode == "bare repeat":
            return self.net(x.repeat(T, 1, 1, 1, 1)).mean(dim=0)
        if self.mode == "expand":
            return self.net(x.unsqueeze(0).expand(T, -1, -1, -1, -1)).sum(0) / T
        return self.net(torch.stack([x] * T))  # the whole sequence is returned


@pytest.mark.parametrize("mode", ["loop", "repeat", "bare repeat", "expand", "stack"])
def test_a_loop_or_a_sequence_of_the_other_host_is_measured_as_its_step(mode: str) -> None:
    net = Jelly(mode).eval()
    found = evaluate(net, data((1, 8, 8)), progress=False)
    assert all(module.step_mode == ("s" if mode == "loop" else "m") for module in net.net)
    with torch.no_grad():
        outputs = []
        for x, _ in data((1, 8, 8)):
            functional.reset_net(net)
            outputs.append(net(x) if mode != "stack" else net(x).mean(0))
    functional.reset_net(net)
    labels = torch.cat([y for _, y in data((1, 8, 8))])
    assert float(found.accuracy[-1]) == float((torch.cat(outputs).argmax(1) == labels).double().mean())
    step = nn.Sequential(net.stem, *net.net)
    want = evaluate(step, data((1, 8, 8)), T, progress=False)
    assert torch.equal(found.accuracy, want.accuracy) and torch.equal(found.synops, want.synops)
    assert torch.equal(found.spikes, want.spikes) and found.macs == want.macs


class Mean(nn.Module):
    """A net in step mode "m" that takes a sequence and returns the mean."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_seq: Tensor) -> Tensor:
        return self.net(x_seq).mean(0)


def test_the_mean_over_a_sequence_is_taken_off_for_frames_and_for_one_input() -> None:
    net = nn.Sequential(layer.Linear(6, 8), neuron.IFNode(), layer.Linear(8, 3))
    functional.set_step_mode(net, "m")
    for loader, options in ((frames(), {"frames": "TN"}), (data(), {"time_steps": T})):
        found, want = (evaluate(n, loader, progress=False, **options) for n in (Mean(net), net))  # type: ignore[arg-type]
        assert torch.equal(found.accuracy, want.accuracy) and torch.equal(found.synops, want.synops)


def test_dimensions_of_a_sequence_that_one_step_does_not_have_are_noticed() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.node = layer.Conv2d(1, 2, 3, padding=1), neuron.IFNode()
            self.second, self.head = layer.Conv2d(4, 2, 1), layer.Linear(2, 3)

        def forward(self, x_seq: Tensor) -> Tensor:
            spikes = self.node(self.first(x_seq))
            return self.head(torch.cat([spikes, spikes], 2).amax((3, 4))[:, :, :2])

    net = Wide()
    functional.set_step_mode(net, "m")
    with pytest.raises(ValueError, match="want a net of one step|inputs .* that the net takes"):
        evaluate(net, [torch.rand(5, 1, 8, 8)], T, progress=False)

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node, self.head = neuron.IFNode(step_mode="m"), layer.Linear(4, 3, step_mode="m")

        def forward(self, x_seq: Tensor) -> Tensor:
            return self.head(self.node(x_seq) * torch.arange(1.0, T + 1).reshape(T, 1, 1))  # the step, or the sample

    with pytest.raises(ValueError, match="whose steps .*, want a net of one step"):
        evaluate(Cut(), [torch.rand(T, 4) + 0.5], T, progress=False)


class Contained(nn.Module):
    """Layers of one step in the containers and functions of the host that run sequences."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        first, second = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Linear(8, 3)
        self.first = layer.SeqToANNContainer(*first) if kind != "function" else first
        spiking = neuron.IFNode(), second
        self.second = layer.MultiStepContainer(*spiking) if kind == "steps" else nn.Sequential(*spiking)
        self.kind = kind
        if kind == "batches":
            self.second = nn.Sequential(neuron.IFNode(step_mode="m"), layer.SeqToANNContainer(second))

    def forward(self, x_seq: Tensor) -> Tensor:
        if self.kind == "function":
            return functional.multi_step_forward(x_seq, (self.first, self.second)).mean(0)
        return self.second(self.first(x_seq)).mean(0)


@pytest.mark.parametrize("kind", ["steps", "batches", "function"])
def test_containers_of_sequences_are_what_is_inside_in_one_step(kind: str) -> None:
    net = Contained(kind).eval()
    found = evaluate(net, frames(), frames="TN", progress=False)
    parts = [module for module in net.modules() if isinstance(module, nn.Linear | nn.BatchNorm1d | neuron.IFNode)]
    functional.set_step_mode(one := nn.Sequential(*parts), "s")
    want = evaluate(one, frames(), frames="TN", progress=False)
    assert torch.equal(found.accuracy, want.accuracy) and torch.equal(found.synops, want.synops)
    parts[2].step_mode = "m" if kind == "batches" else "s"
    with torch.no_grad():
        right = []
        for x, labels in frames():
            functional.reset_net(net)
            right.append(net(x).argmax(1) == labels)
    assert float(found.accuracy[-1]) == float(torch.cat(right).double().mean()) and found.step_macs == 48


class Wrong(Loop):
    """Steps that are no steps of one net."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk1, outputs = torch.zeros(1), []
        for t in range(T):
            current = self.fc1(x * (t + 1) if self.read_out == "time" else x)
            if self.read_out == "feedback" and t:
                current = current + spk1
            spk1, mem1 = self.lif1(current, mem1)
            if self.read_out == "twice":
                spk1, mem1 = self.lif1(spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2 if self.read_out != "leak" else mem2 * 0.1)
            outputs.append(spk2 + mem1.mean() if self.read_out == "potential" else spk2)
        if self.read_out == "over samples":
            return torch.stack(outputs, 1).mean(0)
        if self.read_out == "negative":
            return torch.stack(outputs).mean(0) * -1.0
        stacked = torch.stack(outputs[1:] if self.read_out == "some" else outputs)
        return stacked.amax(0) if self.read_out == "max" else stacked


@pytest.mark.parametrize(
    ("read_out", "message"),
    [
        ("time", "whose steps depend on more than its input and the states of its neurons"),
        ("leak", "whose steps depend on more than its input and the states of its neurons"),
        ("feedback", "lif1, whose output of one call is input of another"),
        ("twice", "one neuron for two calls of a step"),
        ("potential", "goes on with the state of lif1, not its spikes"),
        ("some", "a loop over the steps that does not return one output for each of them"),
        ("max", "a loop over the steps that does not return one output for each of them"),
        ("over samples", "a loop over the steps that does not return one output for each of them"),
        ("negative", "a loop over the steps that does not return one output for each of them"),
    ],
)
def test_steps_that_cannot_be_taken_apart_are_named(read_out: str, message: str) -> None:
    net = Wrong(read_out)
    with pytest.raises(ValueError, match=message):
        evaluate(net, data(), progress=False)
    assert not net.lif1.mem.any()
    reset(net)


def test_a_random_encoder_in_a_loop_encodes_every_step_anew() -> None:
    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoding.PoissonEncoder(), nn.Linear(50, 3)
            self.node = neuron.IFNode()

        def forward(self, x: Tensor) -> Tensor:
            return sum(self.head(self.node(self.encoder(x))) for _ in range(T)) / T  # type: ignore[return-value]

    found = evaluate(Encoded(), [torch.full((8, 50), 0.5)], progress=False)
    steps = found.layers[0].spikes.diff()
    assert found.layers[0].kind == "input" and len(steps.unique()) > 1 and float(steps.mean()) == pytest.approx(25, 0.1)


def test_a_net_of_one_step_is_what_it_is() -> None:
    net = nn.Sequential(nn.Linear(6, 8), PCMPIFNode(), nn.Linear(8, 3))
    steps = steps_of(net)
    assert steps.time_steps is None and not steps.last and steps.frames is None
    with pytest.raises(TypeError, match="net: got 3 of type int, want an nn.Module"):
        steps_of(3)  # type: ignore[arg-type]
