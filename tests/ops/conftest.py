"""Every test of the operators runs on poisoned memory; the CUDA kernels are there without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from snn_ext.ops.adaptive_cuda import AdaptiveCudaExecution
from tests.ops import adaptive_checks, checks
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
    return Emulator(recorded(None, checks.run_all) + self_test_kernels())


@pytest.fixture(scope="session")
def adaptive_emulator() -> Emulator:
    """Return the same for the adaptive neuron."""
    kernels = AdaptiveCudaExecution
    return Emulator(recorded(None, adaptive_checks.run_all, kernels) + self_test_kernels(kernels))
