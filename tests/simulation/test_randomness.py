"""What a forward pass draws at random is drawn at every step anew, as in a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("spikingjelly")

from snn_ext import evaluate  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402
from snn_ext.spikingjelly import PCMPIFNode  # noqa: E402

T = 40


class Noise(nn.Module):
    """A layer of its own, which draws the same numbers for all samples of a step."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.rand(len(x[0])) < x).to(x.dtype)


class Random(nn.Module):
    def __init__(self, kind: str, behind: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.noise, self.node, self.head = Noise(), PCMPIFNode(), nn.Linear(50, 3)
        self.kind, self.behind = kind, behind

    def drawn(self, x: Tensor) -> Tensor:
        return {
            "rand_like": lambda: (torch.rand_like(x) < x).to(x.dtype),
            "rand": lambda: (torch.rand(x.shape) < x).to(x.dtype),
            "bernoulli": lambda: x.bernoulli(),
            "dropout": lambda: F.dropout(x, 0.5, True) / 2,
            "layer": lambda: self.noise(x),
            "nothing": lambda: F.dropout(x, 0.5, self.training),
        }[self.kind]()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drawn(self.node(x + 0.5) * 0.5)) if self.behind else self.head(self.node(self.drawn(x)))


KINDS = ["rand_like", "rand", "bernoulli", "dropout", "layer"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 8])
def test_random_inputs_are_drawn_at_every_step(kind: str, chunk: int | None) -> None:
    torch.manual_seed(1)
    found = evaluate(Random(kind), [torch.full((8, 50), 0.5)], T, chunk=chunk, progress=False)
    steps = found.layers[0].spikes.diff()
    want = 12.5 if kind == "dropout" else 25
    assert len(steps.unique()) > T // 4 and float(steps[5:].mean()) == pytest.approx(want, 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_behind_neurons_and_of_frames_are_those_of_their_step(kind: str) -> None:
    torch.manual_seed(2)
    runs = Simulation(Random(kind, behind=True)).run(torch.full((4, 50), 0.5), T)
    assert len(torch.cat(list(runs)).unique(dim=0)) == T
    frames = Simulation(Random(kind)).run_frames(torch.full((T, 4, 50), 0.5))
    assert len(torch.cat(list(frames)).unique(dim=0)) > T // 2


@pytest.mark.parametrize(("kind", "count"), [("rand_like", 1), ("nothing", 0)])
def test_finding_random_numbers_leaves_generators_and_states_as_they_are(kind: str, count: int) -> None:
    net, x = Random(kind).train(), torch.rand(2, 50)
    before = torch.get_rng_state()
    assert len(Simulation(net).random(x)) == count and net.training
    assert torch.equal(before, torch.get_rng_state()) and not isinstance(net.node.v, Tensor)


def test_random_numbers_of_a_fixed_size_are_refused_in_words() -> None:
    class Fixed(Random):
        def drawn(self, x: Tensor) -> Tensor:
            return x + torch.rand(50)

    with pytest.raises(ValueError, match=r"snn: got Fixed, whose .* random numbers .*, want torch.rand_like\(x\)"):
        evaluate(Fixed(""), [torch.rand(4, 50)], T, progress=False)


def test_a_loop_that_draws_at_every_step_is_taken_apart() -> None:
    class Loop(Random):
        def forward(self, x: Tensor) -> Tensor:
            return sum(super(Loop, self).forward(x) for _ in range(T)) / T  # type: ignore[return-value]

    found = evaluate(Loop("bernoulli"), [torch.full((8, 50), 0.5)], progress=False)
    assert len(found.layers[0].spikes.diff().unique()) > T // 4


@pytest.mark.parametrize("kind", ["loop", "sequence"])
def test_random_numbers_that_several_steps_share_are_named(kind: str) -> None:
    class Shared(Random):
        def forward(self, x: Tensor) -> Tensor:
            x = x.bernoulli()
            if kind == "sequence":
                return self.head(self.node(x.repeat(T, 1, 1))).mean(0)
            return sum(self.head(self.node(x)) for _ in range(T)) / T  # type: ignore[return-value]

    net = Shared("")
    net.node.step_mode = "m" if kind == "sequence" else "s"
    with pytest.raises(ValueError, match="snn: got a forward pass that draws random numbers once for several steps"):
        evaluate(net, [torch.full((8, 50), 0.5)], progress=False)


def test_random_frames_are_not_taken_for_samples() -> None:
    class Frames(Random):
        def forward(self, x: Tensor) -> Tensor:
            drawn = x.bernoulli()
            return sum(self.head(self.node(drawn[t])) for t in range(len(x))) / T  # type: ignore[return-value]

    with pytest.raises(ValueError, match="want a net of one step"):
        evaluate(Frames(""), [torch.full((8, T, 50), 0.5)], frames="NT", progress=False)
