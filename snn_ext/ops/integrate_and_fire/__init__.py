"""``integrate_and_fire``: the operator, and its implementations, which are registered here."""

from ..machine.folder import register_operator
from .cuda import CudaImplementation
from .operator import OP, agreement_case, integrate_and_fire
from .torch import TorchImplementation

__all__ = ["integrate_and_fire"]

register_operator(__name__, OP, TorchImplementation(), agreement_case, CudaImplementation)
