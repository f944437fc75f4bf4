"""``asn_transfer``: the operator, and its implementations, which are registered here."""

from ..machine.folder import register_operator
from .operator import OP, agreement_case, asn_transfer
from .torch import TorchImplementation

__all__ = ["asn_transfer"]

register_operator(__name__, OP, TorchImplementation(), agreement_case)
