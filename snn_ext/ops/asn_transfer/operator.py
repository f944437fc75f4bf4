"""``asn_transfer`` as a torch operator: its declaration and the public function."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import functional
from ..._errors import check_real
from ...functional.asn_transfer import (
    Constant,
    check_signal,
    check_transfer_constants,
    is_exact,
    transfer_coefficients,
)
from ..registry import check_definition_may_run, why_definition
from ..sequence import Sequence, SequenceOp

__all__ = ["OP", "Inputs", "Outputs", "Settings", "agreement_case", "asn_transfer"]


class Inputs(NamedTuple):
    """The signal S."""

    s: Sequence


class Outputs(NamedTuple):
    """f(S)."""

    f: Sequence


class Settings(NamedTuple):
    """``Coefficients``, and the signal up to which f is 0."""

    r: float
    a: float
    b: float
    half_height: float
    offset: float
    cut: float


OP = SequenceOp("asn_transfer", Inputs, Outputs, Settings, timeless=True, exact=False)


def asn_transfer(
    s: Tensor,
    m_f: Constant = 0.1,
    theta_0: Constant | None = None,
    *,
    tau_gamma: Constant = 15.0,
    tau_eta: Constant = 50.0,
    tau_beta: Constant = 50.0,
    exact: bool | None = None,
    cut: float = 0.0,
) -> Tensor:
    """Compute :func:`snn_ext.functional.asn_transfer` in one pass, by the selected implementation.

    Parameters, results and errors are those of the definition, to a few roundings; for the backward pass ``s`` alone is
    kept. Constants that are tensors, the exact equilibrium, forward-mode derivatives and what ``torch.func`` transforms
    are run by the definition itself; a forced implementation that cannot run raises a ``RuntimeError``. There is no
    second derivative.

    Examples
    --------
    >>> import torch
    >>> asn_transfer(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]))
    tensor([0.0000, 0.0000, 0.5636, 1.0000, 1.6278])
    """
    check_signal(s)
    cut = check_real("cut", cut, "a finite number >= 0", 0.0)
    c = check_transfer_constants(s, m_f, theta_0, tau_gamma, tau_eta, tau_beta)
    reason = why_definition(None, s)
    if any(isinstance(constant, Tensor) for constant in c):
        reason = "a constant is a tensor, which only the definition takes"
    elif is_exact(c, exact):
        reason = "the exact equilibrium is found by iteration, which only the definition does"
    if reason is not None:
        check_definition_may_run(OP.name, reason)
        return functional.asn_transfer(
            s, m_f, theta_0, tau_gamma=tau_gamma, tau_eta=tau_eta, tau_beta=tau_beta, exact=exact, cut=cut
        )
    return OP(Inputs(s), Settings(*transfer_coefficients(c), cut))[0]


def agreement_case(grid: Tensor, dtype: torch.dtype) -> tuple[Inputs, Settings]:
    """Return the case on which compiled code has to agree with torch before it is used."""
    return Inputs(grid.mul(0.17).remainder(6.5).sub(0.5).to(dtype)), Settings(0.03, 0.01, 0.02, 0.06, 0.01, 0.0)
