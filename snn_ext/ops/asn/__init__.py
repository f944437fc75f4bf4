"""``adaptive_spiking`` and ``postsynaptic_potential``: one operator, and its implementations, registered here."""

from ..machine.cpu import CpuImplementation
from ..machine.cuda_loaders import CupyLoader, DriverLoader
from ..registry import register
from .cases import AGREEMENT
from .cuda import CudaImplementation
from .operator import OP, adaptive_spiking, postsynaptic_potential
from .torch import TorchImplementation

__all__ = ["adaptive_spiking", "postsynaptic_potential"]

for loader in (CupyLoader(), DriverLoader()):
    register(OP.name, CudaImplementation(__name__, AGREEMENT, loader))
register(OP.name, CpuImplementation(__name__, AGREEMENT))
register(OP.name, TorchImplementation())
