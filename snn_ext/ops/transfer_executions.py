"""The executions of ``asn_transfer``: plain C on the CPU, and torch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..functional.asn_transfer import Coefficients
from ..functional.integrate_and_fire import state_dtype
from .native_execution import DTYPES, NativeLibrary, threads_for, types

__all__ = ["TransferNativeExecution", "TransferTorchExecution", "agrees_with_torch"]


class TransferNativeExecution(NativeLibrary):
    """``transfer_cpu.c``: one pass, with a polynomial for coth."""

    source = "transfer_cpu.c"
    functions: ClassVar[dict[str, tuple[list[Any], Any]]] = {
        "transfer_forward": (types("pp li ffffff i"), None),
        "transfer_backward": (types("ppp li ffffff i"), None),
    }

    def forward(self, s: Tensor, c: Coefficients, cut: float, f: Tensor) -> None:
        """Fill f, of the memory order of s."""
        arrays = (s.data_ptr(), f.data_ptr())
        self._library.transfer_forward(*arrays, s.numel(), DTYPES[s.dtype], *c, cut, threads_for(s))

    def backward(self, grad_f: Tensor, s: Tensor, c: Coefficients, cut: float, grad_s: Tensor) -> None:
        """Fill the gradient of s; all are of its memory order."""
        arrays = (grad_f.data_ptr(), s.data_ptr(), grad_s.data_ptr())
        self._library.transfer_backward(*arrays, s.numel(), DTYPES[s.dtype], *c, cut, threads_for(s))

    def _passes_self_test(self) -> bool:
        return agrees_with_torch(self, torch.device("cpu"))


def agrees_with_torch(execution: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Compare one case with torch, forward and backward: a compiler may be broken in more ways than refusing."""
    row = torch.linspace(-0.5, 6.0, 40, dtype=torch.float32, device="cpu").to(dtype)
    c = Coefficients(0.03, 0.01, 0.02, 0.06, 0.01)
    found: list[Tensor] = []
    for one, place in ((execution, device), (TransferTorchExecution(), torch.device("cpu"))):
        for s in (row.to(place), row[:37].to(place)):  # of every width, and of one
            f, grad_s = torch.empty_like(s), torch.empty_like(s)
            one.forward(s, c, 0.0, f)
            one.backward(s, s, c, 0.0, grad_s)
            found += [f.cpu(), grad_s.cpu()]
    rough = 1e-4 if dtype == torch.float32 else 2e-2
    return all(torch.allclose(a, b, rtol=rough, atol=rough / 10) for a, b in zip(found[:4], found[4:], strict=True))


class TransferTorchExecution:
    """A few in-place torch operations."""

    name = "torch"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return None: it always runs."""
        return None

    def forward(self, s: Tensor, c: Coefficients, cut: float, f: Tensor) -> None:
        """Fill f, of the memory order of s."""
        coth, _ = _coth(s, c)
        f.copy_(coth.mul_(c.half_height).add_(c.offset).clamp_min_(0.0).masked_fill_(_wide(s) <= cut, 0.0))

    def backward(self, grad_f: Tensor, s: Tensor, c: Coefficients, cut: float, grad_s: Tensor) -> None:
        """Fill the gradient of s: f' = half_height (coth^2 - 1) w^2 / (2 a) with w = a / (s + b)."""
        coth, w = _coth(s, c)
        zero = (_wide(s) <= cut) | (coth * c.half_height + c.offset < 0.0)
        slope = coth.square_().sub_(1.0).mul_(w.square_()).mul_(0.5 * c.half_height / c.a)
        grad_s.copy_(slope.masked_fill_(zero, 0.0).mul_(grad_f))


def _wide(s: Tensor) -> Tensor:
    return s.to(state_dtype(s.dtype))


def _coth(s: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """Return coth((r + w) / 2) and w = a / (s + b) in the dtype of the state."""
    w = _wide(s).clamp_min(0.0).add_(c.b).reciprocal_().mul_(c.a)
    return (w + c.r).mul_(0.5).tanh_().reciprocal_(), w
