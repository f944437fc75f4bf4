"""Shared set-up of the tests of the recipes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Run in one thread: the nets are tiny, and threads that wait for each other can take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
