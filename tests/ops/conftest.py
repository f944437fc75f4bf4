"""Every test of the operators runs on poisoned memory; the CUDA kernels are there without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ops.checks import run_all
from tests.ops.emulation import Emulator, recorded, self_test_kernels


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` and its kin return with NaN: an element that nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    """Return the CUDA source on the CPU, with every variant compiled that ``check_all`` needs."""
    return Emulator(recorded(None, run_all) + self_test_kernels())
