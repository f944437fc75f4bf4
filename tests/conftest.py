"""Shared set-up of the test suite."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

matplotlib.use("Agg")
# Small tensors: one thread is faster than waking another, and a busy neighbour cannot slow it down.
torch.set_num_threads(1)
# A shell ignores Ctrl-C for jobs in the background, and the commands that the tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, alone or in company."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def draft_figures() -> Iterator[None]:
    """Draw the figures of the studies small and without a layout, which takes longer than a study on a few images."""
    save = Figure.savefig

    def savefig(figure: Figure, file: Any, **options: Any) -> None:
        if "dpi" in options:  # from save_figure; the tests of the plots name none, and have their layout
            figure.set_layout_engine("none")
            options["dpi"] = 30
        save(figure, file, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture(scope="session")
def one_registry() -> Iterator[None]:
    """Let torch's exporter to ONNX read its table of operators once, and not for every file."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(registration.ONNXRegistry.from_torchlib)
        patch.setattr(registration.ONNXRegistry, "from_torchlib", staticmethod(once))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
