"""Ctrl-C at any line of the package: nets and their reports change together or not at all."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional  # noqa: E402

import snn_ext  # noqa: E402
from snn_ext import AAN, BNAAN, convert, replace_neurons, set_precision  # noqa: E402
from snn_ext.conversion import fold_scales, lower_thresholds, optimize_precharge  # noqa: E402
from snn_ext.spikingjelly import ATIFuNode  # noqa: E402

PACKAGE = str(Path(snn_ext.__file__).parent)


def interrupted(call: Callable[[], object], line: int) -> int:
    """Run a function and press Ctrl-C at one line that it runs in the package; returns how many lines it has run."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count


def points(lines: int, most: int) -> list[int]:
    """Return lines over the whole run, all of the last ones, where results are taken over."""
    spread = {1 + k * lines // most for k in range(most)}
    return sorted(spread | {line for line in range(lines - 30, lines + 1) if line > 0})


def everything(net: nn.Module) -> tuple[Any, ...]:
    """Return what a user can see of a net: modules, values, flags, hooks, report, and what it computes."""
    flags = [
        (name, id(m), m.training, getattr(m, "step_mode", None), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in net.named_modules()
    ]
    values = {name: value.flatten().tolist() for name, value in net.state_dict().items()}
    gradients = [p.requires_grad for p in net.parameters()]
    return flags, values, gradients, list(copy.deepcopy(getattr(net, "report", []))), getattr(net, "code", None)


def mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 2))
    net[2].weight.requires_grad_(False)
    return net


def converted() -> Any:
    return convert(mlp(), torch.rand(6, 4), method="data-norm")


def adaptive() -> Any:
    ann = nn.Sequential(BNAAN(4, dims=0), nn.Linear(4, 5), AAN(), nn.Linear(5, 2))
    return convert(ann.eval(), torch.rand(6, 4), method="adsnn")


def of_old_neurons() -> nn.Module:
    return mlp(lambda: ATIFuNode(0.5))


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], object]]] = {
    "optimize_precharge": (converted, lambda net, x: optimize_precharge(net, None, x, time_steps=3, candidates=3)),
    "lower_thresholds": (converted, lambda net, x: lower_thresholds(net, 0.5)),
    "set_precision": (adaptive, lambda net, x: set_precision(net, 0.3)),
    "replace_neurons": (of_old_neurons, lambda net, x: replace_neurons(net, lambda old: ATIFuNode(v_init=0.5))),
    "step mode": (converted, lambda net, x: functional.set_step_mode(net, "m")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_net_is_wholly_changed_or_not_at_all(name: str) -> None:
    make, change = CHANGES[name]
    x, net, created = torch.rand(6, 4), make(), make()
    random = torch.get_rng_state()
    lines = interrupted(lambda: change(created, x), 0)
    unfinished = 0
    for line in points(lines, 20):
        before = everything(net)
        twin = copy.deepcopy(net)
        change(twin, x)
        interrupted(functools.partial(change, net, x), line)
        after = everything(net)
        unfinished += after == before
        if after != before:
            assert after[1:] == everything(twin)[1:] and names(after) == names(everything(twin)), f"line {line}"
            net = make() if name in ("replace_neurons", "step mode") else net
        torch.set_rng_state(random)
    assert unfinished > 5


def names(state: tuple[Any, ...]) -> list[Any]:
    return [(name, *flags) for name, _, *flags in state[0]]


READS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], object]]] = {
    "data-norm": (mlp, lambda net, x: convert(net, x, method="data-norm", precharge="optimize", time_steps=3)),
    "percentile": (mlp, lambda net, x: convert(net, x, method="data-norm", percentile=90.0, fold_scales=False)),
    "spike-norm": (mlp, lambda net, x: convert(net, x, method="spike-norm", time_steps=3, channel_wise=True)),
    "phased": (mlp, lambda net, x: convert(net, x, method="data-norm", schedule="phased", time_steps=2)),
    "adsnn": (mlp, lambda net, x: convert(net, x, method="adsnn", spike_height="adaptive")),
    "fold_scales": (lambda: mlp(lambda: ATIFuNode(0.5, scale_output=True)), lambda net, x: fold_scales(net)),
    "optimize_precharge": (
        mlp, lambda net, x: optimize_precharge(convert(net, x, method="data-norm"), net, x, time_steps=3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", READS)
def test_the_net_that_a_conversion_reads_stays_as_it_is(name: str, training: bool) -> None:
    make, read = READS[name]
    net, x = make().train(training), torch.rand(6, 4)
    lines = interrupted(lambda: read(net, x), 0)  # operators are built and tested once, and not in the middle of this
    before, random, call = everything(net), torch.get_rng_state(), nn.Module.__call__
    for line in points(lines, 12)[:: 1 if lines < 400 else 4]:
        interrupted(lambda: read(net, x), line)
        assert everything(net) == before, f"line {line}"
        assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
        assert nn.Module.__call__ is call and torch.get_default_dtype() == torch.float32
