"""Refusals: all obstacles of a net at once, each with its place, and nothing taken for what it is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("spikingjelly")

from snn_ext import convert  # noqa: E402
from snn_ext.simulation import Simulation  # noqa: E402


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.linear(self.norm(x)))


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class ShiftedReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - 0.3)


class NormAct(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def mlp(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 3)).eval()


def refusal(net: nn.Module, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        convert(net, torch.rand(8, 4), method="data-norm", **options)
    return str(caught.value)


def test_every_obstacle_is_listed_once_with_place_and_count() -> None:
    text = refusal(mlp(Block(), nn.ReLU(), Block(), Branch(), nn.SiLU()))
    head, *lines = text.splitlines()
    assert head == "ann: got a net with 4 obstacles, which cannot be converted:"
    norm, gelu, branch, silu = lines
    assert norm.startswith("- LayerNorm, 2 times (first: 1.norm; test_obstacles.py, line ") and "batch norm" in norm
    assert gelu.startswith("- the call of gelu, 2 times (first: in 1, a Block; test_obstacles.py, line ")
    assert branch.startswith("- Branch, which cannot be traced (a branch that depends on the values of a tensor) (4; ")
    assert silu.startswith("- SiLU (5): want a ReLU") and all("trained with it" in line for line in (norm, gelu, silu))


@pytest.mark.parametrize("act", [ShiftedReLU, lambda: NormAct(6)], ids=["shifted ReLU", "norm and activation"])
def test_a_subclass_with_a_forward_of_its_own_is_traced(act: Any) -> None:
    net, x = mlp(act()), torch.rand(8, 4)
    snn = convert(net, x, method="data-norm", precharge=0.5)
    with torch.no_grad():
        wanted = net(x)
    assert (torch.cat(list(Simulation(snn).run(x, 200))).mean(0) - wanted).abs().max() < 0.02


def test_a_forward_that_an_instance_has_is_traced() -> None:
    net = mlp(nn.ReLU())
    net[1].forward = lambda x: F.gelu(x)
    assert "the call of gelu" in refusal(net)


REFUSED: dict[str, Any] = {
    "pad with other values than 0 .*want zero padding": lambda x: F.pad(x, (1, 1), value=1.0),
    "a padding with -inf .*before a maximum pooling": lambda x: F.pad(x, (1, 1), value=-math.inf).relu(),
    "the call of softmax .*want convolutions": lambda x: torch.bmm(x.relu().softmax(-1), x.relu()),
    "the call of square .*want ReLU": torch.square,
    "the call of round .*want a QuantizedReLU": torch.round,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_looks_like_something_that_converts_is_refused_by_name(reason: str) -> None:
    class Called(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = REFUSED[reason](x.unflatten(1, (1, 6)).expand(-1, 6, 6))
            return y[:, 0, :6]

    with pytest.raises(ValueError, match=reason):
        convert(mlp(nn.ReLU(), Called()), torch.rand(8, 4), method="data-norm")


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_refused_by_name(register: str) -> None:
    net = mlp(nn.ReLU(), nn.Dropout())
    getattr(net[2], register)(lambda module, *values: None)
    assert "Dropout 2 with a forward hook" in refusal(net)


def test_dropout_that_stays_on_is_refused() -> None:
    class Stochastic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    assert "dropout that is on in evaluation" in refusal(mlp(nn.ReLU(), Stochastic()))


LAST: dict[str, Any] = {"softmax": torch.softmax, "log_softmax": F.log_softmax}


@pytest.mark.parametrize("name", LAST)
def test_probabilities_at_the_end_are_to_be_left_out(name: str) -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return LAST[name](x, dim=1)

    text = refusal(nn.Sequential(mlp(nn.ReLU()), Last()))
    assert f"the call of {name} (in 1, a Last; " in text and "gives the logits" in text


def test_recurrence_is_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.unsqueeze(1))[0][:, -1]

    text = refusal(mlp(nn.ReLU(), Recurrent()))
    assert "LSTM 2.rnn" in text and "a feed-forward net" in text and "in its place" not in text


def test_a_module_that_another_thread_fails_in_is_no_obstacle_of_the_net() -> None:
    """Only what fails in the thread that traces becomes a node."""
    import threading

    class Meanwhile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: self.caught.append(_fails(Branch())))
            thread.start()
            thread.join()
            return x

        caught: list[bool] = []

    assert convert(mlp(nn.ReLU(), Meanwhile()), torch.rand(8, 4), method="data-norm").report
    assert all(Meanwhile.caught)


def _fails(module: nn.Module) -> bool:
    try:
        module("no tensor")
    except AttributeError:
        return True
    return False
