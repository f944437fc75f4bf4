"""``adaptive_spiking`` on NVIDIA GPUs: how neurons are spread over threads."""

from __future__ import annotations

from ..machine.cuda import CudaMachine
from ..sequence import SEGMENT

__all__ = ["CudaImplementation"]


class CudaImplementation(CudaMachine):
    """``cuda.cu``: all gradients are of full size, nothing is added up between neurons."""

    def widest(self, backward: bool, time_steps: int, element_size: int) -> int:
        """Return how many neurons a thread takes at most; backward keeps potential and threshold in registers."""
        most = 16 // element_size
        if backward:
            return min(most, 4 if time_steps <= 4 else 2)
        return most if time_steps <= SEGMENT else min(most, 4)
