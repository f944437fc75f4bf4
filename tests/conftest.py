"""Shared set-up of the test suite."""

from __future__ import annotations

import signal

import matplotlib
import pytest
import torch

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
