"""Conversions at the same time, of the same net and of others, beside threads that run modules."""

from __future__ import annotations

import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

pytest.importorskip("spikingjelly")

from snn_ext import AAN, BNAAN, convert  # noqa: E402
from snn_ext.conversion import ConvertedNet  # noqa: E402
from snn_ext.hosts import LeafTracer  # noqa: E402
from tests.conversion.nets import ResNet, images, loop, trained, vgg  # noqa: E402
from tests.reference import assert_unchanged, snapshot  # noqa: E402


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Let threads take turns often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def global_state() -> tuple[Any, ...]:
    module = nn.Module.__call__, nn.Module.__getattr__, torch.reshape
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled()
    randomness = torch.get_rng_state().tolist(), random.getstate()
    tracing = fx._symbolic_trace.is_fx_symbolic_tracing()
    return module, modes, torch.get_default_dtype(), list(warnings.filters), randomness, tracing


def adaptive() -> nn.Module:
    return nn.Sequential(BNAAN(2), nn.Conv2d(2, 3, 3), AAN(), nn.Flatten(), nn.Linear(3 * 36, 4))


JOBS: list[tuple[Callable[[], nn.Module], dict[str, Any]]] = [
    (ResNet, {"method": "data-norm", "precharge": "optimize", "time_steps": 4}),
    (vgg, {"time_steps": 4, "progress": False}),
    (adaptive, {"method": "adsnn", "m_f": 0.3}),
    (lambda: vgg(pool=lambda: nn.MaxPool2d(2)), {"method": "data-norm", "percentile": 99.0}),
]


@pytest.mark.parametrize("same", [True, False], ids=["one net", "four nets"])
def test_conversions_at_the_same_time_are_those_one_after_the_other(same: bool) -> None:
    x = images(3)
    jobs = [JOBS[0]] * 4 if same else JOBS
    shared = trained(ResNet())
    anns = [shared if same else trained(make()) for make, _ in jobs]
    before, start = [snapshot(ann) for ann in anns], threading.Barrier(4)

    def work(k: int) -> ConvertedNet:
        start.wait()
        return convert(anns[k], x, **jobs[k][1])

    wanted = [convert(ann, x, **options) for ann, (_, options) in zip(anns, jobs, strict=True)]
    state = global_state()  # what is imported on the way has set its filters of warnings by now
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for snn, other in zip(pool.map(work, range(4)), wanted, strict=True):
                assert snn.report == other.report and snn.code == other.code
                assert torch.equal(loop(snn, x, 4), loop(other, x, 4))
    assert global_state() == state
    for ann, unchanged in zip(anns, before, strict=True):
        assert_unchanged(ann, unchanged)


class Slow(nn.Module):
    """Gives other threads time in the middle of its forward pass."""

    def __init__(self, turn: Callable[[], None]) -> None:
        super().__init__()
        self.layer, self.weight, self.turn = nn.Linear(2, 2), nn.Parameter(torch.ones(2)), turn

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        self.turn()
        return self.layer(x) * self.weight


def test_a_thread_that_traces_does_not_see_the_modules_of_others() -> None:
    other, x, found = Slow(lambda: None), torch.rand(3, 2), list[Tensor]()
    with torch.no_grad():
        wanted = other(x)

    def turn() -> None:
        thread = threading.Thread(target=lambda: found.append(other(x)))
        thread.start()
        thread.join()

    names = [node.name for node in LeafTracer().trace(Slow(turn)).nodes]
    assert names == [node.name for node in LeafTracer().trace(Slow(lambda: None)).nodes]
    assert torch.equal(found[0], wanted)


def test_one_thread_traces_at_a_time() -> None:
    """One that begins in the middle of another and ends after it takes the patches off in the wrong order."""
    begun, ended = threading.Event(), threading.Event()

    def turn_of_first() -> None:
        thread.start()
        begun.wait(0.2)

    def turn_of_second() -> None:
        begun.set()
        ended.wait(5.0)

    first, second = Slow(turn_of_first), Slow(turn_of_second)
    thread = threading.Thread(target=lambda: LeafTracer().trace(second))
    state = global_state()
    LeafTracer().trace(first)
    ended.set()
    thread.join()
    assert global_state() == state
