"""Every test of the operators runs on poisoned memory; the CUDA kernels are there without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ops.asn.cases import Case as AsnCase
from tests.ops.emulation import Emulator, comparison_kernels, recorded
from tests.ops.integrate_and_fire.cases import Case


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
    return Emulator(recorded("integrate_and_fire", Case.run_all) + comparison_kernels("integrate_and_fire"))


@pytest.fixture(scope="session")
def asn_emulator() -> Emulator:
    """Return the same for the adaptive neuron."""
    return Emulator(recorded("adaptive_spiking", AsnCase.run_all) + comparison_kernels("adaptive_spiking"))
