"""``adaptive_spiking`` and ``postsynaptic_potential``: one operator, and its implementations, registered here."""

from ..machine.folder import register_operator
from .cuda import CudaImplementation
from .operator import OP, adaptive_spiking, agreement_case, postsynaptic_potential
from .torch import TorchImplementation

__all__ = ["adaptive_spiking", "postsynaptic_potential"]

register_operator(__name__, OP, TorchImplementation(), agreement_case, CudaImplementation)
