"""``integrate_and_fire``: the operator, and its implementations, which are registered here."""

from ..machine.cpu import CpuImplementation
from ..machine.cuda_loaders import CupyLoader, DriverLoader
from ..registry import register
from .cases import AGREEMENT
from .cuda import CudaImplementation
from .operator import OP, integrate_and_fire
from .torch import TorchImplementation

__all__ = ["integrate_and_fire"]

for loader in (CupyLoader(), DriverLoader()):
    register(OP.name, CudaImplementation(__name__, AGREEMENT, loader))
register(OP.name, CpuImplementation(__name__, AGREEMENT))
register(OP.name, TorchImplementation())
