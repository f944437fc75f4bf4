"""Shared set-up of the test suite."""

from __future__ import annotations

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
# Small tensors: one thread is faster than waking another, and a busy neighbour cannot slow it down.
torch.set_num_threads(1)


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
