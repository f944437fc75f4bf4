"""``asn_transfer``: the operator, and its implementations, which are registered here."""

from ..machine.cpu import CpuImplementation
from ..machine.cuda import CudaMachine
from ..machine.cuda_loaders import CupyLoader, DriverLoader
from ..registry import register
from .cases import AGREEMENT
from .operator import OP, asn_transfer
from .torch import TorchImplementation

__all__ = ["asn_transfer"]

for loader in (CupyLoader(), DriverLoader()):
    register(OP.name, CudaMachine(__name__, AGREEMENT, loader))
register(OP.name, CpuImplementation(__name__, AGREEMENT))
register(OP.name, TorchImplementation())
