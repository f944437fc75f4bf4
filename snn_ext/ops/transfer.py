"""``asn_transfer`` as a torch operator: its public face, and the operators behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import functional
from .._errors import check_real
from ..functional.asn_transfer import (
    Coefficients,
    Constant,
    check_signal,
    check_transfer_constants,
    is_exact,
    transfer_coefficients,
)
from .layout import as_step_of, dense, savable
from .selection import check_definition_may_run, select, why_transformed

__all__ = ["asn_transfer"]


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
    are run by the definition itself; a forced implementation that can not run raises a ``RuntimeError``. There is no
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
    reason = why_transformed(s)
    if any(isinstance(constant, Tensor) for constant in c):
        reason = "a constant is a tensor, which only the definition takes"
    elif is_exact(c, exact):
        reason = "the exact equilibrium is found by iteration, which only the definition does"
    if reason is not None:
        check_definition_may_run("asn_transfer", reason)
        return functional.asn_transfer(
            s, m_f, theta_0, tau_gamma=tau_gamma, tau_eta=tau_eta, tau_beta=tau_beta, exact=exact, cut=cut
        )
    return torch.ops.snn_ext.asn_transfer.default(s, *transfer_coefficients(c), cut)


# -- the operators -----------------------------------------------------------------------------------------------------

_SETTINGS = "float r, float a, float b, float half_height, float offset, float cut"

library = torch.library.Library("snn_ext", "FRAGMENT")
library.define(f"asn_transfer(Tensor s, {_SETTINGS}) -> Tensor")
library.define(f"asn_transfer_backward(Tensor grad_f, Tensor s, {_SETTINGS}) -> Tensor")


def _forward(s: Tensor, *settings: float) -> Tensor:
    s = _dense(s)
    f = _fake_forward(s, *settings)
    if s.numel():
        select("asn_transfer", s.device, s.dtype).forward(s, Coefficients(*settings[:-1]), settings[-1], f)
    return f


def _backward(grad_f: Tensor, s: Tensor, *settings: float) -> Tensor:
    s = _dense(s)
    grad_s = _fake_forward(s, *settings)
    if s.numel():
        grad_f = as_step_of(s.unsqueeze(0), grad_f)
        select("asn_transfer", s.device, s.dtype).backward(
            grad_f, s, Coefficients(*settings[:-1]), settings[-1], grad_s
        )
    return grad_s


def _dense(s: Tensor) -> Tensor:
    return dense(s.unsqueeze(0))[0]


def _fake_forward(s: Tensor, *settings: float) -> Tensor:
    s = _dense(s)
    return torch.empty_strided(s.shape, s.stride(), dtype=s.dtype, device=s.device)


def _fake_backward(grad_f: Tensor, s: Tensor, *settings: float) -> Tensor:
    return _fake_forward(s)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    s, *ctx.settings = inputs
    ctx.save_for_backward(savable(s))


def _differentiate(ctx: Any, grad_f: Tensor) -> tuple[Tensor | None, ...]:
    grad_s = torch.ops.snn_ext.asn_transfer_backward.default(grad_f, *ctx.saved_tensors, *ctx.settings)
    return grad_s, *(None,) * len(ctx.settings)


def _refuse_second_derivative(ctx: Any, *gradients: Tensor | None) -> None:
    raise RuntimeError(
        "asn_transfer: a second backward was asked for, through the gradient itself, want only the first: the fused "
        "operator has no second derivative; use snn_ext.functional.asn_transfer"
    )


library.impl("asn_transfer", _forward, "CompositeExplicitAutograd")
library.impl("asn_transfer_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("snn_ext::asn_transfer", _fake_forward, lib=library)
torch.library.register_fake("snn_ext::asn_transfer_backward", _fake_backward, lib=library)
torch.library.register_autograd("snn_ext::asn_transfer", _differentiate, setup_context=_keep_for_backward, lib=library)
torch.library.register_autograd("snn_ext::asn_transfer_backward", _refuse_second_derivative, lib=library)
